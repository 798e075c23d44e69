"""Tables made of files: what was measured, and the flags of the recipes.

A file in `results/` is what a benchmark writes with `--out`, or it keeps a table of
`experiments/LOG.md` (a test compares the two)::

    {
      "date": "2026-11-22", "device": "two cores of ...", "software": "jax 0.10.2",
      "command": "python -m ...", "log": "the heading of the entry in the log",
      "columns": ["network", "r = 1"], "rows": [["ResNet-29", 1.03]]
    }

The flags are those of the classes in `SETTINGS`. `directives.py` puts tables on pages.
"""

import ast
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE / "results"
EXPERIMENTS = HERE.parent / "experiments"
SETTINGS = {
    "Training": "settings.py",
    "ImageSettings": "settings.py",
    "Settings": "settings.py",
    "ImageNetSettings": "imagenet.py",
    "VitSettings": "vit_cifar.py",
    "SpeedSettings": "speedrun/settings.py",
    "TextSettings": "text.py",
}
"""Classes of flags, and their files in `experiments`."""


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
    return [
        *markdown(result["columns"], result["rows"]),
        "",
        f"*{made_on(result)}.* `{result['command']}`",
        "",
    ]


def made_on(result: Mapping[str, Any]) -> str:
    """Date, device and software, as a table or a benchmark tells them."""
    told = [result["date"], result["device"]]
    if "cores" in result:
        told.append(f"{result['cores']} CPU cores")
    told += [f"{name} {result[name]}" for name in ("jax", "torch") if name in result]
    if "software" in result:
        told.append(result["software"])
    return ", ".join(told)


def flag_lines(name: str) -> list[str]:
    """Each flag of a class of settings with its default and what it does."""
    file = EXPERIMENTS / SETTINGS[name]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    settings = next(
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == name
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
