"""Partial restore: a sub-network from a checkpoint of the full one, without the rest.

Weights are on disk in blocks (see `blocks`). TensorStore, on which Orbax is built,
opens the arrays, and of each only those blocks are read that the rate keeps a part of.
"""

import contextlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from ..core import axes as axes_lib
from ..core.paths import path_name
from ..sliceable import Sliceable, extract
from .checkpoints import CheckpointError, another_network, first_line
from .fingerprint import compare, fingerprint, order_of_units
from .integrity import damage


def restore_narrow(
    directory: str | Path,
    net: Sliceable,
    rate: float | Mapping[str, float],
    *,
    best: bool = False,
) -> Sliceable:
    """The narrow network from a checkpoint, as `extract` gives it from the full one.

    It reads the sub-network and the index of the checkpoint, and holds no more than
    that in memory. A checkpoint with a file missing or cut short is passed over with a
    warning; checksums are not compared, for that needs every byte.

    Args:
      directory: of the checkpoints, as given to `Checkpoints`.
      net: the network at full width; types are enough, its weights are not used:
        ``jax.eval_shape(lambda: net)``.
      rate: a declared rate, or one for each width group, see `slice_apply`.
      best: whether to take the checkpoint of the highest accuracy, not the last.

    Returns:
      The network at the rate, on the default device; with averaged weights, if the
      checkpoint has them, as `TrainState.eval_net`.

    Raises:
      CheckpointError: if there is no checkpoint, or only damaged ones, or if it is of
        another network.
      RateError: for a rate that was not declared.
      ValueError: if `net` is not at full width.

    Example:
      ``small = restore_narrow("runs/mine/checkpoints", net, 0.25)``
    """
    if net.rate != 1.0:
        raise ValueError(
            f"restore_narrow expects the full network; got rate {net.rate}."
        )
    net = jax.eval_shape(lambda net: net, net)
    small = extract(net, rate)  # types, cut from types
    checkpoint = _choose(Path(directory).absolute(), best=best)
    try:
        brief = json.loads((checkpoint / "brief" / "metadata").read_text())
        if brief["rates"] == list(net.rates) and brief["about"] == order_of_units(net):
            # Files of before have no "tree": what is there then is an average.
            tree = brief.get("tree", "averaged") if brief["averaged"] else "variables"
            return small.replace(_read(checkpoint, net, small, tree))
    except (OSError, ValueError, KeyError) as error:
        _refuse_another(checkpoint, net)
        raise CheckpointError(
            f"cannot read checkpoint {checkpoint}: {first_line(error)}. It may be "
            "damaged: Checkpoints.restore compares checksums, and passes over it."
        ) from error
    _refuse_another(checkpoint, net)
    raise CheckpointError(f"checkpoint {checkpoint} is of another network.")


def _choose(directory: Path, *, best: bool) -> Path:
    """The folder of the checkpoint to read: the last, or best, that is whole."""
    order = []
    for checkpoint in directory.glob("*"):
        accuracy = _accuracy(checkpoint) if best else 0.0
        if checkpoint.name.isdecimal() and accuracy is not None:
            order.append((accuracy, int(checkpoint.name), checkpoint))
    for _, step, checkpoint in sorted(order, reverse=True):
        wrong = damage(checkpoint, contents=False)
        if wrong is None:
            return checkpoint
        warnings.warn(
            f"checkpoint {step} in {directory} is damaged ({wrong}); trying another.",
            stacklevel=3,
        )
    which = "with an accuracy " if best else ""
    raise CheckpointError(f"no whole checkpoint {which}in {directory}.")


def _accuracy(checkpoint: Path) -> float | None:
    """What it was saved with; None if with nothing, or nothing that can be read."""
    try:
        metrics = json.loads((checkpoint / "metrics" / "metrics").read_text())
        return float(metrics["accuracy"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _refuse_another(checkpoint: Path, net: Sliceable) -> None:
    """Raise CheckpointError, with what differs, if the weights are not those of `net`.

    That takes a list of all that the checkpoint holds, so it is asked in trouble only.
    """
    with contextlib.suppress(OSError, ValueError, KeyError):
        found = json.loads((checkpoint / "meta" / "metadata").read_text())["network"]
        names = (name for name in found["leaves"] if name.startswith("variables/"))
        found["leaves"] = {name: found["leaves"][name] for name in names}
        # What else its maker added, nobody can compare here.
        about = {n: v for n, v in found["about"].items() if n != "order of units"}
        here = fingerprint(
            {"variables": net.variables},
            rates=net.rates,
            about={**about, **order_of_units(net)},
        )
        differences = compare(found, here)
        if differences:
            raise another_network(checkpoint.parent, int(checkpoint.name), differences)


def _read(checkpoint: Path, net: Sliceable, small: Sliceable, weights: str) -> Any:
    """The variables of `small` from the arrays on disk, all leaves at a time."""
    # What is decoded of the index serves all leaves.
    context = ts.Context({"cache_pool": {"total_bytes_limit": 10**9}})
    base = {"driver": "file", "path": f"{checkpoint}/weights/"}
    kept = {group: np.arange(n) for group, n in net.plan.widths(small.part).items()}

    def opened(path: Any, _: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        tree = weights if name.startswith("params.") else "variables"
        store = {"driver": "ocdbt", "base": base, "path": f"{tree}.{name}/"}
        return ts.open({"driver": "zarr", "kvstore": store}, read=True, context=context)

    def begun(path: Any, opening: Any) -> Any:
        array = opening.result()
        axes = net.plan.leaf(path).axes  # type: ignore[union-attr]
        runs = [axes_lib.indices(axis, kept) for axis in axes]
        full = axes_lib.shape(axes)
        if array.shape[: len(full)] == full:  # not in blocks; a key has an axis more
            return array.read(), runs, array.shape
        counts, blocks = array.shape[::2], array.shape[1::2]
        if tuple(np.multiply(counts, blocks)) != full:
            raise ValueError(f"{path_name(path)} has shape {array.shape} on disk")
        # Along each axis: the blocks with something to keep, and where in them it is.
        needed = [np.unique(run // b) for run, b in zip(runs, blocks, strict=True)]
        inside = [
            np.searchsorted(n, run // b) * b + run % b
            for n, run, b in zip(needed, runs, blocks, strict=True)
        ]
        wanted = [index for n in needed for index in (n, slice(None))]
        shape = [len(n) * b for n, b in zip(needed, blocks, strict=True)]
        return array.oindex[tuple(wanted)].read(), inside, shape

    def ended(path: Any, like: Any, reading: Any) -> jax.Array:
        future, inside, shape = reading
        found = future.result()
        if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(jnp.asarray(found), impl=_impl(like))
        found = _take(found.reshape(shape), inside)
        if (found.shape, found.dtype) != (like.shape, like.dtype):
            raise ValueError(f"{path_name(path)} is {found.dtype}{found.shape} on disk")
        return jnp.asarray(found)

    at_path = jax.tree_util.tree_map_with_path
    readings = at_path(begun, at_path(opened, small.variables))
    return at_path(ended, small.variables, readings)


def _take(x: np.ndarray, positions: Sequence[np.ndarray]) -> np.ndarray:
    """The positions along every axis; `x` itself where these are all."""
    for dim, taken in enumerate(positions):
        if len(taken) != x.shape[dim]:
            x = np.take(x, taken, axis=dim)
    return x


def _impl(like: jax.ShapeDtypeStruct) -> Any:
    """The implementation of typed keys, which a type only tells while it is traced."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), like)
    return found[0]
