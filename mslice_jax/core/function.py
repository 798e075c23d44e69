"""What a network is to the method: a function of its variables.

`Function` is the contract. `mslice_jax.adapters` makes one of each kind of model.
"""

import abc
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from .call import Call
from .paths import Path


@dataclass(frozen=True, eq=False, kw_only=True)
class Function(abc.ABC):
    """A network as a function of its variables.

    Two are equal that were made of the same model with the same settings: a program
    that was traced of one is that of the other.
    """

    takes_rngs: ClassVar[bool] = False
    """Whether a call takes `rngs`, a key for each random stream."""

    @abc.abstractmethod
    def __call__(self, variables: Any, rate: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Runs at full width. The rate only says which of the norms are meant."""

    @property
    @abc.abstractmethod
    def of(self) -> Any:
        """The model, or its class."""

    def __eq__(self, other: object) -> bool:
        return self is other or (
            type(self) is type(other)
            and all(
                _same(getattr(self, field.name), getattr(other, field.name))
                for field in fields(self)
                if field.compare
            )
        )

    def __hash__(self) -> int:
        return hash(type(self))  # a model need not have a hash

    @property
    def depends_on_rate(self) -> bool:
        """Whether the program differs between rates in more than its widths."""
        return False

    def updates(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether a call with these keywords returns (output, updated collections)."""
        return False

    def called(self, kwargs: Mapping[str, Any]) -> Any:
        """What a call with these keywords runs; its signature tells what it takes."""
        return self.of

    def takes(self, keyword: str, kwargs: Mapping[str, Any]) -> bool:
        """Whether a call with `kwargs` understands one keyword more.

        A call that takes any keyword may only hand it on, so it counts as one that does
        not; see `takes_any`.
        """
        found = self._parameters(kwargs).get(keyword)
        return found is not None and found.kind in (
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.KEYWORD_ONLY,
        )

    def takes_any(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether a call with `kwargs` takes keywords that its signature does not name.

        What they are passed on to decides.
        """
        kinds = {parameter.kind for parameter in self._parameters(kwargs).values()}
        return inspect.Parameter.VAR_KEYWORD in kinds

    def positional(self, kwargs: Mapping[str, Any]) -> list[str]:
        """The names of the inputs of a call by position, as far as it tells them."""
        inputs = list(self._parameters(kwargs).values())[1:]  # after the variables
        kinds = (
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.POSITIONAL_ONLY,
        )
        return [parameter.name for parameter in inputs if parameter.kind in kinds]

    def _parameters(self, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return inspect.signature(self.called(kwargs)).parameters
        except (TypeError, ValueError):  # a callable that does not tell
            return {}

    def check_values(self, call: Call, arrays: Sequence[Any]) -> None:
        """Raises ValueError for numbers in inputs that the model cannot take.

        A trace does not see them; so it is asked before, where there are any.
        """
        return

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """New variables in sliceable form.

        Raises:
          ValueError: if the network has no initialisation of its own.
        """
        raise ValueError(
            "init expects a network upgraded from a Linen module; a plain function has "
            "no initialisation. Use the variables it came with."
        )

    def streams(self) -> tuple[str, ...]:
        """The names of the random streams that it is known to have."""
        return ()

    def other_sets(self, collection: str, rate: Any) -> dict[Path, Path]:
        """Branches that a rate does not read: {path: that of the one it reads}."""
        return {}

    def only_rates(self, variables: Any, rates: Iterable[float]) -> Any:
        """The variables without what only other rates read."""
        return variables


def _same(a: Any, b: Any) -> bool:
    """Whether two parts of a function are the same, as far as can be told.

    Modules compare their attributes by value, for which 1 is True and 0.0 is -0.0; the
    way they are written tells these apart.
    """
    try:
        return a is b or (a == b and repr(a) == repr(b))
    except Exception:  # arrays among the attributes cannot be compared
        return False


def as_array(x: Any) -> Any:
    """An array of JAX, or the type of one."""
    return x if isinstance(x, (jax.Array, jax.ShapeDtypeStruct)) else jnp.asarray(x)
