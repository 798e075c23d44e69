"""A question that may get lost is asked again, until its deadline."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from .answers import Late

T = TypeVar("T")

_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.2


class Lost(Exception):
    """Who was asked has gone, or takes nothing any more; another may answer."""


async def answered(
    attempt: Callable[[float], Awaitable[T]],
    due: float,
    *,
    lost: tuple[type[Exception], ...] = (Lost,),
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """What the first attempt gives that is not lost.

    Asking twice does no harm: a network changes nothing. Nobody is asked after the
    deadline, and nobody is waited for.

    Args:
      attempt: asks once; is given the seconds that are left.
      due: the deadline, on the clock.
      lost: the errors after which to ask again, at once and then after pauses that
        double from 10 to 200 ms. Any other error is raised.
      clock: seconds.
      sleep: waits for so many seconds.

    Raises:
      Late: when the deadline has passed.

    Example:
      >>> import asyncio, time
      >>> asked = []
      >>> async def attempt(left):
      ...     asked.append(left)
      ...     if len(asked) < 3:
      ...         raise Lost
      ...     return "answer"
      >>> asyncio.run(answered(attempt, time.monotonic() + 60, clock=time.monotonic))
      'answer'
      >>> 60 >= asked[0] > asked[1] > asked[2]
      True
    """
    count, pause, why = 0, 0.0, ""
    while (left := due - clock()) > 0:
        count += 1
        try:
            async with asyncio.timeout(left) as limit:
                return await attempt(left)
        except TimeoutError:
            if not limit.expired():
                raise  # of the attempt itself
            break
        except lost as error:
            why = f" It was lost {count} times; the last time {error}."
        if (left := due - clock()) > 0 and pause:
            await sleep(min(pause, left))
        pause = min(max(2 * pause, _PAUSE_S), _LONGEST_PAUSE_S)
    raise Late(f"its deadline passed.{why}")
