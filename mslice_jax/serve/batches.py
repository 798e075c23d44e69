"""How requests of one kind are cut into batches, and what that takes.

A batch runs in the smallest of a few sizes, the buckets, that holds it. Requests are
in the order of their deadlines, and batches are runs of that order: for requests of one
kind nothing else meets more deadlines, as two that change places lose nothing.
"""

from collections.abc import Sequence


class Batches:
    """The ways to run requests of one kind at one rate.

    Args:
      seconds: bucket -> how long a batch in it takes, above 0. A bucket counts
        requests, and a larger one is not quicker.

    Attributes:
      sizes: the buckets that are worth their time, ascending: one that smaller ones
        do as quickly together is left out, for those meet every deadline that it meets.
      seconds: bucket -> seconds, of those.

    Example:
      >>> batches = Batches({1: 1.0, 2: 1.5, 4: 3.0, 8: 4.0})
      >>> batches.sizes
      (1, 2, 8)
      >>> batches.least(5), batches.first(5)
      (4.0, 5)
      >>> [round(start, 3) for start in batches.latest([2.0, 2.0, 2.2])]
      [-0.3, 0.5, 1.2, inf]
    """

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds = dict(sorted(seconds.items()))
        self._all = tuple(self.seconds.items())
        self._least, self._sum, self._first, self._gentle = [0.0], [0.0], [0], [0]
        self.sizes: tuple[int, ...] = ()
        for size, took in list(self.seconds.items()):
            if self.sizes and self.least(size) <= took:
                del self.seconds[size]
                continue
            self.sizes += (size,)
            for memo in (self._least, self._sum, self._first, self._gentle):
                del memo[1:]
        self._pairs = tuple(self.seconds.items())

    def least(self, count: int) -> float:
        """The seconds in which so many requests can be done, without deadlines."""
        self._extend(count)
        return self._least[count]

    def first(self, count: int, *, gentle: bool = False) -> int:
        """How many to take first; gentle: so that the mean latency is least.

        Without, the last of them is done soonest. The two differ where a larger batch
        saves little: the first request need not wait for the second.
        """
        self._extend(count)
        return (self._gentle if gentle else self._first)[count]

    def took(self, count: int) -> float:
        """Seconds of one batch of so many, at most the largest bucket."""
        return next(took for size, took in self._all if size >= count)

    def most(self, count: int, seconds: float) -> int:
        """The largest bucket that holds so many and takes at most so long, or 0."""
        found = [size for size, took in self._all if size >= count and took <= seconds]
        return found[-1] if found else 0

    def begin(self, slack: Sequence[float], within: float) -> int:
        """How many to take first, so that all are on time, and done within that time.

        Of the ways that do it, the one of the least mean latency is begun, as far as
        one batch looks ahead.

        Args:
          slack: seconds until each deadline, ascending, one at least.
          within: seconds.

        Returns:
          0 where no way does it.
        """
        count = len(slack)
        # Two answers that are quick and mostly enough, then the exact one.
        if self.least(count) > min(within, slack[-1]):
            return 0
        first, seconds, at, elapsed = self._gentle, self.seconds, 0, 0.0
        while at < count:
            size = first[count - at]
            elapsed += seconds[size] if size in seconds else self.took(size)
            if elapsed > slack[at] or elapsed > within:
                break
            at += size
        else:
            return first[count]
        slack = [min(left, within) for left in slack]
        latest = self.latest(slack)
        return self.choose(slack, latest, gentle=True) if latest[0] >= 0 else 0

    def latest(self, slack: Sequence[float]) -> list[float]:
        """The latest start for which the i-th and all after it can be on time.

        Whoever begins with the i-th at that time, 0 being now, meets every deadline
        from there on; below 0 it is too late for that. One pass from the end: a batch
        that begins with the i-th ends by the deadline of the i-th, the earliest in it,
        and by the latest start of what is left.

        Args:
          slack: as for `begin`.

        Returns:
          One number for each request, ascending, and infinity after the last.
        """
        count = len(slack)
        found = [float("inf")] * (count + 1)
        for at in range(count - 1, -1, -1):
            mine, best = slack[at], -float("inf")
            for size, took in self._pairs:
                after = at + size
                left = found[after] if after < count else mine
                start = (left if left < mine else mine) - took
                if start > best:
                    best = start
                if after >= count:
                    break
            found[at] = best
        return found

    def choose(
        self, slack: Sequence[float], latest: Sequence[float], *, gentle: bool
    ) -> int:
        """How many to take now, of those that leave every later one its chance.

        Args:
          slack: of the requests that are to be on time.
          latest: for the same requests, what `latest` gave; the first is not below 0.
          gentle: as for `first`.
        """
        count = len(slack)
        self._extend(count)
        chosen, least = 0, float("inf")
        for size, took in self._pairs:
            taken = min(size, count)
            if took <= slack[0] and took <= latest[taken]:
                rest = count - taken
                cost = took + self._least[rest]
                if gentle:
                    cost = count * took + self._sum[rest]
                if cost < least:
                    chosen, least = taken, cost
        return chosen

    def _extend(self, count: int) -> None:
        """What is known of fewer requests gives what is known of more."""
        least, total = self._least, self._sum
        pairs = [(size, self.seconds[size]) for size in self.sizes]
        for number in range(len(least), count + 1):
            soonest = calmest = (float("inf"), 0)
            for size, took in pairs:
                taken = min(size, number)
                soonest = min(soonest, (took + least[number - taken], -taken))
                # A batch delays all who are still there.
                calmest = min(calmest, (number * took + total[number - taken], -taken))
                if size >= number:
                    break
            least.append(soonest[0])
            total.append(calmest[0])
            self._first.append(-soonest[1])
            self._gentle.append(-calmest[1])
