"""How long a batch takes: a table that was measured, and how far it is off by now."""

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from .batches import Batches

VERSION = 1


_NO_TABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class TableError(ValueError):
    """A latency table that is incomplete, wrong, or of another version."""


class Latency(NamedTuple):
    """Milliseconds of a program: 99 in 100 runs take at most p99, half the median."""

    p99_ms: float
    median_ms: float


class Entry(NamedTuple):
    """Which program: its rate, how many rows it holds, how long a free axis is."""

    rate: float
    batch: int
    length: int | None = None


class LatencyTable:
    """(rate, batch bucket, length bucket) -> milliseconds.

    A policy plans with p99, and where a measurement of it cannot be right, with the
    next that can:

    * a larger batch or a longer input takes at least what a smaller one took;
    * a narrower rate takes at most what a wider one takes, for **the wider one can run
      in its place**. So no time is promised that was not measured, and a rate that is
      slow on this machine costs nothing: the policy passes over it (`served`).

    Args:
      entries: a `Latency`, or the pair of its numbers, for each triple of a rate, a
        batch bucket and a length bucket; pairs of rate and batch bucket where no input
        has a free length.
      factor: what all of it is multiplied with, see `scaled`.
      about: what it was measured with, in words of any kind: network, device.

    Raises:
      TableError: without entries, if one is missing, or not above 0.

    Example:
      >>> table = LatencyTable({(0.5, 1): (2, 1.5), (0.5, 4): (5, 4),
      ...                       (1.0, 1): (6, 5), (1.0, 4): (4.5, 4)})
      >>> table.p99_ms(0.5, 1), table.p99_ms(1.0, 3), table.median_ms(1.0, 3)
      (2.0, 6.0, 4.0)
      >>> table.scaled(2).p99_ms(0.5, 1)
      4.0
    """

    def __init__(
        self,
        entries: Mapping[Any, Latency | tuple[float, float]],
        *,
        factor: float = 1.0,
        about: Mapping[str, str] | None = None,
    ) -> None:
        if not entries:
            raise TableError("expected at least one entry, got an empty table.")
        self.entries = {Entry(*key): Latency(*entries[key]) for key in entries}
        self.rates = tuple(sorted({key.rate for key in self.entries}))
        self.batches = tuple(sorted({key.batch for key in self.entries}))
        lengths = {key.length for key in self.entries}
        self.lengths = tuple(sorted(lengths, key=lambda it: -1 if it is None else it))
        self.factor, self.about = factor, dict(about or {})
        _check(self)
        self._p99 = _rising(self, {k: v.p99_ms for k, v in self.entries.items()})
        self._seen: dict[tuple, Batches] = {}
        self._wider: dict[tuple, float] = {}

    def p99_ms(self, rate: float, rows: int, length: int | None = None) -> float:
        """What 99 in 100 batches of so many rows do not exceed, times the factor.

        Args:
          rate: one of the table's.
          rows: at most the largest bucket.
          length: one of the table's length buckets.
        """
        return self.factor * self._p99[Entry(rate, self.bucket(rows), length)]

    def median_ms(self, rate: float, rows: int, length: int | None = None) -> float:
        """What half of the batches do not exceed, as measured, times the factor."""
        entry = self.entries[Entry(rate, self.bucket(rows), length)]
        return self.factor * entry.median_ms

    def bucket(self, rows: int) -> int:
        """The batch bucket that so many rows run in.

        Raises:
          TableError: if they are more than the largest holds.
        """
        for size in self.batches:
            if size >= rows:
                return size
        raise TableError(f"{rows} rows, but the largest batch is {self.batches[-1]}.")

    def scaled(self, factor: float) -> Self:
        """The same table on a machine that takes `factor` times as long."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, factor=factor)
        return other

    def ways(
        self,
        rate: float,
        length: int | None = None,
        *,
        rows: int = 1,
        among: tuple[float, ...] | None = None,
    ) -> Batches:
        """How requests of so many rows run at a rate, in seconds, without the factor.

        Args:
          rate: one of the table's.
          length: one of its length buckets.
          rows: of every request.
          among: the rates that may take the place of this one, where they are wider.

        Raises:
          TableError: if the largest batch does not hold one request.
        """
        key = (rate, length, rows, among)
        found = self._seen.get(key)
        if found is None:
            self.bucket(rows)
            seconds: dict[int, float] = {}
            for size in self.batches:
                if size >= rows:
                    ran = self.served(rate, size, length, among)
                    took = self._p99[Entry(ran, size, length)] / 1e3
                    seconds.setdefault(size // rows, took)
            found = self._seen[key] = Batches(seconds)
        return found

    def served(
        self,
        rate: float,
        rows: int,
        length: int | None = None,
        among: tuple[float, ...] | None = None,
    ) -> float:
        """The widest of those rates that takes no longer for so many rows than this."""
        key = (rate, rows, length, among)
        found = self._wider.get(key)
        if found is None:
            bucket = self.bucket(rows)
            wider = [r for r in among or self.rates if r > rate] + [rate]
            took = {r: self._p99[Entry(r, bucket, length)] for r in wider}
            found = max(wider, key=lambda other: (-took[other], other))
            self._wider[key] = found
        return found

    def write(self, path: str | Path) -> None:
        """Write JSON: the version, what it is about, and one object an entry."""
        rows = [{**k._asdict(), **v._asdict()} for k, v in self.entries.items()]
        if None in self.lengths:
            for row in rows:
                del row["length"]
        about = {"about": self.about} if self.about else {}
        text = json.dumps({"version": VERSION, **about, "entries": rows}, indent=1)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read what `write` wrote; the factor is 1.

        Raises:
          OSError: if there is no such file.
          TableError: if it is something else, or of a later version.
        """
        try:
            saved = json.loads(Path(path).read_text(encoding="utf-8"))
            version, rows = saved["version"], saved["entries"]
            if version != VERSION:
                raise TableError(
                    f"{path} is a latency table of version {version}; this release "
                    f"reads version {VERSION}. Measure it again."
                )
            entries = {
                Entry(row["rate"], row["batch"], row.get("length")): Latency(
                    row["p99_ms"], row["median_ms"]
                )
                for row in rows
            }
            about = {str(k): str(v) for k, v in saved.get("about", {}).items()}
            return cls(entries, about=about)
        except _NO_TABLE as error:
            if isinstance(error, TableError):
                raise
            raise TableError(f"{path} is no latency table: {error!r}.") from error


def _check(table: LatencyTable) -> None:
    if None in table.lengths and len(table.lengths) > 1:
        raise TableError("some entries have a length and some have none.")
    for key in itertools.product(table.rates, table.batches, table.lengths):
        entry = Entry(*key)
        if entry not in table.entries:
            raise TableError(f"{entry} is missing: every rate has the same buckets.")
        if not all(0 < ms < math.inf for ms in table.entries[entry]):
            raise TableError(f"expected times above 0, got {table.entries[entry]}.")


def _rising(table: LatencyTable, took: dict[Entry, float]) -> dict[Entry, float]:
    """A larger batch and a longer input take at least what the smaller ones took."""
    found: dict[Entry, float] = {}
    for rate in table.rates:
        for i, batch in enumerate(table.batches):
            for j, length in enumerate(table.lengths):
                at = [took[Entry(rate, batch, length)]]
                if i:
                    at.append(found[Entry(rate, table.batches[i - 1], length)])
                if j:
                    at.append(found[Entry(rate, batch, table.lengths[j - 1])])
                found[Entry(rate, batch, length)] = float(max(at))
    return found
