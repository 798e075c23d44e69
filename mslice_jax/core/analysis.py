"""A program that was read: for the first time, or under a plan that is made.

`discover` reads a jaxpr at full width with the rules and decides what narrows; that
decision, for the parameters, is the plan (`plan.py`). `follow` reads another trace of
the same function (another batch size, training mode, a derivative) under a plan that is
already made: it has to agree with it, or says which equation asks for what.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core

from .axes import (
    Axis,
    Concat,
    Product,
    Unit,
    Whole,
    Widths,
    groups_in,
    shape,
    slice_array,
    take,
)
from .counts import (
    Asked,
    Counts,
    Different,
    Incomparable,
    Known,
    NumberWarning,
    Own,
    Place,
    count,
    decide,
    describe,
    merge,
    pair,
    warning,
)
from .errors import PlanError
from .groups import (
    FixedAxis,
    Parameter,
    Units,
    WidthGroup,
    fix_unread,
    fixed_axes,
    form_groups,
)
from .growth import INPUT, PARAMETER, Growth
from .reading import walk
from .rules import Frame, Value
from .solver import Dim, Equations, Reason, find


@dataclass(slots=True)
class Analysis:
    """A jaxpr that has been read: the axes of everything in it.

    `orders` has the groups whose indices the variables hold in another order than the
    constants of the program: what stood at `orders[group][i]` stands at i. `known` is
    what is known of the inputs, see `counts`, and `wanted` how results grow, where that
    is known from elsewhere. `asked` is what the user said of numbers, `strict` whether
    one of which nothing is known is an error,
    `own` gives the function's own program at given widths, where it has one, and
    `of_inputs` the numbers that are sizes of inputs, see `counts.decisions`. `whole` is
    the program that this one is a derivative or another part of.
    """

    closed: core.ClosedJaxpr
    frame: Frame
    groups: dict[str, WidthGroup]
    equations: Equations
    orders: Mapping[str, np.ndarray] = field(default_factory=dict)
    known: Sequence[Known] = ()
    wanted: Sequence[Growth] = ()
    asked: Asked = Asked()
    strict: bool = False
    own: Callable[[Widths], Any] | None = None
    of_inputs: frozenset[Place] = frozenset()
    whole: core.ClosedJaxpr | None = None
    _facts: dict[Any, Any] = field(default_factory=dict)
    _own: dict[Any, Own | None] = field(default_factory=dict)
    _own_numbers: dict[int, Any] = field(default_factory=dict)
    _memo: dict[Dim, Axis] = field(default_factory=dict)
    _counts: Counts | None = None

    def axes(self, dims: Sequence[Dim]) -> tuple[Axis, ...]:
        """The dims as immutable axes."""
        return tuple(self.equations.freeze(dim, self._memo) for dim in dims)

    @property
    def counts(self) -> Counts:
        """What the numbers of the program stand for."""
        if self._counts is None:
            self._counts = count(self, self.frame, self.known, self.wanted)
            decide(self._counts, self.asked)
        return self._counts

    def fact(self, of: Callable[[core.ClosedJaxpr], Any]) -> Any:
        """What a function says of the whole program; it is asked once."""
        if of not in self._facts:
            self._facts[of] = of(self.whole or self.closed)
        return self._facts[of]

    def own_program(self, widths: Widths) -> Own | None:
        """What is different in the function's own program, if it has one."""
        if self.own is None:
            return None
        key = tuple(sorted(widths.items()))
        if key not in self._own:
            try:
                own = self.paired(self.own(widths), widths)
                self._own[key] = own
                self._own_numbers[id(own)] = merge(
                    self.counts, own, self.asked, self.of_inputs, widths
                )
            except (Incomparable, Different):  # as in the calls of other devices
                self._own[key] = None
        return self._own[key]

    def paired(self, closed: core.ClosedJaxpr, widths: Widths) -> Own:
        """Holds the function's own program against the narrow one, see `counts.own`."""
        return pair(self.frame, closed, self.axes, self.cut, widths)

    def numbers(self, frame: Frame, index: int, widths: Widths) -> Mapping[int, Any]:
        """The operands of an equation that are other numbers at these widths."""
        own = self.own_program(widths)
        if own is not None:
            return self._own_numbers[id(own)].get((id(frame), index), {})
        return self.counts.numbers(frame, index, widths)

    def tell_open(self, widths: Widths) -> None:
        """Warns of numbers of a derivative that stay, and matter where they stand.

        Raises:
          PlanError: instead, under `strict`.
        """
        own = self.own_program(widths)
        text = "" if own is not None else warning(describe(self.counts, (), {}))
        if text and self.strict:
            raise PlanError(f"strict=True asks that no number is left open, but {text}")
        if text:
            warnings.warn(text, NumberWarning, stacklevel=2)

    def is_moved(self, frame: Frame, var: Any) -> bool:
        """Whether units along some axis stand in another order than when traced."""
        axes = self.axes(frame.value(var).dims)
        return any(group in self.orders for axis in axes for group in groups_in(axis))

    def cut(self, frame: Frame, var: Any, value: Any, widths: Widths) -> Any:
        """The part of a captured array that is kept at these widths."""
        axes = self.axes(frame.value(var).dims)
        if not self.is_moved(frame, var) and shape(axes, widths) == tuple(
            np.shape(value)
        ):
            return value
        if isinstance(value, Tracer):
            return slice_array(take(value, axes, self.orders), axes, widths)
        with jax.ensure_compile_time_eval():  # cut once, not in every run
            value = take(jnp.asarray(value), axes, self.orders)
            return slice_array(value, axes, widths)

    def follow(
        self,
        closed: core.ClosedJaxpr,
        ins: Sequence[Sequence[Axis]],
        outs: Sequence[Sequence[Axis] | None],
        known: Sequence[Known],
        own: Any = None,
    ) -> "Analysis":
        """Reads a program that takes and gives arrays with axes of this one.

        `own` is the function's own form of it at the widths that it will run at.
        """
        read = follow(closed, self.groups, ins, outs, known, self.orders)
        read.asked, read.of_inputs = self.asked, self.of_inputs
        read.strict, read.whole = self.strict, self.whole or self.closed
        read.own = own and (lambda widths: own)
        return read


def discover(
    closed: core.ClosedJaxpr,
    kinds: Sequence[Parameter | str],
    returns: Sequence[int | str | None],
    units: Units,
) -> tuple[Analysis, list[tuple[Axis, ...]], list[FixedAxis]]:
    """Reads a program for the first time and decides what narrows.

    Args:
      closed: the program.
      kinds: for each input a `Parameter`, or a reason why its axes are fixed.
      returns: for each output the number of the input that it updates (batch
        statistics), a reason why its axes are fixed, or None: whatever comes.
      units: what stays or goes together where the network leaves it open.

    Returns:
      The analysis, the axes of every input, and the axes of parameters that are fixed.
    """
    equations = Equations()
    values = []
    for var, kind in zip(closed.jaxpr.invars, kinds, strict=True):
        shape = var.aval.shape
        whole = kind.whole if isinstance(kind, Parameter) else {}
        texts = [whole.get(i) for i in range(len(shape))]
        if isinstance(kind, str):
            texts = [kind] * len(shape)
        why = [None if text is None else Reason(text) for text in texts]
        values.append(Value(tuple(map(Dim, shape, why))))
    for i, kind in enumerate(kinds):
        if isinstance(kind, Parameter) and kind.same_as is not None:
            values[i] = values[kind.same_as]
    frame, outs = walk(closed, values, equations)
    equations.why = None
    for out, back in zip(outs, returns, strict=True):
        if isinstance(back, int):
            for a, b in zip(out.dims, values[back].dims, strict=True):
                equations.equate(a, b)
        elif back is not None:
            for dim in out.dims:
                equations.fix(dim, back)
    parameters = [
        (kind, value.dims)
        for kind, value in zip(kinds, values, strict=True)
        if isinstance(kind, Parameter)
    ]
    fix_unread(frame, kinds, values, returns, equations)
    found = form_groups(parameters, equations, units)
    known = [PARAMETER if isinstance(kind, Parameter) else INPUT for kind in kinds]
    analysis = Analysis(closed, frame, found, equations, known=known)
    axes = [analysis.axes(value.dims) for value in values]
    return analysis, axes, fixed_axes(parameters)


def follow(
    closed: core.ClosedJaxpr,
    groups: Mapping[str, WidthGroup],
    ins: Sequence[Sequence[Axis]],
    outs: Sequence[Sequence[Axis] | None],
    known: Sequence[Known],
    orders: Mapping[str, np.ndarray] | None = None,
) -> Analysis:
    """Reads another program under a plan that is made.

    Args:
      closed: the program, at full width.
      groups: the groups of the plan.
      ins: the axes of every input.
      outs: the axes that every output must have; None for whatever comes.
      known: what is known of every input.
      orders: see `Analysis`.

    Raises:
      PlanError: if the program splits, fixes or ties units of the plan otherwise.
    """
    equations = Equations()
    units: dict[str, Dim] = {}

    def seed(axis: Axis) -> Dim:
        match axis:
            case Unit(size, group):
                if group not in units:
                    units[group] = Dim(size)
                    units[group].group = group
                return units[group]
            case Whole(size, reason):
                return Dim(size, reason or Reason("whole in the plan"))
            case Product(parts):
                return equations.product([seed(part) for part in parts])
            case Concat(parts):
                return equations.concat([seed(part) for part in parts])

    values = [Value(tuple(seed(axis) for axis in axes)) for axes in ins]
    frame, results = walk(closed, values, equations)
    equations.why = None
    for out, axes in zip(results, outs, strict=True):
        if axes is not None:
            for dim, axis in zip(out.dims, axes, strict=True):
                equations.equate(dim, seed(axis))
    for group, dim in units.items():
        root = find(dim)
        if root.fixed is not None:
            equations.clashes.append((group, f"keeps it whole ({root.fixed})"))
    if equations.clashes:
        lines = [
            f"  {group}: this call {what}"
            for group, what in dict(equations.clashes).items()
        ]
        raise PlanError(
            "this call does not fit the plan that `upgrade` made from another call of "
            "the same function. Expected each group of axes to narrow as planned, but\n"
            + "\n".join(lines[:8])
            + "\nUpgrade with the call that asks for the most (for example in training "
            "mode, or with this input shape), or keep these calls alike."
        )
    return Analysis(closed, frame, dict(groups), equations, orders or {}, known)
