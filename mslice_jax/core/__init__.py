"""The method: which axes narrow together, what they narrow to, and how a program runs.

It knows JAX, and neither a framework nor a platform. In the order of reading:

* `rates`, `patterns`, `paths`: a size and a rate make a width; axes and leaves by name.
* `axes`, `solver`: axes as expressions, and the equations between them.
* `rules`: for each primitive how it ties axes, and how it runs narrow.
* `growth`, `counts`: which numbers of a program stand for a width.
* `reading`, `groups`, `analysis`: a program is read; axes that narrow together.
* `settings`, `plan`: what the user chose; what a rate keeps of every leaf.
* `call`, `tracing`, `agreement`, `definition`, `define`: calls and their programs.
* `forms`, `evaluate`, `run`, `checks`: a program runs at a rate.
"""
