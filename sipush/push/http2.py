"""HTTP/2 to push services: many requests on one connection, none of which may hurt another.

What libraries do instead is in docs/decisions/push-clients.md.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol
from urllib.parse import urlsplit

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

from sipush.core.push_request import PushOutcome, PushResult
from sipush.push.http_client import (
    BODY_LIMIT,
    BODY_TIME,
    CONNECT_TIMEOUT,
    Answer,
    Http1Client,
    distrusted,
)
from sipush.push.provider import Begin, Leave, begin_now

QUIET = 1.0
"""Seconds without a byte, a request being open, after which the peer is pinged; twice as long after
each ping that it has answered, as a service may take many of them for an attack."""
DEAF = 2.0
"Seconds a ping may stay unanswered before the connection is given up."
STALL = 2.0
"Seconds a request waits for a stream before it asks for another connection."
MAX_CONNECTIONS = 4
"To one server, that requests share."
REFUSED_PAUSES = (0.05, 0.2)
"Seconds before a request that was refused or overtaken by a GOAWAY is sent again, more or less."
MAX_SUSPECTS = 10_000
_NOT_HTTP2 = "the server does not speak HTTP/2"

Header = tuple[str, str]


class StreamLostError(Exception):
    """The service did not answer this request: reset, GOAWAY, or the connection is gone."""

    def __init__(self, reason: str, *, unprocessed: bool = False) -> None:
        """``unprocessed``: it cannot have been carried out (RFC 9113 §8.7)."""
        super().__init__(reason)
        self.unprocessed = unprocessed


class NotHttp2Error(Exception):
    """The server does not speak HTTP/2."""


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


class Http2Connection(asyncio.Protocol):
    """One connection to a service."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_lost: Callable[[Http2Connection], None]
    ) -> None:
        self._loop = loop
        self._on_lost = on_lost
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._h2.state_machine = _StateMachine()
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, _Stream] = {}
        self._kept: list[int] = []
        "Sizes of the requests that are about to be sent."
        self._changed = asyncio.Event()
        self._settled = False
        "The peer's SETTINGS have come: before, nobody knows how many streams it grants."
        self._stalled = False
        self._draining = False
        self._watchdog: asyncio.TimerHandle | None = None
        self._quiet = QUIET
        self._why_closed = ""

    @property
    def closed(self) -> bool:
        """Whether it may be forgotten."""
        return bool(self._why_closed)

    @property
    def is_http2(self) -> bool:
        """Whether the server chose to speak it."""
        return self._why_closed != _NOT_HTTP2

    @property
    def is_busy(self) -> bool:
        """Whether another connection should be taken, or opened."""
        return self.closed or self._draining or self._stalled

    async def post(
        self, headers: Sequence[Header], body: bytes, begin: Begin | None = None
    ) -> Answer:
        """Send one request and wait for its answer. Cancelling touches no other request.

        Raises StreamLostError when the service refused or lost the request, and WithdrawnError.
        """
        sent: list[int] = []

        def leave() -> None:
            if self._has_room(self._kept):  # still: or the peer has changed its mind
                sent.append(self._send(headers, body))

        try:
            await self._stream_granted(len(body))
            await self._keep_stream(len(body), begin, leave)
            if not sent:
                await self._stream_granted(len(body))
                sent.append(self._send(headers, body))
            return await self._streams[sent[0]].answer
        finally:
            for stream_id in sent:
                self._forget(stream_id)

    def close(self) -> None:
        """Give up what is open and close the connection."""
        self._lose("connection closed")

    def _send(self, headers: Sequence[Header], body: bytes) -> int:
        """The stream of the request, which has left. Raises StreamLostError."""
        try:
            stream_id = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream_id, headers)
            self._h2.send_data(stream_id, body, end_stream=True)
        except ProtocolError:  # no stream ids left
            self._lose("protocol error")
            raise StreamLostError("protocol error", unprocessed=True) from None
        self._streams[stream_id] = _Stream(self._loop.create_future())
        self._flush()
        self._quiet = QUIET
        self._watch()
        return stream_id

    async def _keep_stream(self, size: int, begin: Begin | None, leave: Leave) -> None:
        """Nobody else takes the stream while ``begin`` is under way. Raises WithdrawnError."""
        self._kept.append(size)
        try:
            await begin_now(begin, leave)
        finally:
            self._kept.remove(size)
            self._state_changed()

    async def _stream_granted(self, size: int) -> None:
        try:
            async with asyncio.timeout(STALL):
                while not self._has_room([*self._kept, size]):
                    await self._changed.wait()
        except TimeoutError:
            self._stalled = True
            raise StreamLostError("no stream granted", unprocessed=True) from None

    def _has_room(self, sizes: Sequence[int]) -> bool:
        """Whether requests of these sizes may be sent. Raises StreamLostError."""
        if self.closed or self._draining:
            raise StreamLostError(self._why_closed or "GOAWAY", unprocessed=True)
        settings = self._h2.remote_settings
        return (
            self._settled
            and self._h2.open_outbound_streams + len(sizes) <= settings.max_concurrent_streams
            and sum(sizes) <= self._h2.outbound_flow_control_window
            and max(sizes, default=0) <= settings.initial_window_size
        )

    def _forget(self, stream_id: int) -> None:
        """Free a stream whose answer nobody waits for any more."""
        self._streams.pop(stream_id, None)
        self._stalled = False
        if not self._streams:
            self._unwatch()
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
            self._lose(_NOT_HTTP2)
            return
        self._h2.initiate_connection()
        self._flush()
        self._watch()

    def data_received(self, data: bytes) -> None:
        self._unwatch()
        try:
            for event in self._h2.receive_data(data):
                self._event_received(event)
        except (ProtocolError, ValueError):  # h2 lets pass what is no text, or no status
            self._lose("protocol error")
            return
        self._flush()
        self._state_changed()
        if self._streams and not self.closed:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose("connection lost")
        with suppress(ValueError):  # lost before it was listed, or never listed
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
        if 200 <= stream.status < 300:  # accepted, whatever comes after: not to be sent again
            self._complete(event.stream_id)
        else:  # the status has told nearly all we ask
            self._loop.call_later(BODY_TIME, self._complete, event.stream_id)

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
            self._watchdog = self._loop.call_later(self._quiet, self._ping)

    def _unwatch(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    def _ping(self) -> None:
        self._quiet *= 2
        self._h2.ping(b"sipush??")
        self._flush()
        self._watchdog = self._loop.call_later(DEAF, self._lose, "no answer to ping")


class Connections(Protocol):
    """Those to one server. Both methods raise OSError when there is none to be had."""

    async def acquire(self) -> Http2Connection:
        """One that others use too."""

    async def connect(self) -> Http2Connection:
        """A new one, which nobody else will use."""


class ConnectionPool:
    """Few connections, opened when they are needed."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._shared: list[Http2Connection] = []
        self._opening = asyncio.Lock()

    async def acquire(self) -> Http2Connection:
        """One that others use too. Raises OSError, NotHttp2Error, StreamLostError (all busy)."""
        async with self._opening:
            self._shared = [each for each in self._shared if not each.closed]
            connection = next((each for each in self._shared if not each.is_busy), None)
            if connection is None:
                if len(self._shared) >= MAX_CONNECTIONS:
                    raise StreamLostError("no stream granted", unprocessed=True)
                connection = await self.connect()
                self._shared.append(connection)
            return connection

    async def connect(self) -> Http2Connection:
        """A new one, which nobody else will use. Raises OSError and NotHttp2Error."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Http2Connection(loop, lambda lost: None), self._host, self._port, ssl=self._tls
        )
        if not connection.is_http2:
            raise NotHttp2Error
        return connection

    def close(self) -> None:
        """Close every connection."""
        for connection in self._shared:
            connection.close()


class Http2Client:
    """Posts to one server, and keeps those apart whose requests end connections."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._suspects: dict[str, None] = {}
        """Whose last request was lost with its connection, oldest first. Theirs may have been what
        ended it: the next one has a connection to itself, until one is answered."""

    async def post(
        self, headers: Sequence[Header], body: bytes, whose: str, begin: Begin | None = None
    ) -> Answer | PushOutcome:
        """The answer, or why there is none. ``whose``: the device. Raises WithdrawnError.

        What the service has not even looked at is asked anew: that repeats nothing.
        """
        ask = partial(self._ask, headers, body, whose, begin)
        alone = whose in self._suspects
        for pause in REFUSED_PAUSES:
            try:
                return await ask(alone=alone)
            except StreamLostError as error:
                if not error.unprocessed:
                    return self._lost(whose, error)
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
        try:  # others may be what ends the shared ones
            return await ask(alone=True)
        except StreamLostError as error:
            return self._lost(whose, error)

    async def _connection(self, *, alone: bool) -> Http2Connection | PushOutcome:
        """Raises StreamLostError."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                return await (self._connections.connect() if alone else self._connections.acquire())
        except TimeoutError:
            return PushOutcome(PushResult.RETRYABLE, "connect timed out", has_left=False)
        except OSError as error:
            if distrusted(error):
                return PushOutcome(PushResult.CONFIG, "certificate not trusted")
            return PushOutcome(PushResult.RETRYABLE, "cannot connect", has_left=False)

    def _lost(self, whose: str, error: StreamLostError) -> PushOutcome:
        if len(self._suspects) >= MAX_SUSPECTS:
            del self._suspects[next(iter(self._suspects))]
        self._suspects[whose] = None
        return PushOutcome(PushResult.RETRYABLE, str(error))

    async def _ask(
        self,
        headers: Sequence[Header],
        body: bytes,
        whose: str,
        begin: Begin | None,
        *,
        alone: bool,
    ) -> Answer | PushOutcome:
        """Raises StreamLostError and WithdrawnError."""
        connection = await self._connection(alone=alone)
        if isinstance(connection, PushOutcome):
            return connection
        try:
            answer = await connection.post(headers, body, begin)
        finally:
            if alone:
                connection.close()
        self._suspects.pop(whose, None)
        return answer


class HttpsServer:
    """One server that is posted to: over HTTP/2 if it speaks it, as gateways may not."""

    def __init__(self, origin: str, tls: ssl.SSLContext) -> None:
        """``origin``: https://host[:port]."""
        self._origin = origin
        self._tls = tls
        server = urlsplit(origin)
        self._authority = server.netloc
        self._connections = ConnectionPool(server.hostname or "", server.port or 443, tls)
        self._http2 = Http2Client(self._connections)
        self._http1: Http1Client | None = None
        "Once it has been found to speak only that."

    async def post(
        self,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        whose: str,
        begin: Begin | None = None,
    ) -> Answer | PushOutcome:
        """The answer, or why there is none. ``whose``: the device. Raises WithdrawnError."""
        if self._http1 is None:
            pseudo_headers = [
                (":method", "POST"),
                (":scheme", "https"),
                (":authority", self._authority),
                (":path", path),
            ]
            try:
                return await self._http2.post(
                    [*pseudo_headers, *headers.items()], body, whose, begin
                )
            except NotHttp2Error:
                self._http1 = self._http1 or Http1Client(self._tls)
        return await self._http1.post(f"{self._origin}{path}", headers, body, begin)

    async def close(self) -> None:
        """Close every connection."""
        self._connections.close()
        if self._http1 is not None:
            await self._http1.close()
