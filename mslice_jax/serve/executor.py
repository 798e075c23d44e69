"""A network at all its widths, compiled: batches of requests in, their outputs out."""

import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from ..sliceable import Sliceable
from ..storage.programs import Programs
from . import measuring
from .compilations import Compilations
from .latency import LatencyTable
from .loaded import Loaded
from .measuring import Key
from .offer import offered
from .rows import Rows, check
from .signature import Lengths


class Executor:
    """Runs batches of requests at any rate; after `prepare` nothing is compiled.

    It checks what was asked for and compiles nothing until ``prepare()``. One thread
    runs batches; requests are checked, and weights swapped, from others meanwhile.

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
      memory_bytes: how much the narrow weights may need besides the full ones (None:
        any); those used longest ago are dropped, and cut again when they are needed.
      finite: whether NaN and infinity in an input are an `InvalidRequest`; or the names
        of the inputs.
      check: whether `prepare` refuses a network whose rows influence each other, or
        whose results change with what fills up a row.

    Attributes:
      rates: the rates that it runs at, or their keys, as they were given.
      batch_sizes: the batch buckets, ascending.
      lengths: the length buckets, ascending; (None,) without a free length.
      signature: the call that is served, which requests are checked with.
      inputs, outputs: what a request brings, and what an answer has, as `Tensor`s.
      about: what tells a latency table from that of another network, in words.

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
        self._offer, self._leaves = offered(
            net,
            inputs,
            rates=rates,
            lengths=lengths,
            call=call,
            finite=finite,
            check=check,
            memory_bytes=memory_bytes,
            batch_axes=batch_axes,
            batch_sizes=batch_sizes,
            input_names=input_names,
            output_names=output_names,
        )
        self.rates, self.signature = tuple(self._offer.rates), self._offer.signature
        self.batch_sizes, self.lengths = self.signature.batches, self.signature.lengths
        self.inputs, self.outputs = self.signature.inputs, self.signature.outputs
        self.about = self._offer.about
        self._loaded: Loaded | None = None
        self._counter = Compilations()

    @property
    def ready(self) -> bool:
        """Whether all is compiled."""
        return self._loaded is not None

    @property
    def compilations(self) -> int:
        """How many programs were compiled for it, as JAX tells; none once it is ready.

        Compiled or loaded from JAX's cache while a method ran, whoever asked for them.
        """
        return self._counter.count

    @property
    def narrow_bytes(self) -> int:
        """How many bytes of narrow weights are kept besides the full ones."""
        return 0 if self._loaded is None else self._loaded.narrow_bytes

    def prepare(
        self,
        progress: Callable[[int, int], None] | None = None,
        *,
        threads: int | None = None,
    ) -> "Executor":
        """Compiles every program and runs it once, cuts narrow weights that are kept.

        Args:
          progress: called with how many programs are compiled, and of how many.
          threads: how many programs are compiled at a time; by default one for each
            core.

        Returns:
          The executor itself, which is ready.

        Raises:
          ValueError: if rows influence each other, or what fills them up does.
        """
        if self._loaded is None:
            what = self._offer, self._leaves, self._counter
            self._loaded = Loaded(*what, progress=progress, threads=threads)
            self._leaves = []  # others may take their place
            measuring.link(self.rates, self.signature, self.run)
        return self

    def check(self, request: Mapping[str, Any]) -> Rows:
        """Checks a request, so that `run` has nothing to object to.

        Args:
          request: an array for each input, by name; the rows of one request are as many
            as it likes, up to the largest batch bucket.

        Raises:
          InvalidRequest: for a wrong name, dtype, shape, number of rows, or NaN.
        """
        return check(self.signature, request, self._offer.finite)

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
        part, loaded = self._offer.part(rate), self._ready()
        checked = [r if isinstance(r, Rows) else self.check(r) for r in requests]
        return loaded.answers(part, checked), time.perf_counter() - began

    def _ready(self) -> Loaded:
        if self._loaded is None:
            raise RuntimeError("the executor is not ready: call prepare() first.")
        return self._loaded

    def times(self, repeats: int = 30) -> dict[Key, list[float]]:
        """Seconds of full batches of one-row requests, for every program.

        The programs take turns, so that a machine that slows down slows all alike.
        Narrow weights are cut before the clock runs.

        Raises:
          ValueError: if `repeats` is below 1.
          RuntimeError: before `prepare`.
        """
        cut = self._ready().cut
        return measuring.times(self.rates, self.signature, self.run, cut, repeats)

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
        measuring.check_keys(self.rates)
        return measuring.table(self.times(repeats), self.about)

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
        self._ready().swap(self._offer.like(variables))
