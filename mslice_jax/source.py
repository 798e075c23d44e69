"""The user's line behind an equation, for reports and errors."""

import os
import sysconfig
from collections.abc import Sequence
from typing import Any

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
# Installed packages are somebody else's code: the line that matters calls into them.
_INSTALLED = tuple(
    os.path.abspath(sysconfig.get_path(key)) + os.sep
    for key in ("purelib", "platlib", "stdlib")
)
_ZOO = os.path.join(_PACKAGE, "models") + os.sep


# JAX traces a function under jit once and keeps the equations, with the lines of
# whoever called it first. Frames beyond these files are such a caller's.
_TRACED_ONCE = ("pjit.py", "custom_derivatives.py", "ad_checkpoint.py", "loops.py")


def user_line(infos: Sequence[Any]) -> str:
    """Where an equation was written, as 'net.py:12 (Net.__call__)'.

    Args:
      infos: the source of the equation and of the calls that it is in, innermost
        first.

    Returns:
      The innermost frame outside of installed packages and of this library ('' where
      nothing is known). The zoo of `mslice_jax.models` counts as a user.
    """
    for position, info in enumerate(infos):
        outermost = position == len(infos) - 1
        traceback = getattr(info, "traceback", None)
        for frame in getattr(traceback, "frames", None) or ():
            path = os.path.abspath(frame.file_name)
            name = os.path.basename(path)
            if _is_users(path, frame.file_name):
                return f"{name}:{frame.line_num} ({frame.function_name})"
            if name in _TRACED_ONCE and not outermost:
                break
    return ""


def _is_users(path: str, given: str) -> bool:
    if path.startswith(_ZOO):
        return True
    return not path.startswith((_PACKAGE, *_INSTALLED)) and given[:1] != "<"
