"""Plain functions: Equinox, Haiku, Keras, and what people write by hand."""

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.call import Call
from ..core.function import Function
from .base import Adapter, Norms


@dataclass(frozen=True, eq=False, kw_only=True)
class PlainFunction(Function):
    """A function fn(variables, *inputs).

    Called with `mutable`, it returns (output, updated collections) as `Module.apply`
    does: a dict with some of the entries of its variables.
    """

    function: Callable[..., Any]

    def __call__(self, variables: Any, rate: Any, /, *args: Any, **kwargs: Any) -> Any:
        return self.function(variables, *args, **kwargs)

    @property
    def of(self) -> Any:
        """The function itself."""
        return self.function

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PlainFunction):
            return False
        mine, others = self.function, other.function
        # A bound method is made anew each time that somebody asks for it.
        is_method = isinstance(mine, types.MethodType)
        return mine == others if is_method else mine is others

    def __hash__(self) -> int:
        is_method = isinstance(self.function, types.MethodType)
        return hash(self.function) if is_method else id(self.function)

    def updates(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether `mutable` names something; an array is an argument like others."""
        mutable = kwargs.get("mutable")
        return not hasattr(mutable, "shape") and bool(mutable)


class Functions(Adapter):
    """Any function fn(variables, *inputs)."""

    function: ClassVar[type[Function]] = PlainFunction
    name = "function"

    def takes(self, model: Any) -> bool:
        """Whether it can be called."""
        return callable(model)

    def adapt(
        self, model: Any, variables: Any, call: Call, arrays: Any, norms: Norms
    ) -> tuple[Function, Any]:
        """The function as it is."""
        return PlainFunction(function=model), variables

    def again(
        self, model: Any, facts: Any, call: Call, arrays: Any, rates: Any
    ) -> Function:
        """The function as it is."""
        return PlainFunction(function=model)

    def module(self, net: Any) -> Any:
        """A Linen module, which has the variables of the function."""
        from .linen.module import SliceableModule  # a function needs no Flax

        return SliceableModule(net.definition, net.part)
