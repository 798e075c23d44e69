"""Which equations of a loop's body can leave the loop."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend import core

from ..core.rules import RULES, elementwise, shape

BYTES = 256 * 2**20
"""How much of the products of all turns a loop may keep in memory."""

_FIXED, _ALONG, _CARRIED = range(3)
"""A value is the same at every turn, is each turn's own, or depends on turns before."""
# Their primitives do to many at once what they do to each; so do products and lookups.
_ALIKE = {elementwise.__name__, shape.__name__}
# Which operands of theirs may be the weight, or the table.
_WEIGHTS = {"dot_general": (1, 0), "gather": (0,)}


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """Where the equations of a loop's body run, and what the loop reads.

    Attributes:
      before: once, before the loop.
      along: for all turns at once, before the loop.
      along_fixed, along_rows: what they read, the same for all turns, or of each.
      made: the results of `along` that the loop reads.
      within: in the loop.
      moved: the products of `within` whose weight gets its gradient after the loop, and
        which operand the weight is.
      fixed, rows: what the loop reads besides these weights.
    """

    before: list[Any]
    along: list[Any]
    along_fixed: list[Any]
    along_rows: list[Any]
    made: list[Any]
    within: list[Any]
    moved: list[tuple[Any, int]]
    fixed: list[Any]
    rows: list[Any]


def take_apart(jaxpr: Any, consts: int, carried: int, length: int) -> Parts:
    """Takes the body of a loop apart.

    Args:
      jaxpr: of a turn: constants, what is carried, what the loop runs along.
      consts, carried: how many of its inputs are constants, and carried.
      length: how many turns there are.
    """
    kinds = _kinds(jaxpr, consts, carried)
    made, places = _leaving(jaxpr, kinds, length)
    outs = _vars(jaxpr.outvars)
    within, _ = _needed(jaxpr.eqns, outs, known=made)
    weights = [eqn.invars[places[id(eqn)]] for eqn in within if id(eqn) in places]

    def of(kind: int, variables: Iterable[Any]) -> list[Any]:
        return [var for var in variables if kinds[var] == kind]

    def run_of(kind: int) -> list[Any]:
        return [e for e in jaxpr.eqns if e.outvars and kinds[e.outvars[0]] == kind]

    along, read = _needed(run_of(_ALONG), made)
    along_fixed, along_rows = of(_FIXED, read), of(_ALONG, read)
    before, _ = _needed(run_of(_FIXED), [*weights, *along_fixed])
    known = [*made, *(var for eqn in before for var in eqn.outvars)]
    within, read = _needed(jaxpr.eqns, outs, known=known, places=places)
    moved = [(eqn, places[id(eqn)]) for eqn in within if id(eqn) in places]
    fixed, rows = of(_FIXED, read), of(_ALONG, read)
    return Parts(
        before, along, along_fixed, along_rows, made, within, moved, fixed, rows
    )


def _kinds(jaxpr: Any, consts: int, carried: int) -> dict[Any, int]:
    kinds = dict.fromkeys(jaxpr.invars, _ALONG)
    kinds |= dict.fromkeys(jaxpr.invars[: consts + carried], _CARRIED)
    kinds |= dict.fromkeys([*jaxpr.constvars, *jaxpr.invars[:consts]], _FIXED)
    for eqn in jaxpr.eqns:
        kind = max((kinds[var] for var in _vars(eqn.invars)), default=_FIXED)
        if eqn.effects or (kind == _ALONG and not _is_alike(eqn)):
            kind = _CARRIED
        kinds |= dict.fromkeys(eqn.outvars, kind)
    return kinds


def _is_alike(eqn: Any) -> bool:
    """Whether an equation may run for all turns at once: one of random bits may not."""
    if inner := list(core.jaxprs_in_params(eqn.params)):
        calls = eqn.primitive.name in ("jit", "custom_jvp_call")
        return calls and all(_is_alike(e) for jaxpr in inner for e in jaxpr.eqns)
    rule = RULES.get(eqn.primitive.name)
    return eqn.primitive.name in _WEIGHTS or (
        rule is not None and rule.tie.__module__ in _ALIKE
    )


def _leaving(
    jaxpr: Any, kinds: Mapping[Any, int], length: int
) -> tuple[list[Any], dict[int, int]]:
    """Products that leave; of those whose gradient alone does, the place of the weight.

    As many as there is memory for, in the order of the program.
    """
    made: list[Any] = []
    places: dict[int, int] = {}
    left = BYTES
    for eqn in jaxpr.eqns:
        place = _place(eqn, kinds)
        kind = kinds[eqn.outvars[0]] if place is not None else _FIXED
        if place is None or kind == _FIXED:
            continue
        kept = list(eqn.outvars)
        if kind == _CARRIED:
            if eqn.primitive.name != "dot_general":
                continue
            kept.append(eqn.invars[1 - place])
        size = length * sum(map(_bytes, kept))
        if size > left:
            continue
        left -= size
        if kind == _ALONG:
            made += eqn.outvars
        else:
            places[id(eqn)] = place
    return made, places


def _place(eqn: Any, kinds: Mapping[Any, int]) -> int | None:
    """Which operand of a product or a lookup is a weight: the same at every turn.

    None where its user says how the result is sharded: another product, and one over
    all turns, has other axes.
    """
    if eqn.params.get("out_sharding") is not None:
        return None
    for place in _WEIGHTS.get(eqn.primitive.name, ()):
        var = eqn.invars[place]
        if isinstance(var, core.Literal) or kinds[var] != _FIXED:
            continue
        if jnp.issubdtype(var.aval.dtype, jnp.floating):
            return place
    return None


def _needed(
    eqns: Sequence[Any],
    wanted: Iterable[Any],
    known: Iterable[Any] = (),
    places: Mapping[int, int] | None = None,
) -> tuple[list[Any], list[Any]]:
    """The equations that make the values wanted, and what they read from outside.

    Args:
      eqns: in order.
      wanted: values.
      known: values that are there.
      places: of products whose weight does not count as read, its place.
    """
    known, read = set(known), dict.fromkeys(wanted)
    kept: list[Any] = []
    for eqn in reversed(eqns):
        if eqn.effects or any(v in read and v not in known for v in eqn.outvars):
            kept.append(eqn)
            place = (places or {}).get(id(eqn))
            ins = [var for at, var in enumerate(eqn.invars) if at != place]
            read |= dict.fromkeys(_vars(ins))
    made = {var for eqn in kept for var in eqn.outvars} - known
    return kept[::-1], [var for var in read if var not in made]


def _vars(values: Iterable[Any]) -> list[Any]:
    return [var for var in values if not isinstance(var, core.Literal)]


def _bytes(var: Any) -> int:
    return math.prod(var.aval.shape) * var.aval.dtype.itemsize
