"""The proxy: decides where requests go and forwards them (RFC 3261 §16)."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, assert_never

import structlog

from sipush.core.bindings import Aor, Binding
from sipush.core.edge import device_called, leave_path
from sipush.core.fallback import Cause
from sipush.core.held_call import HeldCall, by_way_of, thaw
from sipush.core.held_call_limits import HeldCallLimits
from sipush.core.keyed_hash import keyed_hash
from sipush.core.nodes import route_key, way_to
from sipush.core.outbound import RouteToken, is_usual_port, leads_to_port, remote_ip
from sipush.core.rejection import Rejection
from sipush.core.response_context import ResponseContext
from sipush.core.routing import (
    Diversion,
    Realm,
    ToAor,
    ToDialog,
    ToEmergency,
    ToFlow,
    ToServer,
    destination,
    drop_claims,
    forward_request,
    has_been_here,
    invitation_expires,
    is_anonymous,
    loop_digest,
    take_credentials,
    validate,
)
from sipush.core.target_set import Target, TargetSet
from sipush.errors import LocationError, MessageError, TransportError
from sipush.location.store import LocationStore
from sipush.push.dispatcher import Dispatcher
from sipush.server import edge, emergency, in_dialog, target_sets
from sipush.server.acknowledgements import Acknowledgements
from sipush.server.answers import (
    DRAINING,
    answer_for_server,
    reject,
    respond,
    tell_refused,
)
from sipush.server.call_history import CallHistory
from sipush.server.forwarding import Forwarding
from sipush.server.gate import Gate
from sipush.server.held_calls import HeldCalls
from sipush.server.locations import Locations
from sipush.server.messages import Messages
from sipush.server.proxy_policy import ProxyPolicy
from sipush.server.push_bucket import PushBucket
from sipush.server.return_flow import ReturnFlow
from sipush.server.sign_in import SignIn
from sipush.server.subscribers import Subscribers
from sipush.server.target_sets import consents_to_calls, never
from sipush.server.tasks import Tasks
from sipush.server.transactions import ServerTransactionHandle, TransactionLayer, add_via
from sipush.sip.fields import Via, parse_name_addr
from sipush.sip.message import BRANCH_COOKIE, Request, Response, make_response, parse_datagram
from sipush.sip.status import Status
from sipush.sip.uri import parse_sip_uri
from sipush.transport.flow import Address, Flow, Transports
from sipush.transport.resolver import Resolver
from sipush.turns import Turns

log = structlog.get_logger()

_MAX_WAYS_OF_PEERS: Final = 10_000

_MAX_WAYS: Final = 8
"By which the same INVITE may come besides the first: forks of forks would have no end."

_MERGED: Final = Rejection(Status.LOOP_DETECTED, "Merged Request")


@dataclass(slots=True, eq=False)
class Proxy:
    """Everything a forwarded request needs, and the requests under way."""

    realm: Realm
    policy: ProxyPolicy
    key: bytes
    "The same in every process on one store."
    sign_in: SignIn
    store: LocationStore
    locations: Locations
    subscribers: Subscribers
    bucket: PushBucket
    dispatcher: Dispatcher
    transports: Transports
    resolver: Resolver
    held_calls: HeldCalls
    held_call_limits: HeldCallLimits
    gate: Gate
    turns: Turns
    "Of all that a call costs before it is held."
    new_id: Callable[[], str]
    clock: Callable[[], float]
    layer: TransactionLayer = field(init=False)
    "Set once, when the layer has been built around us."
    messages: Messages = field(init=False)
    "Set once, likewise."
    log: Any = field(default_factory=lambda: structlog.get_logger().bind())
    "Bound once: a logger of a module is bound anew for each line."
    tasks: Tasks = field(default_factory=Tasks)
    acknowledgements: Acknowledgements = field(default_factory=Acknowledgements)
    draining: bool = False
    history: CallHistory | None = None
    "None: nobody looks at calls that are over."
    expected_answers: dict[str, Callable[[Flow, Response], None]] = field(default_factory=dict)
    "By Via branch: 2xx to an INVITE that a process sent which died."
    ways_of_peers: set[tuple[str, int | None]] = field(default_factory=set)
    "Hosts and ports that peers have named in answers to calls, to be called back at."
    registering: set[Aor] = field(default_factory=set)
    "Users whose REGISTER is at their registrar, elsewhere."
    _forwardings: dict[ServerTransactionHandle, Forwarding] = field(default_factory=dict)
    _merged: dict[ServerTransactionHandle, Forwarding] = field(default_factory=dict)
    "The same of INVITEs that have come before by another way."
    _calls: dict[str, Forwarding] = field(default_factory=dict)
    "By ``merge_key``."

    @property
    def active(self) -> int:
        """Requests that have been accepted and not been finished."""
        return len(self._forwardings)

    @property
    def forwardings(self) -> list[Forwarding]:
        """These requests, the oldest first."""
        return list(self._forwardings.values())

    @property
    def route_key(self) -> bytes:
        """Makes our Record-Routes."""
        return route_key(self.key, self.policy.node)

    # -- requests --

    async def handle(self, transaction: ServerTransactionHandle, request: Request) -> None:
        """Forward a request, or say why not. Raises MessageError and LocationError."""
        rejection = validate(request, self.realm)
        if rejection is not None:
            reject(transaction, rejection, self.new_id())
            return
        if self.policy.registrars and (called := self._device_called(request)) is not None:
            await self._call_device(transaction, request, called)
            return
        where = destination(request, self.realm, self.route_key, self.policy.emergency)
        if request.method == "OPTIONS" and request.max_forwards == 0:
            where = ToServer()  # §16.3
        match where:
            case ToDialog(token):
                forwarding = self._open(transaction, request, None)
                await _until_started(forwarding, in_dialog.forward(self, forwarding, token))
            case ToFlow(token):
                forwarding = self._open(transaction, request, None)
                await _until_started(forwarding, self._forward_over(forwarding, token))
            case ToAor(aor) if self.policy.registrar_of(aor):
                forwarding = self._open(transaction, request, None)
                await _until_started(forwarding, edge.call_registrar(self, forwarding, aor))
            case ToAor(aor) if request.method == "MESSAGE":
                await self._message_to_user(transaction, request, aor)
            case ToAor(aor):
                forwarding = self._open(transaction, request, self.policy.ringback)
                await _until_started(forwarding, self._call_user(forwarding, aor))
            case ToServer():
                answer_for_server(transaction, self.new_id())
            case ToEmergency():
                forwarding = self._open(transaction, request, None, timer_c=emergency.TIMER_C)
                await _until_started(forwarding, emergency.forward(self, forwarding))
            case Rejection() as rejection:
                reject(transaction, rejection, self.new_id())
            case other:
                assert_never(other)

    def _device_called(self, request: Request) -> RouteToken | Rejection | None:
        """The one device that a registrar elsewhere sends this to, if it does."""
        if request.to.tag is None:
            return device_called(request, self.key)
        leave_path(request, self.key)
        return None

    async def _call_device(
        self,
        transaction: ServerTransactionHandle,
        request: Request,
        called: RouteToken | Rejection,
    ) -> None:
        """For one device of a user whose registrar sends it."""
        if isinstance(called, Rejection):
            reject(transaction, called, self.new_id())
        elif not self.policy.is_peer(transaction.flow.remote[0]):
            reject(transaction, Rejection(Status.FORBIDDEN, "Not the Registrar"), self.new_id())
        elif request.method == "MESSAGE" and not self.draining:
            request.headers.remove("route")
            await self.messages.arrived(
                transaction, request, called.aor, self.new_id(), only=called.device
            )
        else:
            request.headers.remove("route")
            forwarding = self._open(transaction, request, self.policy.ringback)
            await _until_started(forwarding, edge.call_device(self, forwarding, called))

    def _open(
        self,
        transaction: ServerTransactionHandle,
        request: Request,
        ringback: int | None,
        *,
        timer_c: float = 0.0,
    ) -> Forwarding:
        """A forwarding that a CANCEL finds from now on; ``timer_c``: instead of the policy's."""
        policy = self.policy
        expires = invitation_expires(request) if "expires" in request.headers.first else None
        context = ResponseContext(
            probe=policy.probe,
            timer_c=timer_c or policy.no_answer,
            ringback=ringback,
            invite=request.method == "INVITE",
            push_while_ringing=policy.push_while_ringing,
            tombstone=policy.tombstone,
            expires_at=None if expires is None else self.clock() + expires,
        )
        forwarding = Forwarding(self, transaction, request, context, tag=self.new_id())
        self._forwardings[transaction] = forwarding
        return forwarding

    def push_id(self, transaction: ServerTransactionHandle) -> str:
        """A UUID that nobody can guess, equal for a request that is repeated to another process.

        Whoever died in between had perhaps sent it on. Over a stream it comes from another port.
        """
        first = transaction.request.headers.first
        same = f"{first['from']}\n{first['to']}\n{first['call-id']}\n{first['cseq']}"
        text = f"push-id{transaction.branch}\n{same}"
        id_ = keyed_hash(self.key, text.encode("utf-8", "surrogateescape"), 16).hex()
        variant = "89ab"[int(id_[16], 16) & 3]  # RFC 9562 §5.4
        return f"{id_[:8]}-{id_[8:12]}-4{id_[13:16]}-{variant}{id_[17:20]}-{id_[20:]}"

    async def resume(self, held: HeldCall) -> None:
        """Go on with a call that another process held."""
        request = parse_datagram(held.request)
        assert isinstance(request, Request)
        if self.layer.knows(request):  # its caller has sent it to us again: he is answered there
            log.info("call_repeated_here", call_id=request.call_id)
            await self.held_calls.replace(held.id, list(self._forwardings.values()))
            return
        flow = self._flow_back(held.flow, request)
        context = thaw(held.context, self.clock(), time.time())
        transaction = self.layer.adopt_request(flow, request, answered=context.successful)
        if held.left:
            transaction.left = True
            status = Status.REQUEST_TERMINATED
            transaction.end_alone(make_response(request, status, None, held.tag))
        for name, vias in held.merged:
            again = by_way_of(request, vias)
            back = self._flow_back(name, again)
            transaction.merge(self.layer.adopt_request(back, again, answered=context.successful))
        forwarding = Forwarding(
            self, transaction, request, context, tag=held.tag, push_id=held.push_id
        )
        forwarding.caller_aor = held.caller_aor
        forwarding.destinations = held.destinations
        forwarding.fallbacks = {Cause(cause): uri for cause, uri in held.fallbacks.items()}
        forwarding.diversions = tuple(
            Diversion(uri, n, Cause(c) if c else None) for uri, n, c in held.diversions
        )
        forwarding.policy = target_sets.policy_for(self, request, consents_to_calls)
        forwarding.created_epoch = held.created_epoch
        forwarding.cancel_reason = held.cancel_reason or None
        forwarding.final = held.final
        forwarding.ended_epoch = held.ended_epoch
        self._forwardings[transaction] = forwarding
        self._merged |= dict.fromkeys(transaction.merged, forwarding)
        live = self._goes_on_here(forwarding, held)
        if live is not None and not live.final and not context.is_out:
            forwarding.supersede(held)
            reject(transaction, _MERGED, held.tag)
            self.held_calls.drop(held.id)
            return
        locations = {}
        for aor in () if context.done else held.aors:
            try:
                subscriber = await self.subscribers.get(aor)
                if subscriber is not None:
                    forwarding.watch(subscriber)
                    locations[aor] = await self.store.lookup(aor, time.time())
            except LocationError as error:
                # Gone again since it told us of the call, which goes on: whoever is waited for is
                # heard when he registers, and looked up when the store is back.
                log.warning("store_unavailable", call_id=request.call_id, reason=str(error))
        if forwarding.ladder is not None and self.history is not None:
            self.history.routed(forwarding.ladder)
        forwarding.tell("call_resumed", aors=held.aors, status=held.final or None)
        forwarding.resume(held, locations)
        if live is not None and live.final:
            forwarding.was_answered_elsewhere()

    def _flow_back(self, name: str, request: Request) -> Flow:
        """The flow of that name, by which a request came to another process, or to its sender."""
        return self.transports.flow(name) or self.way_back(request.top_via, name)

    def way_back(self, via: Via, flow: str = "") -> ReturnFlow:
        """What RFC 3261 §18.2.2 says when the connection of a request is gone.

        ``flow``: its name, if that is known. The Via is the word of a caller who may stand at
        another place than his address says: behind a terminator of TLS on our host, or a peer's.
        """
        back = ReturnFlow(self.transports, via, remote_ip(flow))
        ip, port = back.remote
        is_for_sip = is_usual_port(port) or leads_to_port(flow, port)
        if back.transport != "UDP" and not is_for_sip and self.policy.may_be_another(ip):
            back.refuse()
        return back

    def cancelled(self, transaction: ServerTransactionHandle, cancel: Request) -> None:
        """A CANCEL for a request under way."""
        forwarding = self._forwardings.get(transaction) or self._merged.get(transaction)
        if forwarding is not None:
            forwarding.cancel(transaction, cancel)

    def left(self, transaction: ServerTransactionHandle) -> None:
        """What has come by this way goes on by another one alone."""
        self._merged.pop(transaction, None)

    def answer_came(self, flow: Flow, response: Response) -> bool:
        """Whether a response without a transaction is the 2xx that a call expects."""
        if not (Status.OK <= response.status < 300 and response.cseq.method == "INVITE"):
            return False
        expected = self.expected_answers.get(response.top_via.branch)
        if expected is not None:
            response.headers.remove_first_value("via", "Via")
            expected(flow, response)
        return expected is not None

    async def forward_ack(self, ack: Request) -> None:
        """The ACK of a 2xx goes its own way (§16.7 step 10, §17.1.1.3), without a transaction."""
        if self.policy.registrars:
            leave_path(ack, self.key)
        if self.history is not None:
            self.history.acknowledged(ack)
        where = destination(ack, self.realm, self.route_key)
        if isinstance(where, ToDialog):
            target = await in_dialog.find(self, where.token, ack)
        elif isinstance(where, ToFlow):
            target = Target("flow", ack.uri, where.token.flow)
        else:
            log.debug("stray_ack", call_id=ack.call_id)
            return
        flow = self.transports.flow(target.flow) if target.flow else None
        if flow is None and target.live:
            flow = await self.next_hop(target)
        if flow is None:
            log.info("ack_lost", call_id=ack.call_id, reason="the flow is gone")
            return
        self.send_ack(forward_request(ack, target, ()), flow)
        self.acknowledgements.came(ack.call_id)

    def send_ack(self, ack: Request, flow: Flow) -> None:
        """Send the ACK of a 2xx, which has no transaction, with our Via. Nobody looks for loops."""
        add_via(ack, flow, f"{BRANCH_COOKIE}{self.new_id()}")
        self.layer.send_stateless(ack, flow)

    def finished(self, forwarding: Forwarding) -> None:
        """A request got its final response and nothing is out any more."""
        self._forwardings.pop(forwarding.transaction, None)
        if not self.held_calls.holds(forwarding):  # what is taken over may be the same call
            self.forgotten(forwarding)
        for each in forwarding.transaction.merged:
            self._merged.pop(each, None)

    def forgotten(self, forwarding: Forwarding) -> None:
        """Nobody asks for this call any more."""
        if self._calls.get(forwarding.merge_key) is forwarding:
            del self._calls[forwarding.merge_key]

    def new_branch(self, request: Request, unique: str = "") -> str:
        """A branch unique in space and time that shows when the request comes back (§16.6, 8).

        Made from ``unique``, if given, Call-ID and CSeq: then equal in every process, so that a
        phone takes what the next one sends after a crash for a retransmission.
        """
        if not unique:
            id_ = self.new_id()
        else:
            text = f"branch{unique}\n{request.call_id}\n{request.cseq.number}"
            id_ = keyed_hash(self.key, text.encode("utf-8", "surrogateescape"), 8).hex()
        return f"{BRANCH_COOKIE}{id_}-{loop_digest(request)}"

    # -- inside a dialog --

    async def _forward_over(self, forwarding: Forwarding, token: RouteToken) -> None:
        """To a device of ours that another node looked up: it does what else there is to do."""
        transaction, request = forwarding.transaction, forwarding.request
        flow = self.transports.flow(token.flow)
        if self.draining and not request.to.tag:
            reject(transaction, DRAINING, forwarding.tag)
        elif flow is None or flow.closed:
            reject(transaction, Rejection(Status.FLOW_FAILED), forwarding.tag)
        else:
            forwarding.side_called = token
            forwarding.start(TargetSet.of(Target("flow", request.uri, flow.name, live=True)))

    def note_ways(self, response: Response) -> None:
        """Remember where a peer that takes a call wants to be sent what comes inside it."""
        for name in ("contact", "record-route"):
            with suppress(MessageError):
                for value in response.headers.values(name):
                    uri = parse_name_addr(value).sip_uri
                    if len(self.ways_of_peers) >= _MAX_WAYS_OF_PEERS:
                        self.ways_of_peers.clear()
                    self.ways_of_peers.add((uri.address, uri.port))

    # -- to a user --

    async def _call_user(self, forwarding: Forwarding, aor: Aor) -> None:
        transaction, request = forwarding.transaction, forwarding.request
        caller = await self._admitted(transaction, request, forwarding.tag)
        if caller is not None:
            forwarding.caller_aor = caller
            if not await self.merge(forwarding, aor):
                await self._forward_to_user(forwarding, aor)

    async def merge(self, forwarding: Forwarding, called: str) -> bool:
        """Whether an INVITE that has just come is under way already, by another way (§8.2.2.2).

        A proxy before us has forked, or its sender takes the next server that he knows (RFC 3263
        §4.3): it is answered as the first is. ``called``: whom it is for, an AOR or a device; a
        proxy may fork to two of ours.
        """
        transaction, request = forwarding.transaction, forwarding.request
        if not forwarding.context.invite or request.to.tag or transaction.completed:
            return False
        first = self._same_call(forwarding, called)
        if first is None or first.final:
            self._calls[forwarding.merge_key] = forwarding
            return False
        if has_been_here(request, self.realm):
            return False
        if len(first.transaction.merged) >= _MAX_WAYS:
            reject(transaction, _MERGED, forwarding.tag)
            return True
        self._merged[transaction] = first
        forwarding.started = True
        forwarding.finish()
        if (stored := first.merge(transaction)) is not None:
            await stored
        first.transaction.catch_up(transaction)
        return True

    def _same_call(self, forwarding: Forwarding, called: str) -> Forwarding | None:
        """The same call, if it is known; perhaps it is over."""
        request, caller = forwarding.request, forwarding.caller_aor
        same = f"{request.call_id}\n{request.from_.tag}\n{request.cseq.number}"
        forwarding.merge_key = f"{called}\n{caller}\n{same}"
        return self._calls.get(forwarding.merge_key)

    def _goes_on_here(self, resumed: Forwarding, held: HeldCall) -> Forwarding | None:
        """The same call, if its caller has come to us before we could take over; none that failed.

        He went by another way when the process had died that held it (RFC 3263 §4.3).
        """
        if not held.destinations or has_been_here(resumed.request, self.realm):
            return None
        live = self._same_call(resumed, held.destinations[0])
        if live is None or live.final >= 300:
            self._calls[resumed.merge_key] = resumed
            return None
        return None if held.final else live

    async def _message_to_user(
        self, transaction: ServerTransactionHandle, request: Request, aor: Aor
    ) -> None:
        tag = self.new_id()
        caller = await self._admitted(transaction, request, tag)
        if caller is None:
            return
        if await self._has_mailbox(aor):
            await self.messages.arrived(transaction, request, aor, tag)
            return
        forwarding = self._open(transaction, request, None)
        forwarding.caller_aor = caller
        await _until_started(forwarding, self._forward_to_user(forwarding, aor))

    async def _admitted(
        self, transaction: ServerTransactionHandle, request: Request, tag: str
    ) -> Aor | None:
        """The caller, empty for a peer; None: it was refused, and told so."""
        caller = ""
        if not self.policy.is_peer(transaction.flow.remote[0]):
            found = await self.signed_in(transaction.flow, request, tag)
            if isinstance(found, Response):
                if found.status != Status.PROXY_AUTHENTICATION_REQUIRED:
                    tell_refused(transaction, found)
                respond(transaction, found)
                return None
            caller = found
            take_credentials(request.headers, self.realm.domains)  # nobody else's business
            drop_claims(request)
        if self.draining:
            reject(transaction, DRAINING, tag)
            return None
        return caller

    async def _forward_to_user(self, forwarding: Forwarding, aor: Aor) -> None:
        transaction, request = forwarding.transaction, forwarding.request
        consents = consents_to_calls if request.method == "INVITE" else never
        forwarding.policy = target_sets.policy_for(self, request, consents)
        targets = await target_sets.of_user_or_group(self, forwarding, aor)
        if targets is None:
            reject(transaction, Rejection(Status.NOT_FOUND), forwarding.tag)
            return
        if forwarding.not_held and not targets.all and not forwarding.fallbacks:
            reject(transaction, forwarding.not_held, forwarding.tag)
            return
        if target_sets.is_busy(self, forwarding, forwarding.destinations[-1]):
            forwarding.refuse(forwarding.destinations[-1], Status.BUSY_HERE)
        else:
            forwarding.start(targets)

    async def _has_mailbox(self, aor: Aor) -> bool:
        return aor not in self.policy.groups and await self.subscribers.get(aor) is not None

    def is_live(self, binding: Binding) -> bool:
        """Whether anything leads to that contact."""
        name, _ = way_to(binding, self.policy.node)
        if not name:
            return True
        return self.is_open(name) is True

    def is_open(self, name: str) -> bool | None:
        """Whether the flow of that name is open; None: there is none."""
        flow = self.transports.flow(name)
        return None if flow is None else not flow.closed

    def is_lost(self, binding: Binding) -> bool:
        """Whether the connection of that contact has ended: none is ever opened to a phone."""
        return not binding.flow.startswith("udp/") and not self.is_live(binding)

    # -- who may --

    async def signed_in(self, flow: Flow, request: Request, tag: str) -> Aor | Response:
        """The caller, or the response that refuses him (§22.3)."""
        claimed = self.realm.caller_aor(request)
        domain = claimed.rpartition("@")[2] if claimed else self.realm.domains[0]
        status = Status.PROXY_AUTHENTICATION_REQUIRED
        found = await self.sign_in.user(flow, request, domain, tag, status)
        if isinstance(found, Response):
            return found
        if claimed != found.aor and not is_anonymous(request):
            reason = "From Does Not Match Credentials"
            return make_response(request, Status.FORBIDDEN, reason, tag)
        return found.aor

    # -- servers --

    async def connect(self, uri: str) -> Flow:
        """A flow to a server that the configuration names. Raises Transport-, MessageError."""
        transport, address, host = await self.resolve(uri)
        return await self.transports.connect(transport, address, host)

    async def next_hop(self, target: Target) -> Flow:
        """A flow to a target that has none: a server, or the first hop of a Path."""
        if target.route:
            return await self.connect_edge(target.route[0])
        return await self.connect(target.hop or target.uri)

    async def connect_edge(self, route: str) -> Flow:
        """A flow to the first hop of a Path: another node, or what a peer has written.

        It leads to a peer too: an edge proxy may let the Path of a phone pass. Raises
        TransportError and MessageError.
        """
        transport, address, host = await self.resolve(parse_name_addr(route).uri)
        if not self.policy.may_be_on_path(address[0]):
            raise TransportError(f"Path to {host}: {address[0]} is not one of [[peers]]")
        return await self.transports.connect(transport, address, host)

    async def resolve(self, text: str) -> tuple[str, Address, str]:
        """Transport, address and host of a URI. Raises TransportError and MessageError."""
        uri = parse_sip_uri(text)
        transport = (uri.transport or ("tls" if uri.scheme == "sips" else "udp")).upper()
        address = await self.resolver.resolve(uri.address, uri.port, transport)
        return transport, address, uri.host


async def _until_started(forwarding: Forwarding, work: Awaitable[None]) -> None:
    """Give the forwarding up unless it gets started."""
    try:
        await work
    finally:
        if not forwarding.started:
            forwarding.finish()
