"""What a run of mixed load has to show, said of what was seen."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from .clients import Seen


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One thing that a run has to show.

    Attributes:
      what: it is.
      holds: whether it does.
      told: the numbers behind it.
    """

    what: str
    holds: bool
    told: str

    def __str__(self) -> str:
        """One line."""
        return f"{'ok  ' if self.holds else 'FAIL'} {self.what}: {self.told}"


def growth_mb(seconds: Sequence[float], resident_mb: Sequence[float]) -> float:
    """By how much memory grew over the last two thirds, as a straight line tells.

    The first third is left out: caches fill, and the heap takes its size.

    Args:
      seconds: when it was sampled, ascending.
      resident_mb: what it was.

    Example:
      >>> growth_mb([0, 1, 2, 3, 4, 5, 6], [10, 40, 50, 50, 51, 51, 52])
      2.0
    """
    at, size = np.asarray(seconds, float), np.asarray(resident_mb, float)
    late = at >= at[0] + (at[-1] - at[0]) / 3
    at, size = at[late], size[late]
    if len(at) < 3:
        return float("nan")
    slope = np.polyfit(at - at[0], size, 1)[0]
    return round(float(slope * (at[-1] - at[0])), 3)


def outcomes(metrics: str) -> dict[str, int]:
    """What the server counted, from the text of `/metrics`."""
    each = re.findall(r'mslice_requests_total\{outcome="(\w+)"\} (\S+)', metrics)
    return {name: int(float(count)) for name, count in each}


def value(metrics: str, name: str) -> float:
    """A number of `/metrics`."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", metrics, re.MULTILINE)
    if found is None:
        raise ValueError(f"/metrics has no {name}.")
    return float(found.group(1))


def of_answers(seen: Seen, kinds: Sequence[str]) -> list[Verdict]:
    """What the clients have to say."""
    answered = seen.counts["right, 200"]
    missing = [name for name in kinds if not seen.wrong[name]]
    malformed = sum(seen.wrong.values())
    return [
        Verdict(
            "every answer is right",
            not seen.faults and answered > 0,
            f"{answered} answered, {len(seen.faults)} faults",
        ),
        Verdict(
            "no request is lost",
            not seen.lost,
            f"{len(seen.lost)} of {sum(seen.counts.values())}",
        ),
        Verdict(
            "every kind of malformed request came",
            not missing,
            f"{malformed} requests of {len(kinds)} kinds"
            + (f", without {missing}" if missing else ""),
        ),
    ]


def of_server(seen: Seen, metrics: str, code: int | None, told: str) -> list[Verdict]:
    """What the server has to say.

    Args:
      seen: by the clients.
      metrics: the text of `/metrics` after the last of them.
      code: with which the process ended.
      told: the line that it ended with.
    """
    count = outcomes(metrics)
    total, at_last = sum(count.values()), sum(map(int, re.findall(r"(\d+) \w+", told)))
    compiled = value(metrics, "mslice_compilations_after_ready")
    waiting = value(metrics, "mslice_queue_requests")
    never = {name: count[name] for name in ("failed", "full", "draining")}
    return [
        Verdict(
            "the server counted every request once",
            seen.counted <= total <= seen.counted + seen.maybe,
            f"{total}, sent {seen.counted} to {seen.counted + seen.maybe}",
        ),
        Verdict("none failed or was refused", not any(never.values()), f"{never}"),
        Verdict("nobody waits at the end", waiting == 0, f"{waiting:g}"),
        Verdict("nothing was compiled after ready", compiled == 0, f"{compiled:g}"),
        Verdict(
            "the server ends well",
            code == 0 and at_last == total,
            f"exit code {code}, {told!r}",
        ),
    ]


def of_swaps(done: int, refused: int, metrics: str) -> Verdict:
    """New weights were taken, and those of another network were not."""
    name = 'mslice_swaps_total{outcome="%s"}'
    counted = value(metrics, name % "done"), value(metrics, name % "failed")
    return Verdict(
        "weights were swapped, others refused",
        done > 0 and refused > 0 and counted == (done, refused),
        f"{done} swapped, {refused} refused; counted {counted}",
    )


def of_memory(growth: float, bound: float, last: float) -> Verdict:
    """Memory does not grow."""
    return Verdict(
        "memory does not grow",
        growth <= bound,
        f"{growth:+.2f} MB over the last two thirds, of {last:.0f} MB; "
        f"at most {bound:g}",
    )
