"""Loops and branches: what is carried has the same axes before and after."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend import core

from .base import Narrow, Tie, Value, rule
from .order import PLACE, Order, data
from .places import TEXT


def _plain(values: Sequence[Value]) -> list[Value]:
    """The axes alone: a number known before a loop need not be the same inside."""
    return [Value(value.dims, order=value.order) for value in values]


def _step(t: Any, order: Order | None, dims: Sequence[Any]) -> Order | None:
    """Of what a loop takes, turn by turn, from an array along its first axis."""
    if order is None:
        return None
    if order.code:  # row by row, the places are gone through
        t.fix([d for d, a in zip(dims, order.along, strict=True) if a is PLACE], TEXT)
    return Order(order.along[1:], None, order.reached, order.counts)


def _carried(
    jaxpr: Any, fixed: Sequence[Any], carry: Sequence[Any], steps: Sequence[Any]
) -> list[Order]:
    """Of what a loop carries: which of it an argument reaches, after any turn."""
    reached = [_reached(value) for value in carry]
    others = [_reached(v) for v in fixed], [_reached(v) for v in steps]
    while not all(reached):
        outs = _reach(jaxpr.jaxpr, [*others[0], *reached, *others[1]])
        after = [a or b for a, b in zip(reached, outs, strict=False)]
        if after == reached:
            break
        reached = after
    return [data(len(v.dims), r) for v, r in zip(carry, reached, strict=True)]


def _reached(value: Any) -> bool:
    return value.order is None or value.order.reached


def _reach(jaxpr: Any, ins: Sequence[bool]) -> list[bool]:
    """Which results an argument reaches: those of equations that it reaches."""
    reached = {var for var, r in zip(jaxpr.invars, ins, strict=True) if r}

    def reads(var: Any) -> bool:
        return not isinstance(var, core.Literal) and var in reached

    for eqn in jaxpr.eqns:
        if any(map(reads, eqn.invars)):
            reached.update(eqn.outvars)
    return [reads(var) for var in jaxpr.outvars]


def counts_of_scan(params: dict[str, Any]) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many are carried."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # jax 0.11
    return len(consts), len(carry)


def _narrow_scan(n: Narrow, *operands: Any) -> Any:
    consts, carried = counts_of_scan(n.params)
    fixed = operands[:consts]

    def body(carry: Any, xs: Any) -> Any:
        outs = n.call(0, *fixed, *carry, *xs)
        return tuple(outs[:carried]), tuple(outs[carried:])

    carry, ys = lax.scan(
        body,
        tuple(operands[consts : consts + carried]),
        tuple(operands[consts + carried :]),
        length=n.params["length"],
        reverse=n.params["reverse"],
        unroll=n.params["unroll"],
        _split_transpose=n.params.get("_split_transpose", False),
    )
    return [*carry, *ys]


@rule("scan", narrow=_narrow_scan)
def tie_scan(t: Tie) -> Sequence[Value]:
    """carry (a), xs (n, b) -> carry (a), ys (n, c): the axis run along is fixed.

    Carried axes are equal before and after one step: a fixed point, which equating
    reaches in a single reading.
    """
    consts, carried = counts_of_scan(t.params)
    fixed, carry = t.ins[:consts], _plain(t.ins[consts : consts + carried])
    xs = t.ins[consts + carried :]
    for value, of in zip(
        carry, _carried(t.params["jaxpr"], fixed, carry, xs), strict=True
    ):
        value.order = of
    t.fix([value.dims[0] for value in xs], "the loop runs along the axis")
    steps = [Value(v.dims[1:], order=_step(t, v.order, v.dims)) for v in xs]
    outs = t.call(t.params["jaxpr"], [*fixed, *carry, *steps])
    for before, after in zip(carry, outs[:carried], strict=True):
        t.equate(before.dims, after.dims)
    length = t.params["length"]
    ys = [
        Value((t.fixed(length, "the loop runs along the axis"), *value.dims))
        for value in outs[carried:]
    ]
    return [*carry, *ys]


def is_batched(n: Narrow) -> bool:
    """Whether a while loop has a condition for each example, as under vmap."""
    return bool(n.params["cond_jaxpr"].out_avals[0].shape)


def still(n: Narrow, going: Callable[..., Any], new: Any, carry: Any) -> Any:
    """What a while loop carries on: an example that has finished stays as it is."""
    if not is_batched(n):
        return tuple(new)
    batch = len(n.params["cond_jaxpr"].out_avals[0].shape)
    own = going(carry)
    return tuple(
        jnp.where(lax.expand_dims(own, range(batch, jnp.ndim(after))), after, x)
        for x, after in zip(carry, new, strict=True)
    )


def _narrow_while(n: Narrow, *operands: Any) -> Any:
    conds, bodies = n.params["cond_nconsts"], n.params["body_nconsts"]
    for_cond = operands[:conds]
    for_body = operands[conds : conds + bodies]

    def going(carry: Any) -> Any:
        return n.call(0, *for_cond, *carry)[0]

    def step(carry: Any) -> Any:
        return still(n, going, n.call(1, *for_body, *carry), carry)

    return lax.while_loop(
        (lambda carry: going(carry).any()) if is_batched(n) else going,
        step,
        tuple(operands[conds + bodies :]),
    )


@rule("while", narrow=_narrow_while)
def tie_while(t: Tie) -> Sequence[Value]:
    """carry (a) -> carry (a)."""
    conds, bodies = t.params["cond_nconsts"], t.params["body_nconsts"]
    carry = _plain(t.ins[conds + bodies :])
    for_body = t.ins[conds : conds + bodies]
    for value, of in zip(
        carry, _carried(t.params["body_jaxpr"], for_body, carry, ()), strict=True
    ):
        value.order = of
    (going,) = t.call(t.params["cond_jaxpr"], [*t.ins[:conds], *carry])
    for value in carry:
        t.equate(going.dims, value.dims[: len(going.dims)])
    outs = t.call(t.params["body_jaxpr"], [*for_body, *carry])
    for before, after in zip(carry, outs, strict=True):
        t.equate(before.dims, after.dims)
    if going.order is None or going.order.reached:
        return [Value(value.dims) for value in carry]  # data says how often
    return carry


def switch(n: Narrow, index: Any, branches: Sequence[Any], operands: Any) -> Any:
    """Runs one of the branches of a cond."""
    platforms = n.params.get("branches_platforms")
    if platforms is None:
        return lax.switch(index, branches, *operands)
    # A branch for another platform need not even compile on this one.
    per_platform = {
        platform: branch
        for of_branch, branch in zip(platforms, branches, strict=True)
        for platform in of_branch or ()
    }
    default = branches[platforms.index(None)] if None in platforms else None
    return lax.platform_dependent(*operands, default=default, **per_platform)


def _narrow_cond(n: Narrow, index: Any, *operands: Any) -> Any:
    branches = [
        (lambda *xs, which=which: tuple(n.call(which, *xs)))
        for which in range(len(n.params["branches"]))
    ]
    return switch(n, index, branches, operands)


@rule("cond", narrow=_narrow_cond)
def tie_cond(t: Tie) -> Sequence[Value]:
    """which, (a) -> (b): the results of all branches have the same axes."""
    first, *others = [
        t.call(branch, _plain(t.ins[1:])) for branch in t.params["branches"]
    ]
    for other in others:
        for a, b in zip(first, other, strict=True):
            t.equate(a.dims, b.dims)
    return [Value(value.dims) for value in first]
