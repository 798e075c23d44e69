"""How important each unit of a network is: scores by which `reorder` sorts.

Once-for-all (Cai et al., ICLR 2020, section 3.3) sorts channels by the L1 norm of their
weights; gradient times weight is the first-order Taylor criterion (Molchanov et al.,
CVPR 2019); the norm of activations times that of weights is what Wanda scores (Sun et
al., ICLR 2024).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .core.activations import activations
from .core.axes import groups_in, owners
from .core.call import Call
from .core.plan import WidthPlan
from .core.summed import Found, add
from .sliceable import Sliceable, check_full

Scores = dict[str, np.ndarray]
"""For each width group the importance of every index."""

NORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"l1": np.abs, "l2": np.square}
RUNS = ("activations", "activations x weights")


def importance(
    net: Sliceable,
    by: str = "activations",
    *,
    loss: Callable[..., jax.Array] | None = None,
    batches: Iterable[Any] = (),
    **call_kwargs: Any,
) -> Scores:
    """Scores every unit of every width group: the higher, the more important.

    'activations' and its product with weights are taken from the program that was
    analysed, at full width: of every product with weights (dense layers, convolutions,
    attention, also inside of loops and branches) the root mean square of what goes in
    along the group, over all examples and positions. So they hold for channels, heads,
    gates and experts alike. Of a group that goes into several products 'activations'
    are those of all of them, and what is multiplied with weights is added up.

    Args:
      net: a network at full width.
      by: 'activations'; 'activations x weights', each times the norm of the weights
        that it is multiplied with; 'l1' or 'l2', the norm of all weights at an index;
        or 'taylor', how much the loss would change without them, to first order.
      loss: for 'taylor': a function loss(net, batch) -> scalar.
      batches: for 'taylor': a few batches, whatever `loss` takes. For activations: a
        few inputs without labels; each is an array, or a tuple of the model's inputs.
      **call_kwargs: for activations: what else the call takes, as for evaluation.

    Returns:
      For each group an array (size,). A group along which nothing runs that depends on
      the inputs has zeros.

    Raises:
      ValueError: for an extracted network, an unknown criterion, missing batches,
        inputs that do not fit, or activations that are not finite.

    Example:
      >>> import mslice_jax as ms, jax.numpy as jnp
      >>> def mlp(p, x):
      ...     return jnp.tanh(x @ p["w1"]) @ p["w2"]
      >>> p = {"w1": jnp.array([[1.0, 0.0, 2.0, 4.0]]), "w2": jnp.ones((4, 1))}
      >>> net = ms.upgrade(mlp, p, jnp.ones((1, 1)), rates=(0.5, 1.0))
      >>> scores = ms.importance(net, batches=[jnp.ones((3, 1))])
      >>> scores["w1:1"].round(2).tolist()  # tanh of the weights
      [0.76, 0.0, 0.96, 1.0]
    """
    check_full(net, "importance")
    if call_kwargs and by not in RUNS:
        raise TypeError(
            f"by={by!r} takes no keyword {min(call_kwargs)!r}; only by='activations' "
            "calls the network."
        )
    if by in NORMS:
        norms = jax.tree.map(lambda w: NORMS[by](_numpy(w)), net.variables)
        return _of_groups(net.plan, norms)
    if by == "taylor":
        return _by_taylor(net, loss, batches)
    if by in RUNS:
        return _by_activations(net, by, batches, call_kwargs)
    names = ", ".join(map(repr, (*NORMS, "taylor", *RUNS)))
    raise ValueError(f"by is one of {names}; got {by!r}.")


def _by_taylor(net: Sliceable, loss: Any, batches: Iterable[Any]) -> Scores:
    if loss is None:
        raise ValueError("by='taylor' needs loss=, a function loss(net, batch).")
    gradient = jax.jit(jax.grad(loss, allow_int=True))
    total: Scores = {}
    for batch in batches:
        slopes = gradient(net, batch).variables
        products = jax.tree.map(_slope_times_weight, net.variables, slopes)
        for name, score in _of_groups(net.plan, products, signed=True).items():
            total[name] = total.get(name, 0) + score
    if not total:
        raise ValueError("by='taylor' needs batches=, at least one; got none.")
    return total


def _by_activations(
    net: Sliceable, by: str, batches: Iterable[Any], call_kwargs: Mapping[str, Any]
) -> Scores:
    total: Found | None = None
    for number, batch in enumerate(batches):
        inputs = batch if isinstance(batch, tuple) else (batch,)
        call, arrays = Call.split(inputs, call_kwargs)
        count = len(Call.split(inputs, {})[1])
        if any(0 in x.shape for x in arrays[:count]):
            raise ValueError(f"batch {number} (the first is 0) has no examples.")
        found = activations(net.definition, call, net.variables, arrays, count)
        found = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
        for (group, *_), sums in found.items():
            if not all(np.isfinite(x).all() for x in sums):
                raise ValueError(
                    f"activations along the group {group!r} are not finite in batch "
                    f"{number} (the first is 0)."
                )
        total = found if total is None else add(total, found)
    if total is None:
        raise ValueError(f"by={by!r} needs batches=, at least one; got none.")
    scores = {name: np.zeros(group.size) for name, group in net.plan.groups.items()}
    for name in scores:
        places = {key: sums for key, sums in total.items() if key[0] == name}
        # Reductions tell where a group goes into no product: a maximum over units, say.
        how = {key[1] for key in places}
        how = "contracted" if "contracted" in how else "reduced"
        of_each = [sums for (_, kind, _), sums in places.items() if kind == how]
        if by == RUNS[0]:
            counts = sum(sums.count for sums in of_each)
            squares = sum(sums.squares for sums in of_each) / np.maximum(counts, 1)
        else:  # of each product what it adds to its results; of a branch not taken 0
            squares = sum(s.products / np.maximum(s.count, 1) for s in of_each)
        scores[name] += np.sqrt(squares)
    return scores


def _of_groups(plan: WidthPlan, entries: Any, signed: bool = False) -> Scores:
    """Adds up what the entries of every array say of each index of a group."""
    scores = {name: np.zeros(group.size) for name, group in plan.groups.items()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(entries):
        axes = plan.leaf(path)
        for dim, axis in enumerate(axes.axes if axes is not None else ()):
            along = leaf.sum(tuple(i for i in range(leaf.ndim) if i != dim))
            for group in dict.fromkeys(groups_in(axis)):
                owner = owners(axis, group)
                score = np.bincount(
                    owner[owner >= 0], along[owner >= 0], plan.groups[group].size
                )
                score = np.square(score) if signed else score
                mean = score.mean()
                scores[group] += score / mean if mean > 0 else score
    return scores


def _slope_times_weight(weight: Any, slope: Any) -> np.ndarray:
    if slope.dtype == jax.dtypes.float0:
        return np.zeros(np.shape(weight))
    return _numpy(weight) * _numpy(slope)


def _numpy(x: Any) -> np.ndarray:
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):  # keys of random numbers
        return np.zeros(x.shape)
    return np.asarray(x, np.float64)
