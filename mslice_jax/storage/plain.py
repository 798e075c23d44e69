"""Trees, calls and definitions as JSON, and back.

A tree of dicts, lists, tuples and None is written as it is. Other nodes (NamedTuples,
Equinox modules, boxes of Flax) only their classes can make again, so `load` is given
such trees anew.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..core.agreement import Agreement
from ..core.axes import Axis, Concat, Product, Unit, Whole
from ..core.call import Call, is_array
from ..core.counts import Asked, Number
from ..core.definition import Definition
from ..core.groups import FixedAxis, Units, WidthGroup
from ..core.paths import Path, path_parts
from ..core.plan import LeafAxes, WidthPlan
from ..core.rates import SubNetwork
from ..core.settings import Settings
from ..core.solver import Reason
from .arrays import describe, type_from


class NotPlain(Exception):
    """A tree with something that JSON cannot say."""


# -- trees


def tree_to_json(tree: Any, leaf: Callable[[Any], Any]) -> Any:
    """A tree as nested lists, each with the kind of node first.

    Raises:
      NotPlain: for other nodes than dict, list, tuple and None, which are no leaves.

    >>> tree_to_json({"a": (1, None)}, lambda x: x)
    ['dict', [['a', ['tuple', [['leaf', 1], ['none']]]]]]
    """
    if tree is None:
        return ["none"]
    if type(tree) in (list, tuple):
        kind = type(tree).__name__
        return [kind, [tree_to_json(each, leaf) for each in tree]]
    if type(tree) is dict:
        kinds = {type(key) for key in tree}
        if not (kinds <= {str} or kinds <= {int}):
            raise NotPlain(f"a dict with the keys {list(tree)!r:.60}")
        # In the order in which JAX takes dicts apart.
        return ["dict", [[key, tree_to_json(tree[key], leaf)] for key in sorted(tree)]]
    if not jax.tree_util.all_leaves([tree]):
        raise NotPlain(f"a node of type {type(tree).__name__}")
    return ["leaf", leaf(tree)]


def tree_from_json(data: Any, leaf: Callable[[Any], Any]) -> Any:
    """The inverse of `tree_to_json`.

    >>> tree_from_json(['dict', [['a', ['tuple', [['leaf', 1], ['none']]]]]], str)
    {'a': ('1', None)}
    """
    match data:
        case ["none"]:
            return None
        case ["leaf", value]:
            return leaf(value)
        case ["list", parts]:
            return [tree_from_json(each, leaf) for each in parts]
        case ["tuple", parts]:
            return tuple(tree_from_json(each, leaf) for each in parts)
        case ["dict", parts]:
            return {key: tree_from_json(each, leaf) for key, each in parts}
    raise ValueError(f"no tree: {data!r:.60}")


# -- calls


def call_to_json(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The arguments of a call; of arrays nothing but that they are some.

    Raises:
      NotPlain: for an argument that JSON cannot hold, with its name.
    """
    parts = []
    for name, value in [*((str(i), a) for i, a in enumerate(args)), *kwargs.items()]:
        try:
            parts.append(tree_to_json(value, _static))
        except NotPlain as error:
            where = f"input {name}" if name.isdecimal() else f"argument {name!r}"
            raise NotPlain(f"{where} is {error}") from None
    positional, rest = parts[: len(args)], parts[len(args) :]
    pairs = sorted(zip(kwargs, rest, strict=True), key=lambda pair: pair[0])
    return {"inputs": positional, "keywords": [list(pair) for pair in pairs]}


def call_from_json(data: Any, arrays: Sequence[Any]) -> tuple[Call, list[Any]]:
    """The inverse: the call with these arrays, split."""
    each = iter(arrays)

    def leaf(value: Any) -> Any:
        return next(each) if value == ["array"] else static_from_json(value)

    args = tuple(tree_from_json(part, leaf) for part in data["inputs"])
    kwargs = {name: tree_from_json(part, leaf) for name, part in data["keywords"]}
    return Call.split(args, kwargs)


def _static(x: Any) -> Any:
    if is_array(x):
        return ["array"]
    if type(x) in (bool, str):
        return [type(x).__name__, x]
    if type(x) is int:
        return ["int", str(x)]
    if type(x) is float:
        return ["float", x.hex()]  # tells -0.0 from 0.0, and can say nan
    if type(x) is complex:
        return ["complex", x.real.hex(), x.imag.hex()]
    raise NotPlain(f"{x!r:.60} of type {type(x).__name__}")


def static_from_json(data: Any) -> Any:
    """A static argument: a number, a string, a boolean."""
    match data:
        case ["bool", bool(value)] | ["str", str(value)]:
            return value
        case ["int", str(value)]:
            return int(value)
        case ["float", str(value)]:
            return float.fromhex(value)
        case ["complex", str(real), str(imag)]:
            return complex(float.fromhex(real), float.fromhex(imag))
    raise ValueError(f"no value: {data!r:.60}")


# -- definitions


def part_to_json(part: SubNetwork) -> Any:
    """A sub-network as plain data."""
    return {"rate": part.rate, "widths": dict(part.widths)}


def part_from_json(data: Any) -> SubNetwork:
    """The inverse of `part_to_json`."""
    widths = tuple((str(name), int(width)) for name, width in data["widths"].items())
    rate = data["rate"]
    return SubNetwork(None if rate is None else float(rate), widths)


def definition_to_json(definition: Definition) -> dict[str, Any]:
    """All of a definition but its function."""
    plan, settings, agreement = (
        definition.plan,
        definition.settings,
        definition.agreement,
    )
    leaves = jax.tree_util.tree_leaves_with_path(plan.axes)
    return {
        "settings": {
            "rates": list(settings.rates),
            "units": dataclasses.asdict(settings.units),
            "include": list(settings.include),
            "exclude": list(settings.exclude),
            "inner": list(settings.inner),
            "follow": list(settings.asked.follow),
            "stay": list(settings.asked.stay),
            "strict": settings.strict,
            "check": settings.check,
        },
        "plan": {
            "tree": maybe(lambda: tree_to_json(plan.axes, lambda _: None)),
            "leaves": [
                [list(path_parts(path)), [_axis_to_json(axis) for axis in leaf.axes]]
                for path, leaf in leaves
            ],
            "groups": {
                name: {
                    "size": group.size,
                    "unit": group.unit,
                    "minimum": group.minimum,
                    "span": group.span,
                    "leaves": [list(pair) for pair in group.leaves],
                }
                for name, group in plan.groups.items()
            },
            "fixed": [
                [each.path, each.axis, each.size, _reason_to_json(each.reason)]
                for each in plan.fixed
            ],
            "names": {name: part_to_json(part) for name, part in plan.names.items()},
        },
        "orders": {
            name: np.asarray(order).tolist()
            for name, order in definition.orders.items()
        },
        "agreement": {
            "comparable": agreement.comparable,
            "reason": agreement.reason,
            "numbers": [
                {
                    **dataclasses.asdict(number),
                    "value": _number_to_json(number.value),
                    "size": int(number.size),
                }
                for number in agreement.numbers
            ],
            "of_inputs": sorted([list(place) for place in agreement.of_inputs]),
        },
        "call": saved_call(definition),
        "arrays": [describe(x) for x in definition.arrays],
    }


def saved_call(definition: Definition) -> Any:
    """The call that `upgrade` saw; a text why not, where JSON cannot say it."""
    args, kwargs = definition.call.join(definition.arrays)
    try:
        return call_to_json(args, kwargs)
    except NotPlain as error:
        return str(error)


def maybe(make: Callable[[], Any]) -> Any:
    """What is made, or a text why it cannot be."""
    try:
        return make()
    except NotPlain as error:
        return str(error)


def settings_from_json(data: Any) -> Settings:
    """The settings of a definition."""
    return Settings(
        tuple(map(float, data["rates"])),
        Units(**data["units"]),
        tuple(data["include"]),
        tuple(data["exclude"]),
        tuple(data["inner"]),
        Asked(tuple(data["follow"]), tuple(data["stay"])),
        bool(data["strict"]),
        bool(data["check"]),
    )


def plan_from_json(data: Any, rates: tuple[float, ...], like: Any = None) -> WidthPlan:
    """The plan of a definition.

    Args:
      data: what `definition_to_json` gave for it.
      rates: the declared rates.
      like: a tree of the variables, for one that JSON cannot say.
    """
    axes = [LeafAxes(tuple(map(_axis_from_json, axes))) for _, axes in data["leaves"]]
    paths = [tuple(path) for path, _ in data["leaves"]]
    groups = {
        name: WidthGroup(
            size=group["size"],
            unit=group["unit"],
            minimum=group["minimum"],
            span=group["span"],
            leaves=tuple((path, axis) for path, axis in group["leaves"]),
        )
        for name, group in data["groups"].items()
    }
    fixed = tuple(
        FixedAxis(path, axis, size, _reason_from_json(reason))
        for path, axis, size, reason in data["fixed"]
    )
    tree = _unflatten(data["tree"], paths, axes, like)
    # Files of before there were names have none.
    names = {n: part_from_json(part) for n, part in data.get("names", {}).items()}
    return WidthPlan(tree, groups, rates, fixed, names)


def _unflatten(tree: Any, paths: list[Path], leaves: list[Any], like: Any) -> Any:
    if not isinstance(tree, str):
        structure = jax.tree.structure(tree_from_json(tree, lambda _: 0))
        return jax.tree.unflatten(structure, leaves)
    if like is not None and paths_of(like) == paths:
        return jax.tree.unflatten(jax.tree.structure(like), leaves)
    # The paths are all that a plan goes by.
    nested: dict[str, Any] = {}
    for path, leaf in zip(paths, leaves, strict=True):
        branch = nested
        for key in path[:-1]:
            branch = branch.setdefault(key, {})
        branch[path[-1] if path else ""] = leaf
    return nested


def paths_of(tree: Any) -> list[Path]:
    """The paths of the leaves of a tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [path_parts(path) for path, _ in leaves]


def orders_from_json(data: Any, plan: WidthPlan) -> dict[str, np.ndarray]:
    """Where the indices of groups were before they were moved."""
    orders = {name: np.asarray(order, np.int64) for name, order in data.items()}
    plan.check_permutations(orders)
    return orders


def agreement_from_json(data: Any) -> Agreement:
    """What `upgrade` found of numbers and of the function's own program."""
    numbers = tuple(
        Number(**{**each, "groups": tuple(each["groups"]), "value": _number(each)})
        for each in data["numbers"]
    )
    places = frozenset((str(line), int(at)) for line, at in data["of_inputs"])
    return Agreement(data["comparable"], data["reason"], numbers, places)


def example_from_json(data: Any) -> tuple[Call, list[Any]]:
    """The call that `upgrade` saw, with the types of its arrays."""
    scope = jax.export.SymbolicScope()
    return call_from_json(data["call"], [type_from(x, scope) for x in data["arrays"]])


def _number_to_json(value: Any) -> str:
    return repr(complex(value) if np.iscomplexobj(value) else float(value))


def _number(data: Any) -> Any:
    text = data["value"]
    return complex(text) if "j" in text else float(text)


def _axis_to_json(axis: Axis) -> Any:
    match axis:
        case Unit(size, group):
            return ["unit", size, group]
        case Whole(size, reason):
            return ["whole", size, None if reason is None else _reason_to_json(reason)]
        case Product(parts):
            return ["product", [_axis_to_json(part) for part in parts]]
        case Concat(parts):
            return ["concat", [_axis_to_json(part) for part in parts]]


def _axis_from_json(data: Any) -> Axis:
    match data:
        case ["unit", int(size), str(group)]:
            return Unit(size, group)
        case ["whole", int(size), reason]:
            return Whole(size, None if reason is None else _reason_from_json(reason))
        case ["product", parts]:
            return Product(tuple(map(_axis_from_json, parts)))
        case ["concat", parts]:
            return Concat(tuple(map(_axis_from_json, parts)))
    raise ValueError(f"no axis: {data!r:.60}")


def _reason_to_json(reason: Reason) -> Any:
    return [reason.text, reason.where, reason.primitive]


def _reason_from_json(data: Any) -> Reason:
    text, where, primitive = data
    return Reason(text, where, primitive)
