"""Very many short timers on one event-loop timer.

Timers are kept in buckets of ``resolution`` seconds; none is ever taken out, because a transaction
ignores a timer that fires late (sipush/sip/transaction.py), and so does an Alarm that is cancelled.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Protocol

import structlog

from sipush.sip.timers import Timer

log = structlog.get_logger()

CallLater = Callable[[float, Callable[[], None]], object]
"""``loop.call_later``: (seconds, function)."""


class Timed(Protocol):
    """Whoever sets timers."""

    def timer_fired(self, timer: Timer) -> None:
        """``timer`` ran out; never earlier, up to one resolution later."""


class Alarm:
    """A call that is due later, unless it is cancelled."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Let go of who waits for it."""
        self._call = None

    def timer_fired(self, timer: Timer) -> None:
        """Its time has come (the wheel's business)."""
        call, self._call = self._call, None
        if call is not None:
            call()


class _Bucket:
    """What fires together. In pairs, they would be one more object for each to be kept so long."""

    __slots__ = ("owners", "timers")

    def __init__(self, owners: list[Timed], timers: list[Timer]) -> None:
        self.owners = owners
        self.timers = timers


class TimerWheel:
    """Timers bucketed by the time they fire."""

    def __init__(
        self, clock: Callable[[], float], call_later: CallLater, resolution: float = 0.01
    ) -> None:
        self._clock = clock
        self._call_later = call_later
        self._resolution = resolution
        self._buckets: dict[int, _Bucket] = {}
        self._ticks: list[int] = []
        "Heap of the keys of ``_buckets``."
        self._armed: int | None = None
        "The earliest tick the loop will wake us for."

    def set(self, delay: float, owner: Timed, timer: Timer) -> None:
        """Have ``owner.timer_fired(timer)`` called ``delay`` seconds from now."""
        tick = int((self._clock() + delay) / self._resolution) + 1
        bucket = self._buckets.get(tick)
        if bucket is not None:
            bucket.owners.append(owner)
            bucket.timers.append(timer)
            return
        self._buckets[tick] = _Bucket([owner], [timer])
        heappush(self._ticks, tick)
        if self._armed is None or tick < self._armed:
            self._arm(tick)

    def call_later(self, delay: float, call: Callable[[], None]) -> Alarm:
        """As the event loop's, up to one resolution later and for a fifth of the work."""
        alarm = Alarm(call)
        self.set(delay, alarm, Timer.C)
        return alarm

    def __len__(self) -> int:
        """How many timers have not run out, those that nobody needs any more included."""
        return sum(len(bucket.timers) for bucket in self._buckets.values())

    def _arm(self, tick: int) -> None:
        self._armed = tick
        delay = max(0.0, tick * self._resolution - self._clock())
        self._call_later(delay, lambda: self._woken(tick))

    def _woken(self, tick: int) -> None:
        if tick != self._armed:
            return  # an earlier timer came after this wake-up was ordered, and re-arms
        self._armed = None
        # At least our own tick: the loop may wake us a rounding error early.
        due = max(tick, int(self._clock() / self._resolution))
        while self._ticks and self._ticks[0] <= due:
            bucket = self._buckets.pop(heappop(self._ticks))
            for place, owner in enumerate(bucket.owners):  # as zip it would not be compiled
                timer = bucket.timers[place]
                try:
                    owner.timer_fired(timer)
                except Exception:  # a bug must cost one transaction, not all that end with it
                    log.exception("timer_failed", timer=timer.name)
        if self._ticks:
            self._arm(self._ticks[0])
