"""Serve a network whose width follows the load.

Names are imported when they are asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .executor import Executor as Executor
    from .executor import Timing as Timing
    from .requests import InvalidRequest as InvalidRequest
    from .requests import Request as Request
    from .signature import Lengths as Lengths
    from .signature import Tensor as Tensor

_WHERE = {
    "Executor": "executor",
    "InvalidRequest": "requests",
    "Lengths": "signature",
    "Request": "requests",
    "Tensor": "signature",
    "Timing": "executor",
}

__all__ = ["Executor", "InvalidRequest", "Lengths", "Request", "Tensor", "Timing"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        module = importlib.import_module(f".{_WHERE[name]}", __name__)
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
