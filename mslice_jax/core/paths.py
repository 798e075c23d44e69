"""Paths of a tree: the keys on the way to a leaf, and names for people."""

import collections
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import jax

Path: TypeAlias = tuple[str, ...]
"""Where a leaf is in a tree: the keys on the way to it."""


def path_name(path: Any) -> str:
    """A path of a tree in words: 'params/Dense_0/kernel'.

    Keys may have slashes themselves, so two paths can read alike: where leaves are to
    be told apart use `path_parts`, and `path_names` for people.
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def path_parts(path: Sequence[Any]) -> Path:
    """The keys of a path of a tree as strings: ('params', 'Dense_0', 'kernel')."""
    return tuple(
        key if isinstance(key, str) else jax.tree_util.keystr((key,), simple=True)
        for key in path
    )


def path_names(paths: Iterable[Path]) -> list[str]:
    r"""A name for each path of one tree, no two alike.

    >>> path_names([("a", "b"), ("c/d",)])
    ['a/b', 'c/d']
    >>> print(*path_names([("a", "b"), ("a/b",)]))
    a/b a\/b
    """
    paths = list(paths)
    names = ["/".join(path) for path in paths]
    while len(set(names)) < len(names):
        count = collections.Counter(names)
        names = [
            "/".join(map(_escaped, path)) if count[name] > 1 else name
            for path, name in zip(paths, names, strict=True)
        ]
    return names


def _escaped(part: str) -> str:
    return part.replace("\\", "\\\\").replace("/", "\\/")
