"""What the local push services and webhook receiver got, in a test's words."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sipush.demo.http_server import Act
from sipush.demo.push_service import Misbehaviour, PushService, ReceivedPush
from tests.e2e.wire import PATIENCE

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Push:
    """One push."""

    received: ReceivedPush

    @property
    def service(self) -> str:
        """``apns``, ``fcm``, ``webpush`` or ``webhook``."""
        return self.received.service

    @property
    def token(self) -> str:
        """The device's token, the browser's endpoint; for a webhook the user."""
        return self.received.token

    @property
    def data(self) -> dict[str, Any]:
        """The keys the app (or its operator) reads."""
        payload = self.received.payload
        return payload if self.service in ("apns", "webpush") else payload["data"]

    @property
    def push_id(self) -> str:
        """What must come again as X-Push-Id of the INVITE."""
        if not self.data:  # a Web Push that carries nothing
            return self.received.headers["topic"]
        name = "call_id" if self.service == "webhook" else "x-push-id"
        return str(self.data[name])

    @property
    def domain(self) -> str:
        """The domain of the user it is for, if it tells."""
        name = "user_id" if self.service == "webhook" else "send_to"
        return str(self.data.get(name)).rpartition("@")[2]

    @property
    def cancels(self) -> bool:
        """Whether it takes back a push: the call is over."""
        if self.service == "webhook":
            return bool(self.received.payload["type"] == "call.mobile_push_cancelled")
        return bool(self.data.get("msg_type") == "cancel")


class PushLog:
    """Every push of the whole run; made in the event loop of the tests."""

    service: PushService
    "Set once, when it has been built around us."

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pushes: list[Push] = []
        self._arrived = asyncio.Condition()

    def received(self, push: ReceivedPush) -> None:
        """Called by the service, in its own thread."""
        asyncio.run_coroutine_threadsafe(self._add(Push(push)), self._loop)

    async def _add(self, push: Push) -> None:
        async with self._arrived:
            self._pushes.append(push)
            self._arrived.notify_all()

    def of(self, domain: str) -> list[Push]:
        """Every push so far for users of a domain, in order."""
        return [push for push in self._pushes if push.domain == domain]

    async def count(self, domain: str, number: int) -> None:
        """Wait for so many pushes for users of a domain."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.of(domain)) >= number)

    async def to(self, token: str, number: int) -> list[Push]:
        """So many pushes to a token, waited for."""
        found: list[Push] = []

        def came() -> bool:
            found[:] = [push for push in self._pushes if push.token == token]
            return len(found) >= number

        async with self._arrived:
            await self._arrived.wait_for(came)
        return found

    def assert_no_rule_broken(self) -> None:
        """No rule of any service was broken, no device pushed twice for a call (W4)."""
        assert self.service.violations == []
        assert_each_device_at_most_once_per_call(self._pushes)


class Pushes:
    """The checking push service, seen from a test: only what is for users of its domain."""

    def __init__(self, log: PushLog, domain: str) -> None:
        self._log = log
        self._domain = domain
        self._taken = 0

    async def next(self, patience: float = PATIENCE) -> Push:
        """The next push nobody has taken yet; it broke no rule of its service."""
        try:
            async with asyncio.timeout(patience):
                await self._log.count(self._domain, self._taken + 1)
        except TimeoutError:
            raise AssertionError("no push came") from None
        push = self.all[self._taken]
        self._taken += 1
        assert not push.received.violations, push.received.violations
        return push

    def starts(self, start: Callable[[], Awaitable[T]]) -> asyncio.Task[tuple[Push, T]]:
        """The next push, and the phone that it starts, as the phone's operating system would."""

        async def started() -> tuple[Push, T]:
            return await self.next(), await start()

        return asyncio.create_task(started())

    def ignore(self, token: str) -> None:
        """Never answer a push to a token."""
        self._log.service.misbehave(token, Misbehaviour(act=Act.SILENCE))

    def put_off(self, token: str) -> None:
        """Answer the next push to a token *again in a second*, and accept the one after."""
        self._log.service.misbehave(token, Misbehaviour(503, retry_after="1", times=1))

    @property
    def all(self) -> list[Push]:
        """Every push so far, in order."""
        return self._log.of(self._domain)

    def refuse(self, token: str, status: int, reason: str) -> None:
        """Answer pushes to a token so from now on.

        APNs tells the millisecond since when; a REGISTER of the same one must count as earlier.
        """
        since = time.time() + 0.001
        self._log.service.misbehave(token, Misbehaviour(status, reason, timestamp=since))

    def assert_each_device_at_most_once_per_call(self) -> None:
        """W4, and no rule of any service broken."""
        assert self._log.service.violations == []
        assert_each_device_at_most_once_per_call(self.all)


def assert_each_device_at_most_once_per_call(pushes: Sequence[Push]) -> None:
    """Nobody is woken twice for one call, nor told twice that it is over (W4)."""
    counts = Counter((push.push_id, push.token, push.cancels) for push in pushes)
    assert max(counts.values(), default=1) == 1, f"pushed twice: {counts}"
