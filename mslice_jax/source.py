"""The user's line behind an equation, for reports and errors."""

import os
import sysconfig
from typing import Any

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
# Installed packages are somebody else's code: the line that matters calls into them.
_INSTALLED = tuple(
    os.path.abspath(sysconfig.get_path(key)) + os.sep
    for key in ("purelib", "platlib", "stdlib")
)
_ZOO = os.path.join(_PACKAGE, "models") + os.sep


def user_line(source_info: Any) -> str:
    """Where the equation was written, as 'net.py:12 (Net.__call__)'.

    The innermost frame outside of installed packages and of this library; the zoo of
    `mslice_jax.models` counts as a user. Returns '' where nothing is known.
    """
    traceback = getattr(source_info, "traceback", None)
    frames = getattr(traceback, "frames", None) or ()
    for frame in frames:
        path = os.path.abspath(frame.file_name)
        inside = path.startswith((_PACKAGE, *_INSTALLED)) or frame.file_name[:1] == "<"
        if path.startswith(_ZOO) or not inside:
            name = os.path.basename(path)
            return f"{name}:{frame.line_num} ({frame.function_name})"
    return ""
