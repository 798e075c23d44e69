"""What was measured, a line of JSON for each run: who is interrupted goes on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Journal:
    """A file of finished runs.

    Args:
      path: of the file, made at the first run.
      about: what all runs have in common.

    Raises:
      ValueError: if the file is of runs that have something else in common.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path, self.found = path, {}
        about = json.loads(json.dumps(about, default=str))
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"about": about}) + "\n")
            return
        # The last line is torn where the process was killed.
        lines = path.read_text().split("\n")[:-1]
        before = json.loads(lines[0])["about"] if lines else about
        if changed := [key for key in about if before.get(key) != about[key]]:
            key = changed[0]
            raise ValueError(
                f"{path.parent} has runs with {key} {before.get(key)}, not "
                f"{about[key]}. Choose another --workdir, or remove it."
            )
        for line in lines[1:]:
            row = json.loads(line)
            self.found[row["key"]] = row
        path.write_text("".join(line + "\n" for line in lines))

    def get(self, key: str) -> dict[str, Any] | None:
        """The last run of that name."""
        return self.found.get(key)

    def add(self, key: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Keeps a run, at once."""
        self.found[key] = {"key": key, **row}
        with self.path.open("a") as file:
            file.write(json.dumps(self.found[key]) + "\n")
        return self.found[key]
