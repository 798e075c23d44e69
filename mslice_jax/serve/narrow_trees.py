"""The weights of a server: the full tree, and the narrow ones that were cut from it.

A narrow tree is cut once and kept, up to a limit of bytes; the one that was used
longest ago goes first. Leaves that do not narrow are those of the full tree, and cost
nothing.
"""

import collections
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ..core.rates import SubNetwork
from ..cpu.memory import give_back
from .saved import Served, narrowed

_WORTH_IT = 8_000_000  # bytes: to give back takes as long as to cut about so many


class Slicer:
    """Cuts the tree of one sub-network; compiled beforehand.

    Args:
      types: the network, of types.
      part: which part of it.

    Attributes:
      net: the narrow network, of types.
      bytes: how many bytes a narrow tree needs besides the full one.
    """

    def __init__(self, types: Served, part: SubNetwork) -> None:
        leaves, tree = jax.tree.flatten(types.variables)
        self.net = narrowed(types, part)

        def cut(leaves: Sequence[Any]) -> list[Any]:
            net = types.replace(jax.tree.unflatten(tree, leaves))
            return jax.tree.leaves(narrowed(net, part).variables)

        program = jax.make_jaxpr(cut)(leaves).jaxpr
        place = {var: i for i, var in enumerate(program.invars)}
        # For each leaf which one of the full tree it is, or None for one that is cut.
        self._same = [place.get(var) for var in program.outvars]
        new = [i for i, same in enumerate(self._same) if same is None]
        narrow = jax.tree.leaves(self.net.variables)
        self.bytes = sum(narrow[i].size * narrow[i].dtype.itemsize for i in new)
        self._cut: Any = None
        if new:

            def cut_weights(leaves: Sequence[Any]) -> list[Any]:
                narrow = cut(leaves)
                return [narrow[i] for i in new]

            self._cut = jax.jit(cut_weights).lower(leaves).compile()

    def __call__(self, leaves: Sequence[Any]) -> list[Any]:
        """The leaves of the narrow tree, from those of the full one."""
        new = iter(self._cut(leaves) if self._cut is not None else ())
        return [next(new) if i is None else leaves[i] for i in self._same]


class NarrowTrees:
    """One set of weights at all the widths at which it is served.

    Args:
      leaves: of the full tree, on the device.
      slicers: for each sub-network.
      memory_bytes: how many bytes the narrow trees may need together; None: any. The
        one in use is there whatever it needs.
    """

    def __init__(
        self,
        leaves: Sequence[Any],
        slicers: Mapping[SubNetwork, Slicer],
        memory_bytes: int | None,
    ) -> None:
        self.leaves = leaves
        self._slicers, self._limit = slicers, memory_bytes
        self._kept: collections.OrderedDict[SubNetwork, list[Any]]
        self._kept = collections.OrderedDict()  # used longest ago first
        self._dropped = 0  # bytes since memory was given back
        self._lock = threading.Lock()

    @property
    def kept(self) -> list[SubNetwork]:
        """The sub-networks whose trees are there; that which was used last is last."""
        with self._lock:
            return list(self._kept)

    @property
    def bytes(self) -> int:
        """How many bytes the narrow trees need besides the full one."""
        return sum(self._slicers[part].bytes for part in self.kept)

    def get(self, part: SubNetwork) -> list[Any]:
        """The leaves of a sub-network; cut if they are not there."""
        with self._lock:
            found = self._kept.get(part)
            if found is not None:
                self._kept.move_to_end(part)
                return found
            # Before the new one is cut, so that it has room.
            while self._kept and not self._fits(part):
                self._dropped += self._slicers[self._kept.popitem(last=False)[0]].bytes
            give = self._dropped >= _WORTH_IT
            self._dropped = 0 if give else self._dropped
        if give:
            give_back()
        # Not under the lock: others go on with what they have.
        found = self._slicers[part](self.leaves)
        with self._lock:
            self._kept[part] = found
            self._kept.move_to_end(part)
        return found

    def add(self, part: SubNetwork) -> None:
        """Cuts the tree of a sub-network for later use, if there is room for it."""
        with self._lock:
            if part in self._kept or not self._fits(part):
                return
        found = jax.block_until_ready(self._slicers[part](self.leaves))
        with self._lock:
            if part not in self._kept and self._fits(part):
                self._kept[part] = found
                self._kept.move_to_end(part, last=False)

    def _fits(self, part: SubNetwork) -> bool:
        if self._limit is None:
            return True
        needed = sum(self._slicers[kept].bytes for kept in self._kept)
        return needed + self._slicers[part].bytes <= self._limit
