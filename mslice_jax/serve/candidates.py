"""The candidates of queries as a call brings them: checked, and filled up to a size."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..core.call import Call, is_array, plain_type
from .signature import Signature, Tensor


def arrays_of(
    signature: Signature, inputs: Sequence[Any], given: Mapping[str, Any], axes: int
) -> list[np.ndarray]:
    """The arrays of a call, of NumPy, in the order of the signature.

    Args:
      signature: of the network; its rows are candidates.
      inputs: positional arguments.
      given: arrays by keyword.
      axes: how many axes stand before those of a candidate: 1, or 2 with the queries.

    Raises:
      ValueError: for another call, or another dtype or shape.
    """
    _, kwargs = signature.call.join(signature.types(1, None))
    split, arrays = Call.split(inputs, {**kwargs, **given})
    missing = any(isinstance(x, jax.ShapeDtypeStruct) for x in arrays)
    if split != signature.call or missing:
        names = ", ".join(x.name for x in signature.arrays)
        raise ValueError(
            "expected the call that the cascade was made for, with arrays for "
            f"{names}; got {_shown(inputs, given)}."
        )
    free = arrays[0].shape[:axes]
    for tensor, x in zip(signature.arrays, arrays, strict=True):
        _check(tensor, x, free, ["queries", "candidates"][-axes:])
    each = zip(signature.arrays, arrays, strict=True)
    return [np.asarray(x, tensor.dtype) for tensor, x in each]


def _check(tensor: Tensor, x: Any, free: tuple[int, ...], names: Sequence[str]) -> None:
    shape = (*free, *tensor.shape[1:])
    whole = len(free) == len(names) and x.shape == shape
    if not whole or plain_type(x).dtype != tensor.dtype:
        sizes = free if len(free) == len(names) else names
        expected = ", ".join(map(str, [*sizes, *tensor.shape[1:]]))
        raise ValueError(
            f"input {tensor.name!r}: expected {tensor.dtype} ({expected}), {names[-1]} "
            f"along axis {len(names) - 1}, as many in every input; got {x.dtype} "
            f"{tuple(x.shape)}."
        )


def bucket(sizes: Sequence[int], number: int, what: str) -> int:
    """The smallest size that holds so many.

    Raises:
      ValueError: if none does.
    """
    for size in sizes:
        if size >= number:
            return size
    raise ValueError(
        f"got {number} {what}, and the cascade was made for {sizes[-1]} at most; make "
        f"it for more: Cascade(..., {what}={number})."
    )


def counted(counts: Any, queries: int, candidates: int) -> np.ndarray:
    """How many candidates each query has.

    Raises:
      ValueError: unless there is an integer in 0..candidates for each.
    """
    found = np.asarray(counts)
    fits = found.shape == (queries,) and np.issubdtype(found.dtype, np.integer)
    if not fits or (found < 0).any() or (found > candidates).any():
        raise ValueError(
            f"counts: expected {queries} integers from 0 to {candidates}; got "
            f"{counts!r}."
        )
    return found


def filled(x: np.ndarray, queries: int, candidates: int) -> np.ndarray:
    """An array (q, n, ...) with zeros up to these sizes."""
    more = [(0, queries - x.shape[0]), (0, candidates - x.shape[1])]
    return np.pad(x, [*more, *[(0, 0)] * (x.ndim - 2)]) if any(map(any, more)) else x


def _shown(inputs: Any, given: Any) -> str:
    shown = jax.tree.map(
        lambda x: f"{x.dtype}{list(x.shape)}" if is_array(x) else repr(x),
        [*inputs, *given.items()],
    )
    return ", ".join(map(str, shown)) or "nothing"
