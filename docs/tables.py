"""Directives for tables that are made of files: what was measured, and the flags.

    ```{result} schemes
    ```

is the table of `results/schemes.json`, and beneath it the date, the device and the
command. Such a file is what a benchmark writes with `--out`, or it keeps a table of
`experiments/LOG.md` (a test compares the two)::

    {
      "date": "2026-11-22", "device": "two cores of ...", "software": "jax 0.10.2",
      "command": "python -m ...", "log": "the heading of the entry in the log",
      "columns": ["network", "r = 1"], "rows": [["ResNet-29", 1.03]]
    }

    ```{flags}
    ```

lists the flags of the recipes from `experiments/settings.py`.
"""

import ast
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE / "results"
SETTINGS = HERE.parent / "experiments" / "settings.py"


def read(name: str) -> dict[str, Any]:
    """A result, its rows as lists."""
    result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    if "columns" not in result:  # as benchmarks write rows, by column
        result["columns"] = list(result["rows"][0])
        result["rows"] = [list(row.values()) for row in result["rows"]]
    return result


def markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A table; columns of numbers are set to the right, with decimals alike."""
    down = [_column(column) for column in zip(*rows, strict=True)]
    rule = "|".join("---:" if numbers else "---" for _, numbers in down)
    cells = zip(*(column for column, _ in down), strict=True)
    lines = [" | ".join(row) for row in ([*columns], *cells)]
    return [f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])]


def result_lines(name: str) -> list[str]:
    """The table of a result, and where its numbers come from."""
    result = read(name)
    made = ", ".join(
        str(result[key]) for key in ("date", "device", "software") if key in result
    )
    lines = [*markdown(result["columns"], result["rows"]), ""]
    lines += [f"*{made}.* `{result['command']}`", ""]
    return lines


def flag_lines() -> list[str]:
    """Each flag of the recipes with its default and what it does."""
    tree = ast.parse(SETTINGS.read_text(encoding="utf-8"))
    settings = next(
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == "Settings"
    )
    rows = []
    for field, text in zip(settings.body, settings.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)):
            continue
        name = "--" + ast.unparse(field.target).replace("_", "-")
        default = "" if field.value is None else ast.unparse(field.value)
        default = "" if default == "None" else f"`{default}`"
        rows.append(
            [f"`{name}`", default, " ".join(ast.literal_eval(text.value).split())]
        )
    return markdown(["flag", "default", "what it does"], rows)


def _column(values: Sequence[Any]) -> tuple[list[str], bool]:
    """The cells of a column, and whether all of them are numbers."""
    if any(isinstance(value, str) for value in values):
        return [str(value).replace("|", "/") for value in values], False
    decimals = max(len(f"{value:g}".partition(".")[2]) for value in values)
    return [f"{value:,.{decimals}f}" for value in values], True


class Result(SphinxDirective):
    """The table of a file in `results/`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A table, and a line that says where it comes from."""
        (name,) = self.arguments
        self.env.note_dependency(str(RESULTS / f"{name}.json"))
        return _parsed(self, result_lines(name))


class Flags(SphinxDirective):
    """The flags of the recipes."""

    def run(self) -> list[nodes.Node]:
        """A table of flags."""
        self.env.note_dependency(str(SETTINGS))
        return _parsed(self, flag_lines())


def _parsed(directive: SphinxDirective, lines: list[str]) -> list[nodes.Node]:
    node = nodes.container(classes=["result"])
    directive.state.nested_parse(StringList(lines, source=__file__), 0, node)
    return [node]


def setup(app: Any) -> dict[str, bool]:
    """Registers the directives."""
    app.add_directive("result", Result)
    app.add_directive("flags", Flags)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
