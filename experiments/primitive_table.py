"""Writes docs/primitives.md: every primitive that the library knows, from the code.

Command: python -m experiments.primitive_table
Time: a second. Result: the table, the same on every machine and version of JAX.
"""

import pathlib

from mslice_jax.rules import FIXED, RULES, Rule

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "primitives.md"

_KERNEL = "stands in a Pallas kernel, which is fixed as a whole"
_REF = "comes of taking apart what a mutable array does; see get and swap"
_OBJECT = "handles values that are no arrays"
_LINEAR = "is made and used up while a derivative is taken"

# Of the primitives of JAX, those that no trace of a network holds.
ELSEWHERE: dict[str, str] = {
    "box_get": _OBJECT,
    "box_set": _OBJECT,
    "broadcast_to": _REF,
    "call_hi_primitive": _OBJECT,
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
product of factors (reshape), `a + b` lies side by side (concatenate). A primitive that
is not on this page, of another package, keeps all of its axes, and the report says so.
"""


def page() -> str:
    """The page, as text."""
    narrow = {name: rule for name, rule in RULES.items() if name not in FIXED}
    return "\n".join(
        [
            HEAD,
            f"## With a rule ({len(narrow)})\n",
            *_table(
                ("Primitive", "Rules in", "How its axes map"),
                [(f"`{n}`", f"`{_file(r)}`", r.picture) for n, r in narrow.items()],
            ),
            f"## Fixed, for a reason of its own ({len(FIXED)})\n",
            "All axes of these keep their sizes; the network around them narrows.\n",
            *_table(
                ("Primitive", "Why"), [(f"`{n}`", text) for n, text in FIXED.items()]
            ),
            f"## In no trace of a network ({len(ELSEWHERE)})\n",
            *_table(
                ("Primitive", "Why"),
                [(f"`{n}`", text) for n, text in ELSEWHERE.items()],
            ),
        ]
    )


def _file(rule: Rule) -> str:
    return rule.tie.__module__.rpartition(".")[2] + ".py"


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [heads, ("---",) * len(heads), *sorted(rows)]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE}: {len(RULES)} primitives")


if __name__ == "__main__":
    main()
