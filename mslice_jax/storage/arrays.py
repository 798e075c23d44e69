"""Arrays and their types in a file: NumPy's .npy, and what it has no word for.

The types of machine learning (bfloat16, float8, int4) and the keys of random numbers
are stored as whole numbers of the same bits; the manifest says what they are.
"""

import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .archive import Reader, StorageError, Writer, damaged


def describe(x: Any) -> dict[str, Any]:
    """Shape, dtype and weak type as plain data; symbolic sizes as text."""
    shape = [size if isinstance(size, int) else str(size) for size in x.shape]
    found: dict[str, Any] = {"shape": shape}
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        found["key"] = _implementation(x.dtype)
    else:
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        found["dtype"] = np.dtype(dtype).name
    if getattr(x, "weak_type", False):
        found["weak"] = True
    return found


def type_from(data: Any, scope: Any = None) -> jax.ShapeDtypeStruct:
    """The inverse of `describe`; `scope` is that of symbolic sizes."""
    shape = [
        size
        if isinstance(size, int)
        else jax.export.symbolic_shape(size, scope=scope)[0]
        for size in data["shape"]
    ]
    weak = bool(data.get("weak", False))
    return jax.ShapeDtypeStruct(tuple(shape), dtype_from(data), weak_type=weak)


def dtype_from(data: Any) -> Any:
    """The dtype of what `describe` gave.

    Raises:
      StorageError: for one that this JAX does not have, or not without x64.
    """
    if "key" in data:
        return jax.eval_shape(lambda: jax.random.key(0, impl=data["key"])).dtype
    name = data["dtype"]
    try:
        known = getattr(jnp, name, None)
        dtype = np.dtype(name if known is None else known)
    except TypeError:
        raise StorageError(
            f"this JAX has no arrays of type {name!r}; update jax and ml_dtypes."
        ) from None
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise StorageError(
            f"the network has arrays of type {name}, which JAX makes narrower by "
            "default; set jax.config.update('jax_enable_x64', True) first."
        )
    return dtype


def write_array(writer: Writer, file: str, x: Any) -> None:
    """Writes an array that `describe` describes."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    array = np.asarray(x)
    if array.dtype.isbuiltin != 1:  # a type that only ml_dtypes knows
        array = array.view(f"u{array.dtype.itemsize}")
    with writer.member(file) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)


def read_array(reader: Reader, file: str, data: Any) -> jax.Array:
    """The array of a member, on the default device.

    Raises:
      StorageError: if it is not the one that the manifest describes.
    """
    content = reader.read(file)
    try:
        array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise damaged(reader.path, f"{file}: {error}") from error
    if "key" in data:
        result = jax.random.wrap_key_data(jnp.asarray(array), impl=data["key"])
    else:
        dtype = dtype_from(data)
        if array.dtype != dtype:
            if array.dtype.itemsize != dtype.itemsize:
                raise damaged(reader.path, f"{file} is {array.dtype}, not {dtype}")
            array = array.view(dtype)
        result = jnp.asarray(array)
    if list(result.shape) != data["shape"]:
        shape = tuple(data["shape"])
        raise damaged(reader.path, f"{file} has shape {result.shape}, not {shape}")
    if data.get("weak"):
        # Promotion depends on it: a weak float32 beside bfloat16 gives bfloat16.
        result = _weak(result)
    return result


def _weak(x: jax.Array) -> jax.Array:
    """The array with a weak type, which only what comes of Python's numbers has."""
    kinds = ((jnp.bool_, False), (jnp.integer, 0), (jnp.floating, 0.0))
    zero = next((z for kind, z in kinds if jnp.issubdtype(x.dtype, kind)), 0j)
    weak = jnp.full(x.shape, zero).at[...].set(x)
    return weak if weak.dtype == x.dtype else x


def check_can_be_saved(name: str, x: Any, verb: str = "save") -> None:
    """Raises ValueError unless it is an array that this process has all of."""
    if isinstance(x, Tracer):
        raise ValueError(
            f"{verb} writes arrays; {name!r} is traced. Call {verb} outside of jit."
        )
    if isinstance(x, jax.ShapeDtypeStruct):
        raise ValueError(
            f"{verb} writes arrays; {name!r} is a type without values. Give the "
            "network its weights first: net.replace(variables)."
        )
    if isinstance(x, jax.Array):
        if x.is_deleted():
            raise ValueError(
                f"{name!r} was deleted, or given away to a jitted function that "
                "donates it. Save the network that this function returned."
            )
        if not (x.is_fully_addressable or x.is_fully_replicated):
            raise ValueError(
                f"{name!r} is sharded over processes, of which each has a part. Save "
                "jax.experimental.multihost_utils.process_allgather(net, tiled=True), "
                "or use mslice_jax.train.Checkpoints."
            )


def _implementation(dtype: Any) -> str:
    """The name of a key type's generator, as `jax.random.key(impl=...)` takes it."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    if key.dtype == dtype:
        return str(jax.config.jax_default_prng_impl)  # type: ignore[attr-defined]
    for name in ("threefry2x32", "rbg", "unsafe_rbg"):
        if (
            jax.eval_shape(lambda name=name: jax.random.key(0, impl=name)).dtype
            == dtype
        ):
            return name
    raise ValueError(
        f"save knows the random generators of JAX itself; got keys of type {dtype}."
    )
