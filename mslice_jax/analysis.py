"""Reading a program: which axes of its parameters narrow together.

`discover` reads a jaxpr at full width with the rules and decides what narrows; that
decision, for the parameters, is the plan (`plan.py`). `follow` reads another trace of
the same function (another batch size, training mode, a derivative) under a plan that is
already made: it has to agree with it, or says which equation asks for what.

An axis narrows if it is tied to an axis of a parameter and to nothing fixed. Of the
factors of a product the outermost that can narrow does, and the others stay whole: so
group norms narrow by groups and attention by heads (Model Slicing, section 3.2).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core

from . import rates as rates_lib
from .counts import (
    Asked,
    Counts,
    Different,
    Incomparable,
    Known,
    Own,
    Place,
    count,
    decide,
    merge,
    pair,
)
from .dims import (
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
from .growth import INPUT, PARAMETER, Growth
from .rules import NO_RULE, RULES, Frame, Tie, Value, order
from .rules import places as places_lib
from .rules.folding import FOLDED
from .rules.live import live
from .unify import Dim, Equations, Reason, atoms, factors, find, segments

UNREAD = "not read by the traced call"


class PlanError(ValueError):
    """A network that cannot be sliced, or a call that does not fit the plan."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """An array that the plan may narrow: where it is in the tree of variables.

    Attributes:
      path: such as 'params/Dense_0/kernel'.
      same_as: the number of the input whose axes it shares: the batch norm of another
        rate, which this trace does not read.
      whole: why it keeps the size of an axis, by axis, where the user asked for that.
      inner: axes of which the innermost factor narrows instead of the outermost.
    """

    path: str
    same_as: int | None = None
    whole: Mapping[int, str] = field(default_factory=dict)
    inner: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Units:
    """What stays or goes together, where the network leaves it open.

    Attributes:
      groups: an axis that the network itself does not split is dealt out into this
        many units, if they divide it.
      multiple_of: widths are rounded to a multiple of this, entries of an array.
      min_width: how many entries are kept at least.
      shards: an axis that this divides is dealt out into so many equal parts, and each
        of them narrows, so that slicing moves nothing between devices.
    """

    groups: int = 8
    multiple_of: int = 1
    min_width: int = 1
    shards: int = 1


@dataclass(frozen=True, slots=True)
class WidthGroup:
    """Axes that narrow together, to the same leading indices.

    Attributes:
      size: the full number of indices.
      unit: how many indices stay or go together.
      minimum: how many indices are kept at least.
      span: how many entries of an array an index stands for: the head size where heads
        narrow, 1 where the axis is not split.
      leaves: (path, axis) of every array of the variables that it runs through.
    """

    size: int
    unit: int
    minimum: int = 1
    span: int = 1
    leaves: tuple[tuple[str, int], ...] = ()

    def width(self, rate: float) -> int:
        """How many indices the rate keeps."""
        return rates_lib.width(self.size, rate, self.unit, self.minimum)

    def is_exact(self, rate: float) -> bool:
        """Whether that is exactly the rate's share."""
        return rates_lib.is_exact(self.size, rate, self.unit, self.minimum)


@dataclass(slots=True)
class Analysis:
    """A jaxpr that has been read: the axes of everything in it.

    `orders` has the groups whose indices the variables hold in another order than the
    constants of the program: what stood at `orders[group][i]` stands at i. `known` is
    what is known of the inputs, see `counts`, and `wanted` how results grow, where that
    is known from elsewhere. `asked` is what the user said of numbers,
    `own` gives the function's own program at given widths, where it has one, and
    `of_inputs` the numbers that are sizes of inputs, see `counts.decisions`.
    """

    closed: core.ClosedJaxpr
    frame: Frame
    groups: dict[str, WidthGroup]
    equations: Equations
    orders: Mapping[str, np.ndarray] = field(default_factory=dict)
    known: Sequence[Known] = ()
    wanted: Sequence[Growth] = ()
    asked: Asked = Asked()
    own: Callable[[Widths], Any] | None = None
    of_inputs: frozenset[Place] = frozenset()
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
        read.own = own and (lambda widths: own)
        return read


def discover(
    closed: core.ClosedJaxpr,
    kinds: Sequence[Parameter | str],
    returns: Sequence[int | str | None],
    units: Units = Units(),
) -> tuple[Analysis, list[tuple[Axis, ...]], list["FixedAxis"]]:
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
    _fix_unread(frame, kinds, values, returns, equations)
    found = _decide(parameters, equations, units)
    known = [PARAMETER if isinstance(kind, Parameter) else INPUT for kind in kinds]
    analysis = Analysis(closed, frame, found, equations, known=known)
    axes = [analysis.axes(value.dims) for value in values]
    return analysis, axes, _fixed_axes(parameters)


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
    equations = _Seeded()
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


class _Seeded(Equations):
    """Equations under a plan: its units may not be split or tied to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.clashes: list[tuple[str, str]] = []

    def clash(self, a: Dim, b: Dim) -> None:
        groups = [dim.group for dim in (a, b) if dim.group is not None]
        text = f"ties it to {groups[1]}" if len(groups) == 2 else "splits it"
        self.clashes.append((groups[0], f"{text} ({self.why or b.why})"))


# -- reading


def walk(
    jaxpr: Any,
    values: Sequence[Value],
    equations: Equations,
    sources: Sequence[Any] = (),
) -> tuple[Frame, list[Value]]:
    """Reads a jaxpr equation by equation with the rules.

    `sources` tells where the calls are that the jaxpr is in, innermost first.
    """
    consts: Sequence[Any] = ()
    if isinstance(jaxpr, core.ClosedJaxpr):
        jaxpr, consts = jaxpr.jaxpr, jaxpr.consts
    jaxpr = live(jaxpr)
    known = dict(zip(jaxpr.invars, values, strict=True))
    frame = Frame(jaxpr, consts, known, {}, {}, sources)
    for var, const in zip(jaxpr.constvars, consts, strict=True):
        frame.values[var] = _constant(var.aval, const)
        equations.constant += frame.values[var].dims

    def call(inner: Any, operands: Sequence[Value]) -> tuple[Frame, list[Value]]:
        why = equations.why
        assert why is not None
        result = walk(inner, operands, equations, why.sources)
        equations.why = why
        return result

    for index, eqn in enumerate(jaxpr.eqns):
        for var in eqn.invars:
            if isinstance(var, core.Literal) and np.ndim(var.val):
                frame.values[id(var)] = _constant(var.aval, var.val)
                equations.constant += frame.values[id(var)].dims
        name = eqn.primitive.name
        equations.why = Reason(name, (eqn.source_info, *sources), name)
        tie = Tie(frame, index, equations, call)
        rule = FOLDED if places_lib.folds(tie) else RULES.get(name, NO_RULE)
        results = [
            result if isinstance(result, Value) else Value(tuple(result))
            for result in rule.tie(tie)
        ]
        if index not in frame.children:  # else known from what was called
            for result, found in zip(results, places_lib.read(tie), strict=True):
                result.order = result.order or found
        equations.constant += [d for r in results for d in places_lib.axes(r)]
        frame.values.update(zip(eqn.outvars, results, strict=True))
    outs = []
    for var in jaxpr.outvars:
        if isinstance(var, core.Literal) and np.ndim(var.val):
            frame.values[id(var)] = _constant(var.aval, var.val)
        outs.append(frame.value(var))
    return frame, outs


def _constant(aval: Any, value: Any) -> Value:
    """A captured array belongs to the plan like a parameter that is not trained."""
    shape = getattr(aval, "shape", ())
    dims = tuple(Dim(size) for size in shape)
    return Value(dims, order=order.of_constant(value))


# -- deciding


def _fix_unread(
    frame: Frame,
    kinds: Sequence[Any],
    values: Sequence[Value],
    returns: Sequence[int | str | None],
    equations: Equations,
) -> None:
    """Fixes parameters that nothing reads or updates, and what slices leave out."""
    read = {
        var
        for eqn in frame.jaxpr.eqns
        for var in eqn.invars
        if not isinstance(var, core.Literal)
    }
    reason = Reason(UNREAD)
    inputs = zip(frame.jaxpr.invars, kinds, values, strict=True)
    for i, (var, kind, value) in enumerate(inputs):
        shares = isinstance(kind, Parameter) and kind.same_as is not None
        if var not in read and i not in returns and not shares:
            for dim in value.dims:
                equations.fix(dim, reason)
    taken = {atom for dim in equations.taken for atom in atoms(dim)}
    for dim, why in equations.left_out:
        for atom in atoms(dim):
            if atom not in taken:
                equations.fix(atom, why or reason)


def _decide(
    parameters: Sequence[tuple[Parameter, Sequence[Dim]]],
    equations: Equations,
    units: Units,
) -> dict[str, WidthGroup]:
    """Fixes the other factors of products, names what is left, and sets the units."""
    spans = _one_factor_narrows(parameters, equations)
    leaves: dict[Dim, list[tuple[str, int, int]]] = {}  # path, axis, rank
    for kind, dims in parameters:
        for axis, dim in enumerate(dims):
            for atom in dict.fromkeys(atoms(dim)):
                if atom.fixed is None and atom.size > 1:
                    leaves.setdefault(atom, []).append((kind.path, axis, len(dims)))
    found: dict[str, WidthGroup] = {}
    for whole, places in leaves.items():
        atom, span = whole, spans.get(whole, 1)
        of_shard, left_over = divmod(whole.size, units.shards)
        if units.shards > 1 and of_shard > 1 and not left_over:
            parts, atom = equations.split(whole, (units.shards, of_shard))
            equations.fix(parts, Reason("stays whole: a part for each shard"))
            span *= units.shards
        # An index that stands for several of a split axis is a unit of its own.
        split_by_network = whole in spans or atom.size % units.groups != 0
        unit = 1 if split_by_network else atom.size // units.groups
        step = units.multiple_of // math.gcd(units.multiple_of, span)
        atom.group = _name(places, found)
        found[atom.group] = WidthGroup(
            size=atom.size,
            unit=min(atom.size, math.lcm(unit, step)),
            minimum=min(atom.size, math.ceil(units.min_width / span)),
            span=span,
            leaves=tuple((path, axis) for path, axis, _ in places),
        )
    return found


def _one_factor_narrows(
    parameters: Sequence[tuple[Parameter, Sequence[Dim]]], equations: Equations
) -> dict[Dim, int]:
    """Of the factors of every product keeps one that narrows, and fixes the others.

    It is the outermost, but for those that a constant is contracted with: they come
    last. Several narrow where each is the axis of arrays without the other.

    Returns:
      For each outer factor that narrows: how many entries one of its indices stands
      for, counting what would have narrowed in its place.
    """
    tied = {atom for _, dims in parameters for dim in dims for atom in atoms(dim)}
    from_within = {
        atom
        for kind, dims in parameters
        for axis in kind.inner
        for atom in atoms(dims[axis])
    }

    made = Reason("stays whole: made by a constant, and no axis of a parameter alone")
    for atom in _made_by_constants(parameters, equations):
        equations.fix(atom, made)
    mixed = {atom for dim in equations.mixed for atom in atoms(dim)}
    free_of = _Independent(parameters, equations)

    def can_narrow(dim: Dim) -> bool:
        return any(
            atom.fixed is None and atom in tied and atom.size > 1 for atom in atoms(dim)
        )

    def fits(parts: Sequence[Dim]) -> bool:
        narrows = [part for part in parts if can_narrow(part)]
        return len(narrows) < 2 or free_of.each_other(narrows)

    products = [[f for d in dims for f in factors(d)] for dims in equations.products]
    twice = Reason("stays whole: two factors of one axis are these units")
    for atom in _mixed_again(products, equations, free_of):
        equations.fix(atom, twice)
    products = [list(dict.fromkeys(parts)) for parts in products]
    # The user's choice comes before what follows from it.
    asked = [
        parts[::-1]
        for parts in products
        if any(atom in from_within for part in parts for atom in atoms(part))
    ]
    stays = Reason("stays whole: another factor of a split narrows")
    changed = True
    while changed:  # fixing one factor can leave another product with nothing to keep
        changed = False
        for parts in (*asked, *products):
            narrows = [part for part in parts if can_narrow(part)]
            if parts not in asked:
                narrows.sort(key=lambda part: any(a in mixed for a in atoms(part)))
                if free_of.each_other(narrows):
                    continue
            for part in narrows[1:]:
                changed = True
                equations.fix(part, stays)
    _give_back(stays, products, fits)
    spans: dict[Dim, int] = {}
    for parts in products:
        if sum(map(can_narrow, parts)) > 1:
            continue
        for i, part in enumerate(parts[:-1]):
            held = [
                p
                for p in parts[i + 1 :]
                if all(a.fixed is stays or a.fixed is made for a in atoms(p))
            ]
            span = math.prod(find(other).size for other in held)
            for atom in atoms(part):
                spans[atom] = max(span, spans.get(atom, 1))
    return spans


def _mixed_again(
    products: Sequence[Sequence[Dim]], equations: Equations, free_of: "_Independent"
) -> Iterator[Dim]:
    """The atoms of two factors of one axis, but for units by themselves.

    Groups that a shuffle deals out to the same groups, say. Of the outer product of
    units with themselves both factors narrow.
    """
    split = {atom for dims in equations.splits for dim in dims for atom in atoms(dim)}
    for dims, parts in zip(equations.products, products, strict=True):
        met: set[Dim] = set()
        for part in parts if len(dims) == 1 else ():
            here = set(atoms(part))
            for atom in here & met:
                if atom in split or atom not in free_of.alone:
                    yield atom
            met |= here


def _give_back(
    stays: Reason,
    products: Sequence[Sequence[Dim]],
    fits: Callable[[Sequence[Dim]], bool],
) -> None:
    """Lets factors narrow after all, where what narrowed instead was fixed later."""
    within: dict[Dim, list[Sequence[Dim]]] = {}
    for parts in products:
        for atom in dict.fromkeys(atom for part in parts for atom in atoms(part)):
            if atom.fixed is stays:
                within.setdefault(atom, []).append(parts)
    for atom, those in within.items():
        atom.fixed = None
        if not all(map(fits, those)):
            atom.fixed = stays


def _made_by_constants(
    parameters: Sequence[tuple[Parameter, Sequence[Dim]]], equations: Equations
) -> set[Dim]:
    """Atoms that only constants brought in, and that reach a parameter in a product.

    The rows of a picture that was resized, say, beside its channels in a flattened
    axis. The heads of attention were split off an axis of units, whatever constants
    (slopes of positions) go along them.
    """
    constant = {atom for dim in equations.constant for atom in atoms(dim)}
    split = {atom for dims in equations.splits for dim in dims for atom in atoms(dim)}
    within = {atom for _, dims in parameters for dim in dims for atom in atoms(dim)}
    alone = {atom for _, dims in parameters for dim in dims for atom in _alone(dim)}
    return (constant & within) - split - alone


def _alone(dim: Dim) -> Iterator[Dim]:
    """The atoms of an axis that are no factors of a product."""
    for part in segments(dim):
        root = find(part)
        if root.factors is None:
            yield root


class _Independent:
    """Which factors are units of their own, each made by a parameter of its own."""

    def __init__(
        self,
        parameters: Sequence[tuple[Parameter, Sequence[Dim]]],
        equations: Equations,
    ) -> None:
        self.alone: set[Dim] = set()
        self.arrays: dict[Dim, set[int]] = {}  # that an atom runs through
        for at, (_, dims) in enumerate(parameters):
            for dim in dims:
                self.alone.update(_alone(dim))
                for atom in atoms(dim):
                    self.arrays.setdefault(atom, set()).add(at)
        self.joint: dict[Dim, set[int]] = {}  # the lists that an atom is in
        for at, dims in enumerate((*equations.splits, *equations.joint)):
            for dim in dims:
                for atom in atoms(dim):
                    self.joint.setdefault(atom, set()).add(at)

    def each_other(self, parts: Sequence[Dim]) -> bool:
        """Whether any two of these can narrow side by side."""
        found = [find(part) for part in parts]
        if len(found) < 2 or not all(part in self.alone for part in found):
            return False
        return all(
            self._free(a, b) for i, a in enumerate(found) for b in found[i + 1 :]
        )

    def _free(self, a: Dim, b: Dim) -> bool:
        # Heads and their size come from one projection, or are always together.
        together = self.joint.get(a, set()) & self.joint.get(b, set())
        of_a, of_b = self.arrays[a], self.arrays[b]
        return a is not b and not together and bool(of_a - of_b and of_b - of_a)


def _name(places: Sequence[tuple[str, int, int]], taken: Mapping[str, Any]) -> str:
    """A group is called after the array of most axes that ends in it: its kernel."""
    path, axis, _ = max(places, key=lambda p: (p[1] == p[2] - 1, p[2], p[1]))
    name = base = f"{path.removeprefix('params/')}:{axis}"
    count = 1
    while name in taken:  # several segments of one axis
        count += 1
        name = f"{base}.{count}"
    return name


@dataclass(frozen=True, slots=True)
class FixedAxis:
    """An axis of a parameter that keeps its size, and why."""

    path: str
    axis: int
    size: int
    reason: Reason


def _fixed_axes(
    parameters: Sequence[tuple[Parameter, Sequence[Dim]]],
) -> list[FixedAxis]:
    fixed = []
    for kind, dims in parameters:
        for axis, dim in enumerate(dims):
            parts = list(atoms(dim))
            reasons = [atom.fixed for atom in parts if atom.fixed is not None]
            if len(reasons) == len(parts) and find(dim).size != 1:
                fixed.append(FixedAxis(kind.path, axis, find(dim).size, reasons[0]))
    return fixed
