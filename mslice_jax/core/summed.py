"""What an equation sums over: the last form of an activation, and all it passes on.

Of a dense layer, a convolution or attention that is what goes in, after norm,
nonlinearity, gate and mask, along the axes that narrow.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .axes import Axis, groups_in, owners
from .rules import Narrow


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


class _Summed(NamedTuple):
    """An operand that is summed over, and what it is multiplied with there.

    Attributes:
      how: "contracted" or "reduced".
      operand: its number.
      squares: summed over all axes but the batch's, which come first, and `axes`.
      others: the same of what it is multiplied with.
      axes: that are summed over.
      batch: how many axes both have and keep.
      apart: groups in these axes that are still there in the result.
    """

    how: str
    operand: int
    squares: Any
    others: Any
    axes: Sequence[Axis]
    batch: int = 0
    apart: Sequence[str] = ()


def sums_of(
    n: Narrow, xs: Sequence[Any], reached: Sequence[bool], at: tuple[int, ...]
) -> Found:
    """The sums of an equation along the groups that it sums over.

    Args:
      n: the equation.
      xs: its operands, at full width.
      reached: which of them the inputs of the network reach; only these count.
      at: where the equation is.
    """
    look = SUMMED.get(n.eqn.primitive.name)
    found: Found = {}
    for each in look(n, *xs) if look else ():
        if not reached[each.operand]:
            continue
        batch = tuple(range(each.batch))
        squares = each.squares.sum(batch)
        products = (each.squares * each.others).sum(batch)
        for i, axis in enumerate(each.axes):
            rest = tuple(j for j in range(len(each.axes)) if j != i)
            for group in dict.fromkeys(groups_in(axis)):
                if group in each.apart:
                    continue
                owner, size = owners(axis, group), n.analysis.groups[group].size
                entries = np.bincount(owner[owner >= 0], minlength=size)
                count = xs[each.operand].size / len(owner) * entries
                found[group, each.how, (*at, each.operand, i)] = Sums(
                    _by_index(squares.sum(rest), owner, size),
                    _by_index(products.sum(rest), owner, size),
                    jnp.asarray(count, jnp.float32),
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


def _dot(n: Narrow, a: Any, b: Any) -> Iterator[_Summed]:
    (over_a, over_b), (batch_a, batch_b) = n.params["dimension_numbers"]
    lhs = _squares(a, [*batch_a, *over_a])
    rhs = _squares(b, [*batch_b, *over_b])
    axes = [n.axes(var) for var in n.eqn.invars]
    count = len(batch_a)
    yield _Summed("contracted", 0, lhs, rhs, [axes[0][i] for i in over_a], count)
    yield _Summed("contracted", 1, rhs, lhs, [axes[1][i] for i in over_b], count)


def _ragged_dot(n: Narrow, a: Any, b: Any, _: Any) -> Iterator[_Summed]:
    numbers = n.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    over_a, over_b = numbers[0]
    axes = [n.axes(n.eqn.invars[0])[i] for i in over_a]
    # Weights of all experts together: which row goes to which is not looked at.
    yield _Summed("contracted", 0, _squares(a, over_a), _squares(b, over_b), axes)


def _conv(n: Narrow, a: Any, b: Any) -> Iterator[_Summed]:
    numbers, groups = n.params["dimension_numbers"], n.params["feature_group_count"]
    weights = _squares(b, numbers.rhs_spec[:2])  # outputs, inputs of a group
    weights = weights.reshape(groups, -1, weights.shape[1]).sum(1).reshape(-1)
    axis = n.axes(n.eqn.invars[0])[numbers.lhs_spec[1]]
    # The groups of a convolution are still there in what comes out.
    apart = groups_in(n.analysis.axes([n.note[1]])[0]) if groups > 1 else ()
    squares = _squares(a, [numbers.lhs_spec[1]])
    yield _Summed("contracted", 0, squares, weights, [axis], apart=apart)


def _reduce(n: Narrow, x: Any) -> Iterator[_Summed]:
    over, axes = n.params["axes"], n.axes(n.eqn.invars[0])
    squares = _squares(x, over)
    one = jnp.ones_like(squares)
    yield _Summed("reduced", 0, squares, one, [axes[i] for i in over])


SUMMED: dict[str, Callable[..., Iterator[_Summed]]] = {
    "dot_general": _dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _conv,
    "reduce_sum": _reduce,
    "reduce_max": _reduce,
    "reduce_min": _reduce,
    "reduce_prod": _reduce,
}
