"""The result file of a benchmark."""

import datetime
import json
import pathlib
import shlex
import sys
from typing import Any


def save(out: pathlib.Path | None, result: dict[str, Any]) -> None:
    """Writes the result as JSON, into a folder made if absent; None: nowhere.

    Date and command are added, unless it has them: the documentation shows them beneath
    the numbers (`docs/results`).
    """
    result.setdefault("date", datetime.date.today().isoformat())
    result.setdefault("command", command())
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n")


def command() -> str:
    """The command line of this program, without the path of the interpreter."""
    spec = sys.modules["__main__"].__spec__
    program = sys.argv[:1] if spec is None else ["-m", spec.name]
    return shlex.join(["python", *program, *sys.argv[1:]])
