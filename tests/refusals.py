"""How a command refuses settings: one line, and nothing left behind."""

import pathlib
import re


def assert_refused(done, message: str, folder: pathlib.Path) -> None:
    """`done` is exit code, output and errors of a command in an empty folder."""
    code, screen, error = done
    assert code == 2
    assert re.search(message, error), error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert screen == ""
    assert list(folder.iterdir()) == []
