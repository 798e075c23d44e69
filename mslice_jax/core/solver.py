"""Making axes equal: the equations between axes that a program implies, solved.

While a program is read, every axis of every array is a `Dim`: an unknown with a size.
A rule that finds two axes to be one *equates* them, a reshape or concatenation gives a
dim *factors* or *segments*, and whatever must keep its size is *fixed*, with a reason.
Equating is unification: an unknown takes the other's structure; two products refine
each other (64 = 8 x 8 and 64 = 16 x 4 become 8 x 2 x 4); a product meets a
concatenation by splitting its outermost factor over the segments, as when a group
norm follows an inception block.

A dim that cannot be made equal is fixed, never guessed: a fixed axis is always correct.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from .axes import Axis, Concat, Product, Unit, Whole
from .source import user_line


class Reason:
    """Why an axis does not narrow: what happened, and in which equation."""

    __slots__ = ("primitive", "sources", "text")

    def __init__(
        self, text: str, sources: Sequence[Any] | str = (), primitive: str = ""
    ):
        self.text = text
        # Of the equation and of the calls that it is in; in a copy the user's line.
        self.sources = sources
        self.primitive = primitive  # of the equation

    @property
    def where(self) -> str:
        """The user's line, such as 'net.py:12 (Net.__call__)'; '' where unknown."""
        sources = self.sources
        return sources if isinstance(sources, str) else user_line(sources)

    def __reduce__(self) -> Any:
        # Tracebacks cannot be copied; the line that they lead to can.
        return Reason, (self.text, self.where, self.primitive)

    def __str__(self) -> str:
        return f"{self.text}, {self.where}" if self.where else self.text

    def __repr__(self) -> str:
        return f"Reason({str(self)!r})"


class Dim:
    """An axis while the program is being read; compare by `find`, not by identity."""

    __slots__ = ("factors", "fixed", "group", "link", "segments", "size", "why")

    def __init__(self, size: Any, fixed: Reason | None = None):
        self.size = size
        self.fixed = fixed  # only of atoms: dims without factors and segments
        self.link: Dim | None = None  # the dim that this one was equated with
        self.factors: tuple[Dim, ...] | None = None
        self.segments: tuple[Dim, ...] | None = None
        self.why: Reason | None = None  # what gave it factors or segments
        self.group: str | None = None  # only of atoms that narrow

    def __repr__(self) -> str:
        d = find(self)
        if d.factors is not None:
            return "(" + " x ".join(map(repr, d.factors)) + ")"
        if d.segments is not None:
            return "(" + " + ".join(map(repr, d.segments)) + ")"
        return f"{d.size}{'!' if d.fixed else ''}"


def find(dim: Dim) -> Dim:
    """The dim that stands for everything `dim` was equated with."""
    root = dim
    while root.link is not None:
        root = root.link
    while dim.link is not None:  # path compression
        dim.link, dim = root, dim.link
    return root


def atoms(dim: Dim) -> Iterable[Dim]:
    """The unknowns that the dim is made of, outermost and leftmost first."""
    root = find(dim)
    parts = root.factors if root.factors is not None else root.segments
    if parts is None:
        yield root
    else:
        for part in parts:
            yield from atoms(part)


def factors(dim: Dim) -> list[Dim]:
    """The dim as a product, outermost first, as far as it is known to be one."""
    root = find(dim)
    if root.factors is None:
        return [root]
    return [inner for part in root.factors for inner in factors(part)]


def segments(dim: Dim) -> list[Dim]:
    """The dim as a concatenation, as far as it is known to be one."""
    root = find(dim)
    if root.segments is None:
        return [root]
    return [inner for part in root.segments for inner in segments(part)]


class Equations:
    """The equations of one program; `why` is the reason given for what comes next."""

    def __init__(self) -> None:
        self.why: Reason | None = None
        # In each of these, read from the outermost, one dim may narrow.
        self.products: list[Sequence[Dim]] = []
        # Dims that one axis was split into; and those of one projection.
        self.splits: list[Sequence[Dim]] = []
        self.joint: list[Sequence[Dim]] = []
        # Axes that constants brought in; and axes contracted with these.
        self.constant: list[Dim] = []
        self.mixed: list[Dim] = []
        # Parts that a slice left out, and parts that slices took: a part that no slice
        # takes is fixed.
        self.left_out: list[tuple[Dim, Reason | None]] = []
        self.taken: list[Dim] = []
        # Units of a plan that are split or tied to each other: (group, what happens).
        self.clashes: list[tuple[str, str]] = []

    # -- building dims

    def product(self, parts: Sequence[Dim]) -> Dim:
        """The dim that merges `parts`, outermost first."""
        parts = [part for part in parts if not _is_one(part)] or list(parts[:1])
        if len(parts) == 1:
            return parts[0]
        merged = Dim(math.prod(find(part).size for part in parts))
        merged.factors, merged.why = tuple(parts), self.why
        self.products.append((merged,))
        return merged

    def concat(self, parts: Sequence[Dim]) -> Dim:
        """The dim that concatenates `parts`."""
        parts = [part for part in parts if find(part).size != 0] or list(parts[:1])
        if len(parts) == 1:
            return parts[0]
        joined = Dim(sum(find(part).size for part in parts))
        joined.segments, joined.why = tuple(parts), self.why
        return joined

    def split(self, dim: Dim, sizes: Sequence[int]) -> list[Dim]:
        """Sees `dim` as a product of new dims of these sizes, and returns them."""
        parts = self._split(dim, sizes)
        self.splits.append(parts)
        return parts

    def _split(self, dim: Dim, sizes: Sequence[int]) -> list[Dim]:
        parts = [Dim(size) for size in sizes]
        self.equate(dim, self.product(parts))
        return parts

    def cut(self, dim: Dim, sizes: Sequence[int]) -> list[Dim]:
        """Sees `dim` as a concatenation of dims of these sizes, and returns them."""
        parts = [Dim(size) for size in sizes]
        self.equate(dim, self.concat(parts))
        return parts

    # -- solving

    def fix(self, dim: Dim, text: str | Reason) -> None:
        """Keeps every unknown in the dim at its size."""
        reason = text if isinstance(text, Reason) else self.reason(text)
        for atom in atoms(dim):
            if atom.fixed is None:
                atom.fixed = reason

    def reason(self, text: str) -> Reason:
        """A reason that points at the equation now read."""
        if self.why is None:
            return Reason(text)
        return Reason(text, self.why.sources, self.why.primitive)

    def equate(self, a: Dim, b: Dim) -> None:
        """Makes two dims of one size equal."""
        a, b = find(a), find(b)
        if a is b or _is_one(a) and _is_one(b):
            return
        if a.size != b.size:
            raise AssertionError(f"axes of sizes {a.size} and {b.size} cannot be equal")
        if a.factors is not None or a.segments is not None:
            a, b = b, a  # an unknown, where there is one, comes first
        if a.factors is None and a.segments is None:
            if a.fixed is not None:
                self.fix(b, a.fixed)
            if a.group is not None:  # seeded by a plan: see `analysis`
                if any(atom is not b or atom.group for atom in atoms(b)):
                    self._clash(a, b)
                else:
                    b.group = a.group
            a.link = b
        elif a.factors is not None and b.factors is not None:
            self._refine_products(a, b)
        elif a.segments is not None and b.segments is not None:
            self._refine_concats(a, b)
        elif a.factors is not None:
            self._split_over(a, b)
        else:
            self._split_over(b, a)

    def _clash(self, a: Dim, b: Dim) -> None:
        """Notes that a unit of the plan is split, or tied to another unit."""
        groups = [dim.group for dim in (a, b) if dim.group is not None]
        text = f"ties it to {groups[1]}" if len(groups) == 2 else "splits it"
        why = self.why or b.why
        self.clashes.append((groups[0], f"{text} ({why})" if why else text))

    def _refine_products(self, a: Dim, b: Dim) -> None:
        left, right = factors(a)[::-1], factors(b)[::-1]  # pop from the outermost
        while left and right:
            x, y = left.pop(), right.pop()
            if x.size == y.size:
                self.equate(x, y)
            elif _divides(y.size, x.size):
                outer, inner = self._split(x, (y.size, x.size // y.size))
                self.equate(outer, y)
                left.append(inner)
            elif _divides(x.size, y.size):
                outer, inner = self._split(y, (x.size, y.size // x.size))
                self.equate(x, outer)
                right.append(inner)
            else:
                for dim in (x, y, *left, *right):
                    self.fix(dim, f"factors {x.size} and {y.size} do not divide")
                return
        _link(a, b)

    def _refine_concats(self, a: Dim, b: Dim) -> None:
        left, right = segments(a)[::-1], segments(b)[::-1]
        while left and right:
            x, y = left.pop(), right.pop()
            if x.size == y.size:
                self.equate(x, y)
            elif x.size > y.size:
                first, rest = self.cut(x, (y.size, x.size - y.size))
                self.equate(first, y)
                left.append(rest)
            else:
                first, rest = self.cut(y, (x.size, y.size - x.size))
                self.equate(x, first)
                right.append(rest)
        _link(a, b)

    def _split_over(self, merged: Dim, joined: Dim) -> None:
        """A product equals a concatenation: its outermost factor is split over it."""
        outer, *rest = factors(merged)
        inner = math.prod(find(part).size for part in rest)
        parts = segments(joined)
        if all(find(part).size % inner == 0 for part in parts):
            counts = self.cut(outer, [find(part).size // inner for part in parts])
            for part, count in zip(parts, counts, strict=True):
                self.equate(part, self.product([count, *rest]))
            _link(joined, merged)
            return
        chunks = _chunks(parts, inner)
        if chunks is not None:
            # Each index of the outer factor spans whole segments, so it stays.
            self.fix(outer, "one index spans several parts of a concatenation")
            for chunk in chunks:
                self.equate(self.concat(chunk), self.product(rest))
            _link(joined, merged)
            return
        for dim in (merged, joined):
            self.fix(dim, "a split does not line up with the concatenated parts")

    # -- what comes out

    def freeze(self, dim: Dim, memo: dict[Dim, Axis]) -> Axis:
        """The dim as an immutable `Axis`."""
        root = find(dim)
        known = memo.get(root)
        if known is None:
            if root.factors is not None:
                known = _plain(
                    Product, root, [self.freeze(d, memo) for d in factors(root)]
                )
            elif root.segments is not None:
                known = _plain(
                    Concat, root, [self.freeze(d, memo) for d in segments(root)]
                )
            elif root.group is not None and root.fixed is None:
                known = Unit(root.size, root.group)
            else:
                known = Whole(root.size, root.fixed)
            memo[root] = known
        return known


def _plain(kind: Any, root: Dim, parts: list[Axis]) -> Axis:
    """The expression, or one whole axis where no part of it narrows."""
    if all(isinstance(part, Whole) for part in parts):
        return Whole(root.size, next((p.reason for p in parts if p.reason), None))  # type: ignore[union-attr]
    return kind(tuple(parts))


def _link(a: Dim, b: Dim) -> None:
    # Both expressions were made equal part by part; one of them now stands for both.
    a, b = find(a), find(b)
    if a is not b:
        a.link = b


def _is_one(dim: Dim) -> bool:
    size = find(dim).size
    return isinstance(size, int) and size == 1


def _divides(divisor: Any, size: Any) -> bool:
    return isinstance(divisor, int) and isinstance(size, int) and size % divisor == 0


def _chunks(parts: Sequence[Dim], size: int) -> list[list[Dim]] | None:
    """Runs of consecutive parts that each add up to `size`; None if there are none."""
    chunks: list[list[Dim]] = [[]]
    total = 0
    for part in parts:
        if total == size:
            chunks.append([])
            total = 0
        chunks[-1].append(part)
        total += find(part).size
        if total > size:
            return None
    return chunks if total == size else None
