"""Which network, and which part of it, each stage of a cascade scores with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..core.call import is_array, plain_type
from ..core.errors import RateError
from ..core.rates import SubNetwork
from ..core.run import resolve
from ..profile import measure
from ..sliceable import Sliceable, extract
from .reading import read
from .signature import Signature, buckets
from .weights import check_like, device_of, placed


@dataclass(frozen=True, eq=False)
class StageNetworks:
    """The networks of the stages, of types; weights come and go.

    Attributes:
      rates: of the stages, ascending.
      parts: the sub-network of each.
      full, narrow: the network that it is cut from, and the one that scores.
      signature: the call, with the candidates as rows.
      device: on which it runs.
      several: whether each stage has a network of its own.
    """

    rates: tuple[Any, ...]
    parts: tuple[SubNetwork, ...]
    full: tuple[Sliceable, ...]
    narrow: tuple[Sliceable, ...]
    signature: Signature
    device: Any
    several: bool

    @property
    def flops_per_candidate(self) -> tuple[float, ...]:
        """FLOPs of one candidate in each stage."""
        args, kwargs = self.signature.call.join(self.signature.types(1, None))
        return tuple(
            measure.count(narrow, part, args, kwargs).flops
            for narrow, part in zip(self.narrow, self.parts, strict=True)
        )

    def checked(self, variables: Any) -> list[Any]:
        """The variables of each stage.

        Args:
          variables: of the network, or of the one of each rate.

        Raises:
          ValueError: if they differ from those of the networks in structure, shape or
            dtype.
        """
        each = [variables] * len(self.full)
        if self.several:
            if missing := [rate for rate in self.rates if rate not in variables]:
                raise ValueError(
                    f"expected variables for each rate; none for {missing}."
                )
            each = [variables[rate] for rate in self.rates]
        for net, new in zip(self.full, each, strict=True):
            check_like(net.variables, new)
        return each

    def cut(self, each: Sequence[Any]) -> list[list[jax.Array]]:
        """The narrow weights of the stages, from the variables of their networks."""
        found = []
        for types, part, full in zip(self.full, self.parts, each, strict=True):
            # On the device beforehand, so that others are cut by the same program.
            leaves = placed(full, self.device)
            tree = jax.tree.structure(types.variables)
            net = types.replace(jax.tree.unflatten(tree, leaves))
            found.append(placed(extract(net, part).variables, self.device))
        return found


def staged(
    net: Any,
    rates: Sequence[Any],
    inputs: Sequence[Any],
    call: Mapping[str, Any] | None,
    *,
    sizes: Sequence[int],
    score: Callable[[Any], Any],
) -> tuple[StageNetworks, list[Any]]:
    """The networks of the stages, and the variables of each.

    Args:
      net, inputs, call, score: as those of `Cascade`.
      rates: of the stages.
      sizes: how many candidates a program may score.

    Raises:
      TypeError, RateError, ValueError: as `Cascade`.
    """
    nets, parts = networks(net, rates)
    device = device_of(nets[0])
    # What is compiled knows types alone.
    full = [types_of_weights(each) for each in nets]
    narrow = [extract(each, part) for each, part in zip(full, parts, strict=True)]
    signature = read(narrow[0], parts[0], inputs, call, batch_sizes=sizes)
    for rate, each in zip(rates, narrow, strict=True):
        check_score(each, signature, score, rate)
    found = StageNetworks(
        tuple(rates),
        tuple(parts),
        tuple(full),
        tuple(narrow),
        signature,
        device,
        isinstance(net, Mapping),
    )
    return found, [each.variables for each in nets]


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
