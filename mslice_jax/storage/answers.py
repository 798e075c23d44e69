"""Does a program with a batch of free size give the answers of the one of fixed size?

JAX traces indexing otherwise where a size is free (``x[:, 0]`` gathers instead of
slicing), so two programs of one function may have other equations. Their answers tell.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

Function = Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]]
"""Of weights and arrays; gives arrays."""


def same_answers(
    function: Function, weights: Sequence[Any], plain: Sequence[Any], free: Sequence
) -> bool:
    """Whether both programs of a function give the same for one made-up call.

    Args:
      function: is traced for both.
      weights: that it takes. Numbers are added to them: where some are zeros, as those
        of a last layer often are, every answer would be the same.
      plain: the types of its arrays, of fixed sizes.
      free: the same with a batch of free size.

    Returns:
      False also where the answers say nothing: all of one are 0, or none is finite.
    """
    rng = np.random.default_rng(0)
    moved = [_moved(rng, x) for x in weights]
    arrays = [made_up(rng, x) for x in plain]
    # Both run once, and need not be fast.
    on_cpu = jax.default_backend() == "cpu"
    options: Any = {"xla_backend_optimization_level": 0} if on_cpu else None
    types = [jax.typeof(x) for x in moved]
    exported = jax.export.export(jax.jit(function))(types, list(free))
    here = jax.jit(function, compiler_options=options)(moved, arrays)
    there = jax.jit(exported.call, compiler_options=options)(moved, arrays)
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(here, there, strict=True)]
    return all(close(a, b, 1e-4) and _says_something(a) for a, b in pairs)


def _moved(rng: np.random.Generator, x: Any) -> Any:
    """A weight on this device, a little off; a variance stays above 0."""
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return x
    x = np.asarray(x)
    if not jnp.issubdtype(x.dtype, np.inexact):
        return x
    return (x + 0.05 * rng.uniform(size=x.shape)).astype(x.dtype)


def made_up(rng: np.random.Generator, x: Any) -> Any:
    """An array of a type whose sizes are known."""
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return jax.random.split(jax.random.key(0, impl=jax.random.key_impl(x)), x.shape)
    if jnp.issubdtype(x.dtype, np.inexact):
        return rng.normal(size=x.shape).astype(x.dtype)
    # Nobody says how many classes there are, but there are two at least.
    return rng.integers(0, 2, size=x.shape).astype(x.dtype)


def close(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    """Whether two arrays are one, but for rounding; whole numbers are exactly.

    Args:
      a: the one whose largest finite number is the scale.
      b: the other, which has NaN and infinity where this one has.
      tolerance: a share of the scale; 3e-2 if larger, where less than single precision
        takes part and on accelerators.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not jnp.issubdtype(a.dtype, np.inexact):
        return np.array_equal(a, b)
    few_bits = jnp.finfo(a.dtype).nmant < 23 or jax.default_backend() != "cpu"
    wide = np.complex128 if np.iscomplexobj(a) else np.float64
    a, b = a.astype(wide), b.astype(wide)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False
    allowed = max(tolerance, 3e-2 if few_bits else 0.0)
    far = np.max(np.abs(a[finite] - b[finite]), initial=0)
    return bool(far <= allowed * np.max(np.abs(a[finite]), initial=0))


def _says_something(a: np.ndarray) -> bool:
    """Not of zeros alone, which any function may give, nor of NaN."""
    some = ~np.isfinite(a.astype(np.complex128)) | (a == 0)
    return not a.size or not jnp.issubdtype(a.dtype, np.inexact) or not some.all()
