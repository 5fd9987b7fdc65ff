"""One MESSAGE to a user of ours, from its arrival to its final response (RFC 3428).

Performs what ``core.messages`` decides with real time, flows, the store and the push services.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, assert_never

import structlog

from sipush.core.bindings import Aor, Location, without_reg_id
from sipush.core.messages import (
    Arrival,
    ArrivalAction,
    ArrivalState,
    CatchUp,
    Discard,
    Forward,
    Keep,
    Notify,
    Respond,
    same_way,
)
from sipush.core.response_context import FLOW_GONE
from sipush.core.routing import forward_request, max_breadth, strip_push_params
from sipush.core.stored_message import (
    StoredMessage,
    lifetime,
    to_store,
)
from sipush.core.target_set import Target
from sipush.errors import LocationError
from sipush.log_lines import shown
from sipush.server.answers import STORE_DOWN, reject, respond
from sipush.server.timer_wheel import Alarm
from sipush.server.transactions import ServerTransactionHandle
from sipush.sip.message import Request, Response, make_response
from sipush.sip.status import Status

if TYPE_CHECKING:
    from sipush.server.messages import Leg, Messages

log = structlog.get_logger()

_LONGEST_PROBE = 10.0
"Seconds, whatever the configuration says: the sender's transaction ends after 32."


class Arriving:
    """One MESSAGE until it has its final response and nothing is out any more."""

    __slots__ = (
        "aor",
        "legs",
        "location",
        "machine",
        "message",
        "messages",
        "probe",
        "request",
        "responses",
        "tag",
        "targets",
        "transaction",
    )

    # Not a dataclass: mypyc would look its types up in the module of Messages, which comes later.
    def __init__(  # noqa: PLR0917
        self,
        messages: Messages,
        transaction: ServerTransactionHandle,
        request: Request,
        tag: str,
        aor: Aor,
        location: Location,
        machine: Arrival,
    ) -> None:
        """``request``: as ``from_sender`` gave it."""
        self.messages = messages
        self.transaction = transaction
        self.request = request
        self.tag = tag
        self.aor = aor
        self.location = location
        self.machine = machine
        self.message: StoredMessage | None = None
        "As it is stored, once it is."
        self.targets: list[Target] = []
        "One for each device that seems to be awake, with the flow that is tried now."
        self.legs: list[Leg] = []
        self.responses: dict[int, Response] = {}
        self.probe: Alarm | None = None

    def start(self) -> None:
        """Forward it, or have it stored."""
        location = self.location
        awake: dict[str, Target] = {}
        asleep: set[str] = set()
        for binding in location.bindings:
            device = without_reg_id(binding.device)
            target = self.messages.target(binding)
            if not target.live:
                asleep.add(device)
            elif (first := awake.get(device)) is None:
                awake[device] = target
            else:
                first.others += (target,)
        for record in location.push_records:
            asleep.add(without_reg_id(record.device))
        self.targets = list(awake.values())
        if (breadth := max_breadth(self.request)) is not None:
            del self.targets[breadth:]
        arrivals = self.messages.arrivals
        if self.aor not in arrivals:
            arrivals[self.aor] = set()
        arrivals[self.aor].add(self)
        waits = any(device not in awake for device in asleep)
        self._perform(
            self.machine.start(len(self.targets), asleep=waits, waiting=location.messages)
        )
        if self.legs:
            probe = min(self.messages.proxy.policy.probe, _LONGEST_PROBE)
            self.probe = self.messages.proxy.layer.wheel.call_later(probe, self._probe_expired)

    def abandon(self, devices: Collection[str], ways: Collection[Target]) -> None:
        """These devices have registered and get the message from the store, or have it already.

        ``ways``: where they are. What waits in the socket of one that was suspended, it takes from
        there.
        """
        names = set(map(without_reg_id, devices))
        for place, leg in enumerate(self.legs):
            if self.message is None or without_reg_id(leg.target.device) not in names:
                continue
            if self._is_out(place) and not any(same_way(leg.target, way) for way in ways):
                leg.abandon()
        self._forget_if_done()

    def give_away(self, message: StoredMessage, target: Target) -> Leg | None:
        """What is out to ``target`` of this stored message; to us it counts as not answered."""
        if self.message is None or self.message.id != message.id:
            return None
        for place, leg in enumerate(self.legs):
            if self._is_out(place) and same_way(leg.target, target):
                self._perform(self.machine.answered(place, Status.REQUEST_TIMEOUT))
                return leg
        return None

    def _is_out(self, place: int) -> bool:
        return not (self.machine.statuses[place] or self.legs[place].abandoned)

    def _probe_expired(self) -> None:
        self._perform(self.machine.probe_expired())

    def _forget_if_done(self) -> None:
        """Kept, it stays as long as a device may still say that it has taken it."""
        if self.machine.state is ArrivalState.KEPT:
            if any(map(self._is_out, range(len(self.legs)))):
                return
        elif self.machine.state is not ArrivalState.FINISHED:
            return
        if self.probe is not None:
            self.probe.cancel()
        arrivals = self.messages.arrivals
        of_user = arrivals.get(self.aor)
        if of_user is not None:
            of_user.discard(self)
            if not of_user:
                del arrivals[self.aor]

    def _answered(self, place: int, status: int, response: Response | None) -> None:
        others = self.targets[place].others
        if others and status in FLOW_GONE and self.machine.state is ArrivalState.TRYING:
            self.targets[place] = replace(others[0], others=others[1:])  # RFC 5626 §7
            self.legs[place] = self._send(place)
            return
        if response is not None:
            self.responses[place] = response
        elif status == Status.REQUEST_TIMEOUT and self.message is not None:
            self.messages.timed_out(self.legs[place], self.message)
        self._perform(self.machine.answered(place, status))

    def _perform(self, actions: list[ArrivalAction]) -> None:
        spawn = self.messages.proxy.tasks.spawn
        # mypyc compiles isinstance to a comparison, a case of match to a call.
        for action in actions:
            if isinstance(action, Forward):
                self.legs.append(self._send(action.target))
            elif isinstance(action, Respond):
                self._respond(action.status, action.reason, action.target)
            elif isinstance(action, Keep):
                longest = self.messages.policy.lifetime
                seconds = lifetime(self.request, longest)
                message = to_store(self.request, self.aor, time.time(), seconds)
                spawn(self._keep(message))
            elif isinstance(action, Notify):
                spawn(self._notify(self._stored, action.later))
            elif isinstance(action, CatchUp):
                spawn(self._catch_up())
            elif isinstance(action, Discard):
                self.messages.taken(self._stored)
                spawn(self.messages.discard(self._stored, self.request.call_id))
            else:
                assert_never(action)
        self._forget_if_done()

    def _send(self, place: int) -> Leg:
        target = self.targets[place]
        forwarded = forward_request(self.request, target, ())
        unique = f"{self.transaction.branch} {target.device} {target.flow}"
        branch = self.messages.proxy.new_branch(forwarded, unique)
        return self.messages.send(forwarded, target, partial(self._answered, place), branch)

    def _respond(self, status: int, reason: str, place: int | None) -> None:
        if shown.debug:
            log.debug("message_answered", call_id=self.request.call_id, status=status)
        response = self.responses.get(place) if place is not None else None
        if response is not None:
            strip_push_params(response)
            respond(self.transaction, response)
        elif status == Status.SERVICE_UNAVAILABLE:
            reject(self.transaction, STORE_DOWN, self.tag)
        else:
            made = make_response(self.request, status, reason or None, self.tag)
            respond(self.transaction, made)

    @property
    def _stored(self) -> StoredMessage:
        assert self.message is not None
        return self.message

    async def _keep(self, message: StoredMessage) -> None:
        store, limit = self.messages.proxy.store, self.messages.policy.max_stored
        try:
            receipt = await store.put_message(message, limit)
        except LocationError as error:
            log.error("store_unavailable", reason=str(error))
            self._perform(self.machine.store_failed())
            return
        if receipt is None:
            self._tell("mailbox_full", reports=message.is_report)
            self._perform(self.machine.full(is_report=message.is_report))
            return
        self.message = replace(message, id=receipt.id)
        self._tell("message_stored", push_id=receipt.id)
        self._perform(self.machine.kept(repeated=receipt.repeated))

    async def _catch_up(self) -> None:
        """Whoever registered between the look-up and the storing has not heard of this."""
        aor, proxy = self.aor, self.messages.proxy
        ways = [way for leg in self.legs for way in (leg.target, *leg.target.others)]
        tried = {_place(way) for way in ways}
        try:
            location = await proxy.store.lookup(aor, time.time())
        except LocationError as error:
            log.warning("messages_not_delivered", aor=aor, reason=str(error))
            return
        target = self.messages.target
        fresh = [b for b in location.bindings if _place(target(b)) not in tried]
        self.messages.deliver(aor, location, fresh, register=False)

    # -- push --

    async def _notify(self, message: StoredMessage, later: bool) -> None:
        if later:
            await asyncio.sleep(self.messages.proxy.policy.probe)
            if not await self._still_stored(message):
                return
        if message.is_report:
            return
        refused = {
            without_reg_id(target.device)
            for place, target in enumerate(self.targets)
            if self.machine.refused(place)
        }
        for record in self.location.push_records:
            if record.allow_message and without_reg_id(record.device) not in refused:
                self.messages.pushes.push(message, record)

    async def _still_stored(self, message: StoredMessage) -> bool:
        try:
            waiting = await self.messages.proxy.store.messages(self.aor, time.time())
        except LocationError:
            return True
        return any(other.id == message.id for other in waiting)

    def _tell(self, event: str, **facts: object) -> None:
        log.info(event, call_id=self.request.call_id, aor=self.aor, **facts)


def _place(target: Target) -> tuple[str, tuple[str, ...], str]:
    """What leads to one device: behind a proxy only together with its Contact."""
    return target.flow, target.route, target.uri if target.route else ""
