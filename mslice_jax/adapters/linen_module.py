"""The Sliceable as a Flax module whose rate is a static argument."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from ..core.program import Definition
from ..sliceable import Sliceable, extract, keywords
from .linen import LinenFunction


class SliceableModule(nn.Module):
    """A sliceable network, to be composed with other Flax modules.

    Its variables have the tree of `Sliceable.variables`; `init` draws them anew. The
    batch statistics that it may write are at full shape, as for `slice_apply`.

    Attributes:
      definition: the static part of a Sliceable, see `Sliceable.module`.
      source: the rate of the variables: 1, or that of the extracted network.
    """

    definition: Definition
    source: Any = 1.0

    @nn.compact
    def __call__(
        self,
        *inputs: Any,
        rate: float | None = None,
        call: Mapping[str, Any] | None = None,
        **call_kwargs: Any,
    ) -> Any:
        """Runs at the rate, by default the widest; the rest goes to the network.

        A keyword of the network's own that is named `rate` is given as
        ``call={"rate": ...}``, as in `upgrade`.
        """
        kwargs = keywords(call, call_kwargs)
        function = self.definition.function
        if self.is_initializing():
            if not isinstance(function, LinenFunction):
                raise ValueError(
                    "init expects a network upgraded from a Linen module; a plain "
                    "function has no initialisation. Use the variables it came with."
                )
            fresh = function.init(self.make_rng("params"), *inputs, **kwargs)
            if not _has_boxes(self.definition.plan.axes):  # upgrade got them unboxed
                fresh = nn.unbox(fresh)
            if self.source != 1.0:
                full = Sliceable(fresh, self.definition)
                fresh = extract(full, self.source).variables
            for collection, tree in fresh.items():
                for name, value in tree.items():
                    self._declare(collection, name, value)
        variables = {name: dict(tree) for name, tree in self.variables.items()}
        net = Sliceable(variables, self.definition, self.source)
        rate = net.rates[-1] if rate is None else rate
        streams = self.scope.rngs if self.scope is not None else ()
        rngs = {name: self.make_rng(name) for name in streams if name != "params"}
        if rngs and isinstance(function, LinenFunction):
            kwargs["rngs"] = rngs
        mutable = [
            name
            for name in variables
            if name != "params" and self.is_mutable_collection(name)
        ]
        if not mutable:
            return net(rate, *inputs, **kwargs)
        y, updates = net(rate, *inputs, **kwargs, mutable=mutable)
        if self.is_initializing():  # a first call leaves no trace in what init gives
            return y
        for collection, tree in updates.items():
            for name, value in tree.items():
                self.put_variable(collection, name, value)
        return y

    def _declare(self, collection: str, name: str, value: Any) -> None:
        if collection == "params":
            self.param(name, lambda _: value)
        else:
            self.variable(collection, name, lambda: jax.tree.map(lambda x: x, value))


def _has_boxes(tree: Any) -> bool:
    """Whether leaves come with names of mesh axes, as `nn.with_partitioning` does."""

    def is_box(x: Any) -> bool:
        return isinstance(x, nn.meta.AxisMetadata)

    return any(map(is_box, jax.tree.leaves(tree, is_leaf=is_box)))
