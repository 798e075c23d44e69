"""Flags that are not understood, in one line."""

import contextlib
import io
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def one_line(read: Callable[[], T]) -> T:
    """What `read`, a call of tyro, returns; --help is shown, and ends the command.

    Raises:
      ValueError: for flags that tyro does not understand, with its reason.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return read()
    except SystemExit as exit:
        if not exit.code:
            raise
        raise ValueError(reason(said.getvalue())) from None


def reason(box: str) -> str:
    """The reason in a box of tyro's, without title, frame, and the advice below it.

    Example:
      >>> reason("╭─ Value error ─╮\n│ It is no  │\n│ number.   │\n╰───╯\n")
      'It is no number.'
    """
    words: list[str] = []
    for line in box.splitlines()[1:]:
        text = line.strip("│| ")
        if text.strip("─-╰╯+ "):
            words += text.split()
        elif words:  # a rule; on a screen of ASCII there is one below the title, too
            break
    return " ".join(words)
