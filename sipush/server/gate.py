"""The gate: who is heard, and what a failed sign-in costs (docs/abuse.md)."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog

from sipush.core.abuse import Guard, Verdict
from sipush.core.bindings import Aor
from sipush.core.guesses import Guesses, is_own_device
from sipush.errors import LocationError, MessageError, TransportError
from sipush.location.store import LocationStore
from sipush.server.answers import RETRY_AFTER
from sipush.server.locations import Locations
from sipush.sip.message import Message, Request, make_response
from sipush.sip.status import Status
from sipush.transport.flow import Flow, Receiver
from sipush.turns import Turns

log = structlog.get_logger()

POLL = 3.0
"Seconds between looks at the bans of the other processes, and at those lifted by hand."

REFUSAL_TIME = 0.1
"""Seconds after which a failed sign-in is answered at the earliest, so that the time it takes to
find out that a user does not exist shows nowhere."""


TOO_MANY = "Too Many Requests Before Signing In"

TELL_EVERY = 10.0
"Seconds between lines about strangers who send too much."

_IN_TURN: Final = frozenset({"INVITE", "CANCEL"})
"A call costs many times what reading it costs. A CANCEL stays behind what it cancels."

MAX_HELD_BACK = 10_000
"Requests kept while a start takes up the calls of its earlier life; phones repeat the others."


@dataclass(slots=True, eq=False)
class Gate:
    """Asks the Guard, and shares bans with the other processes on the store."""

    guard: Guard
    guesses: Guesses
    store: LocationStore
    locations: Locations
    clock: Callable[[], float]
    turned_away: int = 0
    "Messages not heard, since the start."
    _untold: int = 0
    "Of strangers, since the last line about them."
    _told_at: float = -math.inf
    _shared: set[str] = field(default_factory=set)
    "Sources whose ban we know to be in the store."

    def client(self, flow: Flow) -> str:
        """Whom a nonce is for."""
        return self.guard.client(flow.remote[0])

    def is_banned(self, flow: Flow) -> bool:
        """Whether what was heard of it came just before it was banned: guesses come in swarms."""
        return self.guard.is_banned(flow.remote[0], self.clock())

    def is_peer(self, flow: Flow) -> bool:
        """Whether its other end is one of ``[[peers]]``, be its callers challenged or not."""
        return self.guard.is_peer(flow.remote[0])

    def is_known(self, flow: Flow) -> bool:
        """Whether somebody there has signed in lately, or it is a trusted peer."""
        return self.guard.is_known(flow.remote[0], self.clock())

    def may_stay(self, flow: Flow) -> bool:
        """Whether its other end may keep a connection over which no message has come."""
        return self.is_peer(flow) or self.is_known(flow)

    def judge(self, flow: Flow) -> Verdict:
        """What becomes of something that came over ``flow``."""
        return self.guard.judge(flow.remote[0], self.clock())

    def turn_away(self, flow: Flow, verdict: Verdict) -> None:
        """Count it; a connection is closed, so that its other end need not wait."""
        self.turned_away += 1
        if verdict is Verdict.TOO_MANY:
            self._tell_of_stranger(flow.remote[0])
        flow.close()

    def _tell_of_stranger(self, address: str) -> None:
        """Seldom, as addresses may be forged: it may also be a load test, or an office."""
        self._untold += 1
        now = self.clock()
        if now - self._told_at < TELL_EVERY:
            return
        log.warning(
            "strangers_not_heard",
            messages=self._untold,
            remote=address,
            reason="more than limits.stranger_burst and stranger_rate allow before a sign-in",
        )
        self._untold, self._told_at = 0, now

    def signed_in(self, flow: Flow, user: Aor) -> None:
        """Somebody there is this user of ours."""
        now = self.clock()
        client = self.guard.signed_in(flow.remote[0], now)
        self.guesses.signed_in(user, client, now)

    def suspects(self, user: Aor) -> bool:
        """Whether somebody guesses at this user's password: else nothing slows it."""
        return self.guesses.is_guessed(user)

    async def slows(self, flow: Flow, user: Aor, request: Request) -> float:
        """Seconds until this user's password may be looked at; nothing is awaited for 0."""
        client = self.client(flow)
        wait = self.guesses.wait(user, client, self.clock()) if client else 0.0
        if wait:
            with suppress(LocationError):
                location = await self.locations.lookup(user, time.time())
                if is_own_device(request, flow.remote[0], location):
                    return 0.0
        return wait

    async def sign_in_failed(self, flow: Flow, user: Aor, since: float, call_id: str) -> None:
        """Wait as long as the answer has to; ``since``: when the request came."""
        now = self.clock()
        remote = flow.remote[0]
        log.info("authentication_failed", call_id=call_id, aor=user, remote=remote)
        client = self.client(flow)
        if client and self.guesses.failed(user, client, now):
            log.warning(
                "user_slowed",
                aor=user,
                remote=remote,
                reason="limits.failed_sign_ins_per_user reached where this user never signed in",
            )
        failure = self.guard.failed(remote, now)
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
    wherever they come from, and before all that wait for their turn.
    """

    def __init__(
        self, gate: Gate, receiver: Receiver, is_vital: Callable[[Request], bool], turns: Turns
    ) -> None:
        self._gate = gate
        self._receiver = receiver
        self._is_vital = is_vital
        self._turns = turns
        self._held_back: list[tuple[Flow, Message]] | None = None
        self.flow_closed = receiver.flow_closed
        self.flow_unreachable = receiver.flow_unreachable
        self.flow_active = receiver.flow_active

    def hold_back(self) -> None:
        """Keep requests until ``let_in``: what they are about is not known yet."""
        self._held_back = []

    def let_in(self) -> None:
        """Hear them now, in order."""
        held_back, self._held_back = self._held_back or [], None
        self.messages_received(held_back)

    def messages_received(self, received: list[tuple[Flow, Message]]) -> None:
        """See ``Receiver``."""
        admitted: list[tuple[Flow, Message]] = []
        for flow, message in received:
            if (
                self._held_back is not None
                and isinstance(message, Request)
                and not self._is_vital(message)
            ):
                if len(self._held_back) < MAX_HELD_BACK:
                    self._held_back.append((flow, message))
                continue
            verdict = self._gate.judge(flow)
            if (
                not isinstance(message, Request)
                or (verdict is Verdict.ADMIT and message.method not in _IN_TURN)
                or self._is_vital(message)
            ):
                admitted.append((flow, message))
            elif verdict is Verdict.ADMIT:
                self._receiver.messages_received(admitted)  # what came before it
                admitted = []
                self._take_turn(flow, message)
            else:
                if verdict is Verdict.TOO_MANY and flow.transport != "UDP":
                    self._refuse(flow, message)
                self._gate.turn_away(flow, verdict)
        self._receiver.messages_received(admitted)

    def _take_turn(self, flow: Flow, request: Request) -> None:
        if self._turns.waiting < MAX_HELD_BACK:
            self._turns.run(partial(self._receiver.messages_received, [(flow, request)]))

    def malformed_received(self, flow: Flow, error: MessageError) -> None:
        """See ``Receiver``."""
        verdict = self._gate.judge(flow)
        if verdict is Verdict.ADMIT:
            self._receiver.malformed_received(flow, error)
        else:
            self._gate.turn_away(flow, verdict)

    @staticmethod
    def _refuse(flow: Flow, request: Request) -> None:
        """Say why the connection is closed: its other end has not forged its address."""
        if request.method == "ACK" or "via" not in request.headers:
            return
        with suppress(TransportError):
            response = make_response(request, Status.SERVICE_UNAVAILABLE, TOO_MANY, to_tag="0")
            response.headers.append("Retry-After", RETRY_AFTER)
            flow.send(response.to_bytes())
