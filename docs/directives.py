"""Directives that put the tables of `tables.py` on a page.

    ```{result} schemes
    ```

is the table of `results/schemes.json` with date, device and command, and

    ```{flags} Training
    ```

lists the flags of the recipes: those of a class in `tables.SETTINGS`.
"""

from typing import Any

import tables
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


class Result(SphinxDirective):
    """The table of a file in `results/`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A table, and a line that says where it comes from."""
        (name,) = self.arguments
        if not (tables.RESULTS / f"{name}.json").exists():
            raise self.error(f"docs/results has no {name}.json")
        self.env.note_dependency(str(tables.RESULTS / f"{name}.json"))
        return _parsed(self, tables.result_lines(name))


class Flags(SphinxDirective):
    """The flags of the recipes."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A table of flags."""
        (name,) = self.arguments
        self.env.note_dependency(str(tables.EXPERIMENTS / tables.SETTINGS[name]))
        return _parsed(self, tables.flag_lines(name))


def _parsed(directive: SphinxDirective, lines: list[str]) -> list[nodes.Node]:
    node = nodes.container(classes=["result"])
    directive.state.nested_parse(StringList(lines, source=__file__), 0, node)
    return [node]


def setup(app: Any) -> dict[str, bool]:
    """Registers the directives."""
    app.add_directive("result", Result)
    app.add_directive("flags", Flags)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
