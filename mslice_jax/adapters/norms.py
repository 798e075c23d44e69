"""Batch norm and slicing: three strategies.

The statistics of a batch norm belong to one width: a narrower input has another mean
and variance. Model Slicing (section 3.2) therefore swaps batch norms:

* ``group``: each becomes a group norm with the same scale and bias. Its groups are the
  units that narrow, and no statistics are kept (the paper's choice).
* ``switchable``: one batch norm per rate, with its own scale, bias and statistics (the
  MultiBN of the authors' code; Slimmable Networks, Yu et al., ICLR 2019).
* ``shared``: batch norms stay as they are; `calibrate` measures statistics for each
  rate after training (US-Nets, Yu and Huang, ICCV 2019).

Without a choice of the user it is ``group`` where running statistics are fresh, and
``shared`` where they are trained: then rate 1 still computes what it did (`choose`).
`linen` and `nnx` apply them to models.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import DTypeLike

if TYPE_CHECKING:
    from jaxtyping import Array, Num
else:
    try:
        from jaxtyping import Array, Num
    except ModuleNotFoundError:  # where an export runs with jax and flatbuffers alone
        from typing import Annotated as Num

        from jax import Array


class NormWarning(UserWarning):
    """The norms that were asked for change what the network computes at rate 1."""


class GroupNormError(ValueError):
    """A batch norm that cannot be a group norm: over several axes, or with a mask.

    Attributes:
      why: which norm, and what it does.
    """

    def __init__(self, why: str):
        super().__init__(
            "norm='group' expects batch norms over one axis without a mask, but "
            f"{why}; use norm='switchable' or 'shared'."
        )
        self.why = why


def group_count(features: int, groups: int) -> int:
    """The largest divisor of the features up to `groups`: how many a group norm has.

    >>> group_count(64, 8), group_count(12, 8), group_count(4, 8)
    (8, 6, 4)
    """
    return next(g for g in range(min(groups, features), 0, -1) if features % g == 0)


def group_norm(
    x: Num[Array, "b *positions c"],
    scale: Num[Array, " c"] | None,
    bias: Num[Array, " c"] | None,
    *,
    groups: int,
    epsilon: float,
    fast_variance: bool = True,
    dtype: DTypeLike | None = None,
) -> Num[Array, "b *positions c"]:
    """Group norm (Wu and He, ECCV 2018), as one product and one sum for each entry.

    What `flax.linen.GroupNorm` computes as (x - mean) / deviation * scale + bias is
    x * gain + shift here, with a gain and a shift for every example and channel. Then
    the backward pass has two sums over all positions and not three, and they are most
    of what a norm costs. Statistics are in float32 or better.

    Args:
      x: (b, ..., c), normalised over all axes but the first and groups of the last.
      scale, bias: (c,), or None.
      groups: how many; they divide the channels.
      epsilon: added to the variance.
      fast_variance: E[x^2] - E[x]^2, in one pass, in place of E[(x - E[x])^2].
      dtype: of the result; that of x, scale and bias together unless given.
    """
    if dtype is None:
        dtype = jnp.result_type(*(a for a in (x, scale, bias) if a is not None))
    batch, *positions, channels = x.shape
    split = (batch, groups, channels // groups)
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # The sums see positions as one axis, so that XLA's CPU backend adds their gradients
    # up once, and not in every shape in which they are used.
    flat = y.reshape(batch, math.prod(positions), channels)

    def mean(flat: jax.Array) -> jax.Array:
        """(b, n, c) -> (b, groups, 1)."""
        return flat.mean(1).reshape(split).mean(-1, keepdims=True)

    def wide(each: jax.Array) -> jax.Array:
        """(b, groups, c / groups) -> (b, 1, ..., c)."""
        return each.reshape(batch, *[1 for _ in positions], channels)

    center = mean(flat)
    if fast_variance:
        variance = jnp.maximum(mean(flat * flat) - center * center, 0)
    else:
        deviation = y - wide(jnp.broadcast_to(center, split))
        variance = mean((deviation * deviation).reshape(flat.shape))
    gain = jnp.broadcast_to(lax.rsqrt(variance + epsilon), split)
    if scale is not None:
        gain = gain * scale.astype(y.dtype).reshape(1, *split[1:])
    shift = -center * gain
    if bias is not None:
        shift = shift + bias.astype(y.dtype).reshape(1, *split[1:])
    return (y * wide(gain) + wide(shift)).astype(dtype)


@dataclass(frozen=True)
class Strategy:
    """What becomes of the batch norms of a model.

    Attributes:
      name: as `upgrade(norm=...)` takes it.
      becomes: what the report says that they are.
      per_rate: collections in which every norm has one set of arrays per rate.
      forward: what runs in the place of a batch norm and needs no statistics, called
        as `group_norm` is; None where it is the batch norm itself.
      calibrated: whether `calibrate` measures statistics for each rate.
    """

    name: str
    becomes: str
    per_rate: tuple[str, ...] = ()
    forward: Callable[..., jax.Array] | None = None
    calibrated: bool = False


GROUP = Strategy("group", "group norms", forward=group_norm)
SWITCHABLE = Strategy(
    "switchable", "one for each rate", per_rate=("params", "batch_stats")
)
SHARED = Strategy("shared", "shared by all rates", calibrated=True)

STRATEGIES = {each.name: each for each in (GROUP, SWITCHABLE, SHARED)}


def choose(
    norm: str | None, statistics: Sequence[Mapping[str, Any]], unfit: str | None = None
) -> tuple[Strategy, str]:
    """The strategy for the batch norms of a model, and the reason for it.

    Args:
      norm: what the user asks for; None leaves the choice to this function.
      statistics: of each batch norm its "mean" and "var", where it has them.
      unfit: why a batch norm of the model cannot be a group norm; None if all can.

    Raises:
      ValueError: if there is no such strategy.

    Example:
      >>> import numpy as np
      >>> strategy, why = choose(None, [{"mean": np.zeros(3), "var": np.ones(3)}])
      >>> strategy.name, why
      ('group', 'their running statistics are fresh')
      >>> choose(None, [{"mean": np.ones(3), "var": np.ones(3)}])[0].name
      'shared'
    """
    if norm is not None and norm not in STRATEGIES:
        raise ValueError(
            f"norm is one of {', '.join(STRATEGIES)}, or None, which makes group norms "
            f"of fresh batch norms and shares trained ones; got {norm!r}."
        )
    known = [_are_trained(each) for each in statistics]
    if norm == "group" and any(known):
        warnings.warn(
            "norm='group' makes group norms of batch norms that are trained: at rate 1 "
            "the network computes something else than before. norm='shared' keeps what "
            "it computes; with norm='group' train it again.",
            NormWarning,
            stacklevel=5,  # the caller of `upgrade`
        )
        return GROUP, "as asked; their statistics were trained, so rate 1 changes"
    if norm is not None:
        return STRATEGIES[norm], "as asked"
    if unfit is not None:
        return SHARED, unfit
    if not all(statistics):  # as Flax says when it looks for them
        return SHARED, "the variables lack running statistics"
    if any(known):
        return SHARED, "their running statistics are trained, so rate 1 is kept"
    if None in known:
        return GROUP, "the values of their running statistics are not at hand"
    return GROUP, "their running statistics are fresh"


def _are_trained(statistics: Mapping[str, Any]) -> bool | None:
    """Whether a mean is not 0 or a variance not 1; None where that cannot be known."""
    verdicts = [
        _differs(leaf, start)
        for name, start in (("mean", 0), ("var", 1))
        for leaf in jax.tree.leaves(statistics.get(name))
    ]
    return True if True in verdicts else (None if None in verdicts else False)


def _differs(x: Any, start: int) -> bool | None:
    """Whether some entry is another number; None for types and tracers."""
    if isinstance(x, (jax.ShapeDtypeStruct, Tracer)):
        return None
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        with jax.ensure_compile_time_eval():  # on all hosts, which agree on the result
            return bool(jnp.any(x != start))
    return bool(np.any(np.asarray(x) != start))
