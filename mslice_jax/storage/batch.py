"""A batch of free size: whether the program of a call stays the same with one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from ..core.call import plain_type

_BATCH = "batch"


def with_free_batch(
    trace: Callable[[Sequence[Any]], Any],
    arrays: Sequence[Any],
    same: Callable[[Sequence[Any], Sequence[Any]], bool] | None = None,
) -> tuple[list[Any], str | None]:
    """The types of the arrays with a free batch size, or why it cannot be free.

    The batch is the first axis of the first array that has axes, and that of all others
    which has the same size.

    Args:
      trace: gives the program for arrays of these types.
      arrays: of a call, or their types.
      same: whether the function gives the same for arrays of these types, the plain
        ones and the free ones. Asked where the programs differ: JAX writes indexing
        otherwise where a size is free.
    """
    plain = [plain_type(x) for x in arrays]
    sizes = [x.shape[0] for x in plain if x.shape and _is_plain(x)]
    if not sizes:
        return plain, "no input has a batch"
    if any(not isinstance(n, int) for x in plain for n in x.shape):
        return plain, None  # as the user chose at `upgrade`
    try:
        (batch,) = jax.export.symbolic_shape(_BATCH)
        free = [
            x.update(shape=(batch, *x.shape[1:]))
            if x.shape and _is_plain(x) and x.shape[0] == sizes[0]
            else x
            for x in plain
        ]
        # A function that asks for the size of the batch (`if len(x) == 8`) gets the
        # answer no of a free one, and may compute something else then.
        there = trace(free)
        if not _alike(trace(plain), there) and not (same and same(plain, free)):
            return plain, "the function is another one where the batch has a free size"
    except Exception as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "_DimExpr" in text and "interpreted as an integer" in text:
            # What Python says of len, range and int of a size that is free.
            text = "len(x) of its array, or int of its size; write x.shape[0]"
        return plain, f"a batch of free size fails with {text[:160]}"
    return free, None


def _is_plain(x: Any) -> bool:
    return not jnp.issubdtype(x.dtype, jax.dtypes.extended)


def _alike(here: Any, there: Any) -> bool:
    """Whether two parts of programs are the same but for sizes that are free there.

    Programs are compared equation by equation, with their numbers and parameters; what
    cannot be compared counts as different, for then the batch just keeps its size.
    """
    if jax.export.is_symbolic_dim(there):
        return isinstance(here, int)  # that shapes fit JAX itself has checked
    if hasattr(there, "eqns") or hasattr(there, "jaxpr"):
        return _alike(_parts(here), _parts(there))
    if isinstance(there, (tuple, list)):
        same = isinstance(here, (tuple, list)) and len(here) == len(there)
        return same and all(map(_alike, here, there))
    if isinstance(there, Mapping):
        same = isinstance(here, Mapping) and here.keys() == there.keys()
        return same and all(_alike(here[key], there[key]) for key in there)
    if callable(there) or hasattr(there, "call_wrapped"):
        return type(here) is type(there)  # rules of derivatives, which are not called
    if hasattr(there, "shape") and hasattr(there, "dtype"):
        return _same_numbers(np.asarray(here), np.asarray(there))
    if isinstance(there, float):
        return isinstance(here, float) and _same_numbers(here, there)
    try:
        return bool(here == there)
    except Exception:
        return False


def _same_numbers(here: Any, there: Any) -> bool:
    """NaN, with which a look-up fills in, is NaN."""
    equal_nan = jnp.issubdtype(np.asarray(there).dtype, jnp.inexact)
    return bool(np.array_equal(here, there, equal_nan=equal_nan))


def _parts(program: Any) -> Any:
    """The equations of a jaxpr, closed or not, as tuples; constants first."""
    jaxpr = getattr(program, "jaxpr", program)
    names: dict[Any, int] = {}

    def operand(var: Any) -> Any:
        if hasattr(var, "val"):
            return ("number", str(var.aval.dtype), var.val)
        return names.setdefault(var, len(names))

    for var in [*jaxpr.constvars, *jaxpr.invars]:
        operand(var)
    equations = [
        (
            eqn.primitive.name,
            [operand(var) for var in eqn.invars],
            [operand(var) for var in eqn.outvars],
            eqn.params,
        )
        for eqn in jaxpr.eqns
    ]
    results = [operand(var) for var in jaxpr.outvars]
    return list(getattr(program, "consts", ())), equations, results
