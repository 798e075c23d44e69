"""A cascade: narrow rates look at many candidates, wider ones at those that are left.

Stage i scores what is left with the network at rate r_i and hands on the best. For each
stage and size there is one program, compiled before the cascade is ready.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.rates import Rate
from ..cpu.compilation import jit
from ..profile import measure
from ..sliceable import Sliceable, extract
from .candidates import arrays_of, bucket, counted, filled
from .compilations import Compilations
from .compiled import compile_each
from .reading import read
from .stage_networks import (
    check_score,
    networks,
    pairs,
    sizes_of,
    types_of_weights,
)
from .stages import Keep, check_keeps, kept, sizes, sizes_after, survivors
from .weights import check_like, device_of, placed


@dataclass(frozen=True, eq=False)
class Ranking:
    """What a cascade found for a query.

    Attributes:
      indices: (k,), which candidates are left after the last stage, best first.
      scores: (k,), of the last stage.
      survivors: of each stage, the indices of whom it kept, best first.
      scored: how many candidates each stage scored.
    """

    indices: np.ndarray
    scores: np.ndarray
    survivors: tuple[np.ndarray, ...]
    scored: tuple[int, ...]


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
        self._nets, self._parts = networks(net, rates)
        self._device = device_of(self._nets[0])
        # What is compiled knows types alone.
        self._several = isinstance(net, Mapping)
        self._full = [types_of_weights(each) for each in self._nets]
        self._narrow = [
            extract(each, part)
            for each, part in zip(self._full, self._parts, strict=True)
        ]
        self._signature = read(
            self._narrow[0],
            self._parts[0],
            inputs,
            call,
            batch_sizes=[n * q for n in self.candidates for q in self.queries],
        )
        self._score = (lambda outputs: outputs) if score is None else score
        for rate, narrow in zip(rates, self._narrow, strict=True):
            check_score(narrow, self._signature, self._score, rate)
        self.stages = tuple(zip(rates, self._keeps, strict=True))
        self._weights: list[list[jax.Array]] = []
        self._programs: dict[tuple[int, int, int, int], Any] = {}
        self._counter = Compilations()

    # -- what it is

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
        args, kwargs = self._signature.call.join(self._signature.types(1, None))
        return tuple(
            measure.count(narrow, part, args, kwargs).flops
            for narrow, part in zip(self._narrow, self._parts, strict=True)
        )

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

    # -- compiling

    def prepare(self, progress: Callable[[int, int], None] | None = None) -> "Cascade":
        """Compiles every program, and cuts the narrow weights.

        Args:
          progress: called with how many programs are compiled, and of how many.

        Returns:
          The cascade itself, which is ready.
        """
        if self.ready:
            return self
        keys = [
            (stage, queries, first, size)
            for queries in self.queries
            for first in self.candidates
            for stage, each in enumerate(sizes(self._keeps, first))
            for size in each
        ]

        lower = {key: functools.partial(self._lowered, *key) for key in keys}
        self._programs = compile_each(lower, self._counter, progress)
        self._weights = self._cut([net.variables for net in self._nets])
        self._nets = self._full  # the full weights are needed no longer
        return self

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
        each = [variables] * len(self._full)
        if self._several:
            if missing := [r for r, _ in self.stages if r not in variables]:
                raise ValueError(
                    f"expected variables for each rate; none for {missing}."
                )
            each = [variables[rate] for rate, _ in self.stages]
        for net, new in zip(self._full, each, strict=True):
            check_like(net.variables, new)
        self._weights = self._cut(each)

    def _cut(self, each: Sequence[Any]) -> list[list[jax.Array]]:
        """The narrow weights of the stages, from the variables of their networks."""
        found = []
        with self._counter:
            for types, part, full in zip(self._full, self._parts, each, strict=True):
                # On the device beforehand, so that others are cut by the same program.
                leaves = placed(full, self._device)
                tree = jax.tree.structure(types.variables)
                net = types.replace(jax.tree.unflatten(tree, leaves))
                narrow = extract(net, part).variables
                found.append(placed(narrow, self._device))
        return found

    def _check_ready(self) -> None:
        if not self.ready:
            raise RuntimeError("the cascade is not ready: call prepare() first.")

    def _lowered(
        self, stage: int, queries: int, first: int, size: int
    ) -> jax.stages.Lowered:
        """The program of a stage: weights, all candidates, who is left -> scores."""
        narrow, call, score = self._narrow[stage], self._signature.call, self._score
        tree = jax.tree.structure(narrow.variables)

        def scores(leaves: Sequence[Any], arrays: Sequence[Any], left: Any) -> Any:
            if left is not None:
                arrays = [jax.vmap(_taken)(x, left) for x in arrays]
            rows = [x.reshape(-1, *x.shape[2:]) for x in arrays]
            args, kwargs = call.join(rows)
            net = narrow.replace(jax.tree.unflatten(tree, leaves))
            return score(net(narrow.part, *args, **kwargs)).reshape(queries, size)

        at = jax.sharding.SingleDeviceSharding(self._device)

        def placed_type(x: Any, *axes: int) -> Any:
            shape = (*axes, *x.shape[1:]) if axes else x.shape
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=at)

        leaves = [placed_type(x) for x in jax.tree.leaves(narrow.variables)]
        types = self._signature.types(1, None)
        arrays = [placed_type(x, queries, first) for x in types]
        left = jax.ShapeDtypeStruct((queries, size), np.int32, sharding=at)
        return jit(scores).lower(leaves, arrays, left if stage else None)

    # -- running

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
        rows = arrays_of(self._signature, inputs, arrays, axes=1)
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
        rows = arrays_of(self._signature, inputs, arrays, axes=2)
        return self._ranked(rows, counts)

    def _ranked(self, arrays: list[np.ndarray], counts: Any) -> list[Ranking]:
        self._check_ready()
        weights = self._weights  # one set for all of the query
        asked, n = arrays[0].shape[:2]
        queries = bucket(self.queries, asked, "queries")
        first = size = bucket(self.candidates, n, "candidates")
        left = np.zeros(queries, np.int64)
        left[:asked] = n if counts is None else counted(counts, asked, n)
        at = jax.device_put([filled(x, queries, first) for x in arrays], self._device)
        indices = np.tile(np.arange(first, dtype=np.int32), (queries, 1))
        scores = np.zeros((queries, 0), np.float32)
        scored, survived = [], []
        for stage, keep in enumerate(self._keeps):
            scored.append(left)
            if left.any():
                program = self._programs[stage, queries, first, size]
                ids = jax.device_put(indices, self._device) if stage else None
                with self._counter:
                    found = program(weights[stage], at, ids)
                    scores = np.asarray(found)
                order, left = survivors(scores, left, keep)
                indices = np.take_along_axis(indices, order, axis=1)
                scores = np.take_along_axis(scores, order, axis=1)
                after = sizes_after(keep, size, first)
                size = next(n for n in after if n >= left.max())
            survived.append([i[:k] for i, k in zip(indices, left, strict=True)])
            indices = np.ascontiguousarray(indices[:, :size])
        return [
            Ranking(
                survived[-1][q],
                scores[q, : left[q]],
                tuple(each[q] for each in survived),
                tuple(int(number[q]) for number in scored),
            )
            for q in range(asked)
        ]


def _taken(x: jax.Array, left: jax.Array) -> jax.Array:
    return jnp.take(x, left, axis=0, mode="clip")
