"""The programs of an executor, compiled, and the weights that they run with.

For every rate, batch bucket and length bucket there is one program. Weights are
arguments of the programs, so others of the same shapes take their place without
compiling.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ..core.rates import SubNetwork
from ..cpu.memory import give_back
from . import independence
from .compilations import Compilations
from .compiled import compile_all, lowered
from .narrow_trees import NarrowTrees, Slicer
from .offer import Offer
from .rows import Rows, bucket, filled, taken_out
from .weights import check_like, placed


class Loaded:
    """Compiles every program, and cuts the narrow weights as far as they are kept.

    Args:
      offer: what is served.
      leaves: its weights.
      counter: counts what is compiled.
      progress, threads: as those of `compile_all`.

    Raises:
      ValueError: if rows influence each other, or what fills them up does.
    """

    def __init__(
        self,
        offer: Offer,
        leaves: Sequence[jax.Array],
        counter: Compilations,
        *,
        progress: Callable[[int, int], None] | None,
        threads: int | None,
    ) -> None:
        self._offer, self._counter = offer, counter
        parts = dict.fromkeys(offer.rates.values())
        with counter:
            self._slicers = {part: Slicer(offer.net, part) for part in parts}
        nets = {part: slicer.net for part, slicer in self._slicers.items()}
        self._programs = compile_all(
            nets, offer.signature, offer.device, counter, progress, threads
        )
        self._weights = NarrowTrees(leaves, self._slicers, offer.memory_bytes)
        if offer.check:
            self._check_independent()
        self._weights.get(offer.widest)
        for part in parts:
            self._weights.add(part)
        self._swapping = threading.Lock()
        give_back()  # what compiling needed

    @property
    def narrow_bytes(self) -> int:
        """How many bytes of narrow weights are kept besides the full ones."""
        return self._weights.bytes

    def cut(self, rate: Any) -> list[Any]:
        """The narrow weights of a rate, cut if they are not there."""
        return self._weights.get(self._offer.part(rate))

    def answers(
        self, part: SubNetwork, requests: Sequence[Rows]
    ) -> list[dict[str, np.ndarray]]:
        """The outputs of each request, by name, from one batch.

        Raises:
          ValueError: for no requests, or too many rows.
        """
        weights = self._weights  # one set for all of the batch
        signature = self._offer.signature
        batch, length = bucket(signature, requests)
        arrays = filled(signature, requests, batch, length)
        with self._counter:
            found = self._programs[part, batch, length](weights.get(part), arrays)
            outputs = [np.asarray(x) for x in found]
        return taken_out(signature, outputs, requests)

    def swap(self, variables: Any) -> None:
        """Puts other weights in place, see `Executor.swap`.

        Raises:
          ValueError: if they do not fit; the old ones stay.
        """
        check_like(self._offer.net.variables, variables)
        with self._swapping, self._counter:
            leaves = placed(variables, self._offer.device)
            new = NarrowTrees(leaves, self._slicers, self._offer.memory_bytes)
            *others, active = self._weights.kept
            jax.block_until_ready(new.get(active))
            self._weights = new
            for part in reversed(others):
                new.add(part)
        give_back()  # the old ones

    def _check_independent(self) -> None:
        offer, part = self._offer, self._offer.narrowest

        def run(batch: int, length: int | None, arrays: Any) -> list[np.ndarray]:
            program = self._programs.get((part, batch, length))
            if program is None:  # of a length without a bucket
                net = self._slicers[part].net
                found = lowered(net, offer.signature, batch, length, offer.device)
                with self._counter:
                    program = found.compile()
            return [np.asarray(x) for x in program(self._weights.get(part), arrays)]

        independence.check(offer.signature, run)
