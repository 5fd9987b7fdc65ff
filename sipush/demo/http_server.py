"""HTTP/2 and HTTP/1.1 over TLS, as far as a push service needs them, able to misbehave."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum

import h11
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, RequestReceived, StreamEnded, StreamReset
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings


class Act(Enum):
    """What happens to a request."""

    ANSWER = "answer"
    SILENCE = "silence"
    "No answer, ever; the connection lives."
    RESET = "reset"
    "RST_STREAM INTERNAL_ERROR (HTTP/1.1: the connection is closed)."
    REFUSE = "refuse"
    "RST_STREAM REFUSED_STREAM: not processed (HTTP/1.1: the connection is closed)."
    GOAWAY = "goaway"
    "GOAWAY that disowns this request, then the connection is closed."
    GOAWAY_AFTER = "goaway-after"
    "GOAWAY that still serves this request, then its answer, then the connection is closed."
    DISCONNECT = "disconnect"
    "The connection is cut."
    ENDLESS = "endless"
    "An answer whose body never ends."
    BREAK = "break"
    "An answer in whose body the connection is cut."
    DEAF = "deaf"
    "The whole connection never hears or says anything again, pings included."


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request, whole."""

    method: str
    path: str
    headers: dict[str, str]
    "Names in lower case; ``:authority`` as ``host``."
    body: bytes
    http2: bool


@dataclass(frozen=True, slots=True)
class HttpReply:
    """What to do with it."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    act: Act = Act.ANSWER
    delay: float = 0.0
    split: bool = False
    "Send the body byte by byte."
    raise_stream_limit: bool = False
    "APNs grants one stream until it has seen a valid token."

    @property
    def ends(self) -> bool:
        """Whether the body does."""
        return self.act not in (Act.ENDLESS, Act.BREAK)


@dataclass(slots=True)
class HttpServerOptions:
    """How every connection behaves; may be changed between connections."""

    tls_delay: float = 0.0
    "Seconds between TCP and TLS."
    slow_handshakes: int | None = None
    "How many connections ``tls_delay`` holds up; None: all."
    first_stream_limit: int | None = 1
    "MAX_CONCURRENT_STREAMS before the first valid token; None: no limit."
    stream_limit: int = 1000


Handler = Callable[[HttpRequest], HttpReply]
Complain = Callable[[str], None]


class HttpServer:
    """Serves one handler on one port, over HTTP/2 or HTTP/1.1 as ALPN decides."""

    def __init__(
        self, tls: ssl.SSLContext, handler: Handler, complain: Complain, options: HttpServerOptions
    ) -> None:
        self._tls = tls
        self._handler = handler
        self._complain = complain
        self._options = options
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections_accepted = 0

    async def start(self, host: str, port: int) -> int:
        """Listen; the port in use is returned."""
        listener = socket.create_server((host, port), backlog=1024)
        listener.setblocking(False)
        self._spawn(self._accept(listener))
        return int(listener.getsockname()[1])

    async def close(self) -> None:
        """Stop listening and cut every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                connection, _ = await loop.sock_accept(listener)
                self.connections_accepted += 1
                self._spawn(self._accepted(connection))

    async def _accepted(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with connection:
            await asyncio.sleep(self._tls_delay())
            reader = asyncio.StreamReader()
            protocol = asyncio.StreamReaderProtocol(reader)
            try:
                transport, _ = await loop.connect_accepted_socket(
                    lambda: protocol, connection, ssl=self._tls
                )
                try:
                    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
                    await self._serve(reader, writer)
                finally:
                    transport.abort()
            except* OSError:  # the client left, or does not trust us
                pass

    def _tls_delay(self) -> float:
        if self._options.slow_handshakes is None:
            return self._options.tls_delay
        if self._options.slow_handshakes == 0:
            return 0.0
        self._options.slow_handshakes -= 1
        return self._options.tls_delay

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tls = writer.get_extra_info("ssl_object")
        if tls.selected_alpn_protocol() == "h2":
            async with asyncio.TaskGroup() as tasks:
                connection = _Http2(writer, tasks, self._handler, self._complain, self._options)
                await connection.run(reader)
        else:
            await _serve_http1(reader, writer, self._handler)


@dataclass(slots=True)
class _Incoming:
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)


class _Http2:
    """The server's end of one HTTP/2 connection."""

    def __init__(
        self,
        writer: asyncio.StreamWriter,
        tasks: asyncio.TaskGroup,
        handler: Handler,
        complain: Complain,
        options: HttpServerOptions,
    ) -> None:
        self._writer = writer
        self._tasks = tasks
        self._handler = handler
        self._complain = complain
        self._options = options
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self._incoming: dict[int, _Incoming] = {}
        self._deaf = False
        self._closed = False

    async def run(self, reader: asyncio.StreamReader) -> None:
        if self._options.first_stream_limit is not None:
            limit = self._options.first_stream_limit
            self._h2.local_settings = Settings(
                client=False, initial_values={SettingCodes.MAX_CONCURRENT_STREAMS: limit}
            )
        self._h2.initiate_connection()
        self._flush()
        while not self._closed and (data := await reader.read(65536)):
            if self._deaf:
                continue
            try:
                events = self._h2.receive_data(data)
            except ProtocolError as error:
                self._complain(f"HTTP/2: {type(error).__name__}: {error}")
                self._flush()
                return
            for event in events:
                match event:
                    case RequestReceived():
                        self._incoming[event.stream_id] = _Incoming(_headers(event))
                    case DataReceived():
                        self._incoming[event.stream_id].body += event.data
                        self._h2.acknowledge_received_data(
                            event.flow_controlled_length, event.stream_id
                        )
                    case StreamReset():
                        self._incoming.pop(event.stream_id, None)
                    case StreamEnded():
                        self._tasks.create_task(self._answer(event.stream_id))
            self._flush()

    async def _answer(self, stream_id: int) -> None:
        incoming = self._incoming.pop(stream_id, None)
        if incoming is None:
            return
        headers = incoming.headers
        reply = self._handler(
            HttpRequest(headers[":method"], headers[":path"], headers, bytes(incoming.body), True)
        )
        with suppress(ProtocolError):  # the stream or the connection has ended meanwhile
            if reply.raise_stream_limit and self._options.first_stream_limit is not None:
                self._h2.update_settings(
                    {SettingCodes.MAX_CONCURRENT_STREAMS: self._options.stream_limit}
                )
            await asyncio.sleep(reply.delay)
            if self._closed:
                return
            await self._act(stream_id, reply)
        if not self._deaf:
            self._flush()

    async def _act(self, stream_id: int, reply: HttpReply) -> None:
        match reply.act:
            case Act.SILENCE:
                return
            case Act.DEAF:
                self._deaf = True
            case Act.RESET:
                self._h2.reset_stream(stream_id, ErrorCodes.INTERNAL_ERROR)
            case Act.REFUSE:
                self._h2.reset_stream(stream_id, ErrorCodes.REFUSED_STREAM)
            case Act.GOAWAY:
                self._h2.close_connection(last_stream_id=max(0, stream_id - 2))
                self._end()
            case Act.GOAWAY_AFTER:
                self._goaway_then_answer(stream_id, reply)
            case Act.DISCONNECT:
                self._closed = True
                self._writer.transport.abort()
            case Act.ANSWER | Act.ENDLESS:
                await self._send(stream_id, reply)
            case Act.BREAK:
                await self._send(stream_id, reply)
                self._end()

    async def _send(self, stream_id: int, reply: HttpReply) -> None:
        headers, ends = [(":status", str(reply.status)), *reply.headers.items()], reply.ends
        self._h2.send_headers(stream_id, headers, end_stream=ends and not reply.body)
        self._flush()
        step = 1 if reply.split else max(1, len(reply.body))
        for at in range(0, len(reply.body), step):
            end = at + step >= len(reply.body)
            self._h2.send_data(stream_id, reply.body[at : at + step], end_stream=ends and end)
            self._flush()
            await asyncio.sleep(0)

    def _goaway_then_answer(self, stream_id: int, reply: HttpReply) -> None:
        """h2 refuses to send after GOAWAY, so the answer is made first and sent second."""
        self._flush()
        headers = [(":status", str(reply.status)), *reply.headers.items()]
        self._h2.send_headers(stream_id, headers, end_stream=not reply.body)
        if reply.body:
            self._h2.send_data(stream_id, reply.body, end_stream=True)
        answer = self._h2.data_to_send()
        self._h2.close_connection(last_stream_id=stream_id)
        self._writer.write(self._h2.data_to_send() + answer)
        self._end()

    def _end(self) -> None:
        self._flush()
        self._closed = True
        self._writer.close()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and not self._closed:
            self._writer.write(data)


def _headers(event: RequestReceived) -> dict[str, str]:
    headers = {str(name): str(value) for name, value in event.headers}
    headers.setdefault("host", headers.get(":authority", ""))
    return headers


async def _serve_http1(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler
) -> None:
    connection = h11.Connection(h11.SERVER)
    while connection.our_state is not h11.MUST_CLOSE:
        request = await _read_http1(connection, reader)
        if request is None:
            return
        reply = handler(request)
        await asyncio.sleep(reply.delay)
        match reply.act:
            case Act.SILENCE | Act.DEAF:
                await reader.read()  # until the client gives up
                return
            case Act.ANSWER | Act.GOAWAY_AFTER | Act.ENDLESS | Act.BREAK:
                await _write_http1(connection, writer, reply)
            case _:
                return
        if not reply.ends:
            if reply.act is Act.ENDLESS:
                await reader.read()
            return
        if connection.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
            connection.start_next_cycle()


async def _read_http1(
    connection: h11.Connection, reader: asyncio.StreamReader
) -> HttpRequest | None:
    head: h11.Request | None = None
    body = b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            data = await reader.read(65536)
            if not data:  # the client has left, perhaps in the middle
                return None
            connection.receive_data(data)
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            headers = {name.decode(): value.decode() for name, value in head.headers}
            return HttpRequest(head.method.decode(), head.target.decode(), headers, body, False)
        else:
            return None


async def _write_http1(
    connection: h11.Connection, writer: asyncio.StreamWriter, reply: HttpReply
) -> None:
    size = len(reply.body) if reply.ends else len(reply.body) + 1
    headers = {**reply.headers, "content-length": str(size)}
    head = h11.Response(status_code=reply.status, headers=list(headers.items()))
    writer.write(connection.send(head) or b"")
    step = 1 if reply.split else max(1, len(reply.body))
    for at in range(0, len(reply.body), step):
        writer.write(connection.send(h11.Data(data=reply.body[at : at + step])) or b"")
        await writer.drain()
    if reply.ends:
        writer.write(connection.send(h11.EndOfMessage()) or b"")
    await writer.drain()
