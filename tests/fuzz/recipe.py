"""What a random network is made from: numbers only, so a seed gives it again."""

import random
from typing import NamedTuple

from tests.fuzz.builder import Network
from tests.fuzz.generate import generate
from tests.fuzz.proofs import RATES, Facts, check, check_program


class Recipe(NamedTuple):
    """A network, the rate that it runs at, and whether gradients are proved too."""

    blocks: tuple[int, ...]
    rate: float
    gradient: bool

    def network(self) -> Network:
        return generate(self.blocks)

    def check(self, programs: bool) -> Facts:
        """Puts the network through the proofs, or those that need no run."""
        if programs:
            return check_program(self.network(), self.rate)
        return check(self.network(), self.rate, gradient=self.gradient)


def numbered(seed: int, index: int) -> Recipe:
    """The recipe of the network with this number."""
    r = random.Random(f"{seed}-{index}")
    blocks = tuple(r.randrange(2**16) for _ in range(2 + r.randint(1, 6)))
    return Recipe(blocks, r.choice(RATES), r.random() < 0.3)
