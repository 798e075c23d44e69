"""The user's line that an equation came from, for reports and errors."""

import os
import sysconfig
from collections.abc import Sequence
from typing import Any

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
# The zoo counts as a user's network.
_ZOO = os.path.join(_PACKAGE, "models") + os.sep
# Installed packages are somebody else's code: the line that matters calls into them.
_INSTALLED = tuple(
    f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages")
)
_STANDARD = tuple(
    os.path.abspath(sysconfig.get_path(key)) + os.sep
    for key in ("stdlib", "platstdlib")
)
# Of installed packages these give layers and primitives, others give networks.
_LAYERS = tuple(
    f"{os.sep}{name}{os.sep}"
    for name in ("jax", "flax", "haiku", "equinox", "keras", "numpy", "jaxtyping")
)

# JAX traces a function under jit once and keeps the equations, with the lines of
# whoever called it first. Frames beyond these files are such a caller's.
_TRACED_ONCE = ("pjit.py", "custom_derivatives.py", "ad_checkpoint.py", "loops.py")


def user_line(infos: Sequence[Any]) -> str:
    """Where an equation was written, as 'net.py:12 (Net.__call__)'.

    Args:
      infos: the source of the equation and of the calls that it is in, innermost
        first.

    Returns:
      The innermost frame outside of installed packages and of this library; of a
      network that is installed itself, the innermost frame outside of the packages that
      it is built with; '' where nothing is known.
    """
    network = ""
    for position, info in enumerate(infos):
        outermost = position == len(infos) - 1
        traceback = getattr(info, "traceback", None)
        for frame in getattr(traceback, "frames", None) or ():
            path = os.path.abspath(frame.file_name)
            line = f"{os.path.basename(path)}:{frame.line_num} ({frame.function_name})"
            if _is_users(path, frame.file_name):
                return line
            if not network and _is_network(path, frame.file_name):
                network = line
            if os.path.basename(path) in _TRACED_ONCE and not outermost:
                break
    return network


def _is_users(path: str, given: str) -> bool:
    if path.startswith(_ZOO):
        return True
    return _is_file(path, given) and not any(part in path for part in _INSTALLED)


def _is_network(path: str, given: str) -> bool:
    return _is_file(path, given) and not any(part in path for part in _LAYERS)


def _is_file(path: str, given: str) -> bool:
    """A file that is neither of this library nor of Python's own."""
    installed = any(part in path for part in _INSTALLED)
    standard = not installed and path.startswith(_STANDARD)
    return not (given[:1] == "<" or path.startswith(_PACKAGE) or standard)
