"""What a rate keeps of a parameter: the leading units of each part, cut by hand.

A layer holds its parameters at full width. Its input comes at the width of the rate, so
the full size of the input is `in_features`, or what the parameter says that was made at
rate 1. Where the input was made by a concatenation, `in_features` is a tuple of
the parts' full sizes: each part keeps its own leading units, not the whole its prefix.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ..core.rates import check_rate, width

Sizes: TypeAlias = int | tuple[int, ...] | None


class Part(NamedTuple):
    """An axis, or one part of a concatenated one, that is sliced in whole units."""

    size: int
    unit: int

    @classmethod
    def of(cls, size: int, groups: int) -> "Part":
        """In this many units, if they divide the size; else in single indices."""
        return cls(size, size // groups if size % groups == 0 else 1)

    def kept(self, rate: float) -> int:
        """How many indices a rate keeps.

        >>> Part.of(64, groups=8).kept(0.3), Part.of(10, groups=8).kept(0.25)
        (16, 2)

        Raises:
          RateError: if the rate is not a number in (0, 1].
        """
        return width(self.size, check_rate(rate), self.unit)


def lead(array: jax.Array, axis: int, parts: Sequence[Part], rate: float) -> jax.Array:
    """The array with the leading units of each part of an axis."""
    starts = itertools.accumulate((0, *(part.size for part in parts[:-1])))
    cut = [
        lax.slice_in_dim(array, start, start + part.kept(rate), axis=axis)
        for start, part in zip(starts, parts, strict=True)
    ]
    return cut[0] if len(cut) == 1 else jnp.concatenate(cut, axis)


def input_parts(
    layer: Any, got: int, rate: float, stored: int | None
) -> tuple[Part, ...]:
    """The parts of a layer's input, which comes with `got` entries.

    Args:
      layer: a module with `in_features` and `groups`.
      got: the size of the last axis of the input.
      rate: the rate that the input is at.
      stored: the full size as the layer's parameter has it; None before it is made.

    Raises:
      RateError: if the rate is not in (0, 1].
      ValueError: if the input has another size than the rate keeps.
    """
    sizes = input_sizes(layer, got, rate, stored)
    parts = tuple(Part.of(size, layer.groups) for size in sizes)
    check_width(layer, got, rate, parts)
    return parts


def input_sizes(
    layer: Any, got: int, rate: float, stored: int | None
) -> tuple[int, ...]:
    """The full sizes of the parts: as given, as stored, or as the input has them."""
    rate, given = check_rate(rate), layer.in_features
    if given is not None:
        return (given,) if isinstance(given, int) else tuple(given)
    if stored is None and rate != 1.0:
        raise ValueError(
            f"{_name(layer)}: parameters are made at full width, and an input at rate "
            f"{rate:g} does not tell it. Call init at rate 1 (the default), or give "
            "the layer in_features."
        )
    return (got if stored is None else stored,)


def check_width(layer: Any, got: int, rate: float, parts: Iterable[Part]) -> None:
    """Raises ValueError unless the input is as wide as its parts at the rate."""
    parts = list(parts)
    expected = sum(part.kept(rate) for part in parts)
    if got != expected:
        raise ValueError(
            f"{_name(layer)}: expected {expected} of "
            f"{sum(part.size for part in parts)} input features at rate {rate:g}; got "
            f"{got}. Call every layer at the same rate and with the same `groups`; "
            "slice_inputs=False takes an input that is kept whole."
        )


def stored_size(layer: nn.Module, axis: int, *path: str) -> int | None:
    """The size of an axis of one of the layer's parameters; None before it is made."""
    first, *rest = path
    if not layer.has_variable("params", first):
        return None
    value = nn.meta.unbox(layer.get_variable("params", first))
    for key in rest:
        value = value[key]
    return value.shape[axis]


def _name(layer: nn.Module) -> str:
    return f"{type(layer).__name__} {'/'.join(layer.path)}".strip()
