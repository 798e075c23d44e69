"""What a network is: an adapter for each kind of model, and the list of them.

* `base`: the contract. `modules`: what models of Flax have in common. `norms`: the
  strategies for batch norms.
* `linen`, `nnx`, `functions`: the kinds.
"""

from typing import Any

from .base import Adapter
from .functions import Functions

ADAPTERS: list[Adapter] = [Functions()]
"""The kinds of models; the first that takes a model adapts it."""

try:
    from .linen import Linen
    from .nnx import Nnx
except ModuleNotFoundError as error:
    # Where an export runs there may be jax and flatbuffers alone, and no Flax.
    if (error.name or "").partition(".")[0] != "flax":
        raise
else:
    ADAPTERS[:0] = [Linen(), Nnx()]


def adapter_of(model: Any) -> Adapter:
    """The adapter that takes a model.

    Raises:
      TypeError: if none does.
    """
    for adapter in ADAPTERS:
        if adapter.takes(model):
            return adapter
    raise TypeError(
        "upgrade expects a Flax model (Linen or NNX) or a function fn(variables, "
        f"*inputs); got {type(model).__name__}."
    )


def adapter_of_network(net: Any) -> Adapter:
    """The adapter that made the function of a network."""
    function = net.definition.function
    return next(a for a in ADAPTERS if isinstance(function, a.function))
