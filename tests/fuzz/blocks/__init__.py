"""The blocks that random networks are made of.

A block adds lines that turn `x` into the next `x`. Ranks: 2 is a vector (b, c), 3 a
sequence (b, t, c), 4 an image (b, h, w, c).
"""

from tests.fuzz.blocks import arrangements as arrangements
from tests.fuzz.blocks import complex_numbers as complex_numbers
from tests.fuzz.blocks import entries as entries
from tests.fuzz.blocks import images as images
from tests.fuzz.blocks import layers as layers
from tests.fuzz.blocks import numbers as numbers
from tests.fuzz.blocks import order as order
from tests.fuzz.blocks import places as places
from tests.fuzz.blocks import sequences as sequences
