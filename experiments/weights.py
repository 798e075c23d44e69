"""Initial weights of a recipe, from a network that was imported or trained before."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mslice_jax as ms
from mslice_jax.core.paths import path_parts
from mslice_jax.storage import archive, arrays

Leaves = dict[tuple[str, ...], Any]

_SHOWN = 4  # arrays that a message names, of each kind


def begin(
    path: Path | None,
    variables: Any,
    upgrade: Callable[[Any], ms.Sliceable],
    *,
    optional: Sequence[str] = (),
) -> ms.Sliceable:
    """The network with the weights of a file; with `variables` if there is no file.

    Args:
      path: of a file that `ms.save` wrote, or of a folder with one.
      variables: of the model, freshly initialized.
      upgrade: makes a network from variables.
      optional: modules that stay as initialized where the file is without them.

    Raises:
      As `read` and `put`.
    """
    if path is None:
        return upgrade(variables)
    found = read(path)
    absent = set(optional) - {name[1] for name in found}
    if fits(found, variables, absent):
        return upgrade(put(found, variables, path, absent))
    net = upgrade(variables)  # norms of every rate, or group norms
    return net.replace(put(found, net.variables, path, absent))


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


def fits(leaves: Leaves, tree: Any, absent: Collection[str] = ()) -> bool:
    """Whether the arrays are those of a tree, by path, but for absent modules."""
    return set(leaves) == _wanted(_flat(tree), absent)


def put(leaves: Leaves, tree: Any, path: Path, absent: Collection[str] = ()) -> Any:
    """The tree with these arrays.

    Layers with an entry for each class are initialized for other classes: they are
    those, one or a few, of which only the last axis differs, by the same two numbers.
    Modules that are `absent` from the arrays stay as they are.

    Raises:
      ValueError: if an array is missing, left over, or has another shape; names some.
    """
    there = _flat(tree)
    wanted = _wanted(there, absent)
    other = {
        name: (np.shape(x), np.shape(leaves[name]))
        for name, x in there.items()
        if name in leaves and np.shape(x) != np.shape(leaves[name])
    }
    misfits = [
        f"{'/'.join(name)} is {found}, not {here}"
        for name, (here, found) in sorted(
            other.items(), key=lambda each: _rank(each[0])
        )
    ]
    if all(here[:-1] == found[:-1] for here, found in other.values()):
        classes = {(here[-1], found[-1]) for here, found in other.values()}
        misfits = misfits if len(classes) > 1 else []
    wrong = [
        *_some("it lacks", wanted - set(leaves)),
        *_some("nothing takes its", set(leaves) - wanted),
        *misfits[:_SHOWN],
    ]
    if wrong:
        raise ValueError(
            f"the weights in {path} (--weights) are those of another network: "
            f"{'; '.join(wrong)}. Give the flags of the network (--model or --depth, "
            "--widen, --norm) as they were there."
        )

    def leaf(where: Any, here: Any) -> Any:
        name = path_parts(where)
        kept = name in other or name not in leaves
        return here if kept else jnp.asarray(leaves[name], here.dtype)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def _wanted(there: Leaves, absent: Collection[str]) -> set[tuple[str, ...]]:
    return {name for name in there if name[1] not in absent}


def _rank(name: tuple[str, ...]) -> Any:
    """Weights before statistics."""
    return name[0] != "params", name


def _some(what: str, names: Collection[tuple[str, ...]]) -> list[str]:
    """A phrase that names the first ones, and says how many there are."""
    if not names:
        return []
    first = ", ".join("/".join(name) for name in sorted(names, key=_rank)[:_SHOWN])
    more = len(names) - _SHOWN
    return [f"{what} {first}" + (f" and {more} more" if more > 0 else "")]


def _flat(tree: Any) -> Leaves:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_parts(path): leaf for path, leaf in leaves}
