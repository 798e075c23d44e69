"""The method: which axes narrow together, what they narrow to, and how a program runs.

It knows JAX, and neither a framework nor a platform. In the order of reading:

* `rates`, `patterns`: a size and a rate make a width; names of axes in words.
* `axes`, `solver`: the algebra of axes, and the equations between them.
* `rules`: for each primitive how it ties axes, and how it runs narrow.
* `growth`, `counts`: which numbers of a program stand for a width.
* `analysis`, `plan`: a program is read, and what narrows is decided.
* `program`, `run`, `evaluate`: calls are traced, and run at a rate.
"""
