"""How a search goes through the choices, round by round.

A method knows costs and scores alone. It is deterministic given these, so a search
that was stopped goes on by going through its rounds again with the scores it knows.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from .costs import Cost
from .space import Choice, Space

Ask = Callable[[Sequence[Choice]], list[float]]
"""Scores of choices, which are remembered."""


def greedy(space: Space, cost: Cost, ask: Ask, limit: float) -> Iterator[Choice]:
    """Slims the widest network a step at a time, as AutoSlim (Yu and Huang 2019).

    A step narrows the group that costs least of the score for each unit of cost saved
    (section 3.3 there narrows by the score alone).

    Yields:
      The network of each round, from the widest to the first within the limit.
    """
    at = space.widest
    [score] = ask([at])
    yield at
    while cost.exact(at) > limit:
        steps = list(space.narrower(at))
        here = cost.estimate(at)
        slopes = []
        for step, found in zip(steps, ask(steps), strict=True):
            saved = here - cost.estimate(step)
            lost = score - found
            # What saves nothing comes last, unless it gains.
            slopes.append(lost / saved if saved > 0 else np.copysign(np.inf, lost))
        at = steps[int(np.argmin(slopes))]
        [score] = ask([at])
        yield at


def evolution(
    space: Space,
    cost: Cost,
    ask: Ask,
    limit: float,
    *,
    start: Sequence[Choice],
    generations: int,
    population: int,
    seed: int,
) -> Iterator[Choice]:
    """Mutation and crossover within the limit, as once-for-all (Cai et al. 2020).

    It begins with `start`, the uniform widths that the limit allows, and random
    networks. Of each generation the best quarter of all that were seen are parents;
    half of the children are mutations of one, half crossovers of two. A child beyond
    the limit is narrowed at random until it is within; every other one is then widened
    at random as far as the limit allows.

    Yields:
      The best network after each generation; it ends early if nothing new is found.
    """
    rng = np.random.default_rng(seed)
    sizes = np.array(space.widest) + 1
    rate = max(0.1, 1.0 / int(np.sum(sizes > 1)))  # one group, or a tenth of them
    seen: dict[Choice, float] = {}

    def within(choice: Choice) -> bool:
        return cost.estimate(choice) <= limit

    def fitted(child: np.ndarray) -> Choice:
        choice: Choice = tuple(map(int, child))
        while not within(choice):
            steps = list(space.narrower(choice))
            choice = steps[rng.integers(len(steps))]
        if rng.random() < 0.5:
            while steps := [wider for wider in space.wider(choice) if within(wider)]:
                choice = steps[rng.integers(len(steps))]
        return choice

    def drawn() -> np.ndarray:
        return rng.integers(0, sizes)

    def born(parents: Sequence[Choice]) -> np.ndarray:
        first, second = (
            np.array(parents[i]) for i in rng.integers(len(parents), size=2)
        )
        if rng.random() < 0.5:
            return np.where(rng.random(len(sizes)) < 0.5, first, second)
        return np.where(rng.random(len(sizes)) < rate, drawn(), first)

    first = (*start, space.narrowest, *space.uniform.values())
    new = [choice for choice in dict.fromkeys(first) if within(choice)]
    for _ in range(generations + 1):
        parents = sorted(seen, key=lambda c: (-seen[c], cost.estimate(c)))
        parents = parents[: max(2, population // 4)]
        tries = 0
        while len(new) < population and tries < 20 * population:
            tries += 1
            child = fitted(born(parents) if parents else drawn())
            if child not in seen and child not in new:
                new.append(child)
        if not new:
            return
        seen.update(zip(new, ask(new), strict=True))
        new = []
        yield _best(space, seen, cost, limit)


def _best(space: Space, seen: dict[Choice, float], cost: Cost, limit: float) -> Choice:
    """The best within the limit, of which the few best are measured if need be."""
    ranked = sorted(seen, key=lambda c: (-seen[c], cost.estimate(c)))
    tries = 3  # measurements take a program each
    for choice in ranked:
        if cost.known(choice) is None:
            if tries == 0:
                continue
            tries -= 1
        if cost.exact(choice) <= limit:
            return choice
    return space.narrowest
