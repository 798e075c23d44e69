"""What narrows: the axes that go together, and how much of them a rate keeps.

A program that was read has left equations between axes (`solver`). An axis narrows if
it is tied to an axis of a parameter and to nothing fixed. Of the factors of a product
the outermost that can narrow does, and the others stay whole: so group norms narrow by
groups and attention by heads (Model Slicing, section 3.2).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend import core

from . import rates as rates_lib
from .rules import Frame, Value
from .solver import Dim, Equations, Reason, atoms, factors, find, segments

UNREAD = "not read by the traced call"


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
      groups: an axis that the network itself does not split is split into this
        many units, if they divide it.
      multiple_of: widths are rounded to a multiple of this, entries of an array.
      min_width: how many entries are kept at least.
      shards: an axis that this divides is split into that many equal parts, and each
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


@dataclass(frozen=True, slots=True)
class FixedAxis:
    """An axis of a parameter that keeps its size, and why."""

    path: str
    axis: int
    size: int
    reason: Reason


def form_groups(
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

    Groups that a shuffle splits over the same groups, say. Of the outer product of
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
    """Lets a factor narrow after all, where that in its place was fixed later."""
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
        """Whether any two of these can narrow at once."""
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


def fix_unread(
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


def fixed_axes(
    parameters: Sequence[tuple[Parameter, Sequence[Dim]]],
) -> list[FixedAxis]:
    """The axes of parameters of which no part narrows, with the reasons."""
    fixed = []
    for kind, dims in parameters:
        for axis, dim in enumerate(dims):
            parts = list(atoms(dim))
            reasons = [atom.fixed for atom in parts if atom.fixed is not None]
            if len(reasons) == len(parts) and find(dim).size != 1:
                fixed.append(FixedAxis(kind.path, axis, find(dim).size, reasons[0]))
    return fixed
