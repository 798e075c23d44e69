"""The Sliceable as a Flax module whose rate is a static argument."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from ...core.call import Call, keywords
from ...core.definition import Definition
from ...core.rates import SubNetwork
from ...core.run import resolve, run, slice_variables, without_wider


class SliceableModule(nn.Module):
    """A sliceable network, to be composed with other Flax modules.

    Its variables have the tree of `Sliceable.variables`; `init` draws them anew. The
    batch statistics that it may write are at full shape, as for `slice_apply`.

    Attributes:
      definition: the static part of a Sliceable, see `Sliceable.module`.
      source: which part of the network the variables are; all of it unless given.
    """

    definition: Definition
    source: SubNetwork | None = None

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
        definition, function = self.definition, self.definition.function
        source = definition.plan.full if self.source is None else self.source
        if self.is_initializing():
            fresh = function.init(self.make_rng("params"), *inputs, **kwargs)
            if not _has_boxes(definition.plan.axes):  # upgrade got them unboxed
                fresh = nn.unbox(fresh)
            if source != definition.plan.full:
                full = definition.plan.full
                fresh = slice_variables(definition, source, full, fresh)
                fresh = without_wider(definition, fresh, source)
            for collection, tree in fresh.items():
                for name, value in tree.items():
                    self._declare(collection, name, value)
        variables = {name: dict(tree) for name, tree in self.variables.items()}
        widest = definition.rates(source)[-1]
        part = resolve(definition, widest if rate is None else rate, source)
        streams = self.scope.rngs if self.scope is not None else ()
        rngs = {name: self.make_rng(name) for name in streams if name != "params"}
        if rngs and function.takes_rngs:
            kwargs["rngs"] = rngs
        mutable = [
            name
            for name in variables
            if name != "params" and self.is_mutable_collection(name)
        ]
        if mutable:
            kwargs["mutable"] = mutable
        split, arrays = Call.split(inputs, kwargs)
        out = run(definition, part, source, split, variables, arrays)
        if not mutable:
            return out
        y, updates = out
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
