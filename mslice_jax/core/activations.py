"""What runs along the units of a program: the activations that it sums over.

The program that was read is run at full width, and beside it the mean square is taken
of every value that a unit is summed over in: what a dense layer, a convolution or an
attention takes in, along the axes that narrow. That is the last form of an activation,
after norm, nonlinearity, gate and mask, and all that a unit passes on. Sums leave loops
and branches as further results of these. Only what depends on the inputs counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.sharding import PartitionSpec

from .analysis import Analysis
from .axes import FULL, groups_in, owners
from .call import Call
from .definition import Definition, unkeyed_settings
from .evaluate import evaluate
from .rules import NO_RULE, RULES, Frame, Narrow
from .rules.folding import FOLDED, is_folded
from .rules.loops import counts_of_scan, still, switch
from .run import program_of


class Sums(NamedTuple):
    """What was added up of one value along a group, by index.

    Attributes:
      squares: (size,) of the activations.
      products: (size,) the same, times the squares of what they are contracted with.
      count: (size,) how many activations there were.
    """

    squares: Any
    products: Any
    count: Any


Place: TypeAlias = tuple[str, str, tuple[int, ...]]
"""A group, whether the value is "contracted" or "reduced" along it, and where."""

Found: TypeAlias = dict[Place, Sums]


def add(a: Found, b: Found) -> Found:
    """The sums of two runs, also of what only one of them has."""
    both = {key: jax.tree.map(jnp.add, a[key], b[key]) for key in a.keys() & b.keys()}
    return {**a, **b, **both}


class Watch:
    """Runs the frames of an analysis at full width, and adds up what they sum over."""

    def __init__(self, analysis: Analysis):
        self.analysis = analysis

    def run(
        self,
        frame: Frame,
        operands: Sequence[Any],
        reached: Sequence[bool],
        at: tuple[int, ...] = (),
    ) -> tuple[list[Any], list[bool], Found]:
        """Runs a frame.

        Args:
          frame: that of the analysis, or of a jaxpr that it calls.
          operands: arrays, at full width.
          reached: which of them the inputs of the network reach.
          at: where the frame is.

        Returns:
          The results, which of them the inputs reach, and the sums.
        """
        jaxpr, analysis = frame.jaxpr, self.analysis
        env: dict[Any, Any] = dict(zip(jaxpr.invars, operands, strict=True))
        live = {v for v, r in zip(jaxpr.invars, reached, strict=True) if r}
        for var, const in zip(jaxpr.constvars, frame.consts, strict=True):
            env[var] = analysis.cut(frame, var, const, FULL)
        found: Found = {}

        def read(var: Any) -> Any:
            if isinstance(var, core.Literal):
                return analysis.cut(frame, var, var.val, FULL)
            return env[var]

        def is_live(var: Any) -> bool:
            return not isinstance(var, core.Literal) and var in live

        for index, eqn in enumerate(jaxpr.eqns):
            narrow = Narrow(frame, index, analysis, FULL, evaluate)
            xs, which = [*map(read, eqn.invars)], [*map(is_live, eqn.invars)]
            here = (*at, index)
            call = CALLS.get(eqn.primitive.name, _inline)
            folded = is_folded(frame, index)
            if index in frame.children and not folded:
                children = [
                    _Child(self, child, (*here, i))
                    for i, child in enumerate(frame.children[index])
                ]
                outs, more = call(narrow, children, xs, which)
                found = add(found, more)
            else:
                rule = RULES.get(eqn.primitive.name, NO_RULE)
                with eqn.ctx.manager:
                    outs = (FOLDED if folded else rule).narrow(narrow, *xs)
                if any(which):
                    found |= _found(narrow, xs, which, here)
            if not isinstance(outs, (list, tuple)):
                outs = [outs]
            env.update(zip(eqn.outvars, outs, strict=True))
            if any(which):
                live.update(eqn.outvars)
        outs = [read(var) for var in jaxpr.outvars]
        return outs, [is_live(var) for var in jaxpr.outvars], found


@dataclass(frozen=True, slots=True)
class _Child:
    """A jaxpr that an equation calls."""

    watch: Watch
    frame: Frame
    at: tuple[int, ...]

    def __call__(
        self, xs: Sequence[Any], reached: Sequence[bool]
    ) -> tuple[list[Any], Found]:
        outs, _, found = self.watch.run(self.frame, xs, reached, self.at)
        return outs, found

    def reach(self, reached: Sequence[bool]) -> list[bool]:
        """Which results the inputs reach through these operands."""
        known = {v for v, r in zip(self.frame.jaxpr.invars, reached, strict=True) if r}
        for eqn in self.frame.jaxpr.eqns:
            if any(not isinstance(v, core.Literal) and v in known for v in eqn.invars):
                known.update(eqn.outvars)
        outs = self.frame.jaxpr.outvars
        return [not isinstance(v, core.Literal) and v in known for v in outs]

    def carried(
        self,
        before: Sequence[bool],
        carry: Sequence[bool],
        after: Sequence[bool] = (),
    ) -> list[bool]:
        """Which of what a loop carries the inputs reach in some turn."""
        while True:
            outs = self.reach([*before, *carry, *after])
            again = [a or b for a, b in zip(carry, outs, strict=False)]
            if again == list(carry):
                return again
            carry = again

    def zeros(self, reached: Sequence[bool]) -> Found:
        """The sums before the first turn."""
        types = [var.aval for var in self.frame.jaxpr.invars]
        types = jax.eval_shape(lambda *xs: self(xs, reached)[1], *types)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), types)


def _inline(_: Narrow, children: Any, xs: Any, reached: Any) -> Any:
    """A call: nobody takes a derivative of it here, so it runs where it stands."""
    return children[0](xs, reached)


def _unwatched(n: Narrow, _: Any, xs: Any, reached: Any) -> Any:
    """Runs as ever; what is summed over inside does not count."""
    return RULES[n.eqn.primitive.name].narrow(n, *xs), {}


def _scan(n: Narrow, children: Any, xs: Any, reached: Any) -> Any:
    (child,), (consts, carried) = children, counts_of_scan(n.params)
    fixed, end = xs[:consts], consts + carried
    carry = child.carried(reached[:consts], reached[consts:end], reached[end:])
    which = [*reached[:consts], *carry, *reached[end:]]

    def body(carry: Any, steps: Any) -> Any:
        outs, more = child([*fixed, *carry[0], *steps], which)
        return (tuple(outs[:carried]), add(carry[1], more)), tuple(outs[carried:])

    (outs, found), ys = lax.scan(
        body,
        (tuple(xs[consts:end]), child.zeros(which)),
        tuple(xs[end:]),
        length=n.params["length"],
        reverse=n.params["reverse"],
    )
    return [*outs, *ys], found


def _while(n: Narrow, children: Any, xs: Any, reached: Any) -> Any:
    condition, child = children
    conds, bodies = n.params["cond_nconsts"], n.params["body_nconsts"]
    end = conds + bodies
    fixed = reached[conds:end]
    which = [*fixed, *child.carried(fixed, reached[end:])]

    def going(carry: Any) -> Any:
        return condition([*xs[:conds], *carry], [False] * (conds + len(carry)))[0][0]

    def step(carry: Any) -> Any:
        outs, more = child([*xs[conds:end], *carry[0]], which)
        # Under vmap the turns of examples that have finished are counted, too.
        return still(n, going, outs, carry[0]), add(carry[1], more)

    outs, found = lax.while_loop(
        lambda carry: going(carry[0]).any(),
        step,
        (tuple(xs[end:]), child.zeros(which)),
    )
    return list(outs), found


def _cond(n: Narrow, children: Any, xs: Any, reached: Any) -> Any:
    zeros: Found = {}
    for child in children:
        zeros |= child.zeros(reached[1:])

    def branch(child: _Child) -> Callable[..., Any]:
        def run(*operands: Any) -> Any:
            outs, found = child(operands, reached[1:])
            return tuple(outs), add(zeros, found)

        return run

    outs, found = switch(n, xs[0], [branch(child) for child in children], xs[1:])
    return list(outs), found


def _shard_map(n: Narrow, children: Any, xs: Any, reached: Any) -> Any:
    names = tuple(n.params["newly_manual_axes"])

    def body(*xs: Any) -> Any:
        outs, found = children[0](xs, reached)
        # Sums that are the same everywhere are counted once for each device.
        here = 0.0 * lax.axis_index(names)
        found = jax.tree.map(lambda x: lax.psum(x + here, names), found)
        return tuple(outs), found

    outs, found = jax.shard_map(
        body,
        mesh=n.params["mesh"],
        in_specs=tuple(n.params["in_specs"]),
        out_specs=(tuple(n.params["out_specs"]), PartitionSpec()),
        axis_names=n.params["newly_manual_axes"],
        check_vma=n.params["check_vma"],
    )(*xs)
    return list(outs), found


CALLS: dict[str, Callable[..., Any]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
    "custom_linear_solve": _unwatched,
}
"""Equations that call something; those not named here are calls."""


def _found(n: Narrow, xs: Any, reached: Sequence[bool], at: tuple[int, ...]) -> Found:
    """The sums of an equation that sums over units; nothing of another."""
    look = SUMMED.get(n.eqn.primitive.name)
    found: Found = {}
    for how, operand, with_, axes, leading, apart in look(n, *xs) if look else ():
        if not reached[operand]:
            continue
        x, y = with_
        over = tuple(range(leading))
        squares, products = x.sum(over), (x * y).sum(over)
        for i, axis in enumerate(axes):
            rest = tuple(j for j in range(len(axes)) if j != i)
            for group in dict.fromkeys(groups_in(axis)):
                if group in apart:
                    continue
                owner = owners(axis, group)
                each = xs[operand].size / len(owner)
                size = n.analysis.groups[group].size
                place = group, how, (*at, operand, i)
                found[place] = Sums(
                    _by_index(squares.sum(rest), owner, size),
                    _by_index(products.sum(rest), owner, size),
                    jnp.asarray(
                        each * np.bincount(owner[owner >= 0], minlength=size),
                        jnp.float32,
                    ),
                )
    return found


def _by_index(along: Any, owner: np.ndarray, size: int) -> Any:
    """Entries along an axis added up by the index that they belong to."""
    if np.array_equal(owner, np.arange(size)):
        return along
    return jnp.zeros(size, along.dtype).at[owner[owner >= 0]].add(along[owner >= 0])


def _squares(x: Any, keep: Sequence[int]) -> Any:
    """Squares summed over all axes but those to keep, which come in this order."""
    x = jnp.abs(x)
    x = jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
    x = x.sum([i for i in range(x.ndim) if i not in keep])
    return x.transpose([sorted(keep).index(i) for i in keep])


def _dot(n: Narrow, a: Any, b: Any) -> Any:
    (over_a, over_b), (batch_a, batch_b) = n.params["dimension_numbers"]
    pair = _squares(a, [*batch_a, *over_a]), _squares(b, [*batch_b, *over_b])
    for operand, (over, with_) in enumerate(((over_a, pair), (over_b, pair[::-1]))):
        axes = n.axes(n.eqn.invars[operand])
        yield "contracted", operand, with_, [axes[i] for i in over], len(batch_a), ()


def _ragged_dot(n: Narrow, a: Any, b: Any, _: Any) -> Any:
    numbers = n.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    over_a, over_b = numbers[0]
    axes = n.axes(n.eqn.invars[0])
    yield (
        "contracted",
        0,
        (_squares(a, over_a), _squares(b, over_b)),
        [axes[i] for i in over_a],
        0,
        (),
    )


def _conv(n: Narrow, a: Any, b: Any) -> Any:
    numbers, groups = n.params["dimension_numbers"], n.params["feature_group_count"]
    features = numbers.lhs_spec[1]
    filters, taken = numbers.rhs_spec[:2]
    weights = _squares(b, [filters, taken])
    weights = weights.reshape(groups, -1, weights.shape[1]).sum(1).reshape(-1)
    axis = n.axes(n.eqn.invars[0])[features]
    # The groups of a convolution are still there in what comes out.
    apart = groups_in(n.analysis.axes([n.note[1]])[0]) if groups > 1 else ()
    yield "contracted", 0, (_squares(a, [features]), weights), [axis], 0, apart


def _reduce(n: Narrow, x: Any) -> Any:
    over, axes = n.params["axes"], n.axes(n.eqn.invars[0])
    squares = _squares(x, over)
    yield (
        "reduced",
        0,
        (squares, jnp.ones_like(squares)),
        [axes[i] for i in over],
        0,
        (),
    )


SUMMED: dict[str, Callable[..., Any]] = {
    "dot_general": _dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _conv,
    "reduce_sum": _reduce,
    "reduce_max": _reduce,
    "reduce_min": _reduce,
    "reduce_prod": _reduce,
}


def activations(
    definition: Definition,
    call: Call,
    variables: Any,
    arrays: Sequence[Any],
    inputs: int,
) -> Found:
    """Runs one call, and gives what it sums over.

    Args:
      definition: of the network.
      call: the static arguments.
      variables: at full width.
      arrays: the arrays among the arguments.
      inputs: how many of these, from the first, are inputs; on the others, such as
        keys of random numbers, activations do not depend.
    """
    run = definition.jitted(_activations, 2)
    return run(unkeyed_settings(), call, inputs, variables, arrays)


def _activations(
    definition: Definition, call: Call, inputs: int, variables: Any, arrays: Any
) -> Found:
    full = definition.plan.full
    program = program_of(definition, full, full, call, variables, arrays)
    leaves = jax.tree.leaves(variables)
    reached = [False] * len(leaves) + [i < inputs for i in range(len(arrays))]
    watch = Watch(program.analysis)
    return watch.run(program.analysis.frame, [*leaves, *arrays], reached)[2]
