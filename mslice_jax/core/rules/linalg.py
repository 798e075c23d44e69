"""Linear algebra: batch axes pass through, the axes of a matrix keep their sizes."""

from collections.abc import Sequence
from typing import Any

from jax import lax

from .base import Dims, Narrow, Tie, Value, rule

_TEXT = "every entry depends on the whole matrix"


@rule(
    "cholesky",
    "cholesky_update",
    "eig",
    "eigh",
    "geqp3",
    "geqrf",
    "hessenberg",
    "householder_product",
    "lu",
    "ormqr",
    "qr",
    "schur",
    "svd",
    "symmetric_product",
    "tridiagonal",
)
def tie_decomposition(t: Tie) -> Sequence[Dims]:
    """(batch, m, n), ... -> (batch, m, k), ...: every entry depends on the matrix."""
    return _tie_batch(t, max(len(value.dims) for value in t.ins) - 2)


@rule("lu_pivots_to_permutation")
def tie_pivots(t: Tie) -> Sequence[Dims]:
    """(batch, m) -> (batch, n): every entry depends on the matrix."""
    return _tie_batch(t, len(t.ins[0].dims) - 1)


def _tie_batch(t: Tie, batch: int) -> Sequence[Dims]:
    """All operands and results share the first axes; the others are a matrix'."""
    first = t.ins[0].dims[:batch]
    for value in t.ins:
        t.equate(first, value.dims[:batch])
        t.fix(value.dims[batch:], _TEXT)
    return [
        [*first, *(t.fixed(size, _TEXT) for size in aval.shape[batch:])]
        for aval in t.outs
    ]


@rule("triangular_solve")
def tie_triangular_solve(t: Tie) -> Sequence[Dims]:
    """(batch, m, m), (batch, m, n) -> (batch, m, n): columns are solved one by one."""
    a, b = (value.dims for value in t.ins)
    t.equate(a[:-2], b[:-2])
    t.fix([*a[-2:], b[-2 if t.params["left_side"] else -1]], _TEXT)
    return [b]


@rule("tridiagonal_solve")
def tie_tridiagonal_solve(t: Tie) -> Sequence[Dims]:
    """3 (batch, m), (batch, m, n) -> (batch, m, n): columns are solved one by one."""
    *diagonals, b = (value.dims for value in t.ins)
    for diagonal in diagonals:
        t.equate(diagonal, b[:-1])
    t.fix([b[-2]], _TEXT)
    return [b]


def _by_name(
    lengths: Any, operands: Sequence[Any]
) -> tuple[dict[str, list[Any]], list[Any]]:
    """The constants of each function, and what is left: the right-hand sides."""
    consts, rest = {}, list(operands)
    for name, count in lengths._asdict().items():
        consts[name], rest = rest[:count], rest[count:]
    return consts, rest


def _narrow_linear_solve(n: Narrow, *operands: Any) -> Any:
    lengths, jaxprs = n.params["const_lengths"], n.params["jaxprs"]
    consts, rest = _by_name(lengths, operands)
    called = [name for name in lengths._fields if getattr(jaxprs, name) is not None]

    def run(name: str, xs: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(n.call(called.index(name), *consts[name], *xs))

    aux = len(n.eqn.outvars) - len(rest)

    def solve(name: str, b: Any) -> Any:
        outs = run(name, b)
        return (outs[: len(b)], outs[len(b) :]) if aux else outs

    transposed = jaxprs.transpose_solve is not None
    outs = lax.custom_linear_solve(
        lambda x: run("matvec", x),
        tuple(rest),
        lambda _, b: solve("solve", b),
        (lambda _, b: solve("transpose_solve", b)) if transposed else None,
        symmetric=jaxprs.vecmat is jaxprs.matvec,
        has_aux=bool(aux),
    )
    return [*outs[0], *outs[1]] if aux else list(outs)


@rule("custom_linear_solve", narrow=_narrow_linear_solve)
def tie_linear_solve(t: Tie) -> Sequence[Value]:
    """b -> x: what the product with the matrix and its solution say; x is like b."""
    lengths, jaxprs = t.params["const_lengths"], t.params["jaxprs"]
    consts, rest = _by_name(lengths, t.ins)
    b = [Value(value.dims) for value in rest]
    results = []
    for name in lengths._fields:
        jaxpr = getattr(jaxprs, name)
        if jaxpr is not None:
            outs = t.call(jaxpr, [*consts[name], *b])
            for before, after in zip(b, outs, strict=False):  # without what is extra
                t.equate(before.dims, after.dims)
            if name == "solve":
                results = outs
    return [Value(value.dims) for value in results]
