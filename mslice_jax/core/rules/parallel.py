"""Programs for many devices: shard_map, collectives, and where arrays are placed."""

import math
from collections.abc import Sequence
from typing import Any

import jax

from .base import Dim, Dims, Narrow, Tie, Value, rule


@rule(
    "device_put",
    "layout_constraint",
    "pvary",
    "preduced",
    "reduced_vary_cast",
    "reduced_vary_cast_p",
    "relayout",
    "reshard",
    "sharding_constraint",
    "vary_unreduced_cast",
    "vary_unreduced_cast_p",
    "with_memory_space_constraint",
)
def tie_placement(t: Tie) -> Sequence[Value]:
    """(a, b) -> (a, b): the same array, placed elsewhere or otherwise."""
    return list(t.ins)


@rule("shard_alike")
def tie_shard_alike(t: Tie) -> Sequence[Value]:
    """(a, b), (a, b) -> (a, b), (a, b): both operands are returned."""
    t.equate(t.ins[0].dims, t.ins[1].dims)
    return list(t.ins)


@rule(
    "pbroadcast",
    "pmax",
    "pmin",
    "ppermute",
    "psum",
    "psum_invariant",
    "unreduced_pmax",
    "unreduced_pmin",
    "unreduced_psum",
)
def tie_collective(t: Tie) -> Sequence[Value]:
    """(a, b) -> (a, b): entry by entry over devices, which all narrow alike.

    (a, b) -> (a) over an axis of the array: what vmap leaves of a name that it has.
    """
    over = {axis for axis in t.params.get("axes", ()) if isinstance(axis, int)}
    return [
        Value(tuple(dim for i, dim in enumerate(value.dims) if i not in over))
        for value in t.ins
    ]


@rule("pbroadcast_dynamic")
def tie_pbroadcast_dynamic(t: Tie) -> Sequence[Value]:
    """(a, b), source -> (a, b): what the device of that number has, on all devices."""
    return [Value(t.ins[0].dims)]


@rule("axis_index", "platform_index")
def tie_index(t: Tie) -> Sequence[Value]:
    """-> (): which device, or kind of device, this runs on."""
    return [Value(()) for _ in t.outs]


@rule("all_gather", "all_gather_invariant", "all_gather_reduced")
def tie_all_gather(t: Tie) -> Sequence[Dims]:
    """(a, b) -> (devices, a, b), or (devices x a, b) where tiled."""
    dims, at = t.ins[0].dims, t.params["all_gather_dimension"]
    devices = t.fixed(t.params["axis_size"], "one part for each device")
    if not t.params["tiled"]:
        return [[*dims[:at], devices, *dims[at:]]]
    merged = t.equations.product([devices, dims[at]])
    return [[*dims[:at], merged, *dims[at + 1 :]]]


@rule("reduce_scatter", "unreduced_reduce_scatter")
def tie_reduce_scatter(t: Tie) -> Sequence[Dims]:
    """(devices, a, b) -> (a, b), or (devices x a, b) -> (a, b) where tiled."""
    dims, at = t.ins[0].dims, t.params["scatter_dimension"]
    devices = t.fixed(t.params["axis_size"], "one part for each device")
    if not t.params["tiled"]:
        t.equations.equate(dims[at], devices)
        return [[*dims[:at], *dims[at + 1 :]]]
    part = Dim(t.outs[0].shape[at])
    t.equations.equate(dims[at], t.equations.product([devices, part]))
    return [[*dims[:at], part, *dims[at + 1 :]]]


@rule("all_to_all")
def tie_all_to_all(t: Tie) -> Sequence[Dims]:
    """(a, b, c) -> (a', b', c): the axes that are partitioned and joined are fixed."""
    text, dims = "partitioned over the devices", list(t.ins[0].dims)
    for i in {t.params["split_axis"], t.params["concat_axis"]}:
        t.fix([dims[i]], text)
        dims[i] = t.fixed(t.outs[0].shape[i], text)
    return [dims]


def _parts(t: Tie, spec: Any, rank: int) -> list[int]:
    """Into how many parts each axis of an array is partitioned."""
    sizes = dict(t.params["mesh"].shape)
    entries = [*spec, *[None] * (rank - len(spec))]
    names = [e if isinstance(e, tuple) else (e,) if e else () for e in entries]
    return [math.prod(sizes[name] for name in over) for over in names]


def _narrow_shard_map(n: Narrow, *operands: Any) -> Any:
    def body(*xs: Any) -> tuple[Any, ...]:
        return tuple(n.call(0, *xs))

    again = jax.shard_map(
        body,
        mesh=n.params["mesh"],
        in_specs=tuple(n.params["in_specs"]),
        out_specs=tuple(n.params["out_specs"]),
        axis_names=n.params["newly_manual_axes"],
        check_vma=n.params["check_vma"],
    )
    return list(again(*operands))


@rule("shard_map", narrow=_narrow_shard_map)
def tie_shard_map(t: Tie) -> Sequence[Value]:
    """(devices x a, b) -> (devices x c, d): every device's part narrows alike."""
    text, product = "one part for each device", t.equations.product
    locals_ = []
    for value, spec in zip(t.ins, t.params["in_specs"], strict=True):
        dims = []
        for dim, parts in zip(
            value.dims, _parts(t, spec, len(value.dims)), strict=True
        ):
            if parts == 1:
                dims.append(dim)
            elif not isinstance(dim.size, int):
                t.fix([dim], text)
                dims.append(t.fixed(dim.size // parts, text))
            else:
                part = Dim(dim.size // parts)
                t.equations.equate(dim, product([t.fixed(parts, text), part]))
                dims.append(part)
        locals_.append(Value(tuple(dims)))
    results = []
    for local, spec in zip(
        t.call(t.params["jaxpr"], locals_), t.params["out_specs"], strict=True
    ):
        dims = [
            dim if parts == 1 else product([t.fixed(parts, text), dim])
            for dim, parts in zip(
                local.dims, _parts(t, spec, len(local.dims)), strict=True
            )
        ]
        results.append(Value(tuple(dims)))
    return results
