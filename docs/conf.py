"""The documentation site: `sphinx-build -W docs site`, with the extra "docs".

Warnings are errors. Tables and pictures are made here, at every build: tables of what
was measured from `results/*.json`, the table of flags from the recipes' settings, and
pictures by `pictures.py`.
"""

import importlib.metadata
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
# The recipes, whose flags a page lists, and the modules beside this file.
sys.path[:0] = [str(HERE), str(HERE.parent)]

project = "mslice_jax"
author = "the authors of mslice_jax"
project_copyright = author
release = version = importlib.metadata.version("mslice_jax")
html_title = f"mslice_jax {release}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "directives",
]
exclude_patterns = ["results", "made/*.md"]
source_suffix = {".md": "markdown"}

html_theme = "furo"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3  # `training.md#batch-norms`, as on a plain Markdown page

# `name` in a docstring is a link where the name is known, and code where it is not.
default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 60
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True


_CODE = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
_STARS = re.compile(r"(?<![\\*])(\*{1,2})(?=[^\s*])")


def as_written(app, what, name, obj, options, lines):
    """Docstrings as people read them.

    `*inputs` is no emphasis, `name`s is a plural, `.name` belongs to what the sentence
    is about and not to every class that has a `name`, and what is before a colon in the
    first line of "Returns:" is no type, for which napoleon would take it.
    """
    parts = _CODE.split("\n".join(lines))  # text, code, text, ...
    for i in range(1, len(parts), 2):
        if parts[i].startswith("`."):
            parts[i] = f"`{parts[i]}`"
    for i in range(0, len(parts), 2):
        parts[i] = _STARS.sub(r"\\\1", parts[i])
        if i and parts[i][:1].isalnum():
            parts[i] = "\\ " + parts[i]
    text = "".join(parts)
    lines[:] = re.sub(r"^Returns:$", ":returns:", text, flags=re.M).split("\n")


def setup(app):
    """Makes the pictures before pages are read."""

    def make(_):
        import pictures

        pictures.make(HERE / "made")

    app.connect("builder-inited", make)
    # Before napoleon, whose own markup has stars.
    app.connect("autodoc-process-docstring", as_written, priority=400)
