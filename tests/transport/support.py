"""A receiver that keeps what transports tell it, and messages to send."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from sipush.errors import MessageError
from sipush.sip.message import Message, Request
from sipush.transport.flow import Flow

TIMEOUT = 10


class Recorder:
    """Waits for each kind of news by itself; ``on_message`` is run on the loop as the server is."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[tuple[Flow, Message]] = asyncio.Queue()
        self.malformed: asyncio.Queue[tuple[Flow, MessageError]] = asyncio.Queue()
        self.closed: asyncio.Queue[Flow] = asyncio.Queue()
        self.unreachable: asyncio.Queue[Flow] = asyncio.Queue()
        self.active: asyncio.Queue[Flow] = asyncio.Queue()
        self.on_message: Callable[[Flow, Message], None] = lambda flow, message: None

    def messages_received(self, received: list[tuple[Flow, Message]]) -> None:
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


def send_for_ever(flow: Flow) -> None:
    """Until the flow raises."""
    while True:
        flow.send(bytes(50_000))
