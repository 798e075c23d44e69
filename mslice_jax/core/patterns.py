"""Patterns that name parameters, axes and width groups by their paths.

A pattern is a glob: ``*`` stands for anything, slashes too. It names an array or all
that is beneath a branch ("encoder", "*/attention/query/kernel"), and with a colon one
of its axes ("*/query/kernel:1"). A leading "params/" may be left out, as it is in the
names of width groups.
"""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

Patterns: TypeAlias = str | Sequence[str]


def as_patterns(patterns: Patterns | None, argument: str) -> tuple[str, ...]:
    """One pattern or several as a tuple.

    Raises:
      TypeError: for anything but strings.
    """
    if patterns is None:
        return ()
    found = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    if not all(isinstance(pattern, str) for pattern in found):
        raise TypeError(
            f"{argument} is a path pattern or a sequence of them, such as "
            f"'encoder/*' or '*/query/kernel:1'; got {patterns!r}."
        )
    return found


def matches(pattern: str, path: str, axis: int | None = None) -> bool:
    """Whether the pattern names the array at a path, or (given it) one of its axes.

    >>> matches("encoder", "params/encoder/Dense_0/kernel")
    True
    >>> matches("*/kernel:1", "params/encoder/Dense_0/kernel", axis=0)
    False
    """
    wanted, colon, number = pattern.rpartition(":")
    if not (colon and number.isdigit()):
        wanted = pattern
    elif axis is not None and int(number) != axis:
        return False
    short = path.removeprefix("params/")
    return any(
        fnmatchcase(name, wanted) or fnmatchcase(name, f"{wanted}/*")
        for name in (path, short)
    )


def names_group(pattern: str, name: str) -> bool:
    """Whether the pattern names a width group, such as 'encoder/Dense_0/kernel:1'.

    >>> names_group("encoder", "encoder/Dense_0/kernel:1"), names_group("*:1", "w:0")
    (True, False)
    """
    path, _, axis = name.rpartition(":")
    number = int(axis.partition(".")[0])  # 'w:1.2' is another part of the axis 'w:1'
    return fnmatchcase(name, pattern) or matches(pattern, path, number)


def no_match(pattern: str, names: Iterable[str], argument: str) -> str:
    """What to say of a pattern that matches nothing: the names that come close."""
    candidates: dict[str, None] = {}
    for name in names:
        parts = name.removeprefix("params/").split("/")
        for end in range(len(parts), 0, -1):
            candidates.setdefault("/".join(parts[:end]))
    close = difflib.get_close_matches(pattern, list(candidates), n=4, cutoff=0.3)
    shown = ", ".join(map(repr, close or list(candidates)[:4]))
    return (
        f"{argument}: the pattern {pattern!r} matches nothing in this network. Close "
        f"matches: {shown}."
    )
