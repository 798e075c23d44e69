"""How many replicas: by the mean rate that they serve.

The rule knows neither Ray nor this package, and imports nothing of either: the
controller of Ray Serve gets a copy of this file, and need not load JAX for it.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

REQUESTS, SHARE, BUSY = "mslice_requests", "mslice_share", "mslice_busy"
"""The names under which a replica tells; see `Told`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told:
    """What one replica tells of its last seconds.

    Attributes:
      requests: how many ended, answered or shed.
      share: the mean of the rates that served them, each as a share of the widest that
        the request accepts; 0 for one that was shed. 1 where there were none.
      busy: the share of the time in which its device ran batches.
    """

    requests: float
    share: float
    busy: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling:
    """The rule: a narrow mean rate asks for replicas, an idle full width gives one up.

    Work at rate r costs r² (the paper, section 3.2), so n replicas that are busy for a
    share u of the time and serve a mean share s of the full width do the work of n·u/s²
    replicas at full width. Where s is below `narrow`, that is how many there should be,
    one more at least and not more than twice as many at once. This is the proportion by
    which Ray's own policy scales, with the work in place of the queue.

    Where s is at least `wide`, and the others would be busy for at most `busy` of the
    time, one replica goes. In between nothing changes.

    The thresholds are where `simulate` puts `Elastic` under Poisson arrivals (four
    rates, cost r², T of 5 to 50 times a request at full width). A load of 0.6 of what
    one replica does at full width is served at a mean of 0.98 or more, a load of 1 at
    0.9 or more; between 1.5 and 1.9 the mean falls below 0.8. So a replica goes only if
    the others stay wide, and who just came is not sent away.

    Attributes:
      least, most: how many replicas there may be.
      narrow: the mean share below which there are too few.
      wide: the mean share from which there may be too many.
      busy: how busy the others may be without the one that goes.
      window_s: seconds that replicas tell of; so long after a change nothing changes.
      up_s, down_s: seconds for which more, or fewer, have to be wanted without a break
        before it happens; Ray Serve waits for that.

    Raises:
      ValueError: for numbers of replicas or thresholds that contradict each other.

    Example:
      >>> rule = Scaling(least=1, most=8)
      >>> rule.wanted([Told(requests=200, share=0.5, busy=0.7)])  # 0.7 / 0.5²
      2
      >>> rule.wanted([Told(requests=90, share=1.0, busy=0.2)] * 2)
      1
      >>> rule.wanted([Told(requests=90, share=1.0, busy=0.5)] * 2)  # one would be full
      2
    """

    least: int = 1
    most: int = 1
    narrow: float = 0.8
    wide: float = 0.98
    busy: float = 0.6
    window_s: float = 2.0
    up_s: float = 1.0
    down_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("least", "most"):
            count = getattr(self, name)
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ValueError(
                    f"replicas: expected integers from 1, got {name} {count!r}."
                )
        if self.least > self.most:
            raise ValueError(
                f"replicas: expected the least first, got {self.least} to {self.most}."
            )
        if not 0 < self.narrow < self.wide <= 1:
            raise ValueError(
                "expected 0 < narrow < wide <= 1, got "
                f"narrow {self.narrow}, wide {self.wide}."
            )
        if not 0 < self.busy < 1 or not 0 < self.window_s < math.inf:
            raise ValueError(
                "expected busy between 0 and 1 and window_s above 0, got "
                f"busy {self.busy}, window_s {self.window_s}."
            )
        if not 0 <= self.up_s < math.inf or not 0 <= self.down_s < math.inf:
            raise ValueError(
                f"expected up_s and down_s from 0, got {self.up_s}, {self.down_s}."
            )

    def wanted(self, told: Sequence[Told]) -> int:
        """How many replicas there should be.

        Args:
          told: what every replica that runs tells.
        """
        n = len(told)
        if not n:
            return self.least
        requests = sum(each.requests for each in told)
        share = 1.0
        if requests:
            share = sum(each.requests * each.share for each in told) / requests
        work = sum(each.busy for each in told)
        wanted = n
        if share < self.narrow:
            # Where all are shed there is no share to divide by; twice is the most.
            at_full_width = math.ceil(work / max(share, 0.01) ** 2)
            wanted = min(max(n + 1, at_full_width), 2 * n)
        elif share >= self.wide and n > 1 and work / (n - 1) <= self.busy:
            wanted = n - 1
        return min(max(wanted, self.least), self.most)


class ByMeanRate:
    """`Scaling` as Ray Serve asks for it: an autoscaling policy.

    It is asked ten times a second or so, and changes nothing while replicas start or
    stop, before all of them have told, and for a window after a change, as what they
    tell is of before.

    Args:
      **settings: of `Scaling`.
    """

    def __init__(self, **settings: Any) -> None:
        self.scaling = Scaling(**settings)

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """The number of replicas, and what to remember.

        Args:
          ctx: an AutoscalingContext of Ray Serve.
        """
        state, now = dict(ctx.policy_state or {}), ctx.current_time
        running = sorted(map(str, ctx.running_replicas))
        if state.get("replicas") != running:
            state.update(replicas=running, since=now)
        told = _told(ctx.raw_metrics or {}, ctx.running_replicas)
        steady = len(running) == ctx.target_num_replicas and len(told) == len(running)
        if not steady or now - state["since"] < self.scaling.window_s:
            return ctx.target_num_replicas, state
        return self.scaling.wanted(told), state


def _told(metrics: Mapping[str, Mapping[Any, Any]], replicas: Sequence) -> list[Told]:
    """The last that each replica told, without those that have not told yet."""
    found = []
    for each in replicas:
        series = [metrics.get(name, {}).get(each) for name in (REQUESTS, SHARE, BUSY)]
        if all(series):
            requests, share, busy = (points[-1].value for points in series if points)
            found.append(Told(requests=requests, share=share, busy=busy))
    return found
