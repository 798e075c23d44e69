"""Making the definition of a network: its function is read, and the plan is made."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from .agreement import agree
from .analysis import discover
from .call import Call, plain_type
from .checks import check_exact, check_rules, check_shards, nothing_narrows
from .definition import Definition
from .errors import PlanError
from .function import Function
from .groups import Parameter
from .paths import path_names, path_parts
from .plan import LeafAxes, WidthPlan
from .settings import Settings, choices
from .tracing import trace


def define(
    function: Function,
    variables: Any,
    call: Call,
    arrays: Sequence[Any],
    settings: Settings,
) -> Definition:
    """Reads the function, makes the plan, and puts the two together.

    Raises:
      PlanError: if nothing can narrow, a pattern matches nothing, the function's own
        program at a rate is not the narrow one, or under `strict`.
    """
    widest = settings.rates[-1]
    traced = trace(function, widest, call, variables, arrays)
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    paths = [path_parts(path) for path, _ in leaves]
    names = path_names(paths)
    index = {path: i for i, path in enumerate(paths)}
    ranks = {name: np.ndim(leaf) for name, (_, leaf) in zip(names, leaves, strict=True)}
    chosen = choices(settings, ranks)
    collections = variables if isinstance(variables, Mapping) else ()
    others = {
        branch: read
        for collection in collections
        for branch, read in function.other_sets(str(collection), widest).items()
    }
    kinds: list[Parameter | str] = []
    for path, name in zip(paths, names, strict=True):
        twins = [
            others[path[:end]] + path[end:]
            for end in range(len(path) if others else 0)
            if path[:end] in others
        ]
        same_as = index[twins[0]] if twins else None
        kinds.append(replace(chosen[name], same_as=same_as))
    kinds += ["input of the function"] * len(arrays)
    analysis, axes, fixed = discover(
        traced.closed, kinds, traced.returns(paths), settings.units
    )
    plan = WidthPlan(
        jax.tree.unflatten(
            jax.tree.structure(variables), [LeafAxes(a) for a in axes[: len(paths)]]
        ),
        analysis.groups,
        settings.rates,
        tuple(fixed),
    )
    if not plan.groups:
        raise PlanError(nothing_narrows(plan))
    if settings.strict:
        check_exact(plan)
        check_shards(plan, settings.units.shards)
        check_rules(plan)
    agreement = agree(function, plan, settings, analysis, call, variables, arrays)
    types = tuple(plain_type(x) for x in arrays)
    return Definition(function, plan, call, types, settings, agreement=agreement)
