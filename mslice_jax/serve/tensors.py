"""Tensors of the Open Inference Protocol: their types, and their numbers as bytes.

Binary tensors lie as in memory, little-endian, as all machines are that JAX runs on.
What does not fit is an `Unreadable`, and one line says why.
"""

import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from .signature import Tensor

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    **{f"INT{n}": np.dtype(f"int{n}") for n in (8, 16, 32, 64)},
    **{f"UINT{n}": np.dtype(f"uint{n}") for n in (8, 16, 32, 64)},
    **{f"FP{n}": np.dtype(f"float{n}") for n in (16, 32, 64)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Unreadable(ValueError):
    """A request that is not of the protocol; one line says why."""


def datatype(tensor: Tensor) -> str:
    """The protocol's name of a dtype.

    Raises:
      ValueError: for one that it does not have.
    """
    name = NAMES.get(np.dtype(tensor.dtype))
    if name is None:
        raise ValueError(
            f"{tensor.name!r} has numbers of {tensor.dtype}, and the protocol knows "
            f"{', '.join(map(str, NAMES))}. Convert them in the model."
        )
    return name


def metadata(tensor: Tensor) -> dict[str, Any]:
    """An input or output as the metadata of a model tell it; -1 is a free axis."""
    shape = list(tensor.shape)
    return {"name": tensor.name, "datatype": datatype(tensor), "shape": shape}


def listed(x: np.ndarray) -> list[Any]:
    """All numbers in one list; JSON has no NaN and no infinity, and gets null."""
    flat = x.reshape(-1)
    if x.dtype.kind not in "biu":
        flat = flat.astype(np.float64)
        if not np.isfinite(flat).all():
            return [v if math.isfinite(v) else None for v in flat.tolist()]
    return flat.tolist()


class Rest:
    """The binary part of a body, taken piece by piece."""

    def __init__(self, content: memoryview) -> None:
        self.content, self.at = content, 0

    def take(self, size: int, name: str) -> memoryview:
        left = len(self.content) - self.at
        if size > left:
            raise Unreadable(
                f"input {name!r}: binary_data_size is {size}, but {left} bytes are "
                "left of the body."
            )
        self.at += size
        return self.content[self.at - size : self.at]

    def check_empty(self) -> None:
        if left := len(self.content) - self.at:
            raise Unreadable(
                f"{left} bytes of the body belong to no input; every binary input has "
                "a parameter binary_data_size."
            )


def array_of(given: dict[str, Any], tensor: Tensor, rest: Rest) -> np.ndarray:
    """The numbers of an input, from JSON or from the binary part.

    Args:
      given: the input as the JSON has it.
      tensor: as the model wants it.
      rest: the binary part, of which a binary input takes the next piece.

    Raises:
      Unreadable: if they do not fit.
    """
    what = f"input {tensor.name!r}"
    only(given, {"name", "datatype", "shape", "data", "parameters"}, what)
    wanted = datatype(tensor)
    kind = given.get("datatype")
    if kind == "BYTES":
        raise Unreadable(f"{what}: BYTES is not served; expected {wanted}.")
    if kind != wanted:
        raise Unreadable(f"{what}: expected datatype {wanted}, got {short(kind)}.")
    shape = _shape(given.get("shape"), tensor, what)
    parameters = as_object(given.get("parameters", {}), f"{what}, parameters")
    if any(name.startswith("shared_memory") for name in parameters):
        raise Unreadable(f"{what}: shared memory is not served; send the numbers.")
    only(parameters, {"binary_data_size"}, f"{what}, parameters")
    count = math.prod(shape)
    if "binary_data_size" not in parameters:
        return _from_json(given.get("data"), DTYPES[wanted], count, what).reshape(shape)
    if "data" in given:
        raise Unreadable(f"{what} has both data and binary_data_size.")
    size = as_int(parameters["binary_data_size"], f"{what}, binary_data_size")
    needed = count * DTYPES[wanted].itemsize
    if size != needed:
        raise Unreadable(
            f"{what}: {wanted} of shape {shape} has {needed} bytes, binary_data_size "
            f"is {size}."
        )
    content = rest.take(size, tensor.name)
    if wanted == "BOOL" and (np.frombuffer(content, np.uint8) > 1).any():
        raise Unreadable(f"{what}: a BOOL is a byte of 0 or 1.")
    found = np.frombuffer(content, DTYPES[wanted]).reshape(shape)
    # After JSON of any length it may lie where its type may not.
    return found if found.flags.aligned else found.copy()


def _shape(given: Any, tensor: Tensor, what: str) -> list[int]:
    expected = f"{what}: expected shape {list(tensor.shape)} (-1 is free)"
    if not isinstance(given, list) or len(given) != len(tensor.shape):
        raise Unreadable(f"{expected}, got {short(given)}.")
    for n, size in zip(given, tensor.shape, strict=True):
        whole = isinstance(n, int) and not isinstance(n, bool) and n >= 0
        if not whole or size not in (-1, n):
            raise Unreadable(f"{expected}, got {short(given)}.")
    return given


def _from_json(data: Any, dtype: np.dtype, count: int, what: str) -> np.ndarray:
    """Numbers of JSON, in one list or nested as the shape is."""
    if not isinstance(data, list):
        raise Unreadable(f"{what}: expected data, a list of numbers.")
    try:
        found = np.asarray(data)
    except (ValueError, OverflowError):
        raise Unreadable(f"{what}: data is a list of lists of other lengths.") from None
    if found.size != count:
        raise Unreadable(
            f"{what}: the shape has {count} numbers, data has {found.size}."
        )
    if not count:
        return np.zeros(0, dtype)
    numbers = "b" if dtype.kind == "b" else "iu" if dtype.kind in "iu" else "iuf"
    if found.dtype.kind not in numbers:
        raise Unreadable(f"{what}: data has something else than {dtype} numbers.")
    with np.errstate(over="ignore"):
        cast = found.reshape(-1).astype(dtype)
    if dtype.kind in "iu":
        fits = np.array_equal(cast, found.reshape(-1))
    else:
        fits = dtype.kind == "b" or np.isfinite(cast.astype(np.float64)).all()
    if not fits:
        raise Unreadable(f"{what}: data has numbers that do not fit {dtype}.")
    return cast


def as_object(value: Any, what: str) -> dict[str, Any]:
    """The value, if it is a JSON object; otherwise raises Unreadable."""
    if not isinstance(value, dict):
        raise Unreadable(f"{what}: expected a JSON object, got {short(value)}.")
    return value


def only(given: Mapping[str, Any], known: set[str], what: str) -> None:
    """Raises Unreadable for a name that is not known: it may be a slip."""
    if unknown := sorted(given.keys() - known):
        raise Unreadable(
            f"{what}: {short(unknown)} is unknown; there are {sorted(known)}."
        )


def as_flag(given: Mapping[str, Any], name: str, *, default: bool) -> bool:
    """A parameter that is a boolean; otherwise raises Unreadable."""
    value = given.get(name, default)
    if not isinstance(value, bool):
        raise Unreadable(f"parameter {name}: expected a boolean, got {short(value)}.")
    return value


def as_int(value: Any, what: str) -> int:
    """The value, if it is an integer of 64 bits; otherwise raises Unreadable."""
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63:
        raise Unreadable(f"{what}: expected an integer, got {short(value)}.")
    return value


def short(value: Any) -> str:
    """A value of somebody else, as far as it fits into a line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
