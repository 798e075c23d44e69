"""Other forms of equations, for a kind of program: whoever compiles it chooses them.

The evaluator runs an equation as the primitive that the user wrote, unless the program
that is traced has a table of forms. `mslice_jax.cpu` has one, for `ms.jit`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from .rules import Narrow


@dataclass(frozen=True, slots=True)
class Form:
    """How a primitive is computed in another way, up to rounding.

    Attributes:
      applies: (equation, *operands) -> whether it can be, and gains from it.
      run: (equation, *operands) -> the results.
      always: whether any network gains from it, and not those alone that the table
        suits.
    """

    applies: Callable[..., bool]
    run: Callable[..., Any]
    always: bool = False


@dataclass(frozen=True, eq=False)
class Forms:
    """A table of forms, by the name of the primitive; equal to itself alone.

    Attributes:
      name: of the table.
      table: the forms.
      suits: whether a network gains from them, by its program at full width.
    """

    name: str
    table: Mapping[str, Form]
    suits: Callable[[Any], bool]

    def of(self, narrow: Narrow, operands: Any) -> Form | None:
        """The form that applies to an equation; None if there is none."""
        form = self.table.get(narrow.eqn.primitive.name)
        if form is None or not (form.always or narrow.analysis.fact(self.suits)):
            return None
        return form if form.applies(narrow, *operands) else None


@functools.cache
def without(forms: Forms, name: str) -> Forms:
    """The same table but for the form of one primitive, which runs as it is."""
    table = {key: form for key, form in forms.table.items() if key != name}
    return dataclasses.replace(forms, table=table)


active: Any = jax.make_user_context(None)
"""The table of the program that is traced, or None; a part of JAX's trace context, so
that its caches keep programs of different tables apart."""
