"""Options of the command that are given in Python, and checked as the command does."""

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .options import POLICIES, address, header_word, name_of_model, options

_NOT_HERE = {"demo", "checkpoint", "write_table", "folder"}


def of_python(checkpoint: str | os.PathLike[str], settings: Mapping[str, Any]) -> Any:
    """The options of the command, with these in place of its defaults.

    Args:
      checkpoint: the file or folder.
      settings: options by their names in Python.

    Raises:
      TypeError: for a setting that there is not.
      ValueError: for a value that the command would refuse.
    """
    flags = options(["--checkpoint", str(Path(checkpoint).expanduser().absolute())])
    known = sorted(set(vars(flags)) - _NOT_HERE)
    if unknown := sorted(set(settings) - set(known)):
        raise TypeError(f"run has no settings {unknown}; there are {known}.")
    vars(flags).update(settings)
    _check(flags)
    for name in ("table", "accuracy"):
        if (value := getattr(flags, name)) is not None:
            setattr(flags, name, str(Path(value).expanduser().absolute()))
    if flags.margin_ms is None:
        flags.margin_ms = min(5.0, flags.slo_ms / 20)
    flags.folder = str(Path.cwd())
    flags.run_at = time.time()  # Ray replaces replicas whose arguments have changed
    return flags


def _check(flags: Any) -> None:
    """What argparse checks of the command, for values of Python."""
    for name in ("slo_ms", "memory_mb", "body_mb", "held_mb", "drain_s", "margin_ms"):
        value: Any = getattr(flags, name)
        least = 0 if name == "margin_ms" else 1e-9
        if value is None and name in ("memory_mb", "margin_ms"):
            continue
        if not _number(value, int | float, least, math.inf) or value == math.inf:
            said = "from 0" if name == "margin_ms" else "above 0"
            raise ValueError(f"{name}: expected a number {said}, got {value!r}.")
    for name, least, most in (
        ("queue", 1, math.inf),
        ("repeats", 1, math.inf),
        ("port", 1, 65535),
    ):
        value = getattr(flags, name)
        if not _number(value, int, least, most):
            said = f"from {least}" + (f" to {most}" if most < math.inf else "")
            raise ValueError(f"{name}: expected an integer {said}, got {value!r}.")
    if flags.policy not in POLICIES:
        raise ValueError(f"policy: expected one of {POLICIES}, got {flags.policy!r}.")
    for name, check, what in (
        ("name", name_of_model, "the name of a model, without /"),
        ("host", address, "an address"),
        ("token", header_word, "a word of ASCII"),
    ):
        value = getattr(flags, name)
        if name == "token" and value is None:
            continue
        try:
            check(value if isinstance(value, str) else "")
        except ValueError:
            raise ValueError(f"{name}: expected {what}, got {value!r}.") from None


def _number(value: Any, kind: Any, least: float, most: float) -> bool:
    is_one = isinstance(value, kind) and not isinstance(value, bool)
    return is_one and least <= value <= most
