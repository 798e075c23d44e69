"""Running a network at a rate: slice its variables, evaluate its program narrow.

Each function here is one compiled program per rate and shape of input: everything but
the arrays is a static argument. The programs belong to the definition.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from . import axes as axes_lib
from .call import Call, type_of
from .checks import check_keywords, check_ranks, check_shapes
from .definition import Definition, Program, unkeyed_settings
from .errors import PlanError, RateError
from .evaluate import evaluate
from .paths import path_name, path_parts
from .plan import WidthPlan
from .rates import SubNetwork
from .tracing import with_updates


def run(
    definition: Definition,
    part: SubNetwork,
    source: SubNetwork,
    call: Call,
    variables: Any,
    arrays: Sequence[Any],
    *,
    tree: Any = None,
) -> Any:
    """Slices the variables from `source` to `part`, and runs the narrow program.

    Variables that were taken apart come as a list, and with the `tree` that they were:
    outside of jit that is most of what a call of a small network costs.
    """
    definition.function.check_values(call, arrays)
    run = definition.jitted(_run, 4)
    return run(unkeyed_settings(), part, source, call, tree, variables, arrays)


def slice_variables(
    definition: Definition, part: SubNetwork, source: SubNetwork, variables: Any
) -> Any:
    """The variables, which are at `source`, at a rate."""
    cut = definition.jitted(_slice_variables, 2)
    return cut(unkeyed_settings(), part, source, variables)


def resolve(definition: Definition, rate: object, source: SubNetwork) -> SubNetwork:
    """The sub-network that a user asks for, of one that is `source` itself.

    Raises:
      RateError: if it is wider than `source`, or norms have no arrays for it.
    """
    part = definition.plan.resolve(rate, source)
    if part != source and not definition.plan.fits(part, source):
        raise RateError(
            f"rate {part} is wider than this network, which was extracted at rate "
            f"{source}; extract a wider one."
        )
    if part.rate is None and definition.function.depends_on_rate:
        raise RateError(
            f"norms with one set of arrays per rate have none for {part}; give one "
            "rate for all width groups, or upgrade with norm='group'."
        )
    return part


def without_wider(definition: Definition, variables: Any, part: SubNetwork) -> Any:
    """The variables without the norms of rates that are wider than a sub-network."""
    return definition.function.only_rates(variables, definition.rates(part))


def _slice_variables(
    definition: Definition, part: SubNetwork, source: SubNetwork, variables: Any
) -> Any:
    return definition.plan.slice(variables, part, source=source)


def _run(
    definition: Definition,
    part: SubNetwork,
    source: SubNetwork,
    call: Call,
    tree: Any,
    variables: Any,
    arrays: Sequence[Any],
) -> Any:
    plan = definition.plan
    if tree is not None:
        variables = jax.tree.unflatten(tree, variables)
    program = program_of(definition, part, source, call, variables, arrays)
    kept = plan.widths(part)
    narrow = plan.slice(variables, part, source=source)
    outs = evaluate(
        program.analysis,
        program.analysis.frame,
        kept,
        [*jax.tree.leaves(narrow), *arrays],
    )
    result = jax.tree.unflatten(program.tree, outs)
    _, kwargs = call.join(arrays)
    if with_updates(definition.function, kwargs, result):
        y, updates = result
        return y, _updates_put_back(plan, variables, updates, part, source)
    return result


def program_of(
    definition: Definition,
    part: SubNetwork,
    source: SubNetwork,
    call: Call,
    variables: Any,
    arrays: Sequence[Any],
) -> Program:
    """The program of a call; of one that the model does not take, the clear error."""
    types = full_types(definition.plan, variables, source)
    check_ranks(definition, call, arrays)
    try:
        return definition.program(part, call, types, [type_of(x) for x in arrays])
    except PlanError:
        raise
    except Exception as error:
        check_keywords(definition.function.called, call, arrays, error)
        check_shapes(definition, call, arrays, error)
        raise


def _updates_put_back(
    plan: WidthPlan, variables: Any, updates: Any, part: SubNetwork, source: SubNetwork
) -> Any:
    """Updated collections at the shapes of the variables; others as they come."""
    if part == source:
        return _merge_collections(variables, updates)
    have = {
        path_parts(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    kept, origin = plan.widths(part), plan.widths(source)

    def put(path: Any, leaf: Any) -> Any:
        parts = path_parts(path)
        axes = plan.leaf(parts)
        if parts not in have or axes is None:
            return leaf
        # The call may compute in another precision than that they are kept in.
        leaf = leaf.astype(have[parts].dtype)
        return axes_lib.put_back(have[parts], leaf, axes.axes, kept, origin)

    put_back = jax.tree_util.tree_map_with_path(put, updates)
    return _merge_collections(variables, put_back)


def _merge_collections(variables: Any, updates: Any) -> Any:
    """Updates with what they leave out: the norms of other rates."""
    return {
        name: merge(variables[name], update) if name in variables else update
        for name, update in updates.items()
    }


def merge(tree: Any, update: Any) -> Any:
    """A nested mapping with some of its branches replaced."""
    if not isinstance(update, Mapping) or not isinstance(tree, Mapping):
        return update
    merged = {
        key: merge(tree[key], update[key]) if key in update else tree[key]
        for key in tree
    }
    return {**merged, **{key: update[key] for key in update if key not in tree}}


def full_types(plan: WidthPlan, variables: Any, source: SubNetwork) -> Any:
    """The types of the variables at full width; their shapes are checked."""
    at = plan.widths(source)
    wrong = []

    def full(path: Any, x: Any) -> Any:
        leaf = plan.leaf(path)
        expected = axes_lib.shape(leaf.axes, at) if leaf is not None else None
        if leaf is None or expected != tuple(x.shape):
            name = path_name(path)
            wrong.append(f"  {name}: expected {expected}, got {tuple(x.shape)}")
            return x
        return type_of(x).update(shape=axes_lib.shape(leaf.axes))

    types = jax.tree_util.tree_map_with_path(full, variables)
    if wrong:
        raise ValueError(
            f"the variables do not fit the plan at rate {source:g}:\n"
            + "\n".join(wrong[:8])
            + "\nPass the tree that `upgrade` returned, with leaves of the same shapes."
        )
    return types
