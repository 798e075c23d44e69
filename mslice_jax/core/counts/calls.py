"""What is known of the results of calls, branches and loops."""

import dataclasses
from collections.abc import Callable, Sequence

from jax.extend import core

from ..axes import Whole
from ..growth import Growth, Known, narrowing, times
from ..rules.loops import counts_of_scan
from .entries import either
from .flow import CALL, PLAIN, Eqn, knows, unknown

_ROUNDS = 4  # how often a loop is read until what it carries no longer changes

# Other programs are made of these when they are differentiated, or under vmap.
_DERIVED = ("custom_jvp_call", "custom_vjp_call", "custom_vmap_call", "linear_call",
            "remat_opt")  # fmt: skip


@knows(CALL)
def _call(e: Eqn) -> Sequence[Known]:
    """The results of what is called, if it takes the operands as they are."""
    (child, *more) = e.frame.children[e.index]
    if more or len(child.jaxpr.invars) != len(e.ins):
        return [unknown(e)] * len(e.eqn.outvars)
    outs = e.flow.run(child, _outside(e))
    if e.name in _DERIVED:
        e.flow.counts.operands[id(e.frame), e.index] = list(e.ins)
    return outs


def _outside(e: Eqn) -> list[Known]:
    """What is known of operands, within what is called: variables have other names."""
    return [
        dataclasses.replace(known, origin=known.origin or var)
        if not isinstance(var, core.Literal)
        else known
        for known, var in zip(e.ins, e.eqn.invars, strict=True)
    ]


@knows("optimization_barrier", "name", "pin", "stage", "unpin", "xla_metadata_value",
        "shard_alike", "sort")  # fmt: skip
def _each(e: Eqn) -> Sequence[Known]:
    if len(e.ins) != len(e.eqn.outvars):
        return [unknown(e)] * len(e.eqn.outvars)
    return [dataclasses.replace(known, number=None) for known in e.ins]


@knows("cond")
def _cond(e: Eqn) -> Sequence[Known]:
    branches = [
        e.flow.run(child, _outside(e)[1:]) for child in e.frame.children[e.index]
    ]
    return [_either_one(outs) for outs in zip(*branches, strict=True)]


def _either_one(outs: Sequence[Known]) -> Known:
    """What is known of one of several values, whichever it is."""
    first, *others = [known for known in outs if not known.zero] or outs[:1]
    for other in others:
        first = _common(first, other)
    data = any(known.data for known in outs)
    if len(outs) > 1 and any(known.zero for known in outs) and first.number != 0:
        first = dataclasses.replace(first, number=None)
    return dataclasses.replace(first, data=data, origin=None)


def _common(x: Known, y: Known) -> Known:
    if x == y:
        return x
    same = x.number is not None and y.number is not None and x.number == y.number
    return Known(
        number=x.number if same else None,
        growth=x.growth if x.growth == y.growth else {},
        logs=x.logs if x.logs == y.logs else {},
        powers=x.powers if x.powers == y.powers else {},
        summed=x.summed if x.summed == y.summed else {},
        pending=either(x.pending, y.pending),
        data=x.data or y.data,
        counted=x.counted and y.counted,
    )


def _loop(e: Eqn, carry: list[Known], step: Callable[[list[Known]], list[Known]]):
    """What is carried, once another step would not change it."""
    counts = e.flow.counts
    for _ in range(_ROUNDS):
        before = dict(counts.follows), dict(counts.seen), dict(e.flow.ambiguous)
        outs = step(carry)
        after = [
            _either_one([old, new])
            for old, new in zip(carry, outs[: len(carry)], strict=True)
        ]
        if after == carry:
            return after, outs
        carry = after
        counts.follows, counts.seen, e.flow.ambiguous = before
    return [PLAIN] * len(carry), step([Known(data=k.data) for k in carry])


@knows("scan")
def _scan(e: Eqn) -> Sequence[Known]:
    """What a loop adds up from nothing grows with its steps, too."""
    consts, carried = counts_of_scan(e.params)
    ins = _outside(e)
    (child,) = e.frame.children[e.index]
    start = ins[consts : consts + carried]

    def step(carry: list[Known]) -> list[Known]:
        return e.flow.run(child, [*ins[:consts], *carry, *ins[consts + carried :]])

    carry, outs = _loop(e, start, step)
    length = e.params["length"]
    summed = []
    for before, after in zip(start, carry, strict=True):
        if before.zero and narrowing(after.growth) and isinstance(length, int):
            steps: Growth = {Whole(length): 1.0} if length > 1 else {}
            after = dataclasses.replace(after, growth=times(after.growth, steps))
        summed.append(after)
    return [*summed, *outs[carried:]]


@knows("while")
def _while(e: Eqn) -> Sequence[Known]:
    conds, bodies = e.params["cond_nconsts"], e.params["body_nconsts"]
    cond, body = e.frame.children[e.index]
    ins = _outside(e)
    for_cond, for_body = ins[:conds], ins[conds : conds + bodies]

    def step(carry: list[Known]) -> list[Known]:
        e.flow.run(cond, [*for_cond, *carry])
        return e.flow.run(body, [*for_body, *carry])

    return _loop(e, ins[conds + bodies :], step)[0]
