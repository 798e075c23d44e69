"""A cascade: narrow rates look at many candidates, wider ones at those that are left.

Stage i scores what is left with the network at rate r_i and hands on the best. For each
stage and size there is one program, compiled before the cascade is ready.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..core.rates import Rate
from ..sliceable import Sliceable
from .candidates import arrays_of, bucket, counted, filled
from .compilations import Compilations
from .compiled import compile_each
from .ranking import Ranking, ranked
from .stage_networks import pairs, sizes_of, staged
from .stage_programs import Key, keys, lowered
from .stages import Keep, check_keeps, kept


class Cascade:
    """Ranks or filters candidates with growing width, and hands on the survivors.

    Sub-networks of one network agree more than networks that were trained apart, so a
    filter drops less of what the next stage would have kept (Model Slicing, Cai et al.,
    PVLDB 2019, on cascade ranking).

    ``Cascade(net, stages, ...)`` checks what was asked for, and compiles nothing;
    ``prepare()`` compiles, and nothing is compiled later.

    Args:
      net: from `upgrade` or `extract`, its weights on one device. Each candidate has a
        score of its own, whoever else is in the batch. To compare with networks that
        were trained apart: a network for each rate.
      stages: (rate, keep) each, rates ascending. `keep` is how many go on: a number
        (an integer), a share of those that come in (a float in (0, 1], and the next
        whole number), or ``Above(score)``. None, for the last stage: all, ranked.
      *inputs: the call, as arrays or types with the candidates along the first axis; by
        default that which `upgrade` saw.
      candidates: how many there are at most, or several sizes: a query runs in the
        smallest that holds it.
      queries: how many `many` takes at most, or several sizes, in the same way.
      score: what the network returns for n candidates -> their scores (n,) or (n, 1).
        Not needed where the network returns them.
      call: keywords of the call, where `inputs` are given.

    Raises:
      TypeError: if `net` is no Sliceable.
      RateError: for a rate that was not declared, or is not wider than the one before.
      ValueError: without stages; for a keep that is none, or is more than the stage may
        get; for a network without one score for each candidate.

    Example:
      >>> import jax.numpy as jnp, numpy as np, mslice_jax as ms
      >>> from mslice_jax.serve import Cascade
      >>> def score(p, x):
      ...     return jnp.maximum(x @ p["w1"], 0) @ p["w2"]
      >>> p = {"w1": jnp.ones((3, 16)), "w2": jnp.ones((16, 1))}
      >>> net = ms.upgrade(score, p, jnp.ones((1, 3)), rates=(0.25, 0.5, 1.0))
      >>> stages = [(0.25, 20), (0.5, 0.5), (1.0, 3)]
      >>> cascade = Cascade(net, stages, candidates=100).prepare()
      >>> found = cascade(np.arange(300, dtype=np.float32).reshape(100, 3))
      >>> found.indices.tolist(), found.scored
      ([99, 98, 97], (100, 20, 10))
      >>> cascade.flops_per_candidate, cascade.flops(100)
      ((36.0, 72.0, 144.0), 6480.0)
    """

    def __init__(
        self,
        net: Sliceable | Mapping[float, Sliceable],
        stages: Sequence[tuple[Rate, Keep]],
        *inputs: Any,
        candidates: int | Sequence[int],
        queries: int | Sequence[int] = 1,
        score: Callable[[Any], Any] | None = None,
        call: Mapping[str, Any] | None = None,
    ) -> None:
        self.candidates = sizes_of(candidates, "candidates")
        self.queries = sizes_of(queries, "queries")
        rates, keeps = pairs(stages)
        self._keeps = check_keeps(keeps, self.candidates[-1])
        self._score = (lambda outputs: outputs) if score is None else score
        self._networks, self._variables = staged(
            net,
            rates,
            inputs,
            call,
            sizes=[n * q for n in self.candidates for q in self.queries],
            score=self._score,
        )
        self.stages = tuple(zip(rates, self._keeps, strict=True))
        self._weights: list[list[jax.Array]] = []
        self._programs: dict[Key, Any] = {}
        self._counter = Compilations()

    @property
    def ready(self) -> bool:
        """Whether all is compiled."""
        return bool(self._weights)

    @property
    def compilations(self) -> int:
        """How many programs were compiled for it; none once it is ready."""
        return self._counter.count

    @property
    def flops_per_candidate(self) -> tuple[float, ...]:
        """FLOPs of one candidate in each stage, counted without compiling.

        As `RateProfile.flops` counts them.
        """
        return self._networks.flops_per_candidate

    def flops(self, *scored: int) -> float:
        """FLOPs of a query, without those of what fills up a program's size.

        Args:
          *scored: how many candidates each stage scores, as `Ranking.scored`. Or one
            number, that of the first stage: the others get what the stages keep, after
            an `Above` all that it may let through.

        Raises:
          ValueError: for another number of stages.
        """
        numbers = list(scored)
        if len(numbers) == 1:
            for keep in self._keeps[:-1]:
                numbers.append(kept(keep, numbers[-1]))
        if len(numbers) != len(self._keeps):
            raise ValueError(
                f"expected the candidates of {len(self._keeps)} stages, or of the "
                f"first; got {scored}."
            )
        each = zip(self.flops_per_candidate, numbers, strict=True)
        return sum(flops * number for flops, number in each)

    def prepare(self, progress: Callable[[int, int], None] | None = None) -> "Cascade":
        """Compiles every program and runs it once, cuts the narrow weights.

        Args:
          progress: called with how many programs are compiled, and of how many.

        Returns:
          The cascade itself, which is ready.
        """
        if self.ready:
            return self
        lower = {
            key: functools.partial(lowered, self._networks, self._score, *key)
            for key in keys(self._keeps, self.queries, self.candidates)
        }
        self._programs = compile_each(lower, self._counter, progress)
        with self._counter:
            self._weights = self._networks.cut(self._variables)
        self._variables = []  # the full weights are needed no longer
        self._link()
        return self

    def _link(self) -> None:
        """Runs every program once: on CPU the first run takes 60 ms longer."""
        types = self._networks.signature.types(1, None)
        for stage, queries, first, size in self._programs:
            arrays = [np.zeros((queries, first, *x.shape[1:]), x.dtype) for x in types]
            at = jax.device_put(arrays, self._networks.device)
            everyone = np.zeros((queries, size), np.int32)
            self._run(self._weights[stage], at, first, stage, everyone)

    def _run(
        self, weights: Any, at: Any, first: int, stage: int, left: np.ndarray
    ) -> np.ndarray:
        """The scores (queries, size) of those who are left, (queries, size)."""
        program = self._programs[stage, len(left), first, left.shape[1]]
        ids = jax.device_put(left, self._networks.device) if stage else None
        with self._counter:
            return np.asarray(program(weights, at, ids))

    def swap(self, variables: Any) -> None:
        """Exchanges the weights, without compiling.

        Args:
          variables: like those of the network; where there is a network for each rate,
            such variables for each rate.

        Raises:
          ValueError: if they differ from the old ones in structure, shape or dtype; the
            old ones stay.
          RuntimeError: before `prepare`.
        """
        self._check_ready()
        each = self._networks.checked(variables)
        with self._counter:
            self._weights = self._networks.cut(each)

    def _check_ready(self) -> None:
        if not self.ready:
            raise RuntimeError("the cascade is not ready: call prepare() first.")

    def __call__(self, *inputs: Any, **arrays: Any) -> Ranking:
        """Ranks the candidates of one query.

        Args:
          *inputs: as the network takes them, any tree of arrays with the candidates
            along the first axis, as many as the largest size of `candidates` at most.
          **arrays: those that the call has by keyword.

        Raises:
          ValueError: for inputs of another structure, dtype or shape, or too many.
          RuntimeError: before `prepare`.
        """
        rows = arrays_of(self._networks.signature, inputs, arrays, axes=1)
        return self._ranked([x[None] for x in rows], None)[0]

    def many(
        self, *inputs: Any, counts: Sequence[int] | None = None, **arrays: Any
    ) -> list[Ranking]:
        """Ranks for several queries at once.

        Args:
          *inputs: as for a single query, with an axis of queries before that of
            candidates: (q, n, ...).
          counts: (q,), how many of the n are candidates of a query, the leading ones;
            by default all.
          **arrays: those that the call has by keyword.

        Returns:
          A `Ranking` for each query.

        Raises:
          ValueError: as for one query, for too many queries, or counts that do not fit.
          RuntimeError: before `prepare`.
        """
        rows = arrays_of(self._networks.signature, inputs, arrays, axes=2)
        return self._ranked(rows, counts)

    def _ranked(self, arrays: list[np.ndarray], counts: Any) -> list[Ranking]:
        self._check_ready()
        weights = self._weights  # one set for all of the query
        asked, n = arrays[0].shape[:2]
        queries = bucket(self.queries, asked, "queries")
        first = bucket(self.candidates, n, "candidates")
        left = np.zeros(queries, np.int64)
        left[:asked] = n if counts is None else counted(counts, asked, n)
        filled_up = [filled(x, queries, first) for x in arrays]
        at = jax.device_put(filled_up, self._networks.device)

        def score(stage: int, indices: np.ndarray) -> np.ndarray:
            return self._run(weights[stage], at, first, stage, indices)

        return ranked(score, self._keeps, left, first)[:asked]
