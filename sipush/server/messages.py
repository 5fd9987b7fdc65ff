"""MESSAGE to users of ours: forwarded, or stored, pushed and delivered (RFC 3428)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from sipush.core.bindings import Aor, Binding, Location
from sipush.core.edge import location_of
from sipush.core.messages import Arrival, Delivery, Remembered
from sipush.core.nodes import way_to
from sipush.core.stored_message import (
    REPEATED,
    StoredMessage,
    from_sender,
    is_composing,
    lifetime,
    message_key,
    without_content,
)
from sipush.core.target_set import Target
from sipush.errors import LocationError, MessageError, TransportError
from sipush.server.answers import respond
from sipush.server.message_arrival import Arriving
from sipush.server.message_delivery import Delivering
from sipush.server.message_pushes import MessagePushes
from sipush.server.transactions import ClientTransactionHandle, Failure, ServerTransactionHandle
from sipush.sip.message import Request, Response, make_response
from sipush.sip.status import Status
from sipush.transport.flow import Flow

if TYPE_CHECKING:
    from sipush.server.proxy import Proxy

log = structlog.get_logger()

_MAX_UNANSWERED = 10_000
"Messages of which is known where they wait to be answered: a few hundred bytes each."

Answered = Callable[[int, Response | None], None]
"""(final status, the response itself unless the status is ours: 408 or 430)."""


@dataclass(frozen=True, slots=True)
class MessagePolicy:
    """The ``[messages]`` section; replaced as a whole on reload."""

    lifetime: float
    max_stored: int


class Leg:
    """One MESSAGE on its way to one device."""

    __slots__ = ("abandoned", "answered", "branch", "handle", "target")

    def __init__(self, target: Target, answered: Answered, branch: str) -> None:
        self.target = target
        self.answered = answered
        "May be replaced."
        self.branch = branch
        self.handle: ClientTransactionHandle | None = None
        self.abandoned = False

    def abandon(self) -> None:
        """Send nothing more; ``answered`` is not called any more."""
        self.abandoned = True
        if self.handle is not None:
            self.handle.abandon()


class Messages:
    """The messages under way, and those that devices are being given."""

    def __init__(self, proxy: Proxy, policy: MessagePolicy) -> None:
        self.proxy = proxy
        self.policy = policy
        self.pushes = MessagePushes(proxy.store, proxy.dispatcher, proxy.tasks)
        self.refused = 0
        "Stored messages that a device refused for good."
        self.arrivals: dict[Aor, set[Arriving]] = {}
        self.deliveries: dict[Aor, Delivering] = {}
        self.remembered: dict[Aor, Remembered] = {}
        self._done: set[tuple[Aor, str]] = set()
        "User and ``message_key`` of those that have left the store a moment ago."
        self._unanswered: dict[str, StoredMessage] = {}
        "By Via branch: what waits in the socket of a device, perhaps, and in the store."

    async def arrived(
        self,
        transaction: ServerTransactionHandle,
        request: Request,
        aor: Aor,
        tag: str,
        *,
        only: str = "",
    ) -> None:
        """Take a MESSAGE from a sender who may send it. Raises LocationError and MessageError.

        ``only``: the ``device_digest`` of the one device that it is for, or empty.
        """
        location = await self.proxy.store.lookup(aor, time.time())
        if only:
            location = location_of(location, only)
        if self._done and self.is_done(aor, message_key(request)):
            # Repeated since a crash lost our 202, and delivered meanwhile.
            respond(transaction, make_response(request, Status.ACCEPTED, to_tag=tag))
            return
        request = from_sender(request)
        seconds = lifetime(request, self.policy.lifetime)
        storable = seconds > 0 and self.policy.max_stored > 0 and not is_composing(request)
        machine = Arrival(storable)
        Arriving(self, transaction, request, tag, aor, location, machine).start()

    def registered(self, aor: Aor, location: Location, devices: Collection[str]) -> None:
        """Devices have registered and been told so: give them what waits for their user."""
        if aor in self.arrivals:
            ways = [self.target(b) for b in location.bindings if b.device in devices]
            for arriving in list(self.arrivals[aor]):
                arriving.abandon(devices, ways)
        if location.messages:
            self.deliver(aor, location, [b for b in location.bindings if b.device in devices])

    def deliver(
        self, aor: Aor, location: Location, bindings: list[Binding], *, register: bool = True
    ) -> None:
        """Give the stored messages of a user to these of its devices.

        ``register``: because they have just registered.
        """
        devices = {binding.device for binding in location.bindings}
        devices |= {record.device for record in location.push_records}
        for target in map(self.target, bindings):
            if target.live:
                if aor not in self.deliveries:
                    machine = Delivery(self.remembered.setdefault(aor, Remembered()))
                    self.deliveries[aor] = Delivering(self, aor, machine)
                delivering = self.deliveries[aor]
                tell = delivering.machine.registered if register else delivering.machine.stored
                delivering.perform(tell(target, devices))

    def taken(self, message: StoredMessage) -> None:
        """A device has taken it before it was delivered: nobody shall get it any more."""
        self._remember(message.aor, message.key, REPEATED)  # the store may just be telling of it
        if message.aor in self.deliveries:
            delivering = self.deliveries[message.aor]
            delivering.perform(delivering.machine.taken(message))

    def timed_out(self, leg: Leg, message: StoredMessage) -> None:
        """A device has not answered a stored message; one that is suspended may do so yet."""
        if len(self._unanswered) >= _MAX_UNANSWERED:
            del self._unanswered[next(iter(self._unanswered))]
        self._unanswered[leg.branch] = without_content(message)

    def answered_late(self, response: Response) -> bool:
        """Whether a response without a transaction says that a device has taken such a message."""
        if not (Status.OK <= response.status < 300 and response.cseq.method == "MESSAGE"):
            return False
        message = self._unanswered.pop(response.top_via.branch, None)
        if message is not None:
            self.taken(message)
            self.proxy.tasks.spawn(self.discard(message, response.call_id))
        return message is not None

    async def discard(self, message: StoredMessage, call_id: str) -> None:
        """Remove a message that a device has taken before it was delivered."""
        try:
            await self.remove(message)
        except LocationError as error:
            log.warning("message_not_removed", aor=message.aor, reason=str(error))
            self.remembered.setdefault(message.aor, Remembered()).taken.add(message.id)
            return
        log.info("message_taken_late", call_id=call_id, aor=message.aor, push_id=message.id)

    def leg_of(self, message: StoredMessage, target: Target) -> Leg | None:
        """Where it is out the same way since before it was stored, for the caller to go on with."""
        for arriving in list(self.arrivals.get(message.aor, ())):
            if (leg := arriving.give_away(message, target)) is not None:
                return leg
        return None

    def is_done(self, aor: Aor, key: str) -> bool:
        """Whether this message has left the store a moment ago."""
        return (aor, key) in self._done

    async def remove(self, message: StoredMessage) -> None:
        """Remove a message for good. Raises LocationError."""
        self._remember(message.aor, message.key, REPEATED)
        await self.proxy.store.remove_message(message, time.time())

    async def recall(self) -> None:
        """Know again what left the store a moment before we were started.

        Its sender may still repeat it, when its 202 was lost with the process before last.
        """
        now = time.time()
        try:
            gone = await self.proxy.store.gone_messages(now)
        except LocationError as error:
            log.warning("messages_not_recalled", reason=str(error))
            return
        for aor, key, until in gone:
            self._remember(aor, key, min(until - now, REPEATED))

    def _remember(self, aor: Aor, key: str, seconds: float) -> None:
        self._done.add((aor, key))
        asyncio.get_running_loop().call_later(seconds, self._done.discard, (aor, key))

    def target(self, binding: Binding) -> Target:
        """Where a device is, and whether it seems to be awake."""
        name, path = way_to(binding, self.proxy.policy.node)
        flow = self.proxy.transports.flow(name) if name else None
        return Target(
            binding.device,
            binding.contact,
            name,
            path,
            live=not name or (flow is not None and not flow.closed),
        )

    def send(self, request: Request, target: Target, answered: Answered, branch: str) -> Leg:
        """Send ``request`` to a device; ``answered`` is called once, later.

        ``branch``: of ``Proxy.new_branch``, or that of an earlier copy that went the same way.
        """
        leg = Leg(target, answered, branch)
        flow = self.proxy.transports.flow(target.flow) if target.flow else None
        if flow is None:
            self.proxy.tasks.spawn(self._connect(leg, request))
        else:
            self._send_over(flow, leg, request)
        return leg

    async def _connect(self, leg: Leg, request: Request) -> None:
        flow = await self._flow(leg.target)
        if leg.abandoned:
            return
        if flow is None:
            leg.answered(Status.FLOW_FAILED, None)
        else:
            self._send_over(flow, leg, request)

    def _send_over(self, flow: Flow, leg: Leg, request: Request) -> None:
        def response_received(response: Response) -> None:
            if response.status >= 200:
                leg.answered(response.status, response)

        def failed(failure: Failure) -> None:
            timed_out = failure is Failure.TIMEOUT
            leg.answered(Status.REQUEST_TIMEOUT if timed_out else Status.FLOW_FAILED, None)

        leg.handle = self.proxy.layer.send_request(
            request, flow, leg.branch, response_received, failed
        )

    async def _flow(self, target: Target) -> Flow | None:
        if target.flow:
            return self.proxy.transports.flow(target.flow)
        try:
            return await self.proxy.connect_edge(target.route[0])
        except (TransportError, MessageError) as error:
            log.warning("next_hop_unreachable", target=target.route[0], reason=str(error))
            return None
