"""Which network, and which part of it, each stage of a cascade scores with."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core.call import is_array, plain_type
from ..core.errors import RateError
from ..core.rates import SubNetwork
from ..core.run import resolve
from ..sliceable import Sliceable
from .signature import Signature, buckets


def types_of_weights(net: Sliceable) -> Sliceable:
    """The network with types in place of its weights."""
    leaves = [plain_type(x) for x in jax.tree.leaves(net.variables)]
    return net.replace(jax.tree.unflatten(jax.tree.structure(net.variables), leaves))


def sizes_of(given: Any, what: str) -> tuple[int, ...]:
    """One size, or several, ascending."""
    return buckets(given if isinstance(given, Sequence) else [given], what)


def pairs(stages: Any) -> tuple[list[Any], list[Any]]:
    """The rates and the keeps of the stages."""
    try:
        found = [(rate, keep) for rate, keep in stages]
    except (TypeError, ValueError):
        raise ValueError(
            "stages are pairs (rate, keep), such as [(0.25, 100), (1.0, 10)]; got "
            f"{stages!r}."
        ) from None
    return [rate for rate, _ in found], [keep for _, keep in found]


def networks(
    net: Any, rates: Sequence[Any]
) -> tuple[list[Sliceable], list[SubNetwork]]:
    """The network and the sub-network of each stage; rates are ascending."""
    if isinstance(net, Mapping):
        if missing := [rate for rate in rates if rate not in net]:
            raise RateError(
                f"there are networks for {list(net)}, and none for {missing}."
            )
        nets = [net[rate] for rate in rates]
    else:
        nets = [net] * len(rates)
    for each in nets:
        if not isinstance(each, Sliceable):
            raise TypeError(
                f"Cascade expects a Sliceable, or one for each rate; got "
                f"{type(each).__name__}."
            )
    parts = [
        resolve(each.definition, rate, each.part)
        for each, rate in zip(nets, rates, strict=True)
    ]
    for i in range(1, len(parts)):
        narrow, wide = parts[i - 1], parts[i]
        if narrow.rate is not None and wide.rate is not None:
            ascending = narrow.rate < wide.rate
        else:
            ascending = narrow != wide and nets[i].plan.fits(narrow, wide)
        if not ascending:
            raise RateError(
                "the rates of a cascade ascend, each stage wider than the one before; "
                f"got {rates}."
            )
    return nets, parts


def check_score(
    narrow: Sliceable, signature: Signature, score: Callable[[Any], Any], rate: Any
) -> None:
    """Raises ValueError unless there is one real score for each candidate."""
    number = max(2, signature.batches[-1])

    def run(net: Sliceable, arrays: Sequence[Any]) -> Any:
        args, kwargs = signature.call.join(arrays)
        return score(net(net.part, *args, **kwargs))

    found = jax.eval_shape(run, narrow, signature.types(number, None))
    if is_array(found) and found.shape in ((number,), (number, 1)):
        kind = found.dtype
        if jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer):
            return
    got = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", found)
    raise ValueError(
        f"expected one real score for each candidate, of shape (n,) or (n, 1); at rate "
        f"{rate} there are {got} for {number} candidates. Give score=, such as "
        "score=lambda logits: logits[:, 1]."
    )
