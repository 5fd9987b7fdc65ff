"""Connections: what TCP, TLS and WebSocket flows have in common."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from sipush.errors import MessageError, TransportError
from sipush.sip.framing import Frame, KeepAlive
from sipush.sip.message import Message
from sipush.transport.address import ListenAddress, format_address
from sipush.transport.flow import Address, Flow, Receiver
from sipush.transport.mirror import Mirror
from sipush.transport.udp import AT_ONCE

_KEEP_ALIVE = {
    socket.TCP_KEEPIDLE: 120,
    socket.TCP_KEEPINTVL: 15,
    socket.TCP_KEEPCNT: 4,
    socket.TCP_USER_TIMEOUT: 60_000,
}
"A silent peer is probed after 120 s; one that acknowledges nothing for 60 s is dead."

READ_SIZE = 16 * 1024
"""Bytes taken from one connection before the others get their turn. asyncio's 256 KiB would be
hundreds of messages of one peer in a row."""

UNHEARD = 10
"""Times ``message_timeout`` that a connection may last on keep-alives alone: a page may connect
before its user signs in."""

WRITE_SIZE = 16 * 1024
"Bytes that wait for the end of the turn; what does not fit into a TLS record gains nothing."


@dataclass(frozen=True, slots=True)
class Limits:
    """What one peer may cost. Times are seconds, sizes bytes."""

    message_size: int = 65_535
    write_buffer: int = 1 << 20
    "Unsent bytes; a peer that lets more pile up does not read and is dropped."
    connections: int = 100_000
    "Open ones altogether; beyond it nobody gets another."
    connections_per_address: int = 10_000
    "Incoming ones from one IP address (behind which may be a whole office)."
    message_timeout: float = 30
    "For a message once begun, and for the first one of an incoming connection."
    close_timeout: float = 5
    "For what is queued when we close."
    ping_interval: float = 30
    "WebSocket: between pings, each of which must be answered before the next."


class ConnectionTable:
    """The open connections of one server. Tells the receiver once when one of them ends.

    What comes over all of them in a turn of the event loop is heard together, as over UDP, and what
    leaves over one of them is written together: one call of the system, one TLS record.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.receiver: Receiver
        "To be set before the first connection."
        self.mirror: Mirror | None = None
        "Gets a copy of every message."
        self.may_stay: Callable[[Flow], bool] = _nobody
        "Whether a connection may last on keep-alives alone. To be set like ``receiver``."
        self._open: dict[str, Connection] = {}
        self._incoming: Counter[str] = Counter()
        self._expected = 0
        "TLS handshakes under way; they count as incoming."
        self._process = secrets.token_hex(8)
        self._numbers = itertools.count(1)
        self._frames: list[tuple[Connection, Frame]] = []
        self._will_hear = False
        self._unsent: list[Connection] = []
        self._will_write = False
        self._closing = False
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    def flow(self, name: str) -> Connection | None:
        """The open connection of that name."""
        return self._open.get(name)

    def add(self, connection: Connection) -> bool:
        """Name and keep a new connection; False when there are too many, or of its address."""
        if self._closing:
            return False
        ip = connection.remote[0]
        if connection.is_incoming:
            if not self._has_room(ip):
                return False
            self._incoming[ip] += 1
        ends = f"{format_address(connection.local)}/{format_address(connection.remote)}"
        number = next(self._numbers)
        connection.name = f"{connection.transport.lower()}/{ends}/{self._process}-{number}"
        self._open[connection.name] = connection
        self._empty.clear()
        return True

    def expect(self, ip: str) -> bool:
        """Count a connection that is not one before its TLS handshake is over; False as ``add``.

        To be followed by ``expected``, unless it is False.
        """
        if self._closing or not self._has_room(ip):
            return False
        self._incoming[ip] += 1
        self._expected += 1
        return True

    def expected(self, ip: str) -> None:
        """Its handshake is over, however it went."""
        self._expected -= 1
        self._gone(ip)

    def remove(self, connection: Connection) -> None:
        """Forget a connection that ended and tell the receiver; nothing if it was never added."""
        if self._forget(connection):
            self.receiver.flow_closed(connection)

    def move(self, connection: Connection, remote: Address) -> bool:
        """Take a connection nobody knows yet for one from ``remote``; False as ``add``."""
        if not self._forget(connection):
            return False
        connection.remote = remote
        return self.add(connection)

    def received(self, connection: Connection, frame: Frame) -> None:
        """To be passed on with what others say: once AT_ONCE have come, or in the next turn."""
        self._frames.append((connection, frame))
        if len(self._frames) >= AT_ONCE:
            self.pass_on()
        elif not self._will_hear:
            self._will_hear = True
            asyncio.get_running_loop().call_soon(self._pass_on_all)

    def pass_on(self) -> None:
        """Tell the receiver what has come, in order, and write its answers."""
        frames, self._frames = self._frames, []
        self._will_write = True  # below, and not in a turn of its own
        try:
            self._tell(frames)
        finally:
            self._write_all()

    def write_later(self, connection: Connection) -> None:
        """Have it ``flush`` at the end of this turn."""
        self._unsent.append(connection)
        if not self._will_write:
            self._will_write = True
            asyncio.get_running_loop().call_soon(self._write_all)

    def _forget(self, connection: Connection) -> bool:
        if self._open.pop(connection.name, None) is None:
            return False
        if connection.is_incoming:
            self._gone(connection.remote[0])
        if not self._open:
            self._empty.set()
        return True

    def _has_room(self, ip: str) -> bool:
        limits = self.limits
        return (
            len(self._open) + self._expected < limits.connections
            and self._incoming[ip] < limits.connections_per_address
        )

    def _gone(self, ip: str) -> None:
        self._incoming[ip] -= 1
        if not self._incoming[ip]:
            del self._incoming[ip]

    def _pass_on_all(self) -> None:
        self._will_hear = False
        self.pass_on()

    def _tell(self, frames: list[tuple[Connection, Frame]]) -> None:
        messages: list[tuple[Flow, Message]] = []
        for connection, frame in frames:
            if isinstance(frame, Message):
                if connection.unheard is not None:
                    connection.unheard.cancel()
                    connection.unheard = None
                messages.append((connection, frame))
                continue
            if messages:  # came before it
                self.receiver.messages_received(messages)
                messages = []
            if isinstance(frame, KeepAlive):
                connection.pong()
            else:
                self.receiver.malformed_received(connection, frame)
        if messages:
            self.receiver.messages_received(messages)

    def _write_all(self) -> None:
        self._will_write = False
        unsent, self._unsent = self._unsent, []
        for connection in unsent:
            connection.flush()

    async def close(self) -> None:
        """Close every connection and wait until all have ended."""
        self._closing = True
        for connection in list(self._open.values()):
            connection.close()
        await self._empty.wait()


class Connection(asyncio.Protocol):
    """One connection as a Flow. Subclasses turn its bytes into messages."""

    def __init__(
        self, table: ConnectionTable, address: ListenAddress, *, is_incoming: bool
    ) -> None:
        """``address``: the listener it came to; for an outgoing one, where the peer may call.

        Its port is 0 when the peer can reach us over this connection only.
        """
        self.transport = address.transport
        self.is_incoming = is_incoming
        self.name = ""
        self.local: Address = address.bound
        self.remote: Address = ("", 0)
        self.sent_by = ""
        self.on_lost: Callable[[], None] | None = None
        "Told once, when it has ended."
        self.unheard: asyncio.TimerHandle | None = None
        "Ends it, unless a message comes before."
        self._address = address
        self._table = table
        self._receiver = table.receiver
        self._limits = table.limits
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._unsent: list[bytes] = []
        self._unsent_size = 0
        self._wire: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        assert isinstance(transport, asyncio.Transport)
        self._wire = transport
        transport.max_size = READ_SIZE  # type: ignore[attr-defined]
        peer = transport.get_extra_info("peername")
        if peer is None:  # gone before we looked
            transport.abort()
            return
        self.local = transport.get_extra_info("sockname")[:2]
        self.remote = peer[:2]
        has_listener = self._address.bound[1] != 0
        self.sent_by = (
            self._address.sent_by(self.local[0]) if has_listener else format_address(self.local)
        )
        _set_options(transport.get_extra_info("socket"))
        if not self._table.add(self):
            transport.abort()
        elif self.is_incoming:
            self._start_timer(self._limits.message_timeout)
            self._wait_for_message()

    def eof_received(self) -> None:
        """Called by the loop, which closes the connection then: not before the last answers."""
        self._table.pass_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop, once."""
        self._stop_timer()
        if self.unheard is not None:
            self.unheard.cancel()
        self._table.remove(self)
        if self.on_lost is not None:
            self.on_lost()

    @property
    def closed(self) -> bool:
        """Whether sending is known to be useless."""
        return self._wire.is_closing()

    def send(self, data: bytes) -> None:
        """Queue one message, to be written at the end of this turn. Raises TransportError."""
        if self.closed:
            raise TransportError(f"{self.name}: closed")
        self._send(data)
        if self._wire.is_closing():
            raise TransportError(f"{self.name}: broken, or the peer does not read")
        if self._table.mirror is not None:
            self._table.mirror.sent(self, data)

    def close(self) -> None:
        """Close after what is queued, or after ``close_timeout``."""
        if not self._wire.is_closing():
            self.flush()
            self._wire.close()
            self._start_timer(self._limits.close_timeout)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def _send(self, data: bytes) -> None:
        """Frame and write one message; on failure the connection is closing."""
        self._write(data)

    def _write(self, data: bytes) -> None:
        if not self._unsent:
            self._table.write_later(self)
        self._unsent.append(data)
        self._unsent_size += len(data)
        if self._unsent_size > WRITE_SIZE:
            self.flush()

    def flush(self) -> None:
        """Write what is to be written at the end of the turn; on failure it is closing."""
        unsent, size = self._unsent, self._unsent_size
        if not unsent or self._wire.is_closing():
            return
        self._unsent, self._unsent_size = [], 0
        if self._wire.get_write_buffer_size() + size > self._limits.write_buffer:
            self._wire.abort()
        else:
            self._wire.write(b"".join(unsent))

    def _received(self, frame: Frame) -> None:
        if self._table.mirror is not None and not isinstance(frame, KeepAlive):
            self._mirror(self._table.mirror, frame)
        self._table.received(self, frame)

    def _mirror(self, mirror: Mirror, message: Message | MessageError) -> None:
        """What was framed is as it came, byte for byte."""
        whole = message.message if isinstance(message, MessageError) else message
        if whole is not None:
            mirror.received(self, whole.to_bytes())

    def pong(self) -> None:
        """Answer the double CRLF of RFC 5626 §4.4.1."""
        with suppress(TransportError):
            self.send(b"\r\n")
        self._receiver.flow_active(self)

    def _wait_for_message(self) -> None:
        self.unheard = self._loop.call_later(UNHEARD * self._limits.message_timeout, self._unheard)

    def _unheard(self) -> None:
        if self._table.may_stay(self):
            self._wait_for_message()
        else:
            self.close()

    def _start_timer(self, delay: float) -> None:
        """End the connection after ``delay`` unless the timer is stopped or started again."""
        self._stop_timer()
        self._timer = self._loop.call_later(delay, self._wire.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _nobody(_: Flow) -> bool:
    return False


def _set_options(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEP_ALIVE.items():
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
