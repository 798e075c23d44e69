"""Model slicing for JAX: one set of weights, many widths."""

from .analysis import PlanError as PlanError
from .calibration import calibrate as calibrate
from .compilation import jit as jit
from .counts import NumberWarning as NumberWarning
from .importance import reorder as reorder
from .rates import RateError as RateError
from .report import Report as Report
from .report import report as report
from .sliceable import Sliceable as Sliceable
from .sliceable import extract as extract
from .sliceable import slice_apply as slice_apply
from .sliceable import upgrade as upgrade
