"""What an executor serves: network, rates and call, checked ahead of compiling."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from ..core.rates import SubNetwork
from ..sliceable import Sliceable
from ..storage.programs import Programs
from .reading import read
from .rows import InvalidRequest
from .saved import SavedNetwork, Served, part_of
from .signature import Lengths, Signature
from .weights import device_of, placed


@dataclass(frozen=True, eq=False)
class Offer:
    """What is served, without the weights, which come and go.

    Attributes:
      net: of types.
      rates: the sub-network of each rate, or of its key.
      signature: the call.
      device: on which it runs.
      finite: the inputs that hold neither NaN nor infinity.
      memory_bytes: how much narrow weights may need besides the full ones; None: any.
      check: whether a network whose rows influence each other is refused.
    """

    net: Served
    rates: Mapping[Any, SubNetwork]
    signature: Signature
    device: Any
    finite: tuple[str, ...]
    memory_bytes: int | None
    check: bool

    @property
    def narrowest(self) -> SubNetwork:
        """That of the fewest units."""
        return min(self.rates.values(), key=_units)

    @property
    def widest(self) -> SubNetwork:
        """That of the most units."""
        return max(self.rates.values(), key=_units)

    @property
    def about(self) -> dict[str, str]:
        """What tells it from another one, in words."""
        tensors = {"inputs": self.signature.inputs, "outputs": self.signature.outputs}
        found = {
            what: ", ".join(f"{x.name} {x.dtype}{list(x.shape)}" for x in each)
            for what, each in tensors.items()
        }
        leaves = jax.tree.leaves(self.net.variables)
        found["weights"] = (
            f"{len(leaves)} arrays, {sum(x.size for x in leaves)} numbers"
        )
        saved = isinstance(self.net, SavedNetwork)
        found["programs"] = "those of the file" if saved else "those of the model"
        found["devices"] = self.device.device_kind
        return found

    def part(self, rate: Any) -> SubNetwork:
        """The sub-network of a rate.

        Raises:
          InvalidRequest: for one that is not served.
        """
        known = isinstance(rate, Hashable) and not isinstance(rate, bool)
        part = self.rates.get(rate) if known else None
        if part is None:
            raise InvalidRequest(
                f"rate {rate!r} is not served; {tuple(self.rates)} are."
            )
        return part

    def like(self, variables: Any) -> Any:
        """The variables of a network, or themselves.

        Raises:
          ValueError: if the network is another one.
        """
        if isinstance(variables, Programs):
            variables = SavedNetwork.of(variables)
        if not isinstance(variables, Sliceable | SavedNetwork):
            return variables
        net, wanted = variables, self.net
        if net.definition != wanted.definition or net.part != wanted.part:
            raise ValueError(
                "expected a network upgraded from the same model in the same way (and "
                "reordered alike), for the programs are compiled for that; got another "
                f"one, {net!r}. Make a new Executor for it."
            )
        return net.variables


def offered(
    net: Sliceable | Programs,
    inputs: Sequence[Any],
    *,
    rates: Sequence[float] | Mapping[Hashable, Any] | None,
    lengths: Lengths | Sequence[int] | None,
    call: Mapping[str, Any] | None,
    finite: bool | Collection[str],
    memory_bytes: int | None,
    check: bool,
    **reading: Any,
) -> tuple[Offer, list[jax.Array]]:
    """What is served, and its weights on the device.

    Args:
      net, inputs, rates, lengths, call, finite, memory_bytes, check: as those of
        `Executor`.
      **reading: as `reading.read` takes them.

    Raises:
      TypeError, RateError, ValueError: as `Executor`.
    """
    if not isinstance(net, Sliceable | Programs):
        raise TypeError(
            "Executor expects a Sliceable, or what mslice_jax.load gives; got "
            f"{type(net).__name__}."
        )
    served = SavedNetwork.of(net) if isinstance(net, Programs) else net
    device, parts = device_of(served), _parts(served, rates)
    leaves = placed(served.variables, device)
    # What is compiled knows types alone.
    types = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
    tree = jax.tree.structure(served.variables)
    served = served.replace(jax.tree.unflatten(tree, types))
    if lengths is not None and not isinstance(lengths, Lengths):
        lengths = Lengths(buckets=lengths)
    narrowest = min(parts.values(), key=_units)
    signature = read(served, narrowest, inputs, call, lengths=lengths, **reading)
    names = [x.name for x in signature.inputs]
    named = names if finite is True else tuple(finite or ())
    if unknown := set(named) - set(names):
        raise ValueError(f"finite names {unknown}; the inputs are {names}.")
    settings = tuple(named), memory_bytes, check
    return Offer(served, parts, signature, device, *settings), leaves


def _parts(net: Served, rates: Any) -> dict[Any, SubNetwork]:
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
