"""Partial restore: a sub-network from a checkpoint of the full one, without the rest.

Weights are on disk in blocks (see `blocks`). TensorStore, on which Orbax is built,
opens the arrays, and of each only those blocks are read that the rate keeps a part of.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from mslice_jax.dims import Axis, indices
from mslice_jax.plan import path_name
from mslice_jax.sliceable import Sliceable, extract

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

    It reads the bytes of the sub-network and an index of the checkpoint. Of the files
    it compares the lengths; their checksums would need all of them to be read.

    Args:
      directory: of the checkpoints, as given to `Checkpoints`.
      net: the network at full width. Its weights are not used: `jax.eval_shape` gives
        one that has none.
      rate: a declared rate, or one for each width group, see `slice_apply`.
      best: whether to take the checkpoint of the highest accuracy instead of the last.

    Returns:
      The network at the rate, on the default device: with averaged weights, if the
      checkpoint has them, as `TrainState.eval_net`.

    Raises:
      CheckpointError: if there is no checkpoint, or it is damaged or of another network.
      RateError: for a rate that was not declared.

    Example:
      ``small = restore_narrow("runs/mine/checkpoints", net, 0.25)``
    """
    if net.rate != 1.0:
        raise ValueError(
            f"restore_narrow expects the full network; got rate {net.rate}."
        )
    net = jax.eval_shape(lambda net: net, net)
    small = extract(net, rate)
    step = _choose(Path(directory).absolute(), best=best)
    meta = _checked_meta(step, net)
    prefixes = {
        group: np.arange(kept) for group, kept in net.plan.widths(small.rate).items()
    }
    # What is in the index is decoded once for all leaves.
    context = ts.Context({"cache_pool": {"total_bytes_limit": 10**9}})
    store = ts.KvStore.open(
        {"driver": "ocdbt", "base": {"driver": "file", "path": f"{step}/weights/"}},
        context=context,
    )

    def begin(path: Any, leaf: Any) -> Any:
        name = path_name(path)
        tree, path = ("variables", name)
        if "averaged" in meta["blocks"] and name.startswith("params/"):
            tree = "averaged"
    raise NotImplementedError
