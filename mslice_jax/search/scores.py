"""What choices score: the user's function, asked once for each."""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..core.rates import Rate
from ..core.run import resolve
from ..sliceable import Sliceable, extract
from .journal import Journal
from .masks import are_exact, masked, masker
from .space import Choice, Space

Evaluate = Callable[[Sliceable, Rate], Any]
"""(network, what `slice_apply` takes as its rate) -> score, higher is better."""


class Scores:
    """Scores of choices, by one program where masks are exact, else by slices.

    Args:
      net: the network.
      space: of the choices.
      evaluate: the user's function.
      masks: whether masks stand for slices; None tries it out.
      together: how many masked networks one traced call evaluates.
      inputs, kwargs: the call to try it with, see `are_exact`.
      journal: what is known, and where new scores go, in the order of asking.
    """

    def __init__(
        self,
        net: Sliceable,
        space: Space,
        evaluate: Evaluate,
        *,
        masks: bool | None,
        together: int,
        inputs: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        journal: Journal,
    ) -> None:
        self._net, self._space, self._evaluate = net, space, evaluate
        self._asked_masks, self._together = masks, together
        self._inputs, self._kwargs = inputs, kwargs
        self._mask = masker(net, space)
        self._several = jax.jit(self._traced)
        self._journal, self.there = journal, journal.scores

    def __call__(self, choices: Sequence[Choice]) -> list[float]:
        """The scores, in order; asks for those that are not known."""
        new = [c for c in dict.fromkeys(choices) if c not in self.there]
        if new and self._use_masks():
            for start in range(0, len(new), self._together):
                self._by_masks(new[start : start + self._together])
        elif new:
            for choice in new:
                part = resolve(
                    self._net.definition, self._space.mapping(choice), self._net.part
                )
                small = extract(self._net, part)
                self._keep(choice, self._asked(choice, small, part))
        return [self.there[choice] for choice in choices]

    def _use_masks(self) -> bool:
        used = self._journal.masks
        if used is None:
            used = self._asked_masks is not False and are_exact(
                self._net, self._space, self._inputs, self._kwargs
            )
            if self._asked_masks and not used:
                raise ValueError(
                    "masks=True, but masked weights compute something else than slices "
                    "here (a mean, a norm or a maximum along an axis that narrows, or "
                    "random numbers); leave it out, and slices are evaluated."
                )
            self._journal.masks = used
        return used

    def _by_masks(self, choices: Sequence[Choice]) -> None:
        net = self._net
        widths = np.array([list(self._space.kept(c).values()) for c in choices])
        if self._together == 1:
            wide = self._as(self._mask(net.variables, widths[0]))
            self._keep(choices[0], self._asked(choices[0], wide, net.part))
            return
        # The last program runs as many as the others, so that there is one.
        missing = self._together - len(choices)
        widths = np.concatenate([widths, np.repeat(widths[-1:], missing, axis=0)])
        try:
            found = self._several(net.variables, widths)
        except Exception as error:
            error.add_note("search: together > 1 traces evaluate; together=1 does not.")
            raise
        for choice, value in zip(choices, np.asarray(found), strict=False):
            self._keep(choice, value)

    def _traced(self, variables: Any, widths: Any) -> Any:
        net, groups = self._net, self._space.groups

        def one(widths: Any) -> Any:
            zeroed = masked(net.plan, net.part, variables, groups, widths)
            return self._evaluate(self._as(zeroed), net.part)

        return jax.vmap(one)(widths)

    def _as(self, variables: Any) -> Sliceable:
        return Sliceable(variables, self._net.definition, self._net.part)

    def _asked(self, choice: Choice, net: Sliceable, rate: Rate) -> Any:
        try:
            return self._evaluate(net, rate)
        except Exception as error:
            mapping = self._space.mapping(choice)
            error.add_note(f"search: evaluate raised it for the rates {mapping}.")
            raise

    def _keep(self, choice: Choice, value: Any) -> None:
        if isinstance(value, jax.Array | np.ndarray) and value.ndim == 0:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(
                "evaluate(net, rate) returns one number, higher is better; got "
                f"{value!r:.80} of type {type(value).__name__}."
            )
        if not math.isfinite(value):
            raise ValueError(
                f"evaluate(net, rate) returned {value} for the rates "
                f"{self._space.mapping(choice)}; a search compares finite scores."
            )
        self.there[choice] = float(value)
