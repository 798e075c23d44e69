"""Model slicing for JAX: one set of weights, many widths."""

from .calibrate import calibrate as calibrate
from .core.counts import NumberWarning as NumberWarning
from .core.errors import PlanError as PlanError
from .core.errors import RateError as RateError
from .cpu.compilation import jit as jit
from .reorder import reorder as reorder
from .report import Report as Report
from .report import report as report
from .sliceable import Sliceable as Sliceable
from .sliceable import extract as extract
from .sliceable import slice_apply as slice_apply
from .sliceable import upgrade as upgrade
