"""Arrivals that were recorded: a CSV of times, or of counts per interval."""

import csv
import datetime
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .traces import TraceError


class Recorded(NamedTuple):
    """What a CSV tells.

    Attributes:
      times: seconds since the first, ascending: `[n]`.
      counts: how many requests came from each time until the next; None where every
        time is one request.
    """

    times: np.ndarray
    counts: np.ndarray | None = None


def read_csv(
    path: str | Path, *, times: str | None = None, counts: str | None = None
) -> Recorded:
    """Read a CSV whose rows are requests, or intervals with a count of them.

    A time is a number of seconds, or a date with a time of day (ISO 8601). The first
    line is a header unless its time can be read.

    Args:
      path: of the file.
      times: the column of times by its name in the header; the first unless given.
      counts: the column of counts; without it every row is one request.

    Raises:
      OSError: if there is no such file.
      TraceError: with the line, if the file is no CSV, a time or count cannot be read,
        times descend, a time that is a number or a count is negative, or nothing is
        in it. Several times may be equal.

    Example:
      >>> import tempfile, pathlib
      >>> file = pathlib.Path(tempfile.mkdtemp()) / "trace.csv"
      >>> rows = ["when,value", "2024-01-01 00:00:10,3", "2024-01-01 00:00:20,0"]
      >>> _ = file.write_text("\\n".join(rows))
      >>> read_csv(file, counts="value")
      Recorded(times=array([ 0., 10.]), counts=array([3., 0.]))
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            rows = [(lines.line_num, row) for row in lines if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path} is no CSV: {error}.") from None
    if not rows:
        raise TraceError(f"{path} is empty.")
    header = rows[0][1] if _time(rows[0][1][0].strip()) is None or times else None
    at = _column(path, header, times, 0)
    count_at = None if counts is None else _column(path, header, counts, None)
    if header is not None:
        rows = rows[1:]

    found, numbers, last, kind = [], [], -math.inf, None
    for line, row in rows:
        where = f"{path}, line {line}"
        text = row[at].strip() if at < len(row) else ""
        time = _time(text)
        if time is None:
            raise TraceError(
                f"{where}: expected seconds or a date, got {text!r}. Is this a CSV of "
                "arrival times?"
            )
        seconds, is_date = time
        if kind not in (None, is_date):
            raise TraceError(f"{where}: numbers and dates are mixed, got {text!r}.")
        kind = is_date
        if seconds < 0 and not is_date:
            raise TraceError(f"{where}: a time is negative: {text}.")
        if seconds < last:
            raise TraceError(f"{where}: times are not ascending: {text} is too early.")
        last = seconds
        found.append(seconds)
        if count_at is not None:
            numbers.append(_count(where, row[count_at] if count_at < len(row) else ""))
    if not found:
        raise TraceError(f"{path} has a header and no rows.")
    array = np.array(found)
    return Recorded(array - array[0], np.array(numbers) if counts is not None else None)


def replay(
    recorded: Recorded, per_second: float, seconds: float, *, seed: int = 0
) -> np.ndarray:
    """Arrivals of the same shape, compressed to a duration and a mean rate.

    The whole record is squeezed into the duration. Then so many of its requests are
    drawn that the mean is met: a share of them, or each several times, spread over the
    gap until the next. Requests of an interval fall anywhere in it.

    Args:
      recorded: from `read_csv`.
      per_second: mean number of arrivals a second, above 0.
      seconds: how long, above 0.
      seed: not negative.

    Returns:
      Times in [0, seconds], ascending: `[n]`, with n near `per_second * seconds`.

    Raises:
      TraceError: for values that are not above 0, a record of no length, or one that
        counts no request.

    Example:
      >>> times = replay(Recorded(np.array([0.0, 10, 20, 30]),
      ...                         np.array([1.0, 8, 1, 0])), 100, 40, seed=0)
      >>> np.histogram(times, 4, range=(0, 40))[0].tolist()
      [408, 3055, 406, 0]
    """
    if not (per_second > 0 and seconds > 0):
        raise TraceError(
            f"expected a mean and a duration above 0, got {per_second}, {seconds}."
        )
    times, counts = recorded.times - recorded.times[0], recorded.counts
    span = float(times[-1])
    if not span > 0:
        raise TraceError("the record has no length: all of it is at one time.")
    if counts is None:
        counts = np.ones(len(times))
        ends = np.append(times[1:], times[-1])
    else:
        # The last interval is as long as most are.
        usual = float(np.median(np.diff(times)))
        ends = np.append(times[1:], times[-1] + usual)
        span += usual
    total = counts.sum()
    if not total > 0:
        raise TraceError("the record counts no request.")
    random = np.random.default_rng(seed)
    wanted = counts * (per_second * seconds / total)
    if recorded.counts is None:
        # A request is kept, or repeated, whole: its own bursts stay as they are.
        number = np.floor(wanted + random.uniform(size=len(wanted))).astype(int)
    else:
        number = random.poisson(wanted)
    began = np.repeat(times, number)
    gap = np.repeat(ends - times, number)
    within = random.uniform(size=len(began))
    if recorded.counts is None and per_second * seconds <= total:
        within = np.zeros(len(began))
    return np.sort((began + within * gap) * (seconds / span))


def _column(
    path: str | Path, header: list[str] | None, name: str | None, default: int | None
) -> int:
    if name is None and default is not None:
        return default
    names = [it.strip() for it in header or []]
    if name not in names:
        raise TraceError(f"{path} has no column {name!r}; its header is {names}.")
    return names.index(name)


def _time(text: str) -> tuple[float, bool] | None:
    """Seconds, and whether they came from a date."""
    try:
        number = float(text)
        return (number, False) if math.isfinite(number) else None
    except ValueError:
        pass
    try:
        date = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    if date.tzinfo is None:
        # A clock without a zone: take it for one that never jumps.
        date = date.replace(tzinfo=datetime.UTC)
    return date.timestamp(), True


def _count(where: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise TraceError(f"{where}: expected a count of at least 0, got {text!r}.")
    return number
