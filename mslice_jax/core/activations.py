"""What runs along the units of a program: the activations that it sums over.

The program that was read is run at full width, and beside it the mean square is taken
of every value that is summed over units (`summed`). Sums leave loops and branches as
further results of these, so one pass is enough, and nothing else of it is kept. Only
what depends on the inputs counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.sharding import PartitionSpec

from .analysis import Analysis
from .axes import FULL
from .call import Call
from .definition import Definition, unkeyed_settings
from .evaluate import evaluate
from .rules import NO_RULE, RULES, Frame, Narrow
from .rules.folding import FOLDED, is_folded
from .rules.loops import counts_of_scan, still, switch
from .run import program_of
from .summed import Found, add, sums_of


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
                    found |= sums_of(narrow, xs, which, here)
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
        zero = _zero(jax.sharding.get_abstract_mesh().manual_axes)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype) + zero, types)


def _zero(names: Sequence[str]) -> Any:
    """Zero; inside of shard_map one that counts as different on every device."""
    return jnp.float32(0.0) * lax.axis_index(tuple(names)) if names else 0.0


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
        found = jax.tree.map(lambda x: lax.psum(x + _zero(names), names), found)
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
    # Of norms with a set for each rate those of the widest are at full width.
    widest = replace(full, rate=definition.plan.rates[-1])
    program = program_of(definition, widest, full, call, variables, arrays)
    leaves = jax.tree.leaves(variables)
    reached = [False] * len(leaves) + [i < inputs for i in range(len(arrays))]
    watch = Watch(program.analysis)
    return watch.run(program.analysis.frame, [*leaves, *arrays], reached)[2]
