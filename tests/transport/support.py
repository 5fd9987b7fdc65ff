"""A receiver that keeps what transports tell it, and messages to send."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from sipush.errors import MessageError
from sipush.sip.message import Message, Request
from sipush.transport.flow import Flow

TIMEOUT = 10


class Recorder:
    """Waits for each kind of news by itself; ``on_message`` is run on the loop as the server is."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[tuple[Flow, Message]] = asyncio.Queue()
        self.together: list[int] = []
        "How many messages came at a time."
        self.malformed: asyncio.Queue[tuple[Flow, MessageError]] = asyncio.Queue()
        self.closed: asyncio.Queue[Flow] = asyncio.Queue()
        self.unreachable: asyncio.Queue[Flow] = asyncio.Queue()
        self.active: asyncio.Queue[Flow] = asyncio.Queue()
        self.on_message: Callable[[Flow, Message], None] = lambda flow, message: None

    def messages_received(self, received: list[tuple[Flow, Message]]) -> None:
        if received:
            self.together.append(len(received))
        for flow, message in received:
            self.on_message(flow, message)
            self.messages.put_nowait((flow, message))

    def malformed_received(self, flow: Flow, error: MessageError) -> None:
        self.malformed.put_nowait((flow, error))

    def flow_closed(self, flow: Flow) -> None:
        self.closed.put_nowait(flow)

    def flow_unreachable(self, flow: Flow) -> None:
        self.unreachable.put_nowait(flow)

    def flow_active(self, flow: Flow) -> None:
        self.active.put_nowait(flow)

    async def request(self) -> tuple[Flow, Request]:
        """The next message, which must be a request."""
        flow, message = await soon(self.messages.get())
        assert isinstance(message, Request)
        return flow, message


async def soon(awaitable: Any) -> Any:
    """The result of ``awaitable``, which must come in time."""
    async with asyncio.timeout(TIMEOUT):
        return await awaitable


def register(number: int = 1, body: bytes = b"") -> bytes:
    """A REGISTER, told from others by its CSeq."""
    head = (
        "REGISTER sip:example.com SIP/2.0\r\n"
        "Via: SIP/2.0/UDP 127.0.0.1:5071;rport;branch=z9hG4bK776asdhds\r\n"
        "Max-Forwards: 70\r\n"
        "From: <sip:101@example.com>;tag=1928301774\r\n"
        "To: <sip:101@example.com>\r\n"
        "Call-ID: a84b4c76e66710@pc33.example.com\r\n"
        f"CSeq: {number} REGISTER\r\n"
        "Contact: <sip:101@127.0.0.1:5071>\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class DatagramPhone(asyncio.DatagramProtocol):
    """A UDP peer on asyncio's own transport."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[tuple[bytes, tuple[str, int]]] = asyncio.Queue()
        self.transport: asyncio.DatagramTransport

    @classmethod
    async def open(cls, ip: str = "127.0.0.1") -> DatagramPhone:
        loop = asyncio.get_running_loop()
        _, phone = await loop.create_datagram_endpoint(cls, local_addr=(ip, 0))
        return phone

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.received.put_nowait((data, addr[:2]))

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.transport.get_extra_info("sockname")[:2]
        return host, port


class TcpPhone:
    """A TCP peer on asyncio's streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, address: tuple[str, int], **options: Any) -> TcpPhone:
        return cls(*await asyncio.open_connection(*address, **options))

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.writer.get_extra_info("sockname")[:2]
        return host, port


class TlsPipe:
    """A TLS peer that says what goes into one segment, and reads record by record."""

    def __init__(self, phone: TcpPhone, client: ssl.SSLContext) -> None:
        self._phone = phone
        self._coming, self._going = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = client.wrap_bio(self._coming, self._going, server_hostname="127.0.0.1")

    @classmethod
    async def open(cls, address: tuple[str, int], client: ssl.SSLContext) -> TlsPipe:
        pipe = cls(await TcpPhone.open(address), client)
        await pipe._whatever_it_takes(pipe._tls.do_handshake)
        return pipe

    async def _whatever_it_takes(self, step: Callable[[], Any]) -> Any:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                self._flush()
                self._coming.write(await soon(self._phone.reader.read(65536)))
            else:
                return result

    def write(self, *records: bytes, close: bool = False) -> None:
        """One segment; ``close``: with the close_notify that ends what we say."""
        for record in records:
            self._tls.write(record)
        if close:
            with suppress(ssl.SSLWantReadError):
                self._tls.unwrap()
        self._flush()

    def _flush(self) -> None:
        self._phone.writer.write(self._going.read())

    async def read(self) -> bytes:
        """What the next record holds."""
        return cast(bytes, await self._whatever_it_takes(lambda: self._tls.read(16384)))

    def close(self) -> None:
        self._phone.writer.close()


def send_for_ever(flow: Flow) -> None:
    """Until the flow raises."""
    while True:
        flow.send(bytes(50_000))
