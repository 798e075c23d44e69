"""A rate for each group of axes, under a budget.

`search` ties it together: the space of choices, what they cost, what they score, a
method that goes through them, and a file with which it goes on.
"""

from .choosing import search as search
from .result import Found as Found
from .result import Point as Point
from .result import Round as Round
