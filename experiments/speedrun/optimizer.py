"""The optimizer of the speed run: Muon for kernels, SGD for the rest, or SGD alone.

Muon (Keller Jordan, 2024) replaces the momentum of a matrix by the nearest matrix
whose singular values are alike. Here that is the momentum of the *sum* of the gradients
of all rates of a step: an update of one size, however many rates a weight belongs to,
so that learning rates need no change for sliced training, nor, as muP says of a bound
on the singular values, for another width. What no trained rate reaches is left out of
matrices and norms: a network that is trained at r = .25 alone learns as one built so.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import mslice_jax as ms
from mslice_jax.core.paths import path_parts
from mslice_jax.core.rates import rate_key

Shape = tuple[int, ...]


class State(NamedTuple):
    """State of the optimizer: steps made, momenta, and the slow weights, if any."""

    count: jax.Array
    momenta: Any
    slow: Any


class Group(NamedTuple):
    """How a kind of weights is trained.

    Attributes:
      rate: step -> learning rate, of the mean of the loss over a batch.
      momentum: Nesterov momentum.
      decay: what is added to the gradient, times the weight.
      muon: whether updates are orthogonal, and kernels have one norm.
    """

    rate: optax.Schedule
    momentum: float
    decay: float = 0.0
    muon: bool = False


class Lookahead(NamedTuple):
    """Weights go back to their average every few steps, more and more slowly.

    As in hlb-CIFAR10: the share that stays of the average is `most` x (step / steps)^3.

    Attributes:
      start: steps before it begins.
      steps: of the whole run.
      every: steps between two.
      most: share in the end.
    """

    start: int
    steps: int
    every: int = 5
    most: float = 0.95**5


def kind_of(path: Any) -> str:
    """Which of "kernel", "head", "norm" (a bias) or "whitening" (its bias) it is."""
    name = path_parts(path)
    if name[0] in ("head", "whitening_bias"):
        return name[0].removesuffix("_bias")
    return "kernel" if name[-1] == "kernel" else "norm"


def reached(net: ms.Sliceable) -> Any:
    """For each parameter the shape of what the widest rate has of it.

    Of a network that is trained at all widths it is the whole; of one that is trained
    at r = .25 alone, a corner.
    """
    sizes = shapes(net, max(net.rates))
    return jax.tree_util.tree_map_with_path(
        lambda path, x: sizes.get(path_parts(path), x.shape), net.variables["params"]
    )


def shapes(net: ms.Sliceable, rate: float) -> dict[tuple[str, ...], Shape]:
    """The shape of every parameter that a rate has, by path."""
    part = jax.eval_shape(lambda: ms.extract(net, rate).variables["params"])
    leaves = jax.tree_util.tree_leaves_with_path(part)
    found = {path_parts(path): leaf.shape for path, leaf in leaves}
    # Norms of narrower rates come along.
    others = {rate_key(other) for other in net.rates if other != rate}
    return {path: shape for path, shape in found.items() if not others & {*path}}


def counts(net: ms.Sliceable, drawn: Sequence[Sequence[float]]) -> Any:
    """How many rates of a step train each entry, on average; 1 where none does.

    Args:
      net: at full width; every axis keeps its leading entries.
      drawn: the rates of some steps of the schedule.
    """
    widths = {rate: shapes(net, rate) for rate in net.rates}
    share = {r: sum(r in rates for rates in drawn) / len(drawn) for r in net.rates}

    def count(path: Any, x: jax.Array) -> jax.Array:
        total = jnp.zeros(x.shape)
        for rate, sizes in widths.items():
            shape = sizes.get(path_parts(path))
            if shape is not None:
                total = total.at[tuple(map(slice, shape))].add(share[rate])
        return jnp.where(total > 0, jnp.maximum(total, 1.0), 1.0)

    return jax.tree_util.tree_map_with_path(count, net.variables["params"])


def build(
    groups: dict[str, Group],
    corners: Any,
    *,
    divisors: Any = None,
    lookahead: Lookahead | None = None,
) -> optax.GradientTransformation:
    """The optimizer.

    Args:
      groups: by `kind_of` of a weight.
      corners: from `reached`.
      divisors: of the gradient, for each entry; 1 unless given.
      lookahead: no average unless given.
    """

    def init(params: Any) -> State:
        zeros = jax.tree.map(jnp.zeros_like, params)
        slow = None if lookahead is None else params
        return State(jnp.zeros((), jnp.int32), zeros, slow)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, State]:
        grads = updates
        if divisors is not None:
            grads = jax.tree.map(jnp.divide, grads, divisors)

        def momentum(path: Any, grad: Any, p: Any, before: Any) -> Any:
            group = groups[kind_of(path)]
            return group.momentum * before + grad + group.decay * p

        def moved(path: Any, grad: Any, p: Any, buffer: Any, corner: Shape) -> Any:
            group = groups[kind_of(path)]
            rate = group.rate(state.count)
            wanted = grad + group.decay * p + group.momentum * buffer
            if not group.muon:
                return p - rate * wanted
            at = tuple(map(slice, corner))
            new = with_norm(p[at]) - rate * orthogonal(wanted[at])
            return p.at[at].set(new)

        over = jax.tree_util.tree_map_with_path
        momenta = over(momentum, grads, params, state.momenta)
        new = over(moved, grads, params, momenta, corners)
        slow, count = state.slow, state.count + 1
        if lookahead is not None:
            slow, new = _pulled(lookahead, count, slow, new)
        return jax.tree.map(jnp.subtract, new, params), State(count, momenta, slow)

    return optax.GradientTransformation(init, update)


def _pulled(how: Lookahead, count: Any, slow: Any, fast: Any) -> tuple[Any, Any]:
    """Slow weights moved to the fast ones, and these put where they are, if it is time.

    At the end the weights of the run are what counts: there the average is not asked.
    """
    stays = how.most * (count / how.steps) ** 3
    is_time = (count > how.start) & (count % how.every == 0)
    begins = count <= how.start
    moved = jax.tree.map(lambda s, f: stays * s + (1 - stays) * f, slow, fast)

    def choose(on_time: Any, else_: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(is_time, a, b), on_time, else_)

    follows = jax.tree.map(lambda s, f: jnp.where(begins, f, s), slow, fast)
    return choose(moved, follows), choose(moved, fast)


def with_norm(kernel: jax.Array) -> jax.Array:
    """A kernel (..., out) scaled so that filters have norm 1 on average."""
    size = jnp.sqrt(jnp.sum(kernel**2))
    return kernel * (math.sqrt(kernel.shape[-1]) / size)


def orthogonal(kernel: jax.Array, *, steps: int = 3) -> jax.Array:
    """A kernel (..., out) as a matrix whose singular values are between .5 and 1.5.

    Steps of a polynomial of degree five, Newton's and Schulz's with coefficients of
    Keller Jordan's, which are steep at 0 and do not converge to 1.

    Example:
      >>> u = orthogonal(jnp.diag(jnp.array([3.0, 1.0])), steps=5)
      >>> bool((abs(jnp.diag(u) - 1) < 0.5).all()), float(u[0, 1])
      (True, 0.0)
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = kernel.reshape(-1, kernel.shape[-1])
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (jnp.linalg.norm(x) + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    x = x.T if tall else x
    return x.reshape(kernel.shape)


class Triangle(NamedTuple):
    """Learning rates that rise to a peak and fall, in straight lines.

    Attributes:
      steps: of the run.
      peak: share of the run at which they are highest. Before it they begin at a fifth.
      muon: whether they end at 0; else at 7 % (airbench94).
    """

    steps: int
    peak: float
    muon: bool

    def times(self, lr: float) -> optax.Schedule:
        """A schedule whose highest value is `lr`.

        Example:
          >>> rate = Triangle(steps=10, peak=0.5, muon=True).times(1.0)
          >>> [round(float(rate(step)), 2) for step in (0, 5, 6, 10)]
          [0.2, 1.0, 0.8, 0.0]
        """
        top = int(self.peak * self.steps)
        places = [0, top, self.steps] if top else [0, self.steps]
        values = [*([0.2] if top else []), 1.0, 0.0 if self.muon else 0.07]
        x, y = jnp.array(places, jnp.float32), lr * jnp.array(values, jnp.float32)
        return lambda step: jnp.interp(jnp.asarray(step, jnp.float32), x, y)


def falling(lr: float, steps: int) -> optax.Schedule:
    """From `lr` to 0 in so many steps, in a straight line."""
    return lambda step: lr * jnp.maximum(1 - step / max(steps, 1), 0)
