"""A network at all its widths, compiled: batches of requests in, their outputs out.

For every rate, batch bucket and length bucket there is one program, compiled before the
executor is ready. Weights are arguments of the programs, so others of the same shapes
take their place without compiling.
"""

import itertools
import threading
import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..core.rates import SubNetwork
from ..cpu.memory import give_back
from ..profile.timing import in_turn, median_ms, p99_ms
from ..sliceable import Sliceable
from ..storage.programs import Programs
from . import independence
from .compilations import Compilations
from .compiled import Compiled, compile_all, lowered
from .latency import Latency, LatencyTable, TableError
from .narrow_trees import NarrowTrees, Slicer
from .reading import read
from .rows import InvalidRequest, Rows, bucket, check, filled, taken_out
from .saved import SavedNetwork, Served, part_of
from .signature import Lengths, Signature, Tensor
from .weights import check_like, device_of, placed

Key = tuple[Any, int, int | None]
"""Rate, batch bucket, length bucket (None without a free length)."""


class Executor:
    """Runs batches of requests at any rate; after `prepare` nothing is compiled.

    ``Executor(net, ...)`` checks what was asked for, and compiles nothing;
    ``prepare()`` compiles. One thread runs batches; requests are checked, and weights
    swapped, from others meanwhile.

    Args:
      net: from `upgrade` or `extract`; or `Programs`, which `mslice_jax.load` gives
        without the model: they run at the saved rates, and the call that was saved.
        Its weights are on one device.
      *inputs: the call that is served, as arrays or types; by default that which
        `upgrade` saw.
      rates: declared rates, or whatever `slice_apply` takes as a rate under a key of
        your own: ``{0.5: 0.5, "wide head": {"head*": 1.0, "body*": 0.5}}``. By default
        all that the network can run at.
      batch_sizes: the batch buckets, how many rows a program holds. A batch runs in the
        smallest that holds it.
      lengths: length buckets, if the inputs have an axis of free length; more of it in
        `Lengths`.
      call: keywords of the call, where `inputs` are given.
      batch_axes: the axis of the rows, of all inputs, or by the name of an input.
      input_names: other names of the inputs that requests bring, in their order.
      output_names: other names of the outputs.
      memory_bytes: how much the narrow weights may need besides the full ones; those
        that were used longest ago are dropped, and cut again when they are asked for.
        None keeps all.
      finite: whether NaN and infinity in an input are an `InvalidRequest`; or the names
        of the inputs.
      check: whether `prepare` refuses a network whose rows influence each other, or
        whose results change with what fills up a row.

    Raises:
      TypeError: if `net` is no Sliceable.
      RateError: for a rate that was not declared.
      ValueError: for a call that cannot be served in batches.

    Example:
      >>> import jax.numpy as jnp, numpy as np, mslice_jax as ms
      >>> from mslice_jax.serve import Executor
      >>> def mlp(p, x):
      ...     return {"y": jnp.tanh(x @ p["w1"]) @ p["w2"]}
      >>> p = {"w1": jnp.ones((3, 16)), "w2": jnp.ones((16, 2))}
      >>> net = ms.upgrade(mlp, p, jnp.ones((1, 3)), rates=(0.5, 1.0))
      >>> executor = Executor(net, batch_sizes=(1, 4)).prepare()
      >>> executor.inputs[0].name, executor.inputs[0].shape
      ('x', (-1, 3))
      >>> one, two = np.zeros((1, 3), np.float32), np.ones((2, 3), np.float32)
      >>> answers, seconds = executor.run(0.5, [{"x": one}, {"x": two}])
      >>> [answer["y"].shape for answer in answers]
      [(1, 2), (2, 2)]
    """

    def __init__(
        self,
        net: Sliceable | Programs,
        *inputs: Any,
        rates: Sequence[float] | Mapping[Hashable, Any] | None = None,
        batch_sizes: Sequence[int] = (1, 2, 4, 8, 16, 32),
        lengths: Lengths | Sequence[int] | None = None,
        call: Mapping[str, Any] | None = None,
        batch_axes: int | Mapping[str, int] = 0,
        input_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
        memory_bytes: int | None = None,
        finite: bool | Collection[str] = False,
        check: bool = True,
    ) -> None:
        if not isinstance(net, Sliceable | Programs):
            raise TypeError(
                "Executor expects a Sliceable, or what mslice_jax.load gives; got "
                f"{type(net).__name__}."
            )
        served = SavedNetwork.of(net) if isinstance(net, Programs) else net
        self._device = device_of(served)
        self._rates = _rates(served, rates)
        self._leaves: list[jax.Array] | None = placed(served.variables, self._device)
        # What is compiled knows types alone: weights come and go.
        types = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in self._leaves]
        tree = jax.tree.structure(served.variables)
        self._net = served.replace(jax.tree.unflatten(tree, types))
        self._narrowest = min(self._rates.values(), key=_units)
        if lengths is not None and not isinstance(lengths, Lengths):
            lengths = Lengths(buckets=lengths)
        self._signature = read(
            self._net,
            self._narrowest,
            inputs,
            call,
            batch_axes=batch_axes,
            batch_sizes=batch_sizes,
            lengths=lengths,
            input_names=input_names,
            output_names=output_names,
        )
        names = [x.name for x in self.inputs]
        self._finite = names if finite is True else tuple(finite or ())
        if unknown := set(self._finite) - set(names):
            raise ValueError(f"finite names {unknown}; the inputs are {names}.")
        self._check, self._memory_bytes = check, memory_bytes
        self._slicers: dict[SubNetwork, Slicer] = {}
        self._programs: Compiled = {}
        self._weights: NarrowTrees | None = None
        self._swapping = threading.Lock()
        self._counter = Compilations()

    # -- what it is

    @property
    def rates(self) -> tuple[Any, ...]:
        """The rates that it runs at, or their keys, as they were given."""
        return tuple(self._rates)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch buckets, ascending."""
        return self._signature.batches

    @property
    def lengths(self) -> tuple[int | None, ...]:
        """The length buckets, ascending; (None,) without a free length."""
        return self._signature.lengths

    @property
    def signature(self) -> Signature:
        """The call that is served, which requests are checked with."""
        return self._signature

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What a request brings."""
        return self._signature.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """What an answer has."""
        return self._signature.outputs

    @property
    def ready(self) -> bool:
        """Whether all is compiled."""
        return self._weights is not None

    @property
    def compilations(self) -> int:
        """How many programs were compiled for it, as JAX tells; none once it is ready.

        Those count that were compiled (or loaded from JAX's cache) while a method of
        this executor ran, whoever asked for them.
        """
        return self._counter.count

    @property
    def narrow_bytes(self) -> int:
        """How many bytes of narrow weights are kept besides the full ones."""
        return 0 if self._weights is None else self._weights.bytes

    @property
    def about(self) -> dict[str, str]:
        """What tells a latency table from that of another network, in words."""
        tensors = {"inputs": self.inputs, "outputs": self.outputs}
        found = {
            what: ", ".join(f"{x.name} {x.dtype}{list(x.shape)}" for x in each)
            for what, each in tensors.items()
        }
        leaves = jax.tree.leaves(self._net.variables)
        found["weights"] = (
            f"{len(leaves)} arrays, {sum(x.size for x in leaves)} numbers"
        )
        saved = isinstance(self._net, SavedNetwork)
        found["programs"] = "those of the file" if saved else "those of the model"
        found["devices"] = self._device.device_kind
        return found

    # -- compiling

    def prepare(
        self,
        progress: Callable[[int, int], None] | None = None,
        *,
        threads: int | None = None,
    ) -> "Executor":
        """Compiles every program, and cuts the narrow weights as far as they are kept.

        Args:
          progress: called with how many programs are compiled, and of how many.
          threads: how many programs are compiled at a time; by default one for each
            core.

        Returns:
          The executor itself, which is ready.

        Raises:
          ValueError: if rows influence each other, or what fills them up does.
        """
        if self._weights is not None or self._leaves is None:
            return self
        parts = dict.fromkeys(self._rates.values())
        with self._counter:
            self._slicers = {part: Slicer(self._net, part) for part in parts}
        nets = {part: slicer.net for part, slicer in self._slicers.items()}
        self._programs = compile_all(
            nets, self._signature, self._device, self._counter, progress, threads
        )
        weights = NarrowTrees(self._leaves, self._slicers, self._memory_bytes)
        if self._check:
            self._check_independent(weights)
        weights.get(max(parts, key=_units))
        for part in parts:
            weights.add(part)
        self._weights, self._leaves = weights, None
        give_back()  # what compiling needed
        return self

    def _check_independent(self, weights: NarrowTrees) -> None:
        part, signature = self._narrowest, self._signature

        def run(batch: int, length: int | None, arrays: Any) -> list[np.ndarray]:
            program = self._programs.get((part, batch, length))
            if program is None:  # of a length without a bucket
                net = self._slicers[part].net
                found = lowered(net, signature, batch, length, self._device)
                with self._counter:
                    program = found.compile()
            return [np.asarray(x) for x in program(weights.get(part), arrays)]

        independence.check(signature, run)

    # -- running

    def check(self, request: Mapping[str, Any]) -> Rows:
        """Checks a request, so that `run` has nothing to object to.

        Args:
          request: an array for each input, by name; the rows of one request are as many
            as it likes, up to the largest batch bucket.

        Raises:
          InvalidRequest: for a wrong name, dtype, shape, number of rows, or NaN.
        """
        return check(self._signature, request, self._finite)

    def run(
        self, rate: Any, requests: Sequence[Rows | Mapping[str, Any]]
    ) -> tuple[list[dict[str, np.ndarray]], float]:
        """Answers requests in one batch.

        Args:
          rate: one of `rates`.
          requests: what `check` returned, or what it takes. Together they have at most
            as many rows as the largest batch bucket.

        Returns:
          The outputs of each request, by name, in the order of the requests; and the
          seconds that the batch took, from here to the arrays of NumPy.

        Raises:
          InvalidRequest: for a rate that is not served, or a request that `check`
            refuses.
          ValueError: for no requests, or too many rows.
          RuntimeError: before `prepare`.
        """
        began = time.perf_counter()
        part = self._part(rate)
        weights = self._weights  # one set for all of the batch
        if weights is None:
            raise RuntimeError("the executor is not ready: call prepare() first.")
        checked = [r if isinstance(r, Rows) else self.check(r) for r in requests]
        batch, length = bucket(self._signature, checked)
        arrays = filled(self._signature, checked, batch, length)
        with self._counter:
            found = self._programs[part, batch, length](weights.get(part), arrays)
            outputs = [np.asarray(x) for x in found]
        answers = taken_out(self._signature, outputs, checked)
        return answers, time.perf_counter() - began

    def _part(self, rate: Any) -> SubNetwork:
        known = isinstance(rate, Hashable) and not isinstance(rate, bool)
        part = self._rates.get(rate) if known else None
        if part is None:
            raise InvalidRequest(f"rate {rate!r} is not served; {self.rates} are.")
        return part

    def times(self, repeats: int = 30) -> dict[Key, list[float]]:
        """Seconds of full batches of one-row requests, for every program.

        The programs take turns, so that a machine that slows down slows all alike.
        Narrow weights are cut before the clock runs.

        Raises:
          ValueError: if `repeats` is below 1.
          RuntimeError: before `prepare`.
        """
        rows = {n: independence.drawn(self._signature, 1, n, 0) for n in self.lengths}

        def run(rate: Any, batch: int, length: int | None) -> Callable[[], Any]:
            return lambda: self.run(rate, [rows[length]] * batch)

        def cut(key: Key) -> None:
            if self._weights is not None:
                self._weights.get(self._part(key[0]))

        keys = itertools.product(self.rates, self.batch_sizes, self.lengths)
        runs = {key: run(*key) for key in keys}
        return in_turn(runs, repeats, warm=1, before=cut)

    def measure(self, repeats: int = 30) -> LatencyTable:
        """The latency of every program, as the policies take it.

        Args:
          repeats: how often each program runs.

        Returns:
          A table by rate, batch bucket and length bucket. The p99 of few repeats is the
          longest of them.

        Raises:
          TableError: if a rate has a key that is no number, which has no place in the
            order of the rates.
          ValueError, RuntimeError: as `times`.
        """
        if words := [key for key in self.rates if not isinstance(key, int | float)]:
            raise TableError(
                f"expected numbers as keys of the rates, got {words}: a policy chooses "
                "the widest that is quick enough."
            )
        return LatencyTable(
            {
                key: Latency(p99_ms(seconds), median_ms(seconds))
                for key, seconds in self.times(repeats).items()
            },
            about=self.about,
        )

    # -- other weights

    def swap(self, variables: Any) -> None:
        """Puts other weights in place of those that are served; compiles nothing.

        Batches go on meanwhile. Each runs with the old weights alone or with the new
        ones; after this returned, with the new ones. For a while both are in memory.

        Args:
          variables: a tree like `net.variables`, or a network that was upgraded from
            the same model in the same way.

        Raises:
          ValueError: if it is of another structure, shape or dtype, or the network is
            another one; the old weights stay.
          RuntimeError: before `prepare`.
        """
        if self._weights is None:
            raise RuntimeError("the executor is not ready: call prepare() first.")
        if isinstance(variables, Programs):
            variables = SavedNetwork.of(variables)
        if isinstance(variables, Sliceable | SavedNetwork):
            self._check_same(variables)
            variables = variables.variables
        check_like(self._net.variables, variables)
        with self._swapping, self._counter:
            leaves = placed(variables, self._device)
            new = NarrowTrees(leaves, self._slicers, self._memory_bytes)
            *others, active = self._weights.kept
            jax.block_until_ready(new.get(active))
            self._weights = new
            for part in reversed(others):
                new.add(part)
        give_back()  # the old ones

    def _check_same(self, net: Served) -> None:
        if net.definition != self._net.definition or net.part != self._net.part:
            raise ValueError(
                "expected a network upgraded from the same model in the same way (and "
                "reordered alike), for the programs are compiled for that; got another "
                f"one, {net!r}. Make a new Executor for it."
            )


def _rates(net: Served, rates: Any) -> dict[Any, SubNetwork]:
    """The sub-network of each rate, or of its key."""
    if rates is None:
        rates = net.rates or {net.rate: net.part}
    if not isinstance(rates, Mapping):
        rates = {rate: rate for rate in rates}
    if not rates:
        raise ValueError("rates is empty; give one rate at least.")
    return {key: part_of(net, rate) for key, rate in rates.items()}


def _units(part: SubNetwork) -> int:
    return sum(width for _, width in part.widths)
