"""Fingerprints: by what a checkpoint tells the network that it belongs to.

A fingerprint is the rates, the name, shape and type of every leaf, and what its maker
adds that leaves do not show, such as the groups of the norms. Plain JSON values.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..core.paths import path_name
from ..sliceable import Sliceable

_LEAVES_SHOWN = 8


def fingerprint(
    tree: Any, *, rates: Sequence[float], about: Mapping[str, Any]
) -> dict[str, Any]:
    """The fingerprint of a tree of arrays.

    Args:
      tree: everything that the checkpoint holds.
      rates: of the network.
      about: what else decides whether a checkpoint fits; anything that JSON can hold.

    Example:
      >>> import numpy as np
      >>> fingerprint({"w": np.zeros((2, 3))}, rates=(1.0,), about={"groups": 8})
      {'rates': [1.0], 'about': {'groups': 8}, 'leaves': {'w': 'float64[2,3]'}}
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        "rates": [float(rate) for rate in rates],
        # Compared with what was read from a file: JSON knows no tuples.
        "about": json.loads(json.dumps(dict(about))),
        "leaves": {
            path_name(path): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
            for path, leaf in leaves
        },
    }


def leaves_digest(variables: Any) -> str:
    """The names, shapes and types of variables, in few letters.

    Example:
      >>> import numpy as np
      >>> a, b = ({"w": np.zeros(n)} for n in (2, 3))
      >>> leaves_digest(a) == leaves_digest(a), leaves_digest(a) == leaves_digest(b)
      (True, False)
    """
    leaves = fingerprint(variables, rates=(), about={})["leaves"]
    text = json.dumps(leaves, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def order_of_units(net: Sliceable) -> dict[str, str]:
    """The order of the units: after `reorder` constants of the network follow it."""
    if not net.definition.orders:
        return {}
    digest = hashlib.sha256()
    for name, order in sorted(net.definition.orders.items()):
        digest.update(name.encode() + np.asarray(order, np.int64).tobytes())
    return {"order of units": digest.hexdigest()[:16]}


def compare(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between two fingerprints, a phrase for each; empty if nothing does.

    Of the leaves at most eight are named. Those of the optimizer repeat the names of
    the weights, so they are named only where no weight differs.

    Example:
      >>> a = {"rates": [1.0], "about": {}, "leaves": {"w": "float32[2]"}}
      >>> b = {"rates": [1.0], "about": {}, "leaves": {"w": "float32[3]"}}
      >>> compare(a, b)
      ['w float32[2] there, float32[3] here']
    """
    phrases = []
    if there["rates"] != here["rates"]:
        phrases.append(f"rates {there['rates']} there, {here['rates']} here")
    phrases += _differences(there["about"], here["about"])
    leaves = _differences(there["leaves"], here["leaves"])
    weights = [phrase for phrase in leaves if phrase.startswith("variables")]
    chosen = weights or leaves
    phrases += chosen[:_LEAVES_SHOWN]
    if len(chosen) > _LEAVES_SHOWN:
        phrases.append(f"and {len(chosen) - _LEAVES_SHOWN} leaves more")
    return phrases


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """One phrase for each name whose value differs, in the order of the names."""
    return [
        f"{name} {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
