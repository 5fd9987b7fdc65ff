"""Pushes of stored messages, tried again while their service is away.

A message waits for days, and an app that was killed hears of it only by its push.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from sipush.core.bindings import PushRecord, full_device
from sipush.core.push_request import PushOutcome, PushResult
from sipush.core.stored_message import StoredMessage, to_push, without_content
from sipush.errors import LocationError
from sipush.location.store import LocationStore
from sipush.log_lines import fingerprint
from sipush.push.dispatcher import Dispatcher
from sipush.push.provider import Leave
from sipush.server.dead_tokens import remove_dead_token
from sipush.server.tasks import Tasks

PAUSES = (30.0, 60.0, 120.0, 240.0, 480.0, 900.0)
"Seconds before each further try, more or less; the last one over and over."
LONGEST = 14_400.0
"Seconds after which nothing is tried any more: a device is woken for news, not for the past."
MOST = 10_000
"How many pushes wait for another try at most: some 5 MB."

log = structlog.get_logger()


class Cancellable(Protocol):
    """What ``call_later`` of an event loop returns."""

    def cancel(self) -> None:
        """Do not call."""


CallLater = Callable[[float, Callable[[], None]], Cancellable]


class _PutOff:
    """A push that waits for another try. Its message stays in the store, which has the text."""

    __slots__ = ("device", "message", "timer", "tries")

    def __init__(self, message: StoredMessage, device: str, tries: int) -> None:
        """``message``: as stored, but for its content."""
        self.message = message
        self.device = device
        self.tries = tries
        self.timer: Cancellable | None = None


class MessagePushes:
    """Takes the pushes of stored messages to the devices of their users."""

    def __init__(
        self,
        store: LocationStore,
        dispatcher: Dispatcher,
        tasks: Tasks,
        call_later: CallLater | None = None,
    ) -> None:
        """``call_later``: the event loop's, if none is given."""
        self._store = store
        self._dispatcher = dispatcher
        self._tasks = tasks
        self._call_later = call_later
        self._put_off: dict[tuple[int, str], _PutOff] = {}
        "By the message's id and the device."

    def __len__(self) -> int:
        """How many wait for another try."""
        return len(self._put_off)

    def push(self, message: StoredMessage, record: PushRecord) -> None:
        """Push one device, for as long as the message is stored; not later than ``LONGEST``."""
        self._tasks.spawn(self._push(message, record, 0))

    def close(self) -> None:
        """Try nothing any more."""
        for put_off in self._put_off.values():
            if put_off.timer is not None:
                put_off.timer.cancel()
        self._put_off.clear()

    async def _push(self, message: StoredMessage, record: PushRecord, tries: int) -> None:
        left = False

        async def begin(leave: Leave) -> bool:
            nonlocal left
            leave()
            left = True
            return True

        outcome = await self._dispatcher.send(to_push(message, record), begin)
        if outcome.result is PushResult.TOKEN_DEAD:
            await remove_dead_token(self._store, record)
        elif _failed_for_the_moment(outcome, left):
            self._try_later(message, record.device, tries + 1, outcome.retry_after)

    def _try_later(
        self, message: StoredMessage, device: str, tries: int, retry_after: float = 0.0
    ) -> None:
        which = message.id, device
        if which in self._put_off:
            return
        # Not all at once: they have failed together.
        pause = PAUSES[min(tries, len(PAUSES)) - 1] * random.uniform(0.5, 1.5)
        pause = max(pause, retry_after)
        end = min(message.stored_epoch + LONGEST, message.expires_epoch)
        if time.time() + pause > end or len(self._put_off) >= MOST:
            log.warning(
                "message_push_given_up",
                aor=message.aor,
                push_id=message.id,
                device=fingerprint(full_device(message.aor, device)),
                tries=tries,
            )
            return
        put_off = self._put_off[which] = _PutOff(without_content(message), device, tries)
        call_later = self._call_later or asyncio.get_running_loop().call_later
        put_off.timer = call_later(pause, lambda: self._due(which))

    def _due(self, which: tuple[int, str]) -> None:
        put_off = self._put_off.pop(which, None)
        if put_off is not None:
            self._tasks.spawn(self._push_again(put_off))

    async def _push_again(self, put_off: _PutOff) -> None:
        """Unless the message has left the store, or the device is not to be pushed any more."""
        message, now = put_off.message, time.time()
        try:
            waiting = await self._store.messages(message.aor, now)
            location = await self._store.lookup(message.aor, now)
        except LocationError as error:
            log.warning("message_push_put_off", aor=message.aor, reason=str(error))
            self._try_later(message, put_off.device, put_off.tries + 1)
            return
        stored = next((each for each in waiting if each.id == message.id), None)
        record = location.push_record(put_off.device)
        if stored is not None and record is not None and record.allow_message:
            await self._push(stored, record, put_off.tries)


def _failed_for_the_moment(outcome: PushOutcome, left: bool) -> bool:
    """``left``: its bytes did, at least once; without an answer it may have arrived."""
    if outcome.result is PushResult.TIMED_OUT:
        return not left
    if outcome.result is PushResult.RETRYABLE:
        return not outcome.has_left or outcome.status > 0
    return outcome.result is PushResult.THROTTLED
