"""The gate: who is heard, and what a failed sign-in costs (docs/abuse.md)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from sipush.core.abuse import Guard, Verdict
from sipush.errors import LocationError, MessageError
from sipush.location.store import LocationStore
from sipush.sip.message import Message, Request
from sipush.transport.flow import Flow, Receiver

log = structlog.get_logger()

POLL = 3.0
"Seconds between looks at the bans of the other processes, and at those lifted by hand."

REFUSAL_TIME = 0.1
"""Seconds after which a failed sign-in is answered at the earliest, so that the time it takes to
find out that a user does not exist shows nowhere."""


MAX_HELD_BACK = 10_000
"Requests kept while a start takes up the calls of its earlier life; phones repeat the others."


@dataclass(slots=True, eq=False)
class Gate:
    """Asks the Guard, and shares bans with the other processes on the store."""

    guard: Guard
    store: LocationStore
    clock: Callable[[], float]
    turned_away: int = 0
    "Messages not heard, since the start."
    _shared: set[str] = field(default_factory=set)
    "Sources whose ban we know to be in the store."

    def client(self, flow: Flow) -> str:
        """Whom a nonce is for."""
        return self.guard.client(flow.remote[0])

    def is_banned(self, flow: Flow) -> bool:
        """Whether what was heard of it came just before it was banned: guesses come in swarms."""
        return self.guard.is_banned(flow.remote[0], self.clock())

    def admits(self, flow: Flow) -> bool:
        """Whether something that came over ``flow`` is heard."""
        return self.guard.judge(flow.remote[0], self.clock()) is Verdict.ADMIT

    def turn_away(self, flow: Flow) -> None:
        """Answer nothing; a connection is closed, so that its other end need not wait."""
        self.turned_away += 1
        flow.close()

    def signed_in(self, flow: Flow) -> None:
        """Somebody there is a user of ours, or a server that we chose to call."""
        self.guard.signed_in(flow.remote[0], self.clock())

    async def sign_in_failed(self, flow: Flow, since: float) -> None:
        """Wait as long as the answer has to; ``since``: when the request came."""
        now = self.clock()
        failure = self.guard.failed(flow.remote[0], now)
        if failure.banned:
            await self._banned(failure.banned)
        await asyncio.sleep(max(since + REFUSAL_TIME, now + failure.delay) - self.clock())

    async def _banned(self, source: str) -> None:
        seconds = self.guard.policy.ban_time
        log.warning("banned", source=source, seconds=seconds, reason="too many failed sign-ins")
        try:
            await self.store.put_ban(source, time.time() + seconds)
        except LocationError as error:
            log.warning("ban_not_stored", source=source, reason=str(error))
        else:
            self._shared.add(source)

    async def share_bans(self) -> None:
        """Look at the bans for ever."""
        while True:
            await self.look_at_bans()
            await asyncio.sleep(POLL)

    async def look_at_bans(self) -> None:
        """Take over bans from the store, and their end."""
        before = set(self._shared)
        try:
            stored = await self.store.bans(time.time())
        except LocationError as error:
            log.debug("bans_not_read", reason=str(error))
            return
        self._take_over(stored, before)

    def _take_over(self, stored: dict[str, float], before: set[str]) -> None:
        """``before``: the sources whose ban was in the store when it was asked."""
        now, now_epoch = self.clock(), time.time()
        over = self.guard.bans(now)
        for source in before - stored.keys():
            self._shared.discard(source)
            if source in over:
                self.guard.lift(source)
                log.info("ban_lifted", source=source)
        for source, until_epoch in stored.items():
            self.guard.ban(source, now + until_epoch - now_epoch)
        self._shared |= stored.keys()


class GateKeeper:
    """The Receiver in front of another, which hears of nothing that the Guard turns away.

    Responses pass: without a request of ours they lead nowhere. So do requests that are vital,
    wherever they come from.
    """

    def __init__(self, gate: Gate, receiver: Receiver, is_vital: Callable[[Request], bool]) -> None:
        self._gate = gate
        self._receiver = receiver
        self._is_vital = is_vital
        self._held_back: list[tuple[Flow, Request]] | None = None
        self.flow_closed = receiver.flow_closed
        self.flow_unreachable = receiver.flow_unreachable
        self.flow_active = receiver.flow_active

    def hold_back(self) -> None:
        """Keep requests until ``let_in``: what they are about is not known yet."""
        self._held_back = []

    def let_in(self) -> None:
        """Hear them now, in order."""
        held_back, self._held_back = self._held_back or [], None
        for flow, request in held_back:
            self.message_received(flow, request)

    def message_received(self, flow: Flow, message: Message) -> None:
        """See ``Receiver``."""
        if (
            self._held_back is not None
            and isinstance(message, Request)
            and not self._is_vital(message)
        ):
            if len(self._held_back) < MAX_HELD_BACK:
                self._held_back.append((flow, message))
            return
        if self._gate.admits(flow) or not isinstance(message, Request) or self._is_vital(message):
            self._receiver.message_received(flow, message)
        else:
            self._gate.turn_away(flow)

    def malformed_received(self, flow: Flow, error: MessageError) -> None:
        """See ``Receiver``."""
        if self._gate.admits(flow):
            self._receiver.malformed_received(flow, error)
        else:
            self._gate.turn_away(flow)
