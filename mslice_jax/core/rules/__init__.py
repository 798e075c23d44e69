"""For each primitive: how it ties axes, and how it runs narrow. One family a file."""

from . import calls as calls
from . import contract as contract
from . import elementwise as elementwise
from . import equinox as equinox
from . import fixed as fixed
from . import indexing as indexing
from . import linalg as linalg
from . import loops as loops
from . import parallel as parallel
from . import random as random
from . import reduce as reduce
from . import shape as shape
from .base import NO_RULE as NO_RULE
from .base import NO_RULE_TEXT as NO_RULE_TEXT
from .base import RULES as RULES
from .base import Frame as Frame
from .base import Narrow as Narrow
from .base import Tie as Tie
from .base import Value as Value
from .fixed import FIXED as FIXED
