"""Takes every push to the service of its app and platform, within the time the call has."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import structlog

from sipush.core.bindings import Platform, PushRecord, full_device
from sipush.core.push_payload import PayloadTooLargeError
from sipush.core.push_request import NOTHING_TO_SEND, PushOutcome, PushRequest, PushResult
from sipush.log_lines import fingerprint
from sipush.metrics import PUSHES
from sipush.push.apps import App
from sipush.push.provider import Begin, PushProvider, WithdrawnError
from sipush.push.quarantine import Quarantine
from sipush.turns import Turns

MAX_WAIT = 30.0
"Seconds one push may take, however late its deadline is."
SLOW = 1.0
"Seconds after which a send no longer counts as in flight: it waits, and costs nothing."
SLOW_FACTOR = 10
"How many slow sends a service may have, in multiples of ``max_in_flight``."

log = structlog.get_logger()


class Dispatcher:
    """The one way out for pushes."""

    def __init__(
        self,
        apps: Mapping[str, App],
        turns: Turns | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``turns``: shared with whatever else is costly."""
        self._turns = turns or Turns()
        self._lanes = _lanes(apps, self._turns)
        self._clock = clock
        self._quarantine = Quarantine(clock)
        "New with the services: what the old ones say, they say of the old settings."
        self._retiring: dict[asyncio.Task[None], _Lane] = {}
        self._log: Any = structlog.get_logger().bind()
        "Bound once: each push has a line."

    async def send(self, request: PushRequest, begin: Begin | None = None) -> PushOutcome:
        """Deliver one push, repeated where its service allows it, never past its deadline.

        ``begin`` is awaited before each try, as the last thing before its bytes leave: False
        withdraws the push.
        """
        started, quarantine = self._clock(), self._quarantine
        lane = self._lane(request.record)
        if lane is None:
            outcome = PushOutcome(PushResult.CONFIG, "no service for this app and platform")
        elif quarantine.holds(request):
            outcome = PushOutcome(PushResult.TOKEN_REFUSED, "refused a moment ago, not asked again")
        else:
            with lane.in_use():
                outcome = await self._send(lane, request, begin)
            if outcome.result is PushResult.TOKEN_REFUSED:
                quarantine.add(request)
        self._tell(request, outcome, self._clock() - started)
        return outcome

    def replace(self, apps: Mapping[str, App]) -> None:
        """New apps from now on; the old ones' connections close once their sends have ended."""
        self._quarantine = Quarantine(self._clock)
        old, self._lanes = self._lanes, _lanes(apps, self._turns)
        for lane in _each(old):
            task = asyncio.ensure_future(lane.retire())
            self._retiring[task] = lane
            task.add_done_callback(self._retiring.pop)

    async def close(self) -> None:
        """Close all connections now. May be called twice."""
        lanes = [*_each(self._lanes), *self._retiring.values()]
        for task in self._retiring:
            task.cancel()
        for lane in lanes:
            await lane.provider.close()

    def _lane(self, record: PushRecord) -> _Lane | None:
        lanes = self._lanes.get(record.app_id, {})
        return lanes.get(record.platform) or lanes.get(Platform.WEBHOOK)

    async def _send(self, lane: _Lane, request: PushRequest, begin: Begin | None) -> PushOutcome:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(MAX_WAIT, request.deadline_epoch - self._clock())
        delays = iter(lane.provider.retry_delays)
        tried = unanswered = False
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    outcome = await lane.send(request, begin)
                    if outcome.result is PushResult.WITHDRAWN and unanswered:
                        return PushOutcome(PushResult.TIMED_OUT, "withdrawn, perhaps too late")
                    delay = next(delays, None)
                    if delay is None or not _worth_another_try(outcome):
                        return outcome
                    unanswered = unanswered or (outcome.has_left and not outcome.status)
                    harmless = outcome.result is PushResult.RETRYABLE and not unanswered
                    if tried and not (harmless or lane.provider.knows_repeats):
                        return outcome
                    tried = True
                    # Not all at once: they may have failed together, by the fault of one.
                    pause = max(delay * random.uniform(0.5, 1.5), outcome.retry_after)
                    if loop.time() + pause >= deadline:
                        return outcome
                    await asyncio.sleep(pause)
        except TimeoutError:
            return PushOutcome(PushResult.TIMED_OUT, "no answer in time")

    def _tell(self, request: PushRequest, outcome: PushOutcome, seconds: float) -> None:
        platform, result = request.record.platform.value, outcome.result.value
        PUSHES.counts[platform, result] += 1
        match outcome.result:
            case PushResult.ACCEPTED | PushResult.WITHDRAWN:
                say = self._log.info
            case _ if outcome.reason == NOTHING_TO_SEND:
                say = self._log.info
            case PushResult.CONFIG:
                say = self._log.error
            case PushResult.TOKEN_REFUSED if outcome.status:
                say = self._log.error
            case _:
                say = self._log.warning
        say(
            "push_finished",
            push_id=request.push_id,
            kind=request.kind.value,
            call_id=request.call_id,
            aor=request.record.aor,
            app_id=request.record.app_id,
            platform=platform,
            device=fingerprint(full_device(request.record.aor, request.record.device)),
            result=result,
            reason=outcome.reason,
            status=outcome.status,
            duration=round(1000 * seconds) / 1000,
        )


class _Lane:
    """One service of one app, with room for so many sends at once."""

    def __init__(self, provider: PushProvider, turns: Turns) -> None:
        self.provider = provider
        self._turns = turns
        self._room = asyncio.Semaphore(provider.max_in_flight)
        self._slow_room = asyncio.Semaphore(SLOW_FACTOR * provider.max_in_flight)
        self._active = 0
        self._idle = asyncio.Event()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Not closed meanwhile, also between two tries of one push."""
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    async def send(self, request: PushRequest, begin: Begin | None) -> PushOutcome:
        try:
            async with self._slow_room:
                await self._room.acquire()
                place = _Place(self._room)
                try:
                    await self._turns.wait()
                    return await self.provider.send(request, begin)
                finally:
                    place.give_up()
        except WithdrawnError:
            return PushOutcome(PushResult.WITHDRAWN)
        except PayloadTooLargeError:
            return PushOutcome(PushResult.BAD_REQUEST, "PayloadTooLarge")
        except Exception as error:  # a bug must cost one push, not the call
            # Its text may hold a token, so only its type is told.
            log.error("push_failed", service=self.provider.name, error=type(error).__name__)
            return PushOutcome(PushResult.BAD_REQUEST, "internal error")

    async def retire(self) -> None:
        """Close once it is not in use."""
        while self._active:
            self._idle.clear()
            await self._idle.wait()
        await self.provider.close()


class _Place:
    """A place among the busy sends, given up when the service is slow to answer."""

    def __init__(self, room: asyncio.Semaphore) -> None:
        """``room`` has been acquired."""
        self._room: asyncio.Semaphore | None = room
        self._slow = asyncio.get_running_loop().call_later(SLOW, self.give_up)

    def give_up(self) -> None:
        """May be called twice."""
        if self._room is not None:
            self._room.release()
            self._room = None
            self._slow.cancel()


def _worth_another_try(outcome: PushOutcome) -> bool:
    """Failed for the moment; a throttling service must also have said until when."""
    if outcome.result is PushResult.THROTTLED:
        return outcome.retry_after > 0
    return outcome.result is PushResult.RETRYABLE


def _lanes(apps: Mapping[str, App], turns: Turns) -> dict[str, dict[Platform, _Lane]]:
    return {
        app_id: {platform: _Lane(provider, turns) for platform, provider in app.items()}
        for app_id, app in apps.items()
    }


def _each(lanes: Mapping[str, Mapping[Platform, _Lane]]) -> list[_Lane]:
    return [lane for app in lanes.values() for lane in app.values()]
