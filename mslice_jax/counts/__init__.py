"""Numbers that stand for the size of an axis, and follow it when it narrows."""

from ..growth import Follow as Follow
from ..growth import Known as Known
from ..growth import Use as Use
from ..growth import narrows as narrows
from .flow import Counts as Counts
from .flow import Seen as Seen
from .flow import count as count
from .own import Different as Different
from .own import Incomparable as Incomparable
from .own import Own as Own
from .own import pair as pair
