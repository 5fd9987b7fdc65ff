"""MESSAGE to users of ours: forwarded, or stored, pushed and delivered (RFC 3428).

Performs what ``core.messages`` decides with real time, flows, the store and the push services.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, assert_never

import structlog

from sipush.core.bindings import Aor, Binding, Location, PushRecord
from sipush.core.messages import (
    Abandon,
    Arrival,
    ArrivalAction,
    ArrivalState,
    CatchUp,
    Delivery,
    DeliveryAction,
    DeliveryState,
    Discard,
    Forward,
    Keep,
    Load,
    Notify,
    Remove,
    Report,
    Respond,
    Retransmit,
    Send,
)
from sipush.core.push_request import PushKind, PushRequest, PushResult
from sipush.core.routing import caller, forward_request, strip_push_params
from sipush.core.stored_message import (
    StoredMessage,
    is_composing,
    lifetime,
    shown,
    to_deliver,
    to_store,
    without_push_ids,
)
from sipush.core.target_set import Target
from sipush.errors import LocationError, MessageError, TransportError
from sipush.logs import fingerprint
from sipush.server.answers import STORE_DOWN, reject, respond
from sipush.server.transactions import ClientTransactionHandle, Failure, ServerTransactionHandle
from sipush.sip.message import Request, Response, make_response
from sipush.sip.status import Status
from sipush.transport.flow import Flow

if TYPE_CHECKING:
    from sipush.server.proxy import Proxy

log = structlog.get_logger()

Answered = Callable[[int, Response | None], None]
"""(final status, the response itself unless the status is ours: 408 or 430)."""


@dataclass(frozen=True, slots=True)
class MessagePolicy:
    """The ``[messages]`` section; replaced as a whole on reload."""

    lifetime: float
    max_stored: int


@dataclass(slots=True, eq=False)
class _Leg:
    """One MESSAGE on its way to one device."""

    target: Target
    handle: ClientTransactionHandle | None = None
    abandoned: bool = False

    def abandon(self) -> None:
        self.abandoned = True
        if self.handle is not None:
            self.handle.abandon()


class Messages:
    """The messages under way, and those that devices are being given."""

    def __init__(self, proxy: Proxy, policy: MessagePolicy) -> None:
        self.proxy = proxy
        self.policy = policy
        self.refused = 0
        "Stored messages that a device refused for good."
        self.arrivals: dict[Aor, set[_Arriving]] = {}
        self.deliveries: dict[Aor, _Delivering] = {}
        self.refusals: dict[Aor, dict[int, set[str]]] = {}

    async def arrived(
        self, transaction: ServerTransactionHandle, request: Request, aor: Aor, tag: str
    ) -> None:
        """Take a MESSAGE from a sender who may send it. Raises LocationError."""
        now = time.time()
        seconds = lifetime(request, self.policy.lifetime)
        storable = seconds > 0 and self.policy.max_stored > 0 and not is_composing(request)
        location = await self.proxy.store.lookup(aor, now)
        message = to_store(request, aor, now, seconds)
        machine = Arrival(storable)
        _Arriving(self, transaction, request, tag, message, machine, location).start()

    def registered(self, aor: Aor, location: Location, devices: Collection[str]) -> None:
        """Devices have registered and been told so: give them what waits for their user."""
        for arriving in list(self.arrivals.get(aor, ())):
            arriving.abandon(devices)
        if location.messages:
            self.deliver(aor, location, [b for b in location.bindings if b.device in devices])

    def deliver(
        self, aor: Aor, location: Location, bindings: list[Binding], *, register: bool = True
    ) -> None:
        """Give the stored messages of a user to these of its devices."""
        known = frozenset(b.device for b in location.bindings)
        known |= {r.device for r in location.push_records if r.allow_message}
        for target in map(self.target, bindings):
            if target.live:
                if aor not in self.deliveries:
                    delivery = Delivery(self.refusals.get(aor, {}))
                    self.deliveries[aor] = _Delivering(self, aor, delivery)
                delivering = self.deliveries[aor]
                tell = delivering.machine.registered if register else delivering.machine.stored
                delivering.perform(tell(target, known))

    def target(self, binding: Binding) -> Target:
        """Where a device is, and whether it seems to be awake."""
        flow = self.proxy.transports.flow(binding.flow)
        return Target(
            binding.device,
            binding.contact,
            "" if binding.path else binding.flow,
            binding.path,
            live=bool(binding.path) or (flow is not None and not flow.closed),
        )

    def send(self, request: Request, target: Target, answered: Answered) -> _Leg:
        """Send ``request`` to a device; ``answered`` is called once, later."""
        leg = _Leg(target)
        self.proxy.tasks.spawn(self._send(leg, request, answered))
        return leg

    async def _send(self, leg: _Leg, request: Request, answered: Answered) -> None:
        flow = await self._flow(leg.target)
        if leg.abandoned:
            return
        if flow is None:
            answered(Status.FLOW_FAILED, None)
            return

        def response_received(response: Response) -> None:
            if response.status >= Status.OK:
                answered(response.status, response)

        def failed(failure: Failure) -> None:
            timed_out = failure is Failure.TIMEOUT
            answered(Status.REQUEST_TIMEOUT if timed_out else Status.FLOW_FAILED, None)

        branch = self.proxy.new_branch(request)
        leg.handle = self.proxy.layer.send_request(request, flow, branch, response_received, failed)

    async def _flow(self, target: Target) -> Flow | None:
        if target.flow:
            return self.proxy.transports.flow(target.flow)
        try:
            return await self.proxy.connect(target.route[0])
        except (TransportError, MessageError) as error:
            log.warning("next_hop_unreachable", target=target.route[0], reason=str(error))
            return None


@dataclass(slots=True, eq=False)
class _Arriving:
    """One MESSAGE until it has its final response and nothing is out any more."""

    messages: Messages
    transaction: ServerTransactionHandle
    request: Request
    tag: str
    message: StoredMessage
    "As it would be stored; its id is 0 until it is."
    machine: Arrival
    location: Location
    targets: list[Target] = field(default_factory=list)
    legs: list[_Leg] = field(default_factory=list)
    responses: dict[int, Response] = field(default_factory=dict)

    def start(self) -> None:
        location = self.location
        targets = [self.messages.target(binding) for binding in location.bindings]
        self.targets = [target for target in targets if target.live]
        awake = {target.device for target in self.targets}
        records = {r.device for r in location.push_records if r.allow_message}
        self.messages.arrivals.setdefault(self.message.aor, set()).add(self)
        self._perform(
            self.machine.start(
                len(awake),
                asleep=len(targets) > len(awake) or not records <= awake,
                waiting=location.messages,
            )
        )
        if self.legs:
            probe = self.messages.proxy.policy.probe
            asyncio.get_running_loop().call_later(probe, self._probe_expired)

    def abandon(self, devices: Collection[str]) -> None:
        """These devices get the message from the store, or have it already."""
        for leg in self.legs:
            if self.message.id and leg.target.device in devices:
                leg.abandon()
        self._forget_if_done()

    def _probe_expired(self) -> None:
        self._perform(self.machine.probe_expired())

    def _forget_if_done(self) -> None:
        """Kept, it stays as long as a device may still say that it has taken it."""
        if self.machine.state is ArrivalState.KEPT:
            silent = zip(self.legs, self.machine.statuses, strict=False)
            if any(not status and not leg.abandoned for leg, status in silent):
                return
        elif self.machine.state is not ArrivalState.FINISHED:
            return
        arrivals = self.messages.arrivals
        if others := arrivals.pop(self.message.aor, set()) - {self}:
            arrivals[self.message.aor] = others

    def _answered(self, place: int, status: int, response: Response | None) -> None:
        if response is not None:
            self.responses[place] = response
        self._perform(self.machine.answered(place, status))

    def _perform(self, actions: list[ArrivalAction]) -> None:
        spawn = self.messages.proxy.tasks.spawn
        for action in actions:
            match action:
                case Forward(place):
                    self._forward(place)
                case Respond(status, place, reason):
                    self._respond(status, reason, place)
                case Keep():
                    spawn(self._keep())
                case Notify(later):
                    spawn(self._notify(later))
                case CatchUp():
                    spawn(self._catch_up())
                case Discard():
                    spawn(self._discard())
                case _:
                    assert_never(action)
        self._forget_if_done()

    def _forward(self, place: int) -> None:
        target = self.targets[place]
        forwarded = forward_request(without_push_ids(self.request), target, ())
        self.legs.append(self.messages.send(forwarded, target, partial(self._answered, place)))

    def _respond(self, status: int, reason: str, place: int | None) -> None:
        self._tell("message_answered", status=status)
        response = self.responses.get(place) if place is not None else None
        if response is not None:
            strip_push_params(response)
            respond(self.transaction, response)
        elif status == Status.SERVICE_UNAVAILABLE:
            reject(self.transaction, STORE_DOWN, self.tag)
        else:
            made = make_response(self.request, status, reason or None, self.tag)
            respond(self.transaction, made)

    async def _keep(self) -> None:
        store, limit = self.messages.proxy.store, self.messages.policy.max_stored
        try:
            receipt = await store.put_message(self.message, limit)
        except LocationError as error:
            log.error("store_unavailable", reason=str(error))
            self._perform(self.machine.store_failed())
            return
        if receipt is None:
            self._tell("mailbox_full", aor=self.message.aor)
            self._perform(self.machine.full())
            return
        self.message = replace(self.message, id=receipt.id)
        self._tell("message_stored", aor=self.message.aor, push_id=receipt.id)
        self._perform(self.machine.kept(repeated=receipt.repeated))

    async def _catch_up(self) -> None:
        """Whoever registered between the look-up and the storing has not heard of this."""
        aor, proxy = self.message.aor, self.messages.proxy
        tried = {leg.target.flow or leg.target.route for leg in self.legs}
        try:
            location = await proxy.store.lookup(aor, time.time())
        except LocationError as error:
            log.warning("messages_not_delivered", aor=aor, reason=str(error))
            return
        fresh = [b for b in location.bindings if (b.path or b.flow) not in tried]
        self.messages.deliver(aor, location, fresh, register=False)

    async def _discard(self) -> None:
        try:
            await self.messages.proxy.store.remove_message(self.message)
        except LocationError as error:
            log.warning("message_not_removed", aor=self.message.aor, reason=str(error))
            return
        self._tell("message_taken_late", aor=self.message.aor, push_id=self.message.id)

    # -- push --

    async def _notify(self, later: bool) -> None:
        if later:
            await asyncio.sleep(self.messages.proxy.policy.probe)
            if not await self._still_stored():
                return
        what = shown(self.request)
        if what.silent:
            return
        refused = {
            target.device
            for place, target in enumerate(self.targets)
            if self.machine.refused(place)
        }
        for record in self.location.push_records:
            if record.allow_message and record.device not in refused:
                self.messages.proxy.tasks.spawn(self._push(record, what.text, what.mime_type))

    async def _still_stored(self) -> bool:
        message = self.message
        try:
            waiting = await self.messages.proxy.store.messages(message.aor, time.time())
        except LocationError:
            return True
        return any(other.id == message.id for other in waiting)

    async def _push(self, record: PushRecord, text: str, mime_type: str) -> None:
        user, name = caller(self.request)
        proxy = self.messages.proxy
        outcome = await proxy.dispatcher.send(
            PushRequest(
                kind=PushKind.MESSAGE,
                push_id=str(self.message.id),
                record=record,
                deadline_epoch=self.message.expires_epoch,
                created_epoch=self.message.stored_epoch,
                call_id=self.request.call_id,
                from_user=user,
                from_name=name,
                to_user=record.aor.rpartition("@")[0],
                to_uri=f"sip:{record.aor}",
                text=text,
                mime_type=mime_type,
            )
        )
        if outcome.result is not PushResult.TOKEN_DEAD:
            return
        try:
            removed = await proxy.store.remove_push_record(record)
        except LocationError as error:
            log.warning("push_record_not_removed", aor=record.aor, reason=str(error))
            return
        log.info("push_record_removed", aor=record.aor, removed=removed)

    def _tell(self, event: str, **facts: object) -> None:
        log.info(event, call_id=self.request.call_id, method="MESSAGE", **facts)


@dataclass(slots=True, eq=False)
class _Delivering:
    """The stored messages of one user on their way to its devices."""

    messages: Messages
    aor: Aor
    machine: Delivery
    leg: _Leg | None = None
    _actions: deque[DeliveryAction] = field(default_factory=deque)
    _storing: bool = False
    "The store is at work: everything else waits."
    _probe: asyncio.TimerHandle | None = None

    def perform(self, actions: list[DeliveryAction]) -> None:
        """Perform in order: the store has removed a message before the next is sent."""
        self._actions.extend(actions)
        while self._actions and not self._storing:
            self._perform_one(self._actions.popleft())
        if self.machine.state is DeliveryState.IDLE and not self._storing:
            self._finish()

    def _finish(self) -> None:
        del self.messages.deliveries[self.aor]
        if self.machine.refusals:
            self.messages.refusals[self.aor] = self.machine.refusals
        else:
            self.messages.refusals.pop(self.aor, None)

    def _perform_one(self, action: DeliveryAction) -> None:
        match action:
            case Load():
                self._store(self._load())
            case Send(message, target):
                self._send(message, target)
            case Retransmit():
                self._retransmit()
            case Abandon():
                self._drop_leg()
            case Remove(message):
                self._store(self._remove(message))
            case Report(message, device, status):
                self.messages.refused += 1
                log.warning(
                    "message_refused",
                    aor=self.aor,
                    push_id=message.id,
                    device=fingerprint(device),
                    status=status,
                )
            case _:
                assert_never(action)

    def _store(self, work: Coroutine[Any, Any, list[DeliveryAction]]) -> None:
        self._storing = True
        self.messages.proxy.tasks.spawn(self._then_go_on(work))

    async def _then_go_on(self, work: Coroutine[Any, Any, list[DeliveryAction]]) -> None:
        actions = await work
        self._storing = False
        self.perform(actions)

    async def _load(self) -> list[DeliveryAction]:
        try:
            found = await self.messages.proxy.store.messages(self.aor, time.time())
        except LocationError as error:
            log.warning("messages_not_delivered", aor=self.aor, reason=str(error))
            return self.machine.store_failed()
        return self.machine.loaded(found)

    def _send(self, message: StoredMessage, target: Target) -> None:
        leg: _Leg

        def answered(status: int, _: Response | None) -> None:
            if self.leg is leg:
                self._answered(message, status)

        leg = self.leg = self.messages.send(to_deliver(message, target), target, answered)
        self._arm_probe()

    def _answered(self, message: StoredMessage, status: int) -> None:
        self._disarm_probe()
        self.leg = None
        if status < 300:
            log.info("message_delivered", aor=self.aor, push_id=message.id)
        else:
            log.info("message_not_delivered", aor=self.aor, push_id=message.id, status=status)
        self.perform(self.machine.answered(status))

    def _retransmit(self) -> None:
        if self.leg is not None and self.leg.handle is not None:
            self.leg.handle.retransmit()
            self._arm_probe()

    def _drop_leg(self) -> None:
        self._disarm_probe()
        if self.leg is not None:
            self.leg.abandon()
            self.leg = None

    async def _remove(self, message: StoredMessage) -> list[DeliveryAction]:
        try:
            await self.messages.proxy.store.remove_message(message)
        except LocationError as error:
            log.warning("message_not_removed", aor=self.aor, reason=str(error))
        return []

    def _arm_probe(self) -> None:
        self._disarm_probe()
        probe = self.messages.proxy.policy.probe
        self._probe = asyncio.get_running_loop().call_later(probe, self._probe_expired)

    def _disarm_probe(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None

    def _probe_expired(self) -> None:
        self._probe = None
        self.perform(self.machine.probe_expired())
