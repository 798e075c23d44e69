"""What each layer of a network costs at a rate, from its program and without compiling.

Layers are found where a program names them: Linen's modules (and `jax.named_scope`)
leave their names with every equation, and those that lead into the tree of variables
are a layer's. In a program without names an equation that reads weights belongs to
these; what is left goes to the module around the layers that it reads.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend import core

from .analysis import Analysis
from .axes import Widths
from .operations import entries, operations, sizes
from .paths import Path
from .rules import Frame
from .rules.folding import is_folded
from .rules.loops import counts_of_scan

TOP = "(top)"
"""The name of what belongs to no layer: the network's own operations between them."""

_VIEWS = ("reshape", "squeeze", "expand_dims", "stop_gradient", "copy")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A row of the table: what a layer costs in one call at a rate.

    Attributes:
      name: its path among the variables, such as "Block_0/Conv_1"; "(top)" for what
        stands between the layers. A module's row has what it does itself, without the
        layers in it.
      shape: of the last array that leaves it; in a loop of one turn. None where nothing
        does.
      parameters: numbers that it reads.
      flops: operations, as `RateProfile.flops` counts them; of a loop all turns.
      activation_bytes: of the arrays that other layers, or the caller, read of it; of a
        loop all turns. A reshaped array is the same array.
    """

    name: str
    shape: tuple[int, ...] | None
    parameters: int
    flops: float
    activation_bytes: int


@dataclass(frozen=True)
class Layers:
    """The layers of a call at a rate.

    Attributes:
      rows: in the order in which they run; then those that only hold parameters.
      uncounted: primitives of which XLA's count is not known to be the same.
      loops: the lengths of loops that run more than once; 0: known at run time alone.
      constants: whether the program makes constants, which are counted nowhere.
    """

    rows: tuple[Layer, ...]
    uncounted: tuple[str, ...]
    loops: tuple[int, ...]
    constants: bool


def layers(
    analysis: Analysis,
    widths: Widths,
    leaves: Sequence[Path],
    parameters: dict[Path, int],
) -> Layers:
    """What each layer costs.

    Args:
      analysis: of the call; its inputs are the variables, then the other arrays.
      widths: how many indices each group keeps.
      leaves: for each variable the path of its layer and its own name.
      parameters: by such a path, how many numbers the rate reads.
    """
    walk = _Walk(analysis, widths, {_of_leaf(leaf) for leaf in leaves})
    walk.named = any(walk.lead(names) for names in _all_names(analysis.frame))
    weights = [_Value(_of_leaf(leaf), weight=True) for leaf in leaves]
    others = len(analysis.frame.jaxpr.invars) - len(weights)
    inputs = [_Value(()) for _ in range(others)]
    for out in walk.run(analysis.frame, [*weights, *inputs], (), 1):
        if out is not None:
            out.left = True
    for leaf, count in parameters.items():
        walk.row(_of_leaf(leaf)).parameters += count
    return walk.result()


@dataclass(eq=False)
class _Value:
    """What is known of an array: whose it is, and whether others read it."""

    layer: Path
    weight: bool = False
    shape: tuple[Any, ...] | None = None  # of what an equation made
    bytes: int = 0
    left: bool = False


@dataclass
class _Row:
    parameters: int = 0
    flops: float = 0.0
    made: list[_Value] = field(default_factory=list)


class _Walk:
    """Goes through a program equation by equation, and fills the rows."""

    def __init__(self, analysis: Analysis, widths: Widths, owners: set[Path]):
        self.analysis, self.widths, self.owners = analysis, widths, owners
        self.modules = {path[:end] for path in owners for end in range(len(path) + 1)}
        self.rows: dict[Path, _Row] = {}
        self.uncounted: dict[str, None] = {}
        self.loops: list[int] = []
        self.constants = self.named = False

    def row(self, path: Path) -> _Row:
        return self.rows.setdefault(path, _Row())

    def run(
        self, frame: Frame, operands: Sequence[_Value | None], names: Path, times: int
    ) -> list[_Value | None]:
        """Goes through a frame; returns what is known of its results."""
        env = dict(zip(frame.jaxpr.invars, operands, strict=True))

        def read(var: Any) -> _Value | None:
            return None if isinstance(var, core.Literal) else env.get(var)

        for index, eqn in enumerate(frame.jaxpr.eqns):
            if is_folded(frame, index):
                self.constants = True
                continue  # made once
            ins = [read(var) for var in eqn.invars]
            here = (*names, *_names(eqn))
            if frame.children.get(index):
                outs = self.call(frame, index, ins, here, times)
            else:
                outs = self.equation(frame, index, ins, here, times)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(var) for var in frame.jaxpr.outvars]

    def equation(
        self,
        frame: Frame,
        index: int,
        ins: Sequence[_Value | None],
        names: Path,
        times: int,
    ) -> list[_Value | None]:
        """An equation that calls nothing."""
        eqn = frame.jaxpr.eqns[index]
        known = [value for value in ins if value is not None]
        layer = self.layer_of(known, names)
        count, exact = operations(self.analysis, frame, index, self.widths)
        self.row(layer).flops += times * count
        if not exact:
            self.uncounted[eqn.primitive.name] = None
        if not known:
            return [None for _ in eqn.outvars]
        if all(value.weight for value in known):
            return [_Value(layer, weight=True) for _ in eqn.outvars]
        data = [value for value in known if not value.weight]
        if eqn.primitive.name in _VIEWS:
            (value,) = data
            if value.layer == layer and value.shape is not None:
                value.shape = self.shape(frame, eqn.outvars[0])
            return [value]
        for value in data:
            value.left |= value.layer != layer
        return [self.made(frame, var, layer, times) for var in eqn.outvars]

    def made(self, frame: Frame, var: Any, layer: Path, times: int) -> _Value:
        shape = self.shape(frame, var)
        itemsize = getattr(getattr(var.aval, "dtype", None), "itemsize", 0)
        value = _Value(layer, shape=shape, bytes=times * entries(shape) * itemsize)
        self.row(layer).made.append(value)
        return value

    def shape(self, frame: Frame, var: Any) -> tuple[Any, ...]:
        return sizes(self.analysis, frame, var, self.widths)

    def call(
        self,
        frame: Frame,
        index: int,
        ins: Sequence[_Value | None],
        names: Path,
        times: int,
    ) -> list[_Value | None]:
        """An equation that calls others: these are what counts."""
        eqn, children = frame.jaxpr.eqns[index], frame.children[index]
        outs: list[_Value | None] = []
        match eqn.primitive.name:
            case "cond":
                widest = max(children, key=lambda child: self.work(child))
                outs = self.run(widest, ins[1:], names, times)
            case "while":
                (condition, body), ends = children, eqn.params["cond_nconsts"]
                start = ends + eqn.params["body_nconsts"]
                carry = [_data(value) for value in ins[start:]]
                self.loops.append(0)
                self.run(condition, [*ins[:ends], *carry], names, times)
                outs = self.run(body, [*ins[ends:start], *carry], names, times)
                _leave(outs)
            case "scan":
                length = eqn.params["length"]
                start, carried = counts_of_scan(eqn.params)
                end = start + carried
                carry = [_data(value) for value in ins[start:end]]
                if length != 1:
                    self.loops.append(length)
                inside = [*ins[:start], *carry, *ins[end:]]
                outs = self.run(children[0], inside, names, times * length)
                _leave(outs[: end - start])
            case _:
                for child in children:
                    count = len(child.jaxpr.invars)
                    known = ins if count == len(ins) else [None] * count
                    outs = self.run(child, known, names, times)
        if len(outs) == len(eqn.outvars):
            return outs
        known = [value for value in ins if value is not None]
        layer = self.layer_of(known, names)
        return [self.made(frame, var, layer, times) for var in eqn.outvars]

    def work(self, frame: Frame) -> float:
        """The operations of a frame, the longest branches of its own branches."""
        total = 0.0
        for index, eqn in enumerate(frame.jaxpr.eqns):
            if is_folded(frame, index):
                continue
            inner = [self.work(child) for child in frame.children.get(index, ())]
            name = eqn.primitive.name
            if not inner:
                total += operations(self.analysis, frame, index, self.widths)[0]
            elif name == "cond":
                total += max(inner)
            else:
                total += (eqn.params["length"] if name == "scan" else 1) * sum(inner)
        return total

    def layer_of(self, known: Sequence[_Value], names: Path) -> Path:
        """The layer of an equation, from its names and from what it reads."""
        module = self.lead(names)
        weights = [value.layer for value in known if value.weight]
        owner = _common(weights)
        if weights and owner[: len(module)] == module:
            return owner  # as exact as the name, or more so
        if self.named:
            return module
        return _common([self.around(value.layer) for value in known])

    def around(self, layer: Path) -> Path:
        """The module around a layer; what holds no weights itself is a module."""
        return layer[:-1] if layer in self.owners else layer

    def lead(self, names: Path) -> Path:
        """The module of the variables that names lead to; those that do not are left.

        A module's class, loops and transformations are among them.
        """
        path: Path = ()
        for name in names:
            if (*path, name) in self.modules:
                path = (*path, name)
        return path

    def result(self) -> Layers:
        """The rows that have something in them."""
        found = []
        for path, row in self.rows.items():
            left = [value for value in row.made if value.left]
            if not (row.parameters or row.flops or left):
                continue
            layer = Layer(
                name="/".join(path) or TOP,
                shape=left[-1].shape if left else None,
                parameters=row.parameters,
                flops=row.flops,
                activation_bytes=sum(value.bytes for value in left),
            )
            found.append(layer)
        return Layers(
            tuple(found), tuple(self.uncounted), tuple(self.loops), self.constants
        )


def _of_leaf(leaf: Path) -> Path:
    """The layer of a weight: the module that holds it, or itself at the top."""
    return leaf[:-1] or leaf


def _data(value: _Value | None) -> _Value | None:
    """What a loop carries is no weight, whatever it begins with."""
    return _Value(value.layer) if value is not None and value.weight else value


def _leave(values: Sequence[_Value | None]) -> None:
    """What the next turn reads leaves its layer."""
    for value in values:
        if value is not None:
            value.left = True


def _common(paths: Sequence[Path]) -> Path:
    """The longest path that all of them begin with."""
    if not paths:
        return ()
    low, high = min(paths), max(paths)
    same = (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    return low[: next(same, min(len(low), len(high)))]


def _names(eqn: Any) -> list[str]:
    """The names of an equation: those of modules and scopes, of transformations too."""
    return [n for n in re.split(r"[/()]", str(eqn.source_info.name_stack)) if n]


def _all_names(frame: Frame, names: Path = ()) -> Any:
    for index, eqn in enumerate(frame.jaxpr.eqns):
        here = (*names, *_names(eqn))
        yield here
        for child in frame.children.get(index, ()):
            yield from _all_names(child, here)
