"""Does a row's result depend on the other rows, or on what fills up its end?

A server puts requests of strangers into one batch, so it may not. Programs that are
compiled anyhow tell: a row alone, and the same row beside others of another scale.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .rows import Rows, filled, taken_out
from .signature import Signature

Run = Callable[[int, int | None, Sequence[np.ndarray]], Sequence[np.ndarray]]
"""Runs the program of a batch and a length."""


def check(signature: Signature, run: Run) -> None:
    """Raises ValueError if other rows change a row's result, or what fills it up does.

    Args:
      signature: of the network.
      run: runs a program, also of a length that is no bucket.
    """
    check_rows(signature, run)
    if signature.free is None or signature.free.exact:
        return
    shortest, longest = signature.lengths[0], signature.lengths[-1]
    assert shortest is not None and longest is not None
    if shortest == longest:
        shortest = longest // 2
    if 0 < shortest < longest:
        check_lengths(signature, run, shortest)


def check_rows(signature: Signature, run: Run) -> None:
    """Raises ValueError if a row has another result beside others."""
    few, many = signature.batches[0], signature.batches[-1]
    if many == 1:
        return
    row = drawn(signature, 1, signature.lengths[-1], 0)
    others = drawn(signature, many - 1, signature.lengths[-1], 1)
    alone = answer(signature, run, [row], few, row.length)
    beside = answer(signature, run, [row, others], many, row.length)
    if name := different(alone, beside):
        raise ValueError(
            f"the rows of a batch influence each other: output {name!r} of a row is "
            f"another one alone (in a batch of {few}) than among {many} rows. A server "
            "answers several requests in one batch, so they may not: give the call of "
            "inference, such as call={'train': False}, or norm='group'. check=False "
            "serves it so."
        )


def check_lengths(signature: Signature, run: Run, short: int) -> None:
    """Raises ValueError if a row has another result where it is filled up.

    Args:
      signature: of the network.
      run: runs a program; also that of the smallest batch and the length `short`.
      short: a length below the largest bucket.
    """
    few, long = signature.batches[0], signature.lengths[-1]
    row = drawn(signature, 1, short, 0)
    exact = answer(signature, run, [row], few, short)
    padded = answer(signature, run, [row], few, long)
    if name := different(exact, padded):
        raise ValueError(
            f"what fills up a row changes its result: output {name!r} of a row of "
            f"length {short} is another one when it is filled up to {long}. Name the "
            "input that masks it, Lengths(mask=... or count=...), or take lengths that "
            "are buckets alone, Lengths(exact=True). check=False serves it so."
        )


def answer(
    signature: Signature,
    run: Run,
    requests: Sequence[Rows],
    batch: int,
    length: int | None,
) -> Mapping[str, np.ndarray]:
    """The outputs of the first of the requests."""
    outputs = run(batch, length, filled(signature, requests, batch, length))
    return taken_out(signature, outputs, requests)[0]


def drawn(signature: Signature, rows: int, length: int | None, seed: int) -> Rows:
    """A request of random numbers; those of another seed have another scale."""
    rng = np.random.default_rng(seed)
    arrays = []
    for tensor in signature.inputs:
        shape = tensor.sized(rows, length)
        if jax.numpy.issubdtype(tensor.dtype, np.inexact):
            x = rng.normal(loc=seed, scale=1 + 2 * seed, size=shape)
        else:
            # Nobody says how many classes there are, but there are two at least.
            x = rng.integers(0, 2, size=shape)
        arrays.append(x.astype(tensor.dtype))
    return Rows(tuple(arrays), rows, length)


def different(here: Mapping[str, Any], there: Mapping[str, Any]) -> str | None:
    """The name of an output that differs by more than rounding, if there is one."""
    for name, a in here.items():
        if apart(a, there[name]) > tolerance_of(a.dtype):
            return name
    return None


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """How far apart two arrays are, as a share of the largest finite number of `a`.

    Infinite where one has a NaN or an infinity and the other has not, and where whole
    numbers differ at all.
    """
    if not jax.numpy.issubdtype(a.dtype, np.inexact):
        return 0.0 if np.array_equal(a, b) else np.inf
    wide = np.complex128 if np.iscomplexobj(a) else np.float64
    a, b = a.astype(wide), b.astype(wide)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return np.inf
    with np.errstate(invalid="ignore"):  # infinity less infinity, which is left out
        far = np.max(np.abs(a - b), initial=0, where=finite)
    if far == 0:
        return 0.0
    scale = np.max(np.abs(a), initial=0, where=finite)
    return float(far / scale) if scale and np.isfinite(far) else np.inf


def tolerance_of(dtype: Any) -> float:
    """How far apart rounding may bring numbers of a type, as `apart` measures it.

    Batches of other sizes add up in another order; other platforms multiply single
    precision with fewer bits.
    """
    if not jax.numpy.issubdtype(dtype, np.inexact):
        return 0.0
    exact = jax.default_backend() == "cpu" and jax.numpy.finfo(dtype).nmant >= 23
    return 1e-3 if exact else 3e-2
