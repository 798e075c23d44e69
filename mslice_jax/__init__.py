"""Model slicing for JAX: one set of weights, many widths."""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from .adapters.norms import GroupNormError as GroupNormError
from .adapters.norms import NormWarning as NormWarning
from .calibrate import calibrate as calibrate
from .choose import choose_rate as choose_rate
from .core.counts import NumberWarning as NumberWarning
from .core.errors import PlanError as PlanError
from .core.errors import RateError as RateError
from .cpu.compilation import jit as jit
from .importance import importance as importance
from .reorder import reorder as reorder
from .report import Report as Report
from .report import report as report
from .search import search as search
from .sliceable import Sliceable as Sliceable
from .sliceable import extract as extract
from .sliceable import slice_apply as slice_apply
from .storage import Programs as Programs
from .storage import SaveWarning as SaveWarning
from .storage import StorageError as StorageError
from .storage import export as export
from .storage import load as load
from .storage import save as save
from .upgrade import upgrade as upgrade

if TYPE_CHECKING:
    from . import data as data
    from . import models as models
    from . import nn as nn
    from . import profile as profile
    from . import schedules as schedules
    from . import serve as serve
    from . import train as train

__version__ = importlib.metadata.version("mslice_jax")

# Imported when they are asked for: a program that only runs a network needs none.
_LATER = ("data", "models", "nn", "profile", "schedules", "serve", "train")

__all__ = [
    "GroupNormError",
    "NormWarning",
    "NumberWarning",
    "PlanError",
    "Programs",
    "RateError",
    "Report",
    "SaveWarning",
    "Sliceable",
    "StorageError",
    "__version__",
    "calibrate",
    "choose_rate",
    "data",
    "export",
    "extract",
    "importance",
    "jit",
    "load",
    "models",
    "nn",
    "profile",
    "reorder",
    "report",
    "save",
    "schedules",
    "search",
    "serve",
    "slice_apply",
    "train",
    "upgrade",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
