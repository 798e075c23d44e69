"""A random network, written as Python source line by line."""

import dataclasses
import functools
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.fuzz import prelude

BATCH = 2
WIDTHS = (8, 8, 16, 16, 24, 32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A function network(v, x) of a dict of weights, as source.

    Attributes:
      source: of the function.
      weights: shape of each weight.
      x: shape of the input; integers below `tokens` if that is not 0.
      contracted: for each weight that is contracted with something, along which axes.
      not_maskable: what makes zeros differ from dropped units; empty if nothing.
      not_permutable: what a permutation has to take along beside the weights, as a
        captured table; empty if nothing.
      not_by_hand: why the source on narrow weights is not the narrow network.
    """

    source: str
    weights: Mapping[str, tuple[int, ...]]
    x: tuple[int, ...]
    tokens: int = 0
    contracted: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    not_maskable: str = ""
    not_permutable: str = ""
    not_by_hand: str = ""

    def function(self, *, by_hand: bool = False) -> Callable[..., Any]:
        """The compiled source; by hand, its fixed sizes are the narrow ones."""
        scope: dict[str, Any] = {
            "jax": jax,
            "jnp": jnp,
            "np": np,
            "lax": jax.lax,
            **vars(prelude),
        }
        if by_hand:
            scope["fixed"] = lambda size, axis_size: axis_size
        exec(compile(self.source, "<network>", "exec"), scope)
        return scope["network"]

    def variables(self) -> dict[str, np.ndarray]:
        """Random weights, each from its own generator."""
        return {name: _draw(name, shape) for name, shape in self.weights.items()}

    def input(self) -> np.ndarray:
        rng = np.random.default_rng(0)
        if self.tokens:
            return rng.integers(self.tokens, size=self.x).astype(np.int32)
        return rng.normal(size=self.x)

    def __str__(self) -> str:
        """Everything as Python source, to keep as a test."""
        fields = dataclasses.asdict(self)
        source = fields.pop("source")
        lines = [f"    {name}={value!r}," for name, value in fields.items() if value]
        body = '    source="""\n' + source + '""",'
        return "\n".join(["Network(", body, *lines, ")"])


def _draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
    if len(shape) < 2:
        return 0.5 * noise + (name[0] == "s")  # scales and spreads are about one
    return noise * 1.4 / np.sqrt(max(1, int(np.prod(shape[:-1]))))


class Builder:
    """The source so far; `x` has shape `shape`."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.weights: dict[str, tuple[int, ...]] = {}
        self.contracted: dict[str, tuple[int, ...]] = {}
        self.shape: tuple[int, ...] = ()
        self.tokens = 0
        self.not_maskable = self.not_permutable = self.not_by_hand = ""
        self._names = 0

    @property
    def channels(self) -> int:
        return self.shape[-1]

    def emit(self, line: str, channels: int | None = None) -> None:
        """Adds a line; `x` then has as many channels."""
        self.lines.append(line)
        if channels is not None:
            self.shape = *self.shape[:-1], channels

    def name(self, letter: str) -> str:
        """A new name."""
        self._names += 1
        return f"{letter}{self._names}"

    def vector(self, letter: str, size: int | None = None) -> str:
        """A new weight (size,) or (channels,), as an expression."""
        return self._weight(letter, (self.channels if size is None else size,))

    def kernel(self, *shape: int, contracted: Sequence[int] = (-2,)) -> str:
        """A new weight that is contracted along some axes, as an expression."""
        expression = self._weight("w", shape)
        axes = tuple(axis % len(shape) for axis in contracted)
        self.contracted[expression[3:-2]] = axes
        return expression

    def dense(self, out: int, source: str = "x") -> str:
        """A dense layer on what `source` is, as an expression."""
        return self.dense_of(self.channels, out, source)

    def dense_of(self, inputs: int, out: int, source: str) -> str:
        kernel = self.kernel(inputs, out)
        return f"dense({source}, {kernel}, {self.vector('b', out)})"

    def _weight(self, letter: str, shape: tuple[int, ...]) -> str:
        name = self.name(letter)
        self.weights[name] = shape
        return f'v["{name}"]'

    def build(self, x: tuple[int, ...]) -> Network:
        """The network whose lines were emitted, on an input of shape `x`."""
        body = "".join(f"    {line}\n" for line in self.lines)
        return Network(
            source=f"def network(v, x):\n{body}    return x\n",
            weights=self.weights,
            x=x,
            tokens=self.tokens,
            contracted=self.contracted,
            not_maskable=self.not_maskable,
            not_permutable=self.not_permutable,
            not_by_hand=self.not_by_hand,
        )


Block = Callable[[Builder, random.Random], None]
BLOCKS: dict[str, tuple[Block, tuple[int, ...], int]] = {}
"""By name: the block, the ranks of `x` that it takes, and how often it is taken."""


def block(*ranks: int, often: int = 2) -> Callable[[Block], Block]:
    """Enters a block into the table."""

    def enter(function: Block) -> Block:
        BLOCKS[function.__name__] = (function, ranks, often)
        return function

    return enter


@functools.cache
def _choices(rank: int) -> tuple[list[Block], list[int]]:
    # By name, so that a seed gives the same network whatever was imported first.
    blocks = [BLOCKS[name] for name in sorted(BLOCKS)]
    fitting = [(f, often) for f, ranks, often in blocks if rank in ranks]
    return [f for f, _ in fitting], [often for _, often in fitting]


def add_block(n: Builder, r: random.Random) -> None:
    """Adds one of the blocks that fit."""
    functions, weights = _choices(len(n.shape))
    (function,) = r.choices(functions, weights)
    function(n, r)
