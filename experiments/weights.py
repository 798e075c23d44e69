"""Initial weights of a recipe, from a network that was imported or trained before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mslice_jax as ms
from mslice_jax.core.paths import path_parts
from mslice_jax.storage import archive, arrays

Leaves = dict[tuple[str, ...], Any]


def begin(
    path: Path | None, variables: Any, upgrade: Callable[[Any], ms.Sliceable]
) -> ms.Sliceable:
    """The network with the weights of a file; with `variables` if there is no file.

    Args:
      path: of a file that `ms.save` wrote, or of a folder with one.
      variables: of the model, freshly initialized.
      upgrade: makes a network from variables.

    Raises:
      As `read` and `put`.
    """
    if path is None:
        return upgrade(variables)
    found = read(path)
    if fits(found, variables):
        return upgrade(put(found, variables, path))
    net = upgrade(variables)  # norms of every rate, or group norms
    return net.replace(put(found, net.variables, path))


def read(path: Path) -> Leaves:
    """The arrays of a file that `ms.save` wrote, or of a folder with one, by path.

    Raises:
      FileNotFoundError, StorageError: if there is none, or it is damaged.
    """
    with archive.read(archive.local_path(path, "--weights")) as reader:
        leaves = reader.manifest()["variables"]["leaves"]
        return {
            tuple(each["path"]): arrays.read_array(reader, each["file"], each)
            for each in leaves
        }


def fits(leaves: Leaves, tree: Any) -> bool:
    """Whether the arrays are those of a tree, by their paths."""
    return set(leaves) == set(_flat(tree))


def put(leaves: Leaves, tree: Any, path: Path) -> Any:
    """The tree with these arrays.

    The last layer, which has an entry for each class, is initialized for other classes.

    Raises:
      ValueError: if an array is missing, left over, or has another shape; lists all.
    """
    there = _flat(tree)
    wrong = [f"it lacks {'/'.join(name)}" for name in sorted(set(there) - set(leaves))]
    wrong += [
        f"nothing takes its {'/'.join(name)}"
        for name in sorted(set(leaves) - set(there))
    ]
    other = {
        name: (np.shape(x), np.shape(leaves[name]))
        for name, x in there.items()
        if name in leaves and np.shape(x) != np.shape(leaves[name])
    }
    if len({name[:-1] for name in other}) > 1 or any(
        here[:-1] != found[:-1] for here, found in other.values()
    ):
        wrong += [
            f"{'/'.join(name)} is {found}, not {here}"
            for name, (here, found) in sorted(other.items())
        ]
    if wrong:
        raise ValueError(
            f"the weights in {path} (--weights) are those of another network: "
            f"{'; '.join(wrong)}. Give --depth, --widen and --norm as they were there."
        )

    def leaf(where: Any, here: Any) -> Any:
        name = path_parts(where)
        return here if name in other else jnp.asarray(leaves[name], here.dtype)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def _flat(tree: Any) -> Leaves:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_parts(path): leaf for path, leaf in leaves}
