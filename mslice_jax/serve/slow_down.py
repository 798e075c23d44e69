"""How many times as long batches take by now as the latency table says."""

import collections
import dataclasses
import statistics


@dataclasses.dataclass
class SlowDown:
    """How many times as long batches take by now as they took when measured.

    The factor rises at once to the median of the last `window` batches, so one batch
    that was late moves nothing and a machine that is shared from now on is noticed
    after half a window. It falls slowly, by a share of the way with every batch, and
    not below 1: who promises less than was measured has to measure again.

    Attributes:
      window: how many batches are looked at.
      decay: the share of the way down with each batch.
      forget_s: after so many seconds without a batch nobody knows whether the machine
        is still slow.
      factor: for `LatencyTable.scaled`.

    Example:
      >>> slow = SlowDown()
      >>> [slow.observe(10, took) for took in (10, 95, 10, 20, 20, 20)]
      [1.0, 1.0, 1.0, 1.0, 2.0, 2.0]
    """

    window: int = 5
    decay: float = 0.05
    forget_s: float = 1.0
    factor: float = 1.0

    def __post_init__(self) -> None:
        self._ratios = collections.deque([1.0] * self.window, maxlen=self.window)

    def after(self, idle_s: float) -> float:
        """The factor for a batch that begins so many seconds after the last one ended.

        A machine that was too slow once would never be tried again, if that were not
        forgotten.
        """
        if idle_s > self.forget_s and self.factor > 1:
            self.factor = 1.0
            self.__post_init__()
        return self.factor

    def observe(self, predicted_ms: float, took_ms: float) -> float:
        """Note a batch, and return the new factor.

        Args:
          predicted_ms: its median by the table as measured, without the factor.
          took_ms: what it took.
        """
        self._ratios.append(took_ms / predicted_ms)
        now = max(statistics.median(self._ratios), 1.0)
        falls = self.factor + self.decay * (now - self.factor)
        self.factor = max(now, falls)
        return self.factor
