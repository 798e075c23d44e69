"""Linen modules."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn

from ...core.call import Call
from ...core.function import Function
from ..base import Adapter, Norms, check_is_instance, method_of
from ..modules import facts, from_facts
from .function import LinenFunction, adapt
from .module import SliceableModule
from .variables import misfits


class Linen(Adapter):
    """Modules of `flax.linen`."""

    function: ClassVar[type[Function]] = LinenFunction
    name = "Linen module"

    def takes(self, model: Any) -> bool:
        """Whether it is a module, or the class of one."""
        check_is_instance(model, nn.Module)
        return isinstance(model, nn.Module)

    def adapt(
        self, model: Any, variables: Any, call: Call, arrays: Any, norms: Norms
    ) -> tuple[Function, Any]:
        """See `function.adapt`."""
        return adapt(model, variables, call, arrays, norms)

    def facts(self, function: Any) -> dict[str, Any]:
        """Where its batch norms are, and what became of them."""
        return facts(function)

    def again(
        self, model: Any, facts: Any, call: Call, arrays: Any, rates: Any
    ) -> Function:
        """The module with its batch norms swapped at the same places."""
        return LinenFunction(module=model, **from_facts(facts, rates))

    def called(self, model: Any, kwargs: Mapping[str, Any]) -> Any:
        """The method that runs."""
        return method_of(type(model), kwargs)

    def misfits(
        self, model: Any, variables: Any, call: Call, arrays: Sequence[Any]
    ) -> list[str]:
        """See `variables.misfits`."""
        return misfits(model, variables, call, arrays)

    def module(self, net: Any) -> SliceableModule:
        """A Linen module with a static rate."""
        return SliceableModule(net.definition, net.part)
