"""Numbers that stand for the size of an axis, and follow it when it narrows."""

from ..growth import Follow as Follow
from ..growth import Known as Known
from ..growth import Use as Use
from ..growth import narrows as narrows
from . import calls as calls
from . import entries as entries
from . import sums as sums
from .decisions import Asked as Asked
from .decisions import Number as Number
from .decisions import NumberWarning as NumberWarning
from .decisions import decide as decide
from .decisions import describe as describe
from .decisions import held as held
from .decisions import lines as lines
from .decisions import merge as merge
from .decisions import unmatched as unmatched
from .decisions import warning as warning
from .flow import count as count
from .own import Different as Different
from .own import Incomparable as Incomparable
from .own import Own as Own
from .own import inputs_changed as inputs_changed
from .own import pair as pair
from .result import Counts as Counts
from .result import Place as Place
