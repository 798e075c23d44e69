"""What a network takes and returns, by name: types, and which axes are free."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import jax
import numpy as np

from ..core.call import Call


@dataclass(frozen=True)
class Tensor:
    """An input or an output, as a protocol describes it.

    Attributes:
      name: of its argument, with the keys inside of it: "x", "batch.tokens".
      dtype: of its numbers.
      shape: -1 for a free axis.
      batch: which axis the rows are along.
      length: which axis has a free length, or None.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    batch: int = 0
    length: int | None = None

    def sized(self, batch: int, length: int | None) -> tuple[int, ...]:
        """The shape with sizes for the free axes."""
        shape = list(self.shape)
        shape[self.batch] = batch
        if self.length is not None:
            assert length is not None
            shape[self.length] = length
        return tuple(shape)


@dataclass(frozen=True)
class Lengths:
    """Inputs have an axis of free length: buckets, and what fills up shorter ones.

    Attributes:
      buckets: the lengths for which programs are compiled.
      axes: the axis by the name of its input. By default it is axis 1 of the first
        input, and of those for which it has the same size.
      pad_value: what stands beyond the end; by the name of the input if they differ.
      mask: the input that is 1 (True) where a row is, and 0 beyond its end. It is made
        here, and no request brings it.
      count: the input that has the length of each row, likewise.
      exact: whether a length is taken only if it is a bucket, so nothing is filled up.
    """

    buckets: Sequence[int]
    _: KW_ONLY
    axes: Mapping[str, int] | None = None
    pad_value: float | Mapping[str, float] = 0
    mask: str | None = None
    count: str | None = None
    exact: bool = False


@dataclass(frozen=True)
class Signature:
    """The call that is served.

    Attributes:
      call: all but the arrays.
      arrays: every array of the call, in its order.
      outputs: every array of what it returns.
      batches: the batch buckets, ascending.
      lengths: the length buckets, ascending; (None,) without a free length.
      made: the names of arrays that no request brings.
      free: what is known of the lengths.
    """

    call: Call
    arrays: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batches: tuple[int, ...]
    lengths: tuple[int | None, ...]
    made: frozenset[str]
    free: Lengths | None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The arrays that a request brings."""
        return tuple(x for x in self.arrays if x.name not in self.made)

    def types(self, batch: int, length: int | None) -> list[jax.ShapeDtypeStruct]:
        """The types of the arrays for sizes of the free axes."""
        return types_of(self.arrays, batch, length)


def types_of(
    tensors: Sequence[Tensor], batch: int, length: int | None
) -> list[jax.ShapeDtypeStruct]:
    """Types for sizes of the free axes."""
    return [jax.ShapeDtypeStruct(x.sized(batch, length), x.dtype) for x in tensors]


def buckets(sizes: Any, what: str) -> tuple[int, ...]:
    """The sizes, ascending.

    Raises:
      ValueError: if there are none, or one is not a positive integer.
    """
    found = tuple(sorted(set(sizes)))
    ints = all(isinstance(n, int) and not isinstance(n, bool) for n in found)
    if not found or not ints or found[0] < 1:
        raise ValueError(f"{what} are positive integers, one at least; got {sizes!r}.")
    return found
