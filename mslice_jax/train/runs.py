"""Parts of arrays that do not begin at their first entry, read from a checkpoint.

Orbax reads the leading part of an array (see `partial`). Of a fused QKV, a flattened
image, or weights in several shards, a rate keeps several runs, and Orbax would read all
up to the last of them. So this opens the arrays with TensorStore, on which Orbax is
built, and reads the blocks that are needed.

It is the only file that knows how Orbax lays out a checkpoint: one OCDBT database in
the folder of the item, with an array in the format Zarr for each leaf, under the names
of its path with dots between. Of a checkpoint in another layout TensorStore finds no
array, and `partial` asks Orbax for the longer part.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts


class LayoutError(Exception):
    """Arrays that are not where Orbax has put them so far."""


def read_blocks(
    folder: Path, wanted: Mapping[str, Sequence[np.ndarray] | None]
) -> dict[str, np.ndarray]:
    """Some blocks of the named arrays, all arrays at a time.

    Args:
      folder: of the item in the checkpoint.
      wanted: name of an array -> along each axis the numbers of the blocks to read, of
        an array that is stored in blocks (n / b, b) for each axis; None: all of it.

    Raises:
      LayoutError: if there is no such array, or not in such blocks.
    """
    # One decoded index serves all arrays.
    context = ts.Context({"cache_pool": {"total_bytes_limit": 10**9}})
    base = {"driver": "file", "path": f"{folder}/"}

    def opened(name: str) -> Any:
        store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        return ts.open({"driver": "zarr", "kvstore": store}, read=True, context=context)

    def begun(name: str, opening: Any) -> Any:
        array, blocks = opening.result(), wanted[name]
        if blocks is None:
            return array.read()
        index = [i for numbers in blocks for i in (numbers, slice(None))]
        return array.oindex[tuple(index)].read()

    try:
        openings = {name: opened(name) for name in wanted}
        readings = {name: begun(name, opening) for name, opening in openings.items()}
        return {name: reading.result() for name, reading in readings.items()}
    except (ValueError, IndexError, KeyError) as error:
        raise LayoutError(str(error)) from error
