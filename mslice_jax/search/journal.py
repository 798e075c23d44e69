"""The file of a search: what it scored and measured, so that it can go on."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.paths import path_name
from ..sliceable import Sliceable
from .space import Choice

FORMAT = "mslice_jax.search 1"


class Journal:
    """Scores and measurements of one search, in memory and, given a path, in a file.

    Args:
      path: of the file; None keeps none.
      network: the digest of the network.
      settings: all else that decides what the search does, plain data.

    Raises:
      ValueError: if the file is damaged, or of another network or settings.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None, network: str, settings: Any
    ) -> None:
        self.scores: dict[Choice, float] = {}
        self.measured: dict[Choice, float] = {}
        self.masks: bool | None = None  # whether they stand for slices, once known
        self._path = None if path is None else Path(path).expanduser()
        # Compared with what was read: JSON knows no tuples.
        self._head = {
            "format": FORMAT,
            "network": network,
            "settings": json.loads(json.dumps(settings)),
        }
        if self._path is not None and self._path.exists():
            self._read(self._path)

    def write(self) -> None:
        """Writes the file; a process that is killed leaves the old one or this."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        data = {**self._head, "scores": _rows(self.scores)}
        data |= {"measured": _rows(self.measured), "masks": self.masks}
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
        beside.write_text(json.dumps(data) + "\n", encoding="utf-8")
        os.replace(beside, self._path)

    def _read(self, path: Path) -> None:
        advice = "give another path, or delete it to begin anew"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            head = {name: data[name] for name in self._head}
            scores, measured = _table(data["scores"]), _table(data["measured"])
            masks = data["masks"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no file of a search; {advice}.") from error
        if head["format"] != FORMAT:
            raise ValueError(f"{path} is of format {head['format']!r}; {advice}.")
        if head["network"] != self._head["network"]:
            raise ValueError(f"{path} is of another network or weights; {advice}.")
        there, here = head["settings"], self._head["settings"]
        if there != here:
            names = sorted(n for n in {*there, *here} if there.get(n) != here.get(n))
            differ = ", ".join(f"{n} {there.get(n)}, not {here.get(n)}" for n in names)
            raise ValueError(f"{path} is of a search with {differ}; {advice}.")
        self.scores.update(scores)
        self.measured.update(measured)
        self.masks = masks


def _rows(table: Mapping[Choice, float]) -> list[Any]:
    return [[list(choice), value] for choice, value in table.items()]


def _table(rows: Any) -> dict[Choice, float]:
    return {tuple(map(int, choice)): float(value) for choice, value in rows}


def digest(net: Sliceable) -> str:
    """A network in few letters: its groups, rates, order of units, and weights."""
    found = hashlib.sha256(repr(list(net.plan.groups.items())).encode())
    found.update(repr((net.plan.rates, net.part)).encode())
    for name, order in sorted(net.definition.orders.items()):
        found.update(name.encode() + np.asarray(order, np.int64).tobytes())
    for path, leaf in jax.tree_util.tree_leaves_with_path(net.variables):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        found.update(f"{path_name(path)} {array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:32]
