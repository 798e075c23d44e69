"""Writes docs/primitives.md: every primitive that the library knows, from the code.

Command: python -m experiments.primitive_table
Time: a second. Result: the table, the same on every machine and version of JAX.
"""

import pathlib
import sys
from collections.abc import Mapping

from mslice_jax.core.rules import FIXED, RULES
from mslice_jax.core.rules import fixed as fixed_lib

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "primitives.md"

_KERNEL = "occurs in a Pallas kernel, which is fixed as a whole"
_REF = "comes of lowering mutable arrays; see get and swap"
_OBJECT = "handles values that are not arrays"
_LINEAR = "is made and used up while a derivative is taken"

# Primitives of JAX that occur in no trace of a network.
ELSEWHERE: dict[str, str] = {
    "box_get": _OBJECT,
    "box_set": _OBJECT,
    "broadcast_to": _REF,
    "call_hi_primitive_linearized": _OBJECT,
    "core_map": _KERNEL,
    "create_linear": _LINEAR,
    "custom_jvp_call_jaxpr": "a name that JAX keeps and no longer uses",
    "custom_lin": _LINEAR,
    "delay": _KERNEL,
    "dimension_size": "is made where a program of free sizes is exported",
    "log_extend": _OBJECT,
    "log_read": _OBJECT,
    "new_box": _OBJECT,
    "new_log": _OBJECT,
}

HEAD = """\
# Primitives

What the axes of every primitive do, and how they follow when the network narrows. Made
from the rules themselves by `python -m experiments.primitive_table`; a test holds that
this page is what the code gives, and that no primitive of `jax.lax` is missing.

In a picture, an axis has the same letter where it is the same axis; `a x b` is a
product of factors (reshape), `a + b` is a concatenation. A primitive that
is not on this page, of another package, keeps all of its axes, and the report says so.
"""


def page() -> str:
    """The page, as text."""
    families: dict[str, dict[str, list[str]]] = {}  # file, picture, primitives
    for name, rule in RULES.items():
        pictures = families.setdefault(rule.tie.__module__, {})
        pictures.setdefault(rule.picture.removeprefix("fixed: "), []).append(name)
    fixed = families.pop(fixed_lib.__name__)
    lines = [HEAD, f"## With a rule ({len(RULES) - len(FIXED)})\n"]
    for module, pictures in sorted(families.items()):
        idea = (sys.modules[module].__doc__ or "").splitlines()[0]
        lines.append(f"`{module.replace('.', '/')}.py`: {idea}\n")
        lines += _table("How the axes map", pictures)
    lines.append(f"## Fixed, for a reason of its own ({len(FIXED)})\n")
    lines.append("All axes of these are fixed; the network around them narrows.\n")
    lines += _table("Why", fixed)
    elsewhere: dict[str, list[str]] = {}
    for name, why in ELSEWHERE.items():
        elsewhere.setdefault(why, []).append(name)
    lines.append(f"## In no trace of a network ({len(ELSEWHERE)})\n")
    return "\n".join(lines + _table("Why", elsewhere))


def _table(head: str, rows: Mapping[str, list[str]]) -> list[str]:
    """A row for each text, with all primitives that share it."""
    lines = [f"| Primitives | {head} |", "| --- | --- |"]
    for text, names in sorted(rows.items(), key=lambda row: sorted(row[1])):
        lines.append(f"| {', '.join(f'`{n}`' for n in sorted(names))} | {text} |")
    return [*lines, ""]


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE}: {len(RULES)} primitives")


if __name__ == "__main__":
    main()
