"""What a choice costs: counted from the plan, or measured.

Counting compiles nothing. A latency is measured where a search asks for it, one
program each; elsewhere it is estimated from FLOPs.
"""

import abc
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..core.call import Call, type_of
from ..core.flops import contractions, product
from ..core.rates import SubNetwork
from ..cpu.compilation import jit
from ..report import analysis_of
from ..sliceable import Sliceable, extract, slice_apply
from .space import Choice, Space

NAMES = ("flops", "parameters", "latency_ms")


class Cost(abc.ABC):
    """The cost of choices, in one unit."""

    @abc.abstractmethod
    def estimate(self, choice: Choice) -> float:
        """The cost, or about it, at once."""

    @abc.abstractmethod
    def exact(self, choice: Choice) -> float:
        """The cost, if need be by a measurement."""

    @abc.abstractmethod
    def known(self, choice: Choice) -> float | None:
        """The cost, if no measurement is needed to tell it."""


class Counted(Cost):
    """A cost that the plan tells.

    Args:
      count: (widths of the groups) -> cost.
      space: of the choices.
    """

    def __init__(self, count: Callable[[dict[str, int]], float], space: Space) -> None:
        self._of = functools.cache(lambda choice: float(count(space.kept(choice))))

    def estimate(self, choice: Choice) -> float:
        """The cost itself."""
        return self._of(choice)

    exact = known = estimate


class Measured(Cost):
    """The latency of a call: median milliseconds, compiled, weights in place.

    Args:
      net: the network.
      space: of the choices.
      flops: by which it is estimated, between the uniform widths.
      call: (network, sub-network, *inputs) -> outputs.
      inputs: arrays.
      repeats: calls that are timed.
      there: what was measured before, and where new measurements go.
    """

    def __init__(
        self,
        net: Sliceable,
        space: Space,
        flops: Counted,
        call: Callable[..., Any],
        inputs: Sequence[Any],
        repeats: int,
        there: dict[Choice, float],
    ) -> None:
        self._net, self._space, self._flops = net, space, flops
        self._call, self._inputs = call, tuple(inputs)
        self._repeats, self._there = repeats, there

    def exact(self, choice: Choice) -> float:
        """Measures it, once."""
        if choice not in self._there:
            # `import mslice_jax` imports the search, and leaves the profile out.
            from ..profile.timing import in_turn, median_ms

            small = extract(self._net, self._space.mapping(choice))
            call, part, inputs = self._call, small.part, self._inputs
            lowered = jit(lambda net, *x: call(net, part, *x)).lower(small, *inputs)
            run = lowered.compile()
            runs = {choice: lambda: run(small, *inputs)}
            self._there[choice] = median_ms(in_turn(runs, self._repeats)[choice])
        return self._there[choice]

    def known(self, choice: Choice) -> float | None:
        """What was measured."""
        return self._there.get(choice)

    def estimate(self, choice: Choice) -> float:
        """By its FLOPs, between the uniform widths beside it."""
        if choice in self._there:
            return self._there[choice]
        flops, ms = self._line
        return float(np.interp(self._flops.estimate(choice), flops, ms))

    @functools.cached_property
    def _line(self) -> tuple[Sequence[float], np.ndarray]:
        ends = (self._space.narrowest, self._space.widest)
        known = {*self._space.uniform.values(), *ends}
        points = sorted((self._flops.estimate(c), self.exact(c)) for c in known)
        flops, ms = zip(*points, strict=True)
        return flops, np.maximum.accumulate(ms)  # noise would turn it


def limit_of(limits: Mapping[str, float | None]) -> tuple[str, float]:
    """The one limit that was given, and its name.

    Raises:
      ValueError: for none or several, or what is no positive number.
    """
    given = {name: limit for name, limit in limits.items() if limit is not None}
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise ValueError(
            f"search expects one limit, one of {', '.join(NAMES)}; got {found}."
        )
    [(name, limit)] = given.items()
    if isinstance(limit, bool) or not isinstance(limit, int | float | np.number):
        raise ValueError(f"{name} is a number above 0; got {limit!r}.")
    if not 0 < limit < math.inf:
        raise ValueError(f"{name} is a number above 0; got {limit}.")
    return name, float(limit)


def cost_of(
    name: str,
    net: Sliceable,
    space: Space,
    inputs: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    repeats: int,
    there: dict[Choice, float],
) -> Cost:
    """The cost by its name; arguments as those of `search`.

    Raises:
      ValueError: for a latency without inputs.
    """
    if name == "parameters":
        return Counted(
            lambda kept: net.definition.parameters(
                SubNetwork(None, tuple(kept.items()))
            ),
            space,
        )
    definition = net.definition
    if inputs:
        call, arrays = Call.split(inputs, kwargs or {})
        types = [type_of(x) for x in arrays]
    else:
        call, types = definition.call, definition.arrays
    analysis = analysis_of(net, call, types)
    found = list(contractions(analysis, analysis.frame))
    flops = Counted(
        lambda kept: sum(times * 2 * product(axes, kept) for times, axes in found),
        space,
    )
    if name == "flops":
        return flops
    if not inputs or repeats < 1:
        raise ValueError(
            "latency_ms is measured: give the inputs of a call, search(net, evaluate, "
            "x, latency_ms=...), and repeats of 1 or more."
        )

    def run(net: Sliceable, part: SubNetwork, first: Any, *more: Any) -> Any:
        return slice_apply(net, first, part, *more, **(kwargs or {}))

    return Measured(net, space, flops, run, inputs, repeats, there)
