"""What a kind of model has to tell, so that it can be upgraded."""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.call import Call
from ..core.function import Function


@dataclass(frozen=True)
class Norms:
    """What the user asks for the batch norms of a model.

    Attributes:
      strategy: a name in `mslice_jax.adapters.norms.STRATEGIES`, or None.
      groups: how many groups a group norm has.
      rates: the declared rates, ascending.
    """

    strategy: str | None
    groups: int
    rates: tuple[float, ...]


class Adapter(abc.ABC):
    """A kind of model, such as the modules of a framework.

    Attributes:
      function: what `adapt` makes of a model.
      holds_variables: whether a model has its own, so that `upgrade` is given none.
      name: what a model of this kind is called, in files too.
    """

    function: ClassVar[type[Function]]
    name: ClassVar[str]
    holds_variables: ClassVar[bool] = False

    @abc.abstractmethod
    def takes(self, model: Any) -> bool:
        """Whether the model is of this kind."""

    def check(self, model: Any, inputs: Sequence[Any]) -> None:
        """Raises TypeError or ValueError for what is clearly no call of `upgrade`."""
        return

    @abc.abstractmethod
    def adapt(
        self,
        model: Any,
        variables: Any,
        call: Call,
        arrays: Sequence[Any],
        norms: Norms,
    ) -> tuple[Function, Any]:
        """The model as a function, and its variables in sliceable form.

        Args:
          model: of this kind; it is not changed.
          variables: its variables; what the adapter finds itself if it holds them.
          call: the example call.
          arrays: the arrays of that call, or their types.
          norms: what to do with batch norms.
        """

    def facts(self, function: Any) -> dict[str, Any]:
        """What the model does not say of a function that `adapt` made, as JSON has it.

        It is stored with a saved network, for `again`.
        """
        return {}

    @abc.abstractmethod
    def again(
        self,
        model: Any,
        facts: Mapping[str, Any],
        call: Call,
        arrays: Sequence[Any],
        rates: tuple[float, ...],
    ) -> Function:
        """The function of a saved network, from its model and its facts.

        Args:
          model: of this kind; it is not changed.
          facts: what `facts` gave for the function that was saved.
          call: the example call that `upgrade` saw.
          arrays: the types of its arrays.
          rates: the declared rates, ascending.

        Raises:
          ValueError: if the model cannot be the one that was saved.
        """

    def called(self, model: Any, kwargs: Mapping[str, Any]) -> Any:
        """What a call with these keywords runs; its signature tells what it takes."""
        return model

    def misfits(
        self, model: Any, variables: Any, call: Call, arrays: Sequence[Any]
    ) -> list[str]:
        """Variables that do not fit the model, a line for each, as far as is known."""
        return []

    @abc.abstractmethod
    def module(self, net: Any) -> Any:
        """The network as a module of a framework, with a static rate."""

    def rebuilt(self, small: Any) -> Any:
        """A narrow network as a model of the user's own class, with narrow layers.

        Raises:
          ValueError: if models of this kind cannot be built from arrays.
        """
        raise ValueError(
            "expected a network that was upgraded from an NNX model; got one from "
            f"{type(small.definition.function).__name__}. Use extract(net, rate)."
        )


def method_of(kind: type, kwargs: Mapping[str, Any]) -> Any:
    """The method that a call with these keywords runs; `method` names another."""
    method = kwargs.get("method")
    return getattr(kind, method) if isinstance(method, str) else method or kind.__call__


def check_is_instance(model: Any, kind: type) -> None:
    """Raises TypeError for a class in place of a model."""
    if isinstance(model, type) and issubclass(model, kind):
        raise TypeError(
            f"upgrade expects a model; got the class {model.__name__}. Make one of it "
            f"first: {model.__name__}(...)."
        )
