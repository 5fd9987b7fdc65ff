"""SIP over WebSocket (RFC 7118): one SIP message in each WebSocket message."""

from __future__ import annotations

import logging
from ipaddress import ip_address

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from sipush.errors import MessageError
from sipush.sip.framing import KeepAlive
from sipush.sip.grammar import is_ip
from sipush.sip.message import parse_datagram
from sipush.transport.address import ListenAddress
from sipush.transport.connection import Connection, ConnectionTable

_LOG = logging.getLogger("sipush.transport.websocket")
_LOG.setLevel(logging.WARNING)  # the library tells of every connection


class WebSocketConnection(Connection):
    """One WS or WSS connection. Browsers cannot ping, so we do (RFC 7118 §6)."""

    def __init__(self, table: ConnectionTable, address: ListenAddress) -> None:
        super().__init__(table, address, is_incoming=True)
        self._protocol = ServerProtocol(
            subprotocols=[Subprotocol("sip")], max_size=self._limits.message_size, logger=_LOG
        )
        self._fragments: list[bytes] = []
        self._heard = True
        "Whether anything came since the last ping."
        self._begun_at = 0.0
        "When the message began that is not complete; 0: there is none."

    @property
    def closed(self) -> bool:
        """Whether sending is known to be useless."""
        return self._protocol.state is not State.OPEN or super().closed

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        self._heard = True
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                if self._protocol.eof_sent:  # frames came with it, and broke the rules
                    self._wire.abort()
                    return
                self._believe_proxy(event)
                self._protocol.send_response(self._protocol.accept(event))
                if self._protocol.state is State.OPEN:
                    self._ping_later()
            elif isinstance(event, Frame):
                self._frame_received(event)
        if not (self._fragments or self._protocol.reader.buffer):
            self._begun_at = 0.0
        elif not self._begun_at:
            self._begun_at = self._loop.time()
        self._flush()

    def _believe_proxy(self, request: Request) -> None:
        """What a proxy of ours adds to X-Forwarded-For is the last address in it."""
        if not any(ip_address(self.remote[0]) in network for network in self._address.proxies):
            return
        told = ",".join(request.headers.get_all("X-Forwarded-For")).rpartition(",")[2].strip()
        if is_ip(told) and not self._table.move(self, (told, self.remote[1])):
            self._wire.abort()

    def close(self) -> None:
        """Start the closing handshake; the peer has ``close_timeout`` to answer."""
        if self.closed:
            super().close()
            return
        self._protocol.send_close(1001)
        self._flush()
        self._start_timer(self._limits.close_timeout)

    def _send(self, data: bytes) -> None:
        """As text, unless it is not UTF-8 (RFC 7118 §5)."""
        try:
            data.decode()
        except UnicodeDecodeError:
            self._protocol.send_binary(data)
        else:
            self._protocol.send_text(data)
        self._flush()

    def _flush(self) -> None:
        """Write what the protocol has to say; an empty piece means that it has no more."""
        for piece in self._protocol.data_to_send():
            if piece:
                self._write(piece)
            else:
                super().close()

    def _frame_received(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.PING, Opcode.PONG):
            self._receiver.flow_active(self)
        if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return
        if frame.data or not self._fragments:  # empty ones would pile up, as they count for nothing
            self._fragments.append(bytes(frame.data))
        if frame.fin:
            data = b"".join(self._fragments)
            self._fragments, self._begun_at = [], 0.0
            self._message_received(data)

    def _message_received(self, data: bytes) -> None:
        if not data.strip(b"\r\n"):
            if data.startswith(b"\r\n\r\n"):
                self._received(KeepAlive.PING)
            return
        try:
            self._received(parse_datagram(data))
        except MessageError as error:
            self._received(error)

    def _ping_later(self) -> None:
        self._stop_timer()
        self._timer = self._loop.call_later(self._limits.ping_interval, self._ping)

    def _ping(self) -> None:
        since = self._begun_at or self._loop.time()
        if not self._heard or self._loop.time() - since > self._limits.message_timeout:
            self._wire.abort()
            return
        self._heard = False
        self._protocol.send_ping(b"")
        self._flush()
        self._ping_later()
