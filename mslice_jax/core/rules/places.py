"""Where the place of an entry is what it means: an axis that must stay whole.

Numbers that go by their place are cut like any constant where they scale units or are
added to them: a sinusoidal table, random features. But where data is compared with
them, entry by entry, the place of an entry is what it means: a one-hot code, and what
it picks from, stays whole. It is the same comparison however it is spelt: ``ids ==
arange(n)``, in integers or floats; ``relu(1 - |ids - arange(n)|)``; ``ids >> arange(n)
& 1``; ``eye(n)[ids]``.

So: along an axis of the result one operand goes by position, the other is data, or goes
by another axis, and does not change along this one. Products do not compare.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from .order import DATA, LOOKED_AT, PLACE, SAME, Along, Computed, Order, data, line

# The place of an entry tells what these give, where the other operand is no factor.
_SUMS = {"add", "add_any", "and", "atan2", "clamp", "max", "min", "nextafter", "or"}
_SUMS |= {"rem", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sub"}
_SUMS |= {"xor"}
_COMPARES = {"eq", "eq_to", "ge", "gt", "le", "le_to", "lt", "lt_to", "ne"}
_ROUNDS = {"ceil", "floor", "round", "sign"}
_AFFINE = {"add", "div", "mul", "neg", "sub", "copy", "convert_element_type"}
_AFFINE |= {"reduce_precision", "stop_gradient"}
_UNARY = {"convert_element_type", "copy", "neg", "reduce_precision", "stop_gradient"}
_VIEWED = {"broadcast_in_dim", "pad", "reshape", "squeeze", "transpose"}
_REDUCTIONS = {"reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod"}
_REDUCTIONS |= {"argmax", "argmin", "reduce_sum", "reduce_xor"}
_SCATTERS = {"scatter", "scatter-add", "scatter-max", "scatter-min", "scatter-mul"}
_SCATTERS |= {"scatter-sub"}
_RUNNING = {"cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"}
# Of places alone these make a constant like any other: its axes are its own, so it ties
# nothing together and is cut once it is made.
FOLDED = _SCATTERS | _RUNNING
FOLDED |= {"argsort", "concatenate", "cond", "conv_general_dilated", "dot_general"}
FOLDED |= {"dynamic_slice", "dynamic_update_slice", "fft", "gather", "pad", "qr"}
FOLDED |= {"reshape", "rev", "scan", "slice", "sort", "split", "stack", "tile"}
FOLDED |= {"top_k", "triangular_solve", "unstack", "while"}

TEXT = "tells entries apart by their index"


def folds(t: Any) -> bool:
    """Whether the results are constants that are made of places."""
    orders, eqn = _operands(t), t.eqn
    if eqn.primitive.name not in FOLDED or eqn.effects:
        return False
    if any(order.source is None for order in orders):
        return False
    if all(order.even for order in orders) and eqn.primitive.name not in _RUNNING:
        return False  # ones that are counted, say: they run narrow
    for aval in t.outs:
        sizes = getattr(aval, "shape", None)
        if sizes is None or not all(isinstance(size, int) for size in sizes):
            return False
        if math.prod(sizes) > LOOKED_AT:
            return False
    if eqn.primitive.name == "pad":
        return not _pads_nothing(t)
    if eqn.primitive.name == "reshape":
        (before,) = (value.dims for value in t.ins)
        inner = [dim.size for dim in before if dim.size != 1]
        return inner != [size for size in t.outs[0].shape if size != 1]
    return True


def read(t: Any) -> list[Order]:
    """What tells the entries of the results apart; fixes axes that are compared."""
    name, ins = t.eqn.primitive.name, _operands(t)
    constant = all(order.source is not None for order in ins)
    reached = any(order.reached for order in ins)
    code = any(order.code for order in ins)
    same, diagonal = _identity(t, name, ins)
    orders = []
    for result, aval in enumerate(t.outs):
        shape = getattr(aval, "shape", ())
        if same and name == "eq":
            along, counts, code = [o.along for o in ins], False, True
            along = [_together(kinds) for kinds in zip(*along, strict=True)]
        elif t.entries is not None or name in _UNARY:
            along, counts, code = _entry_by_entry(t, name, ins, shape)
        else:
            along, counts = _moved(t, name, ins, shape, constant)
        along = tuple(
            SAME if isinstance(size, int) and size == 1 else a
            for a, size in zip(along, shape, strict=True)
        )
        source = None
        if constant and not t.eqn.effects:
            operands = tuple(order.source for order in ins)
            source = Computed(t.eqn, result, operands)  # type: ignore[arg-type]
        known = source is not None
        orders.append(
            Order(
                along, source, reached, counts,
                code and known, same and known, diagonal and known,
            )
        )  # fmt: skip
    return orders


def _pads_nothing(t: Any) -> bool:
    return not any(map(any, t.params["padding_config"]))


def axes(value: Any) -> list[Any]:
    """The axes of a constant along which its entries differ."""
    order = value.order
    if order is None or order.source is None:
        return []
    return [d for d, a in zip(value.dims, order.along, strict=True) if a is PLACE]


def _operands(t: Any) -> list[Order]:
    return [value.order or data(len(value.dims)) for value in t.ins]


def _identity(t: Any, name: str, ins: Sequence[Order]) -> tuple[bool, bool]:
    """Whether the result is an identity matrix, or made of one; and zero elsewhere.

    Where the places along two axes are compared, and are the same, the matrix does to
    each entry what it does to any: the axes are one, and may narrow.
    """
    if name == "eq" and not any(order.even or order.same for order in ins):
        axes = [[i for i, a in enumerate(o.along) if a is PLACE] for o in ins]
        if not all(len(each) == 1 for each in axes) or axes[0] == axes[1]:
            return False, False
        a, b = (order.source and line(order.source) for order in ins)
        if a is None or b is None or not np.array_equal(a, b):
            return False, False
        if len(np.unique(a)) < len(a):
            return False, False
        entries = t.ins[0].dims if t.entries is None else t.entries
        t.equations.equate(*(entries[i] for (i,) in axes))
        return True, True
    uneven = [order for order in ins if not order.even]
    if not uneven or not all(order.same for order in uneven) or folds(t):
        return False, False
    if name in _VIEWED or name in _UNARY or name in {"mul", "div"}:
        return True, ins[0].diagonal or name == "mul" and ins[-1].diagonal
    if t.entries is None:
        return False, False
    numbers = [order.source and line(order.source) for order in ins if order.even]
    chosen = name == "select_n" and ins[0].diagonal and len(numbers) == 2
    if chosen and numbers[0] is not None and not numbers[0].any():
        return True, True
    if not all(map(_masks, numbers)):  # 1 / n, say: what it counts is not followed
        t.fix([t.entries[i] for o in uneven for i in range(len(o.along))], TEXT)
        return False, False
    return True, name == "and" and len(uneven) == len(ins)


def _masks(number: Any) -> bool:
    """Whether a number is one of masks: 0, 1, -1, or out of bounds."""
    if number is None:
        return False
    size = np.abs(np.asarray(number, np.float64)).max()
    return bool(size in (0, 1) or size >= 1e4 or not np.isfinite(size))


def _entry_by_entry(
    t: Any, name: str, ins: Sequence[Order], shape: Sequence[Any]
) -> tuple[list[Along], bool, bool]:
    axes = range(len(shape))
    along = [_together([order.at(axis) for order in ins]) for axis in axes]
    code = any(order.code for order in ins)
    compared = _compared(ins, axes)
    runs = any(order.source is None for order in ins)
    told: set[int] = set()
    if name in _COMPARES:
        counts = any(order.counts for order in ins)
        for axis in axes:
            kinds = [order.at(axis) for order in ins]
            by_place = PLACE in kinds and (counts or DATA not in kinds)
            if by_place and (runs or counts or axis in compared):
                told.add(axis)
        code = code or bool(compared)
    elif name in _SUMS and compared:
        if runs:
            told = compared
        else:
            code = True
    elif runs and (name in _ROUNDS or _makes_integers(t, name)):
        told = {axis for axis in axes if along[axis] is PLACE}
    if told:
        entries = t.ins[0].dims if t.entries is None else t.entries
        t.fix([entries[axis] for axis in sorted(told)], TEXT)
    uneven = [order for order in ins if not order.even]
    counts = name in _AFFINE and len(uneven) == 1 and uneven[0].counts
    if name == "div" and not ins[-1].even:
        counts = False
    return along, counts, code


def _compared(ins: Sequence[Order], axes: Sequence[int]) -> set[int]:
    """The axes of places that meet what does not change along them, but otherwise."""
    found: set[int] = set()
    for at, a in enumerate(ins):
        for b in ins[at + 1 :]:
            if a.same or b.same:
                continue
            if not (a.varies <= b.varies or b.varies <= a.varies):
                pairs = ((a, b), (b, a))
                found |= {
                    axis
                    for axis in axes
                    for x, y in pairs
                    if x.at(axis) is PLACE and y.at(axis) is SAME
                }
    return found


def _makes_integers(t: Any, name: str) -> bool:
    if name != "convert_element_type":
        return False
    before: Any = t.eqn.invars[0].aval
    return jnp.issubdtype(before.dtype, jnp.inexact) and not jnp.issubdtype(
        t.outs[0].dtype, jnp.inexact
    )


def _together(kinds: Sequence[Along]) -> Along:
    for kind in (DATA, PLACE):
        if kind in kinds:
            return kind
    return SAME


def _moved(
    t: Any, name: str, ins: Sequence[Order], shape: Sequence[Any], constant: bool
) -> tuple[list[Along], bool]:
    """How the axes of the result differ where they are not those of all operands."""
    unknown = [PLACE if constant else DATA] * len(shape)
    if name == "iota":
        along = [SAME] * len(shape)
        along[t.params["dimension"]] = PLACE
        return along, True
    if name == "broadcast_in_dim":
        along = [SAME] * len(shape)
        for source, target in enumerate(t.params["broadcast_dimensions"]):
            along[target] = ins[0].along[source]
        return along, ins[0].counts
    if name == "transpose":
        return [ins[0].along[i] for i in t.params["permutation"]], ins[0].counts
    if name == "squeeze":
        gone = {i % len(ins[0].along) for i in t.params["dimensions"]}
        kept = [a for i, a in enumerate(ins[0].along) if i not in gone]
        return kept, ins[0].counts
    if name == "reshape" and t.params["dimensions"] is None:
        return _reshaped(t, ins[0], shape), ins[0].counts
    if name in {"rev", "slice"}:
        return list(ins[0].along), ins[0].counts
    if name == "pad" and _pads_nothing(t):
        return list(ins[0].along), ins[0].counts
    if name == "split":
        return list(ins[0].along), ins[0].counts
    if name == "concatenate":
        along = [_together([order.at(i) for order in ins]) for i in range(len(shape))]
        i = t.params["dimension"]
        along[i] = _together([along[i], PLACE if constant else DATA])
        return along, all(order.counts for order in ins)
    if name in _RUNNING:
        along = list(ins[0].along)
        i = t.params["axis"]
        along[i] = _together([along[i], PLACE if constant else DATA])
        return along, constant and name == "cumsum"
    if name in _REDUCTIONS:
        axes = t.params["axes"]
        return [a for i, a in enumerate(ins[0].along) if i not in axes], False
    if name == "dot_general":
        return _contracted(t, ins, constant), False
    if name in {"dynamic_slice", "gather"} and not constant:
        return _looked_up(t, name, ins, shape), False
    return unknown, False


def _reshaped(t: Any, x: Order, shape: Sequence[Any]) -> list[Along]:
    """Each run of axes of equal size; merged, they differ as the most of them."""
    before = [dim.size for dim in t.ins[0].dims]
    along: list[Along] = [SAME] * len(shape)
    i = j = 0
    while i < len(before) or j < len(shape):
        froms, tos = [i] if i < len(before) else [], [j] if j < len(shape) else []
        i, j = i + len(froms), j + len(tos)
        while (a := _size(before, froms)) != (b := _size(shape, tos)):
            if not (isinstance(a, int) and isinstance(b, int)):
                return [DATA] * len(shape)
            if a < b and i < len(before):
                froms, i = [*froms, i], i + 1
            elif j < len(shape):
                tos, j = [*tos, j], j + 1
            else:
                return [DATA] * len(shape)
        kind = _together([x.along[axis] for axis in froms])
        for axis in tos:
            along[axis] = kind
    return along


def _size(sizes: Sequence[Any], axes: Sequence[int]) -> Any:
    return math.prod(sizes[axis] for axis in axes)


def _contracted(t: Any, ins: Sequence[Order], constant: bool) -> list[Along]:
    """Free axes are features; a code tells what it picks, and where it puts it."""
    (lhs_k, rhs_k), (lhs_batch, rhs_batch) = t.params["dimension_numbers"]
    for order, value in zip(ins, t.ins, strict=True):
        places = [
            dim for dim, a in zip(value.dims, order.along, strict=True) if a is PLACE
        ]
        if order.same:
            continue
        if order.code and not constant:
            t.fix(places, TEXT)
        elif order.source is not None and not constant:
            t.equations.mixed += places
    batch = [
        _together([ins[0].along[i], ins[1].along[j]])
        for i, j in zip(lhs_batch, rhs_batch, strict=True)
    ]
    taken = {*lhs_k, *lhs_batch}, {*rhs_k, *rhs_batch}
    free = [
        a
        for order, gone in zip(ins, taken, strict=True)
        for i, a in enumerate(order.along)
        if i not in gone
    ]
    other = PLACE if constant else DATA
    return [SAME if a is SAME else other for a in (*batch, *free)]


def _looked_up(
    t: Any, name: str, ins: Sequence[Order], shape: Sequence[Any]
) -> list[Along]:
    """Rows of a table are features; those of a code tell entries apart."""
    along, table = [DATA] * len(shape), ins[0]
    whole = {
        i: dim
        for i, (dim, taken) in enumerate(
            zip(t.ins[0].dims, t.params["slice_sizes"], strict=True)
        )
        if dim.size == taken
    }
    if table.code and any(order.source is None for order in ins[1:]):
        told = [dim for i, dim in whole.items() if table.along[i] is PLACE]
        t.fix(told, TEXT)
    if name == "dynamic_slice":
        for i in whole:
            along[i] = SAME if table.along[i] is SAME else DATA
    else:
        numbers = t.params["dimension_numbers"]
        gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
        kept = [i for i in range(len(t.ins[0].dims)) if i not in gone]
        for target, i in zip(numbers.offset_dims, kept, strict=True):
            if i in whole and table.along[i] is SAME:
                along[target] = SAME
    return along
