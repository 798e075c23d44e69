"""NNX models."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from flax import nnx

from ...core.call import Call
from ...core.function import Function
from ..base import Adapter, Norms, check_is_instance, method_of
from ..modules import facts, from_facts
from ..norms import NormWarning
from .function import NnxFunction, adapt
from .module import SliceableModel, to_nnx


class Nnx(Adapter):
    """Modules of `flax.nnx`, which hold their variables."""

    function: ClassVar[type[Function]] = NnxFunction
    name = "NNX model"
    holds_variables = True

    def takes(self, model: Any) -> bool:
        """Whether it is a module, or the class of one."""
        check_is_instance(model, nnx.Module)
        return isinstance(model, nnx.Module)

    def check(self, model: Any, inputs: Sequence[Any]) -> None:
        """Raises ValueError where a state comes in place of inputs."""
        first = inputs[0] if inputs else None
        if isinstance(first, (nnx.State, nnx.GraphDef)) or (
            isinstance(first, Mapping) and "params" in first
        ):
            raise ValueError(
                "an NNX model holds its own variables; expected example inputs after "
                f"it, got {type(first).__name__}. Call upgrade(model, *inputs, "
                "rates=...), after nnx.update(model, state) if it is to have others."
            )

    def adapt(
        self, model: Any, variables: Any, call: Call, arrays: Any, norms: Norms
    ) -> tuple[Function, Any]:
        """See `function.adapt`."""
        return adapt(model, call, arrays, norms)

    def facts(self, function: Any) -> dict[str, Any]:
        """Where its batch norms are, and what became of them."""
        return facts(function)

    def again(
        self, model: Any, facts: Any, call: Call, arrays: Any, rates: Any
    ) -> Function:
        """The model with its batch norms swapped as they were."""
        fields = from_facts(facts, rates)
        norms = Norms(fields["norm"].name, fields["groups"], rates)
        with warnings.catch_warnings():
            # The weights of this model are not used, so it may be trained.
            warnings.simplefilter("ignore", NormWarning)
            found, _ = adapt(model, call, arrays, norms)
        if found.sites != fields["sites"]:
            raise ValueError(
                f"the saved network has batch norms at {facts['sites']}; the model has "
                f"them at {[list(site) for site in found.sites]}."
            )
        return replace(found, **fields)

    def called(self, model: Any, kwargs: Mapping[str, Any]) -> Any:
        """The method that runs."""
        return method_of(type(model), kwargs)

    def rebuilt(self, small: Any) -> Any:
        """See `module.to_nnx`."""
        return to_nnx(small)

    def module(self, net: Any) -> SliceableModel:
        """An NNX model with a static rate, which holds the variables."""
        return SliceableModel(net)
