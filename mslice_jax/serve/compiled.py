"""The programs of a server: one for each rate, batch bucket and length bucket."""

import concurrent.futures
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import jax

from ..core.rates import SubNetwork
from ..cpu.compilation import jit
from .compilations import Compilations
from .saved import Served
from .signature import Signature

K = TypeVar("K")
Compiled: TypeAlias = Mapping[tuple[SubNetwork, int, int | None], Callable[..., Any]]
"""By sub-network, batch and length: lists of weights and inputs to that of outputs."""


def lowered(
    net: Served,
    signature: Signature,
    batch: int,
    length: int | None,
    device: Any,
) -> jax.stages.Lowered:
    """The program of a narrow network, of types, before XLA compiles it.

    Weights are arguments, and so are the inputs: two lists.
    """
    tree = jax.tree.structure(net.variables)

    def answer(leaves: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
        args, kwargs = signature.call.join(arrays)
        narrow = net.replace(jax.tree.unflatten(tree, leaves))
        return jax.tree.leaves(narrow(net.part, *args, **kwargs))

    at = jax.sharding.SingleDeviceSharding(device)
    placed = [
        [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at) for x in each]
        for each in (jax.tree.leaves(net.variables), signature.types(batch, length))
    ]
    return jit(answer).lower(*placed)


def compile_all(
    nets: Mapping[SubNetwork, Served],
    signature: Signature,
    device: Any,
    counter: Compilations,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> Compiled:
    """Compiles the programs of all buckets.

    Args:
      nets: the narrow networks, of types.
      signature: the call and its buckets.
      device: on which they run.
      counter: counts them.
      progress: called with how many are compiled, and of how many.
      threads: how many are compiled at a time; by default one for each core.
    """
    keys = [
        (part, batch, length)
        for part in nets
        for batch in signature.batches
        for length in signature.lengths
    ]

    if progress is not None:
        progress(0, len(keys))
    lower = {
        key: functools.partial(lowered, nets[key[0]], signature, *key[1:], device)
        for key in keys
    }
    return compile_each(lower, counter, progress, threads)


def compile_each(
    lower: Mapping[K, Callable[[], jax.stages.Lowered]],
    counter: Compilations,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> dict[K, Any]:
    """Compiles programs, several at a time.

    Args:
      lower: trace them, one after the other.
      counter, progress, threads: as those of `compile_all`.
    """

    def compiled(program: jax.stages.Lowered) -> Any:
        with counter:
            return program.compile()

    programs: dict[K, Any] = {}
    # Python traces one program while XLA, without Python's lock, compiles others.
    with concurrent.futures.ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        waiting = {pool.submit(compiled, trace()): key for key, trace in lower.items()}
        for done in concurrent.futures.as_completed(waiting):
            programs[waiting[done]] = done.result()
            if progress is not None:
                progress(len(programs), len(lower))
    return programs
