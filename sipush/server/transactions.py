"""The transaction layer (RFC 3261 §17): drives the transaction machines with time and flows."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from functools import partial
from typing import Final, Protocol, assert_never

import structlog

from sipush.errors import MessageError, TransportError
from sipush.server.completed import Completed
from sipush.server.timer_wheel import CallLater, TimerWheel
from sipush.sip.client_transaction import ClientTransaction, make_ack, make_cancel
from sipush.sip.fields import Via
from sipush.sip.headers import Headers
from sipush.sip.message import Message, Request, Response, make_response, parse_datagram
from sipush.sip.server_transaction import ServerTransaction
from sipush.sip.status import Status
from sipush.sip.timers import Timer, Timers
from sipush.sip.transaction import (
    Action,
    Deliver,
    Event,
    Send,
    SetTimer,
    State,
    Terminate,
    TransactionKey,
    client_key,
    is_reliable,
    response_event,
    server_key,
)
from sipush.sip.validation import MessageLimits, check, stamp_received
from sipush.transport.flow import Flow

log = structlog.get_logger()

_OF_REFUSAL: Final = 2
"Times that an answer is repeated to somebody whom nobody knows; nor is he called back."


class Failure(Enum):
    """Why a client transaction got no final response."""

    TIMEOUT = "timeout"
    "Timer B or F, or no final response to a cancelled INVITE."
    TRANSPORT = "transport"
    "It could not be sent, its stream closed, or ICMP said that nobody is there."


class TransactionUser(Protocol):
    """What the layer tells the proxy core; called on the event loop, must not block or raise."""

    def stateless_answer(self, flow: Flow, request: Request) -> Response | None:
        """The answer to a request that needs no transaction (§8.2.7), or None.

        The request is one that ``requests_received`` would hear of, or its repetition, but no
        INVITE, whose ACK belongs to a transaction.
        """

    def requests_received(self, transactions: list[ServerTransactionHandle]) -> None:
        """New requests that passed ``check``, top Vias stamped; never an ACK or a CANCEL."""

    def ack_received(self, ack: Request) -> None:
        """An ACK that ends no INVITE transaction of ours: for a 2xx, to be routed statelessly.

        Its top Via is stamped. It may also be for an answer the layer gave statelessly.
        """

    def cancelled(self, transaction: ServerTransactionHandle, cancel: Request) -> None:
        """A CANCEL of this INVITE came, was answered 200, and no final response was sent yet."""

    def stray_response_received(self, flow: Flow, response: Response) -> None:
        """A response that matches no client transaction, every Via still on it.

        Also one with a Via on top that was never ours.
        """

    def way_back(self, response: Response, flow: Flow) -> Flow | None:
        """Where a response to an INVITE goes whose connection has closed (§18.2.2), if anywhere.

        ``flow``: that connection.
        """

    def flow_active(self, flow: Flow) -> None:
        """A keep-alive came. Of many phones often: cheap."""


class ServerTransactionHandle:
    """A server transaction as its user sees it."""

    __slots__ = ("_transaction", "branch", "flow", "left", "merged", "request")

    def __init__(self, transaction: _Server, request: Request, branch: str) -> None:
        self._transaction = transaction
        self.merged: tuple[ServerTransactionHandle, ...] = ()
        "Those that are answered as this one is, the oldest first: ``merge``."
        self.left = False
        "It gets a final response of its own; what comes then is for those merged only."
        self.request = request
        self.branch = branch
        "Of the top Via: the same when the request is repeated, over whatever connection."
        self.flow = transaction.flow

    @property
    def completed(self) -> bool:
        """Whether a final response was given, by every way."""
        return self._transaction.completed and all(each.completed for each in self.merged)

    @property
    def status(self) -> int:
        """Of the last response; 0 before the first."""
        return self._transaction.status

    @property
    def responder(self) -> Callable[[Response], None]:
        """``respond``, for somebody who is to hold on to nothing else: a request takes memory."""
        return self.respond if self.merged else self._transaction.respond

    @property
    def newest(self) -> ServerTransactionHandle:
        """That of the way by which the request came last."""
        return self.merged[-1] if self.merged else self

    def respond(self, response: Response) -> None:
        """Send any number of provisional responses, then one final.

        After a 2xx to an INVITE further 2xx are sent too (RFC 6026 §7.1). Everything else after a
        final response is dropped, and so is what RFC 4320 forbids for a non-INVITE request: a
        provisional other than 100, and a 408, which ends the transaction in silence.
        """
        self._transaction.respond(response)
        for other in self.merged:
            other.respond(_by_way_of(other.request, response))

    def merge(self, other: ServerTransactionHandle) -> None:
        """Answer the same request too that has come by another way (§8.2.2.2), in its transaction.

        What it has missed it gets with ``catch_up``.
        """
        self.merged += (other,)

    def catch_up(self, other: ServerTransactionHandle) -> None:
        """Send what has been answered so far in a transaction that has been merged."""
        for each in (self, *self.merged):
            last = each._transaction.last_response
            if last is not None and each is not other and not other.completed:
                other.respond(_by_way_of(other.request, last))
                return

    def leave(self, other: ServerTransactionHandle) -> None:
        """One of those that have been merged, or this one, goes on no more: ``end_alone`` it."""
        if other is self:
            self.left = True
        self.merged = tuple([each for each in self.merged if each is not other])

    def end_alone(self, response: Response) -> None:
        """Give a final response to this one only, whatever has been merged with it."""
        self._transaction.respond(response)

    def trying(self) -> None:
        """Send the 100 of an INVITE, unless something has been sent already (§17.2.1)."""
        if not self._transaction.responded:
            self._transaction.respond(make_response(self.request, Status.TRYING))
        for other in self.merged:
            other.trying()

    def refuse(self, response: Response, repeats: int = _OF_REFUSAL) -> None:
        """Send a final response to a request whose source may be forged.

        While no ACK comes it is repeated twice only, not for 32 seconds: §26.3.2.4 asks for that,
        so that nobody is flooded in another's name. ``repeats``: as often at the most.
        """
        self._transaction.respond(response, max_repeats=repeats)
        for other in self.merged:
            other.refuse(_by_way_of(other.request, response), repeats)

    def ignore(self) -> None:
        """Forget a request that has got no response yet, and will not: its source is not heard."""
        self._transaction.ignore()


class _Server(ServerTransaction):
    """A server transaction. Of a non-INVITE one that is completed, ``Completed`` keeps the rest."""

    __slots__ = (
        "_bytes",
        "_is_invite",
        "_key",
        "_layer",
        "_max_repeats",
        "_repeats",
        "completed",
        "flow",
        "handle",
    )

    def __init__(
        self, layer: TransactionLayer, key: TransactionKey, flow: Flow, request: Request
    ) -> None:
        super().__init__(request.method, is_reliable(flow.transport))
        self.flow = flow
        self._layer = layer
        self._key = key
        self._is_invite = request.method == "INVITE"
        self._repeats = 0
        self._max_repeats = 1 << 30
        self._bytes = b""
        "The last response, serialised; of a 2xx to an INVITE its status."
        self.handle: ServerTransactionHandle | None = None
        "What the user holds, until the final response: afterwards nobody needs the request."
        self.completed = False

    @property
    def responded(self) -> bool:
        """Whether any response was sent."""
        return bool(self._bytes)

    @property
    def status(self) -> int:
        return int(self._bytes[len("SIP/2.0 ") :][:3]) if self._bytes else 0

    @property
    def last_response(self) -> Response | None:
        """The last one, while there is no final one."""
        if self.completed or not self._bytes:
            return None
        last = parse_datagram(self._bytes)
        assert isinstance(last, Response)
        return last

    @property
    def method(self) -> str:
        """That of the request."""
        return self._key.partition("\n")[0]

    def respond(self, response: Response, max_repeats: int | None = None) -> None:
        if max_repeats is not None:
            self._max_repeats = max_repeats
        status = response.status
        event = response_event(status)
        if not self._is_invite:
            if event is Event.PROVISIONAL and status != Status.TRYING:
                return
            if event is Event.FAILURE and status == Status.REQUEST_TIMEOUT:
                event = Event.GIVE_UP
        actions = self.advance(event)
        if not actions:
            return
        if self.flow.transport != "UDP":
            response.add_length()
        self._bytes = response.to_bytes()
        if event is not Event.PROVISIONAL and not self.completed:
            self.completed = True
            self.handle = None
            self._layer.settled()
        self._perform(actions)
        if self.state is State.ACCEPTED:  # whoever answered repeats it
            self._bytes = self._bytes[: len("SIP/2.0 200")]

    def ignore(self) -> None:
        if not self.completed:
            self.completed = True
            self.handle = None
            self._layer.settled()
            self._layer.forget_server(self._key)

    def answered_before(self) -> None:
        """Another process has sent a 2xx to this INVITE."""
        self.completed = True
        self.advance(Event.SUCCESS)
        self._set_timer(Timer.L)

    def request_repeated(self) -> None:
        self._perform(self.advance(Event.REQUEST))

    def came_over(self, flow: Flow) -> None:
        """Its client has sent something: over another connection if it has lost the first."""
        if flow is self.flow or not self.flow.closed or flow.remote[0] != self.flow.remote[0]:
            return
        self.flow = flow
        if self.handle is not None:
            self.handle.flow = flow

    def ack_received(self, ack: Request) -> None:
        self._perform(self.advance(Event.ACK), ack)

    def timer_fired(self, timer: Timer) -> None:
        self._perform(self.advance(timer))

    def _perform(self, actions: tuple[Action, ...], ack: Request | None = None) -> None:
        # mypyc compiles isinstance to a comparison, a case of match to a call.
        for action in actions:
            if isinstance(action, SetTimer):
                self._set_timer(action.timer)
            elif isinstance(action, Send):
                self._send()
            elif isinstance(action, Deliver):
                assert ack is not None
                self._layer.user.ack_received(ack)
            elif isinstance(action, Terminate):
                self._layer.forget_server(self._key)
            else:
                assert_never(action)

    def _set_timer(self, timer: Timer) -> None:
        if timer is Timer.J:
            if self.state is State.COMPLETED:  # else it could not be sent
                self._layer.server_completed(self._key, self._bytes)
        elif timer is not Timer.G:
            self._layer.set_timer(timer, 0, self)
        elif self._repeats < self._max_repeats:
            self._layer.set_timer(timer, self._repeats, self)
            self._repeats += 1

    def _send(self) -> None:
        if not self._bytes:
            return
        try:
            self.flow.send(self._bytes)
        except TransportError as error:
            log.debug("response_not_sent", flow=self.flow.name, error=str(error))
            if self._is_invite and self.flow.closed and self._max_repeats > _OF_REFUSAL:
                self._send_back()
            else:
                self._perform(self.advance(Event.TRANSPORT_ERROR))

    def _send_back(self) -> None:
        response = parse_datagram(self._bytes)
        assert isinstance(response, Response)
        flow = self._layer.user.way_back(response, self.flow)
        if flow is not None:
            self.flow = flow
            flow.send(self._bytes)


class ClientTransactionHandle(ClientTransaction):
    """A client transaction."""

    __slots__ = (
        "_abandoned",
        "_cancel_reason",
        "_cancel_sent",
        "_cancel_wanted",
        "_key",
        "_layer",
        "_on_failure",
        "_repeats",
        "_settled",
        "flow",
        "newer_flow",
        "on_response",
        "request",
    )

    def __init__(
        self,
        layer: TransactionLayer,
        key: TransactionKey,
        request: Request,
        flow: Flow,
        *,
        on_response: Callable[[Response], None],
        on_failure: Callable[[Failure], None],
    ) -> None:
        super().__init__(request.method, is_reliable(flow.transport))
        self._layer = layer
        self._key = key
        self._repeats = 0
        self._on_failure = on_failure
        self._abandoned = False
        self._cancel_wanted = False
        self._cancel_sent = False
        self._cancel_reason: str | None = None
        self._settled = False
        self.on_response = on_response
        "May be replaced."
        self.request = request
        "As sent, our Via on top; forgotten when nobody asks for it any more."
        self.flow = flow
        self.newer_flow: Flow | None = None
        "Where CANCEL and ACK go instead, when whoever rings there has moved."

    def cancel(self, reason: str | None = None) -> None:
        """Send a CANCEL (§9.1) as soon as a provisional response is there; once, INVITE only.

        ``reason`` is the value of its Reason header.
        """
        over = self._settled and not self._abandoned
        if self._cancel_wanted or over or self.request.method != "INVITE":
            return
        self._cancel_wanted = True
        self._cancel_reason = reason
        self._cancel_if_possible()

    def abandon(self, *, cancel: bool = True) -> None:
        """Stop retransmitting; CANCEL, unless that is for later, as soon as that is possible.

        From now on only responses to an INVITE are delivered, and no failure is.
        """
        self._abandoned = True
        self._perform(self.advance(Event.ABANDON))
        if cancel:
            self.cancel()
        self._settle()

    def retransmit(self) -> None:
        """Send the request once more, timers unchanged, unless any response has come."""
        self._perform(self.advance(Event.RETRANSMIT))

    def start(self) -> None:
        """Send the request (the layer's business)."""
        self._perform(self.advance(Event.START))

    def response_received(self, response: Response) -> None:
        """Take a response, our Via still on it (the layer's business)."""
        event = response_event(response.status)
        self._perform(self.advance(event), response)
        self._cancel_if_possible()

    def flow_failed(self, event: Event) -> None:
        """Take TRANSPORT_ERROR or UNREACHABLE (the layer's business)."""
        self._perform(self.advance(event))

    def timer_fired(self, timer: Timer) -> None:
        """Take a timer that ran out (the layer's business)."""
        self._perform(self.advance(timer))

    def _perform(self, actions: tuple[Action, ...], response: Response | None = None) -> None:
        for action in actions:
            if isinstance(action, SetTimer):
                self._set_timer(action)
            elif isinstance(action, Send):
                if action is Send.ACK:
                    assert response is not None
                    self._send(make_ack(self.request, response))
                else:
                    self._send(self.request)
            elif isinstance(action, Deliver):
                self._deliver(action, response)
            elif isinstance(action, Terminate):
                self._layer.forget_client(self._key, self)
                self._settle()
            else:
                assert_never(action)

    def _set_timer(self, what: SetTimer) -> None:
        timer, layer = what.timer, self._layer
        if timer is Timer.K:
            layer.client_completed(self._key, self)
        elif timer is Timer.A or timer is Timer.E:
            layer.set_timer(timer, self._repeats, self, at_t2=what.at_t2)
            self._repeats += 1
        elif not what.after_t1:
            layer.set_timer(timer, 0, self)
        elif self._repeats == 1:  # A or E fires for the first time
            layer.set_timer(timer, 0, self, after_t1=True)

    def _send(self, request: Request) -> None:
        flow = self.newer_flow or self.flow
        try:
            flow.send(request.to_bytes())
        except TransportError as error:
            log.debug("request_not_sent", flow=flow.name, error=str(error))
            # Later, so that nobody hears of the failure before send_request has returned.
            self._layer.call_later(0, partial(self.flow_failed, Event.TRANSPORT_ERROR))

    def _deliver(self, what: Deliver, response: Response | None) -> None:
        if what is Deliver.MESSAGE:
            assert response is not None
            response.headers.remove_first_value("via", "Via")
            on_response = self.on_response
            if response.status >= 200:
                self._settle()
                if self.state is State.ACCEPTED:  # an INVITE: nothing to ACK or CANCEL any more
                    self.request = _FORGOTTEN
                    self._on_failure = _ignore
                elif self.request.method != "INVITE":  # let go of whoever hears of it
                    self.request = _FORGOTTEN
                    self.on_response = self._on_failure = _ignore
            on_response(response)
        else:
            self._settle()
            self.request = _FORGOTTEN
            if not self._abandoned:
                timed_out = what is Deliver.TIMEOUT
                self._on_failure(Failure.TIMEOUT if timed_out else Failure.TRANSPORT)

    def _cancel_if_possible(self) -> None:
        if self.state is State.PROCEEDING and self._cancel_wanted and not self._cancel_sent:
            self._cancel_sent = True
            self._layer.send_cancel(self, self._cancel_reason)
            self._perform(self.advance(Event.CANCEL))

    def _settle(self) -> None:
        if not self._settled:
            self._settled = True
            self._layer.settled()


class TransactionLayer:
    """All transactions of one process; the ``Receiver`` of its transports.

    ``new_id`` returns an unguessable token; ``clock`` and ``call_later`` are the event loop's.
    """

    def __init__(
        self,
        user: TransactionUser,
        timers: Timers,
        new_id: Callable[[], str],
        clock: Callable[[], float],
        call_later: CallLater,
        *,
        user_tries: bool = False,
    ) -> None:
        """``user_tries``: the user sends an INVITE's 100 itself.

        Within 0.2 s, says §17.2.1; a caller who waits longer repeats his INVITE, and no harm done.
        """
        self.user = user
        self._user_tries = user_tries
        self.call_later = call_later
        self.limits = MessageLimits()
        "May be replaced."
        self.malformed = 0
        "Messages received that could not be accepted as SIP."
        self.pending = 0
        "Transactions without a final response."
        self._timers = timers
        self._delays = {timer: timers.delay(timer) for timer in Timer}
        "Of timers that are set for the first time."
        self._new_id = new_id
        self.wheel = TimerWheel(clock, call_later)
        self._servers: dict[TransactionKey, _Server] = {}
        self._clients: dict[TransactionKey, ClientTransactionHandle] = {}
        self._clients_by_flow: defaultdict[str, set[TransactionKey]] = defaultdict(set)
        self._completed_servers = Completed(self._delays[Timer.J], clock, call_later)
        self._completed_clients = Completed(self._delays[Timer.K], clock, call_later)
        self._idle: asyncio.Event | None = None
        "Somebody waits until none is pending."

    @property
    def server_transactions(self) -> int:
        """How many server transactions live, answered ones included."""
        return len(self._servers) + len(self._completed_servers)

    @property
    def server_states(self) -> dict[str, int]:
        """How many server transactions of each method are in each state.

        Of non-INVITE ones that are completed over UDP the method is not known any more.
        """
        states = Counter(f"{each.method} {each.state.value}" for each in self._servers.values())
        if completed := len(self._completed_servers):
            states["non-INVITE completed"] = completed
        return states

    @property
    def client_transactions(self) -> int:
        """How many client transactions live, answered ones included."""
        return len(self._clients) + len(self._completed_clients)

    @property
    def timers(self) -> int:
        """How many timers of transactions have not run out."""
        return len(self.wheel)

    # What the transaction user calls.

    def send_request(
        self,
        request: Request,
        flow: Flow,
        branch: str,
        on_response: Callable[[Response], None],
        on_failure: Callable[[Failure], None],
    ) -> ClientTransactionHandle:
        """Put our Via on ``request`` and send it in a new client transaction.

        Over UDP it may have no Content-Length, and stays so; a stream needs one.
        ``branch`` begins with the magic cookie and is new, or that of a request which has been
        abandoned; the layer keeps ``request``.
        ``on_response`` gets every response (100 too, every 2xx to an INVITE, no retransmission of
        another final) without our Via; a non-2xx final to an INVITE has been ACKed by then.
        ``on_failure`` is called at most once, instead of a final response, and never before this
        method has returned.
        """
        add_via(request, flow, branch)
        if flow.transport != "UDP":
            request.add_length()
        return self._start_client(request, flow, branch, on_response, on_failure)

    def knows(self, request: Request) -> bool:
        """Whether an INVITE has come to us too, in the same transaction."""
        return server_key(request, request.top_via, request.method) in self._servers

    def adopt_request(
        self, flow: Flow, request: Request, *, answered: bool = False
    ) -> ServerTransactionHandle:
        """Go on with the server transaction of an INVITE that another process accepted.

        ``request`` is as it was handed over then. ``answered``: with a 2xx, which may be repeated
        over the handle; the INVITE, if its caller repeats it, is no new one.
        """
        via = request.top_via
        key = server_key(request, via, request.method)
        server = self._servers[key] = _Server(self, key, flow, request)
        handle = ServerTransactionHandle(server, request, via.branch)
        if answered:
            server.answered_before()
        else:
            server.handle = handle
            self.pending += 1
        return handle

    def send_stateless(self, message: Message, flow: Flow) -> None:
        """Send a message outside any transaction; lost when the flow cannot take it."""
        if flow.transport != "UDP":
            message.add_length()
        self._send(message.to_bytes(), flow)

    def _send(self, data: bytes, flow: Flow) -> None:
        try:
            flow.send(data)
        except TransportError as error:
            log.debug("message_not_sent", flow=flow.name, error=str(error))

    async def drain(self) -> None:
        """Wait until every transaction has its final response, or has failed."""
        if self.pending:
            self._idle = self._idle or asyncio.Event()
            await self._idle.wait()

    # What the transports call.

    def messages_received(self, received: list[tuple[Flow, Message]]) -> None:
        """See ``Receiver``."""
        checked: list[tuple[Flow, Message, Via]] = []
        for flow, message in received:
            try:
                checked.append((flow, message, check(message, self.limits)))
            except MessageError as error:
                self.malformed_received(flow, error)
        new: list[ServerTransactionHandle] = []
        for flow, message, via in checked:
            try:
                if isinstance(message, Request):
                    if message.method == "CANCEL" and new:  # perhaps of one of these
                        self.user.requests_received(new)
                        new = []
                    handle = self._request_received(flow, message, via)
                    if handle is not None:
                        new.append(handle)
                elif isinstance(message, Response):
                    self._response_received(flow, message, via)
            except Exception as error:  # is not the fault of those behind it
                log.error("internal_error", exc_info=error)
        if new:
            self.user.requests_received(new)

    def malformed_received(self, flow: Flow, error: MessageError) -> None:
        """Answer what is wrong statelessly (§8.2.7), if it is a request that can be answered.

        The answer repeats only lines that came, and is not retransmitted: on UDP, where the source
        may be forged, nobody gets more from us than was sent to us.
        """
        self.malformed += 1
        log.debug("malformed_message", flow=flow.name, reason=error.reason)
        request = error.message
        if not isinstance(request, Request) or request.method == "ACK":
            return
        if "via" not in request.headers:
            return
        with suppress(MessageError):  # the answer takes the request's flow in any case
            stamp_received(request, flow.remote)
        self.send_stateless(
            make_response(request, error.status, error.reason, to_tag=self._new_id()), flow
        )

    def flow_closed(self, flow: Flow) -> None:
        """See ``Receiver``."""
        self._fail_clients(flow, Event.TRANSPORT_ERROR)

    def flow_unreachable(self, flow: Flow) -> None:
        """See ``Receiver``."""
        self._fail_clients(flow, Event.UNREACHABLE)

    def flow_active(self, flow: Flow) -> None:
        """See ``Receiver``."""
        self.user.flow_active(flow)

    # What the transactions call.

    def set_timer(
        self,
        timer: Timer,
        repeats: int,
        owner: _Server | ClientTransactionHandle,
        *,
        at_t2: bool = False,
        after_t1: bool = False,
    ) -> None:
        """Have ``owner`` told when ``timer`` has run out; the rest as in ``SetTimer``."""
        if at_t2:
            delay = self._timers.t2
        elif after_t1:
            delay = self._delays[timer] - self._timers.t1
        elif repeats:
            delay = self._timers.delay(timer, repeats)
        else:
            delay = self._delays[timer]
        self.wheel.set(delay, owner, timer)

    def send_cancel(self, invite: ClientTransactionHandle, reason: str | None) -> None:
        """Send the CANCEL of an INVITE in a transaction of its own, whose outcome is nobody's."""
        cancel = make_cancel(invite.request, reason)
        branch = cancel.top_via.branch
        flow = invite.newer_flow or invite.flow
        self._start_client(cancel, flow, branch, _ignore, _ignore)

    def forget_server(self, key: TransactionKey) -> None:
        """A server transaction terminated."""
        self._servers.pop(key, None)

    def server_completed(self, key: TransactionKey, response: bytes) -> None:
        """A non-INVITE server transaction over UDP has only to repeat its response (Timer J)."""
        del self._servers[key]
        self._completed_servers.add(key, response)

    def client_completed(self, key: TransactionKey, client: ClientTransactionHandle) -> None:
        """A non-INVITE client transaction over UDP has only to hear nothing more (Timer K)."""
        self.forget_client(key, client)
        self._completed_clients.add(key)

    def forget_client(self, key: TransactionKey, client: ClientTransactionHandle) -> None:
        """A client transaction terminated.

        Another one may have taken its place: the same request on another flow, when its own broke,
        or on the same one, when it was abandoned.
        """
        newest = self._clients.get(key)
        if newest is client:
            del self._clients[key]
        elif newest is not None and newest.flow.name == client.flow.name:
            return
        keys = self._clients_by_flow.get(client.flow.name)
        if keys is not None:
            keys.discard(key)
            if not keys:
                del self._clients_by_flow[client.flow.name]

    def settled(self) -> None:
        """A transaction got its final response, or failed."""
        self.pending -= 1
        if not self.pending and self._idle is not None:
            self._idle.set()
            self._idle = None

    def _start_client(
        self,
        request: Request,
        flow: Flow,
        branch: str,
        on_response: Callable[[Response], None],
        on_failure: Callable[[Failure], None],
    ) -> ClientTransactionHandle:
        key = f"{request.method}\n{branch}"
        client = ClientTransactionHandle(
            self, key, request, flow, on_response=on_response, on_failure=on_failure
        )
        self._clients[key] = client
        self._clients_by_flow[flow.name].add(key)
        self.pending += 1
        client.start()
        return client

    def _fail_clients(self, flow: Flow, event: Event) -> None:
        for key in list(self._clients_by_flow.get(flow.name, ())):
            client = self._clients[key]
            if client.flow.name == flow.name:  # else it has gone another way since
                client.flow_failed(event)

    def _response_received(self, flow: Flow, response: Response, via: Via) -> None:
        key = client_key(response, via)
        client = self._clients.get(key)
        if client is not None:
            lines = 0
            for name, _ in response.headers.fields:
                if name == "via":
                    lines += 1
                    if lines == 2:
                        break
            if lines == 2 or not _ends_here(response, client.request):
                client.response_received(response)
        elif self._completed_clients.get(key) is None:
            self.user.stray_response_received(flow, response)

    def _request_received(
        self, flow: Flow, request: Request, via: Via
    ) -> ServerTransactionHandle | None:
        """Its new transaction, if the user is to hear of it."""
        stamp_received(request, flow.remote, via)
        if request.method == "ACK":
            self._ack_received(request, server_key(request, via, "INVITE"))
            return None
        if request.method not in _STATEFUL:
            response = self.user.stateless_answer(flow, request)
            if response is not None:
                self.send_stateless(response, flow)
                return None
        key = server_key(request, via, request.method)
        known = self._servers.get(key)
        if known is not None:
            known.came_over(flow)
            known.request_repeated()
            return None
        if (answer := self._completed_servers.get(key)) is not None:
            self._send(answer, flow)
            return None
        if request.method == "CANCEL" and self._is_spoofed(flow, request, via):
            return None
        server = self._servers[key] = _Server(self, key, flow, request)
        handle = server.handle = ServerTransactionHandle(server, request, via.branch)
        self.pending += 1
        if request.method == "CANCEL":
            self._cancel_received(handle, request, server_key(request, via, "INVITE"))
            return None
        if request.method == "INVITE" and not self._user_tries:
            handle.trying()
        return handle

    def _ack_received(self, ack: Request, key: TransactionKey) -> None:
        invite = self._servers.get(key)
        if invite is None:
            self.user.ack_received(ack)
        else:
            invite.ack_received(ack)

    def _is_spoofed(self, flow: Flow, cancel: Request, via: Via) -> bool:
        """A CANCEL carries no credentials (§22.1): its INVITE must have come from its address.

        Answered without a transaction, which would swallow the CANCEL of the true caller.
        """
        invite = self._servers.get(server_key(cancel, via, "INVITE"))
        if invite is None or invite.flow.remote[0] == flow.remote[0]:
            return False
        status = Status.CALL_OR_TRANSACTION_DOES_NOT_EXIST
        self.send_stateless(make_response(cancel, status, to_tag=self._new_id()), flow)
        return True

    def _cancel_received(
        self, handle: ServerTransactionHandle, cancel: Request, key: TransactionKey
    ) -> None:
        invite = self._servers.get(key)
        status = Status.OK if invite else Status.CALL_OR_TRANSACTION_DOES_NOT_EXIST
        handle.respond(make_response(cancel, status, to_tag=self._new_id()))
        if invite is not None and invite.handle is not None:
            invite.came_over(handle.flow)
            self.user.cancelled(invite.handle, cancel)


def add_via(request: Request, flow: Flow, branch: str) -> None:
    """Put our Via on it (§16.6 step 8)."""
    via = f"SIP/2.0/{flow.transport} {flow.sent_by};branch={branch};rport"
    request.headers.prepend("Via", via)


def _by_way_of(request: Request, response: Response) -> Response:
    """A response to the same request that has come by another way: with the Vias of that one."""
    lines = [field for field in response.headers if field[0] != "via"]
    headers = Headers([*request.headers.lines("via"), *lines])
    return Response(response.status, response.reason, headers, response.body)


def _ends_here(response: Response, request: Request) -> bool:
    """Whether it has nothing but our Via, and answers what we forwarded (§16.7 step 3)."""
    if len(response.headers.values("via")) > 1:
        return False
    return request is _FORGOTTEN or len(request.headers.values("via")) > 1


_STATEFUL: Final = frozenset({"INVITE", "CANCEL"})
_FORGOTTEN: Final = Request("", "", Headers())


def _ignore(_: object) -> None:
    pass
