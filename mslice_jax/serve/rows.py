"""Requests: checked one by one, put into a batch, and taken out of it again."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from .signature import Signature, Tensor


class InvalidRequest(ValueError):
    """A request that the network cannot answer; one line says why."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The inputs of one request, checked.

    Attributes:
      arrays: in the order of the inputs.
      rows: how many rows it has.
      length: of its rows, where inputs have a free length.
    """

    arrays: tuple[np.ndarray, ...]
    rows: int
    length: int | None


def check(
    signature: Signature, given: Mapping[str, Any], finite: Collection[str]
) -> Rows:
    """The inputs of a request in their order.

    Args:
      signature: what the network takes.
      given: an array for each input, by name.
      finite: the inputs that may hold no NaN and no infinity.

    Raises:
      InvalidRequest: for anything that does not fit.
    """
    inputs = signature.inputs
    _check_names([x.name for x in inputs], given)
    arrays = [given[x.name] for x in inputs]
    rows: dict[str, int] = {}
    lengths: dict[str, int] = {}
    for tensor, x in zip(inputs, arrays, strict=True):
        _check_type(tensor, x)
        rows[tensor.name] = x.shape[tensor.batch]
        if tensor.length is not None:
            lengths[tensor.name] = x.shape[tensor.length]
        if tensor.name in finite and not np.isfinite(x).all():
            raise InvalidRequest(
                f"input {tensor.name!r} holds NaN or infinity; expected finite numbers."
            )
    length = _one(lengths, "length") if lengths else None
    found = Rows(tuple(map(np.asarray, arrays)), _one(rows, "rows"), length)
    _check_sizes(signature, found)
    return found


def _check_names(names: Sequence[str], given: Any) -> None:
    if not isinstance(given, Mapping):
        raise InvalidRequest(
            f"expected the inputs by name, {names}; got {type(given).__name__}."
        )
    missing = [name for name in names if name not in given]
    unknown = [name for name in given if name not in names]
    if missing or unknown:
        said = [f"{missing} are missing"] * bool(missing)
        said += [f"{unknown} are unknown"] * bool(unknown)
        raise InvalidRequest(f"expected the inputs {names}; {', '.join(said)}.")


def _check_type(tensor: Tensor, x: Any) -> None:
    if not isinstance(x, (np.ndarray, jax.Array)):
        raise InvalidRequest(
            f"input {tensor.name!r}: expected an array, got {type(x).__name__}."
        )
    if x.dtype != tensor.dtype:
        raise InvalidRequest(
            f"input {tensor.name!r}: expected {tensor.dtype} numbers, got {x.dtype}."
        )
    fits = len(x.shape) == len(tensor.shape) and all(
        n in (-1, size) for n, size in zip(tensor.shape, x.shape, strict=True)
    )
    if not fits:
        raise InvalidRequest(
            f"input {tensor.name!r}: expected shape {list(tensor.shape)} (-1 is free), "
            f"got {list(x.shape)}."
        )


def _one(sizes: Mapping[str, int], what: str) -> int:
    first, *others = {*sizes.values()}
    if others:
        raise InvalidRequest(f"the inputs differ in their {what}: {dict(sizes)}.")
    return first


def _check_sizes(signature: Signature, request: Rows) -> None:
    most = signature.batches[-1]
    if not 1 <= request.rows <= most:
        raise InvalidRequest(f"expected 1 to {most} rows, got {request.rows}.")
    length = request.length
    if length is None:
        return
    assert signature.free is not None
    if signature.free.exact and length not in signature.lengths:
        raise InvalidRequest(
            f"expected one of the lengths {list(signature.lengths)}, got {length}."
        )
    longest = signature.lengths[-1]
    assert longest is not None
    if not 1 <= length <= longest:
        raise InvalidRequest(f"expected a length of 1 to {longest}, got {length}.")


def bucket(signature: Signature, requests: Sequence[Rows]) -> tuple[int, int | None]:
    """The smallest batch bucket and length bucket that hold these requests.

    Raises:
      ValueError: if there are none, their rows are more than the largest bucket holds,
        or their lengths differ where lengths are exact.
    """
    rows, most = sum(request.rows for request in requests), signature.batches[-1]
    if not 1 <= rows <= most:
        raise ValueError(f"a batch holds 1 to {most} rows; got {rows}.")
    batch = next(size for size in signature.batches if size >= rows)
    lengths = {request.length for request in requests if request.length is not None}
    if not lengths:
        return batch, None
    if signature.free is not None and signature.free.exact and len(lengths) > 1:
        raise ValueError(
            f"requests of one batch have the same length where lengths are exact; got "
            f"{sorted(lengths)}."
        )
    longest = max(lengths)
    return batch, next(n for n in signature.lengths if n is not None and n >= longest)


def filled(
    signature: Signature,
    requests: Sequence[Rows],
    batch: int,
    length: int | None,
) -> list[np.ndarray]:
    """The arrays of the call for one batch: rows of all requests, filled up.

    Rows that are nobody's are copies of the first one: numbers that the network may
    see, so that they make neither NaN nor an index out of range.
    """
    brought = {x.name: i for i, x in enumerate(signature.inputs)}
    rows = sum(request.rows for request in requests)
    arrays = []
    for tensor in signature.arrays:
        i = brought.get(tensor.name)
        only = requests[0].arrays[i] if i is not None and len(requests) == 1 else None
        if only is not None and only.shape == tensor.sized(batch, length):
            arrays.append(only)  # as it came, without a copy
            continue
        full = np.empty(tensor.sized(batch, length), tensor.dtype)
        view = _rows_first(tensor, full)
        begin = 0
        for request in requests:
            part = view[begin : begin + request.rows]
            if i is None:
                _make(signature, tensor, part, request)
            else:
                given = _rows_first(tensor, request.arrays[i])
                if tensor.length is not None and request.length != length:
                    part[:, :] = _pad_value(signature, tensor)
                    part = part[:, : request.length]
                part[...] = given
            begin += request.rows
        view[rows:] = view[:1]
        arrays.append(full)
    return arrays


def taken_out(
    signature: Signature,
    outputs: Sequence[np.ndarray],
    requests: Sequence[Rows],
) -> list[dict[str, np.ndarray]]:
    """For each request the outputs of its own rows and positions, by name."""
    found, begin = [], 0
    for request in requests:
        own = {}
        for tensor, x in zip(signature.outputs, outputs, strict=True):
            cut = [slice(None)] * x.ndim
            cut[tensor.batch] = slice(begin, begin + request.rows)
            if tensor.length is not None:
                cut[tensor.length] = slice(request.length)
            own[tensor.name] = x[tuple(cut)]
        found.append(own)
        begin += request.rows
    return found


def _rows_first(tensor: Tensor, x: np.ndarray) -> np.ndarray:
    """A view with the rows along axis 0, and the free length along axis 1."""
    if tensor.batch == 0 and tensor.length in (None, 1):
        return x  # moveaxis takes microseconds
    if tensor.length is None:
        return np.moveaxis(x, tensor.batch, 0)
    return np.moveaxis(x, (tensor.batch, tensor.length), (0, 1))


def _make(
    signature: Signature, tensor: Tensor, part: np.ndarray, request: Rows
) -> None:
    """Writes what no request brings: a mask, or the lengths."""
    assert signature.free is not None
    if tensor.name == signature.free.count:
        part[...] = request.length
    else:
        part[...] = 0
        part[:, : request.length] = 1


def _pad_value(signature: Signature, tensor: Tensor) -> Any:
    assert signature.free is not None
    value = signature.free.pad_value
    return value.get(tensor.name, 0) if isinstance(value, Mapping) else value
