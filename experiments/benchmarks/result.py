"""What a benchmark leaves behind."""

import json
import pathlib
from typing import Any


def save(out: pathlib.Path | None, result: dict[str, Any]) -> None:
    """Writes the result as JSON, into a folder made if absent; None: nowhere."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n")
