"""Partial restore: a sub-network from a checkpoint of the full one, without the rest.

Weights are on disk in blocks (see `blocks`), and only those are read that the rate
keeps a part of. Orbax does so itself where they are the leading ones of each axis,
which is the case of most weights; for others see `runs`.
"""

import contextlib
import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ..core import axes as axes_lib
from ..core.paths import path_name
from ..core.rates import Rate
from ..sliceable import Sliceable, extract
from .checkpoints import CheckpointError, another_network, first_line
from .fingerprint import compare, fingerprint, leaves_digest, order_of_units
from .integrity import damage
from .runs import LayoutError, read_blocks


def restore_narrow(
    directory: str | Path,
    net: Sliceable,
    rate: Rate,
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
      rate: a declared rate, one for each width group, or a name, see `slice_apply`.
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
        if "leaves" not in brief:  # files of before: what it says is in a longer one
            _refuse_another(checkpoint, net)
            brief["leaves"] = leaves_digest(net.variables)
            meta = json.loads((checkpoint / "meta" / "metadata").read_text())
            brief["blocks"] = meta["blocks"]
        # Orbax fills up what is smaller on disk than expected, so all is compared.
        if (brief["rates"], brief["about"], brief["leaves"]) == (
            list(net.rates),
            order_of_units(net),
            leaves_digest(net.variables),
        ):
            tree = brief.get("tree", "averaged") if brief["averaged"] else "variables"
            wanted = _wanted(net, small, tree, brief["blocks"])
            return small.replace(_read(checkpoint / "weights", small, wanted))
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
        # Other entries of its maker cannot be compared here.
        about = {n: v for n, v in found["about"].items() if n != "order of units"}
        here = fingerprint(
            {"variables": net.variables},
            rates=net.rates,
            about={**about, **order_of_units(net)},
        )
        differences = compare(found, here)
        if differences:
            raise another_network(checkpoint.parent, int(checkpoint.name), differences)


@dataclasses.dataclass(frozen=True, eq=False)
class _Leaf:
    """What is read of an array on disk, and what of that is kept.

    Attributes:
      path: keys of the tree on disk.
      stored: shape on disk: (n / b, b) for each axis of n entries in blocks of b.
      needed: along each axis the numbers of the blocks that hold what is kept; None
        for an array that is not in blocks, which is read whole.
      kept: along each axis the entries that are kept.
    """

    path: tuple[str, ...]
    stored: tuple[int, ...] | None
    needed: tuple[np.ndarray, ...] | None
    kept: tuple[np.ndarray, ...]

    @property
    def is_leading(self) -> bool:
        """Whether the needed blocks are the first ones along each axis."""
        return all(np.array_equal(n, np.arange(len(n))) for n in self.needed or ())

    @property
    def leading(self) -> tuple[int, ...] | None:
        """The shape of the leading part on disk that holds all that is kept."""
        if self.needed is None or self.stored is None:
            return self.stored
        pairs = zip(self.needed, self.stored[1::2], strict=True)
        return tuple(size for n, block in pairs for size in (int(n.max()) + 1, block))

    def cut(self, found: np.ndarray) -> np.ndarray:
        """What is kept, of the leading part or of the needed blocks."""
        if self.needed is None or self.stored is None:
            return _take(found, self.kept)
        counts, sizes = found.shape[::2], self.stored[1::2]
        inside = []
        for run, needed, count, block in zip(
            self.kept, self.needed, counts, sizes, strict=True
        ):
            at = np.searchsorted(needed, run // block)
            if count != len(needed):  # Orbax has read those between, too
                at = run // block
            inside.append(at * block + run % block)
        shape = [n * block for n, block in zip(counts, sizes, strict=True)]
        return _take(found.reshape(shape), inside)


def _wanted(
    net: Sliceable, small: Sliceable, weights: str, blocks: Mapping[str, Any]
) -> Any:
    """A tree like the variables of `small`, with what is to be read for each leaf."""
    widths = {group: np.arange(n) for group, n in net.plan.widths(small.part).items()}

    def leaf(path: Any, like: Any) -> _Leaf:
        name = path_name(path)
        tree = weights if name.split("/")[0] == "params" else "variables"
        keys = (
            tree,
            *jax.tree_util.keystr(path, simple=True, separator="\0").split("\0"),
        )
        axes = net.plan.leaf(path).axes  # type: ignore[union-attr]
        kept = tuple(axes_lib.indices(axis, widths) for axis in axes)
        full, sizes = axes_lib.shape(axes), blocks[tree].get(name)
        if sizes is None:
            is_key = jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
            return _Leaf(keys, None if is_key else full, None, kept)
        pairs = zip(full, sizes, strict=True)
        stored = tuple(size for n, b in pairs for size in (n // b, b))
        needed = (np.unique(run // b) for run, b in zip(kept, sizes, strict=True))
        return _Leaf(keys, stored, tuple(needed), kept)

    return jax.tree_util.tree_map_with_path(leaf, small.variables)


def _read(folder: Path, small: Sliceable, wanted: Any) -> Any:
    """The variables of `small` from the arrays on disk."""
    leaves = jax.tree.leaves(wanted)
    # Orbax names trees by the keys of mappings; keys of random numbers have an axis
    # more on disk, of which only their implementation knows.
    paths = jax.tree_util.tree_leaves_with_path(small.variables)
    mappings = all(isinstance(k, jax.tree_util.DictKey) for p, _ in paths for k in p)
    leading = [x for x in leaves if mappings and x.stored and x.is_leading]
    by_orbax = {x.path for x in leading}
    others = [x for x in leaves if x.path not in by_orbax]
    try:
        blocks = read_blocks(folder, {".".join(x.path): x.needed for x in others})
        found = {x.path: blocks[".".join(x.path)] for x in others}
    except LayoutError:
        if not mappings or any(x.stored is None for x in others):
            raise ValueError("its arrays are in a layout that is not known") from None
        leading, found = leaves, {}
    found |= _by_orbax(folder, leading)

    def ended(like: Any, leaf: _Leaf) -> jax.Array:
        x = found[leaf.path]
        if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(jnp.asarray(x), impl=_impl(like))
        x = leaf.cut(x)
        if (x.shape, x.dtype) != (like.shape, like.dtype):
            name = "/".join(leaf.path)
            raise ValueError(f"{name} is {x.dtype}{x.shape} on disk")
        return jnp.asarray(x)

    return jax.tree.map(ended, small.variables, wanted)


def _by_orbax(folder: Path, leaves: Sequence[_Leaf]) -> dict[tuple[str, ...], Any]:
    """The leading parts of arrays, by their path."""
    if not leaves:
        return {}
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    item: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    for leaf in leaves:
        # Not strict: the shape is less than that on disk, and the rest is not read.
        one = ocp.ArrayRestoreArgs(
            sharding=here, global_shape=leaf.leading, strict=False
        )
        _put(item, leaf.path, 0)
        _put(arguments, leaf.path, one)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(
            folder,
            args=ocp.args.PyTreeRestore(
                item=item, restore_args=arguments, partial_restore=True
            ),
        )
    found = {leaf.path: np.asarray(_get(restored, leaf.path)) for leaf in leaves}
    for leaf in leaves:
        if found[leaf.path].shape != leaf.leading:  # also what is not there at all
            raise ValueError(f"{'/'.join(leaf.path)} cannot be read")
    return found


def _put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _get(tree: Any, path: Sequence[str]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


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
