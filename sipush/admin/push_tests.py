"""Test pushes: does the way from here to a phone work?

A push to APNs VoIP must be reported by the app as a call, so one is sent only to whom wants the
phone to ring. Everything else is asked to register, and does not ring.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from sipush.admin import views
from sipush.core.bindings import Aor, Location, Platform, PushRecord
from sipush.core.push_request import NOTHING_TO_SEND, PushKind, PushOutcome, PushRequest, PushResult
from sipush.location.store import LocationStore
from sipush.push.dispatcher import Dispatcher
from sipush.push.provider import Leave
from sipush.server.dead_tokens import remove_dead_token
from sipush.server.push_bucket import PushBucket
from sipush.server.tasks import Tasks

PATIENCE = 30.0
"Seconds that a device has to register, as long as a call waits."
KEPT = 20
"Tests that are shown when they are over."
AT_ONCE = 10

log = structlog.get_logger()


class RefusedError(Exception):
    """The test cannot be made: HTTP status and reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(slots=True)
class PushTest:
    """One push to one device."""

    id: str
    aor: Aor
    device: str
    "As in the log."
    ring: bool
    began_epoch: float
    service: str
    outcome: PushOutcome | None = None
    took: float | None = None
    registered_after: float | None = None
    told: asyncio.Event = field(default_factory=asyncio.Event)
    "The push service has answered."
    over: bool = False
    "Nothing is waited for any more."

    @property
    def may_arrive(self) -> bool:
        """Whether the device may still register."""
        results = (PushResult.ACCEPTED, PushResult.TIMED_OUT)
        return self.outcome is not None and self.outcome.result in results

    def to_json(self) -> views.Json:
        """For the API."""
        outcome = self.outcome
        return {
            "id": self.id,
            "aor": views.text(self.aor),
            "device": self.device,
            "ring": self.ring,
            "service": self.service,
            "began_epoch": round(self.began_epoch, 3),
            "result": outcome and outcome.result.value,
            "words": "is being sent" if outcome is None else _words(outcome),
            "reason": outcome and outcome.reason,
            "status": outcome and outcome.status,
            "took": self.took,
            "registered_after": self.registered_after,
            "over": self.over,
        }


class PushTests:
    """Makes them, and remembers the last ones."""

    def __init__(
        self,
        store: LocationStore,
        dispatcher: Dispatcher,
        bucket: PushBucket,
        tasks: Tasks,
        waking: Callable[[], Collection[str]],
    ) -> None:
        """``waking``: ids of the devices that calls wait for."""
        self._store = store
        self._dispatcher = dispatcher
        self._bucket = bucket
        self._tasks = tasks
        self._waking = waking
        self._tests: deque[PushTest] = deque(maxlen=KEPT)

    @property
    def newest_first(self) -> list[PushTest]:
        """The last ones."""
        return list(reversed(self._tests))

    async def run(self, aor: Aor, device: str, *, ring: bool) -> PushTest:
        """Push one device; returns with what the service said. Whether the device registers then
        is told later.

        Raises RefusedError and LocationError.
        """
        location = await self._store.lookup(aor, time.time())
        records = (r for r in location.push_records if views.device_id(aor, r.device) == device)
        record = next(records, None)
        if record is None:
            raise RefusedError(404, "no device of that user has that id and a push record")
        if ring and not record.allow_call:
            raise RefusedError(409, "the device has asked not to be pushed for calls")
        if device in self._waking():
            raise RefusedError(409, "a call is waking that device just now: look at that instead")
        running = [test for test in self._tests if not test.over]
        if any(test.device == device for test in running):
            raise RefusedError(409, "a test of that device is still running")
        if len(running) >= AT_ONCE:
            raise RefusedError(429, f"{AT_ONCE} tests are running: wait for one to end")
        platform = record.platform.value
        test = PushTest(str(uuid.uuid4()), aor, device, ring, time.time(), platform)
        self._tests.append(test)
        self._tasks.spawn(self._test(test, record))
        await test.told.wait()
        return test

    async def _test(self, test: PushTest, record: PushRecord) -> None:
        came = asyncio.Event()

        def registered(_: Aor, found: Location, devices: Collection[str]) -> None:
            if test.device in {views.device_id(test.aor, each) for each in devices}:
                test.registered_after = round(time.time() - test.began_epoch, 3)
                came.set()
                self._bucket.unwatch(test.aor, registered)

        self._bucket.watch(test.aor, registered)
        try:
            await self._push(test, record)
            test.told.set()
            if test.may_arrive:
                with suppress(TimeoutError):
                    async with asyncio.timeout(test.began_epoch + PATIENCE - time.time()):
                        await came.wait()
                if test.ring and record.platform is not Platform.APNS:
                    await self._dispatcher.send(_request(test, PushKind.CANCEL, record))
        finally:
            self._bucket.unwatch(test.aor, registered)
            test.over = True
            test.told.set()

    async def _push(self, test: PushTest, record: PushRecord) -> None:
        kind = PushKind.CALL if test.ring else PushKind.TEST

        async def begin(leave: Leave) -> bool:
            wanted = test.device not in self._waking()
            if wanted:
                leave()
            return wanted

        outcome = await self._dispatcher.send(_request(test, kind, record), begin)
        test.outcome, test.took = outcome, round(time.time() - test.began_epoch, 3)
        log.info(
            "push_tested",
            aor=test.aor,
            device=test.device,
            push_id=test.id,
            ring=test.ring,
            result=outcome.result.value,
            reason=outcome.reason,
        )
        if outcome.result is PushResult.TOKEN_DEAD:
            await remove_dead_token(self._store, record)


def _request(test: PushTest, kind: PushKind, record: PushRecord) -> PushRequest:
    return PushRequest(
        kind=kind,
        push_id=test.id,
        record=record,
        deadline_epoch=test.began_epoch + PATIENCE,
        created_epoch=test.began_epoch,
        call_id=test.id,
        from_user="push-test" if test.ring else "",
        from_name="Push test" if test.ring else "",
    )


def _words(outcome: PushOutcome) -> str:
    if outcome.reason == NOTHING_TO_SEND:
        return "the app has registered no token for this: try with ring"
    return views.RESULTS[outcome.result]
