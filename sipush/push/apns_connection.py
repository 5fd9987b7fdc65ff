"""One HTTP/2 connection to APNs, for aioapns' pool (``pool.protocol_class``).

aioapns' own protocol waits for ever where APNs resets a stream or stays silent, drops the
connection when one send is cancelled (and the pool then sends the others again), opens streams
that the peer has not granted and never returns its receive window. docs/decisions/push-clients.md
has the list.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from h2.config import H2Configuration
from h2.connection import ConnectionInputs, H2Connection, H2ConnectionStateMachine
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import ProtocolError

QUIET = 1.0
"Seconds without a byte, a request being open, after which the peer is pinged."
DEAF = 2.0
"Seconds a ping may stay unanswered before the connection is given up."
STALL = 2.0
"Seconds a request waits for a stream before it asks for another connection."
BODY_LIMIT = 8192
"Bytes of an answer's body that are kept."


class StreamLostError(Exception):
    """The service did not answer this request: reset, GOAWAY, or the connection is gone."""

    def __init__(self, reason: str, *, unprocessed: bool = False) -> None:
        """``unprocessed``: it cannot have been carried out (RFC 9113 §8.7)."""
        super().__init__(reason)
        self.unprocessed = unprocessed


@dataclass(frozen=True, slots=True)
class Answer:
    """What APNs said."""

    status: int
    body: bytes
    retry_after: str


@dataclass(slots=True)
class _Stream:
    answer: asyncio.Future[Answer]
    status: int = 0
    retry_after: str = ""
    body: bytearray = field(default_factory=bytearray)


class _StateMachine(H2ConnectionStateMachine):
    """Lets answers in after a GOAWAY: the streams it names are still served (RFC 9113 §6.8)."""

    def process_input(self, input_: ConnectionInputs) -> list[Event]:
        if input_ is ConnectionInputs.RECV_GOAWAY:
            return []
        return super().process_input(input_)


class ApnsConnection(asyncio.Protocol):
    """A connection as aioapns' pool expects it: constructor, ``is_busy``, ``close``."""

    APNS_SERVER = ""
    APNS_PORT = 443

    def __init__(
        self,
        topic: str,
        loop: asyncio.AbstractEventLoop,
        on_connection_lost: Callable[[ApnsConnection], None],
        auth_provider: object,
    ) -> None:
        self._loop = loop
        self._on_lost = on_connection_lost
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._h2.state_machine = _StateMachine()
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, _Stream] = {}
        self._changed = asyncio.Event()
        self._settled = False
        "The peer's SETTINGS have come: before, nobody knows how many streams it grants."
        self._stalled = False
        self._draining = False
        self._watchdog: asyncio.TimerHandle | None = None
        self._why_closed = ""

    @property
    def closed(self) -> bool:
        """Whether the pool may forget this connection."""
        return bool(self._why_closed)

    @property
    def is_busy(self) -> bool:
        """Whether the pool should take (or open) another connection."""
        return self.closed or self._draining or self._stalled

    async def post(self, headers: Sequence[tuple[str, str]], body: bytes) -> Answer:
        """Send one request and wait for its answer. Cancelling touches no other request.

        Raises StreamLostError when the service refused or lost the request.
        """
        await self._stream_granted(len(body))
        try:
            stream_id = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream_id, headers)
            self._h2.send_data(stream_id, body, end_stream=True)
        except ProtocolError:  # no stream ids left
            self._lose("protocol error")
            raise StreamLostError("protocol error", unprocessed=True) from None
        stream = self._streams[stream_id] = _Stream(self._loop.create_future())
        self._flush()
        self._watch()
        try:
            return await stream.answer
        finally:
            self._forget(stream_id)

    def close(self) -> None:
        """Give up what is open and close the connection."""
        self._lose("connection closed")

    async def _stream_granted(self, size: int) -> None:
        try:
            async with asyncio.timeout(STALL):
                while not self._may_send(size):
                    await self._changed.wait()
        except TimeoutError:
            self._stalled = True
            raise StreamLostError("no stream granted", unprocessed=True) from None

    def _may_send(self, size: int) -> bool:
        if self.closed or self._draining:
            raise StreamLostError(self._why_closed or "GOAWAY", unprocessed=True)
        settings = self._h2.remote_settings
        return (
            self._settled
            and self._h2.open_outbound_streams < settings.max_concurrent_streams
            and size <= self._h2.outbound_flow_control_window
            and size <= settings.initial_window_size
        )

    def _forget(self, stream_id: int) -> None:
        """Free a stream whose answer nobody waits for any more."""
        self._streams.pop(stream_id, None)
        self._stalled = False
        if not self.closed:
            with suppress(ProtocolError):  # already ended: the usual case
                self._h2.reset_stream(stream_id, ErrorCodes.CANCEL)
            self._flush()
            self._state_changed()

    def _state_changed(self) -> None:
        self._changed.set()
        self._changed.clear()
        if self._draining and not self._streams:
            self._lose("connection closed")

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        tls = transport.get_extra_info("ssl_object")
        if tls is None or tls.selected_alpn_protocol() != "h2":
            self._lose("the server does not speak HTTP/2")
            return
        self._h2.initiate_connection()
        self._flush()
        self._watch()

    def data_received(self, data: bytes) -> None:
        self._unwatch()
        try:
            events = self._h2.receive_data(data)
        except ProtocolError:
            self._lose("protocol error")
            return
        for event in events:
            self._event_received(event)
        self._flush()
        self._state_changed()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose("connection lost")
        with suppress(ValueError):  # lost before the pool had listed it
            self._on_lost(self)

    # h2

    def _event_received(self, event: Event) -> None:
        match event:
            case RemoteSettingsChanged():
                self._settled = True
            case ResponseReceived():
                self._response_received(event)
            case DataReceived():
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                stream = self._streams.get(event.stream_id)
                if stream is not None and len(stream.body) < BODY_LIMIT:
                    stream.body += event.data
            case StreamEnded():
                self._complete(event.stream_id)
            case StreamReset():
                code = int(event.error_code)
                refused = code == ErrorCodes.REFUSED_STREAM
                self._fail(event.stream_id, f"stream reset, error {code}", unprocessed=refused)
            case ConnectionTerminated():
                self._goaway_received(event)

    def _response_received(self, event: ResponseReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        headers: dict[Any, Any] = dict(event.headers)
        stream.status = int(headers[":status"])
        stream.retry_after = str(headers.get("retry-after", ""))
        if stream.status == 200:  # it has no body: accepted, whatever comes after
            self._complete(event.stream_id)

    def _goaway_received(self, event: ConnectionTerminated) -> None:
        self._draining = True
        last = event.last_stream_id or 0
        for stream_id in [s for s in self._streams if s > last]:
            self._fail(stream_id, "GOAWAY", unprocessed=True)

    def _complete(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.answer.done():
            answer = Answer(stream.status, bytes(stream.body), stream.retry_after)
            stream.answer.set_result(answer)

    def _fail(self, stream_id: int, reason: str, *, unprocessed: bool = False) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.answer.done():
            stream.answer.set_exception(StreamLostError(reason, unprocessed=unprocessed))

    def _lose(self, reason: str) -> None:
        if self.closed:
            return
        self._why_closed = reason
        self._unwatch()
        for stream_id in self._streams:
            self._fail(stream_id, reason)
        self._changed.set()
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        if self._transport is not None and (data := self._h2.data_to_send()):
            self._transport.write(data)

    # A dead peer (a NAT that forgot us) answers nothing at all; TCP tells after many minutes.

    def _watch(self) -> None:
        if self._watchdog is None:
            self._watchdog = self._loop.call_later(QUIET, self._ping)

    def _unwatch(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def _ping(self) -> None:
        self._h2.ping(b"sipush??")
        self._flush()
        self._watchdog = self._loop.call_later(DEAF, self._lose, "no answer to ping")
