"""A copy of every SIP message for a capture server such as Homer (docs/operations.md#tracing)."""

from __future__ import annotations

import asyncio
import math
import re
import socket
import time
from collections.abc import Callable

import structlog

from sipush import metrics
from sipush.config import HepConfig
from sipush.errors import ConfigError, TransportError
from sipush.transport.address import family_of, format_address, split_host_port
from sipush.transport.blanking import blanked
from sipush.transport.flow import Address, Flow
from sipush.transport.hep import PORT, agent_chunks, end_chunks, sip_packet
from sipush.transport.resolver import Resolver

log = structlog.get_logger()

LOOK_UP_EVERY = 30.0
"Seconds between looks at where the capture server is."
TELL_EVERY = 10.0
"Seconds between lines about copies that were lost."

_CALL_ID = re.compile(rb"\n(?:call-id|i)[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE).search


def connected_to(address: Address) -> socket.socket:
    """Connected, a socket tells when nobody listens there. Raises OSError."""
    sock = socket.socket(family_of(address[0]), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


class Mirror:
    """Sends copies and never waits: what the network does not take at once is lost, and counted."""

    def __init__(
        self, config: HepConfig, connect: Callable[[Address], socket.socket] = connected_to
    ) -> None:
        """``connect``: makes a non-blocking datagram socket. Raises ConfigError for a wrong key."""
        host, port = split_host_port(config.send_to)
        self.config = config
        self._host, self._port = host, port or PORT
        self._key = _key(config)
        self._agent = agent_chunks(config.agent_id, self._key, config.node_name)
        self._resolver = Resolver()
        self._connected_to = connect
        self._address: Address | None = None
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._untold = 0
        "Copies lost since the last line about them."
        self._told_at = -math.inf

    def is_like(self, other: Mirror) -> bool:
        """Whether ``other`` does the same."""
        return (self.config, self._key) == (other.config, other._key)

    def open(self) -> None:
        """Look for the server; on the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._follow_server())

    def close(self) -> None:
        """Copy nothing any more. May be called twice."""
        if self._task is not None:
            self._task.cancel()
        self._disconnect()

    def received(self, flow: Flow, message: bytes) -> None:
        """Copy what came over ``flow``; what is no SIP message is left out."""
        self._copy(flow.transport, flow.remote, flow.local, message)

    def sent(self, flow: Flow, message: bytes) -> None:
        """Copy what left over ``flow``; what is no SIP message is left out."""
        self._copy(flow.transport, flow.local, flow.remote, message)

    def _copy(self, transport: str, source: Address, destination: Address, message: bytes) -> None:
        if b"SIP/" not in message:  # a keep-alive, or junk
            return
        message = message.lstrip(b"\r\n")
        call_id = _CALL_ID(message)
        self._send(
            sip_packet(
                end_chunks(transport, source, destination),
                time.time_ns(),
                self._agent,
                call_id[1].rstrip() if call_id else b"",
                blanked(message, bodies=self.config.bodies),
            )
        )

    def _send(self, packet: bytes) -> None:
        if self._socket is None:
            self._lost("its address is not known")
            return
        for _ in range(2):
            try:
                self._socket.send(packet)
            except ConnectionRefusedError:  # told of the packet before; this one has not left
                self._lost("nobody listens there")
            except BlockingIOError:
                self._lost("the socket's buffer is full")
                return
            except OSError as error:
                self._lost(error.strerror or str(error))
                return
            else:
                metrics.HEP_PACKETS.counts["sent",] += 1
                return

    def _lost(self, reason: str) -> None:
        metrics.HEP_PACKETS.counts["lost",] += 1
        self._untold += 1
        now = time.monotonic()
        if now - self._told_at >= TELL_EVERY:
            log.warning(
                "trace_lost", messages=self._untold, send_to=self.config.send_to, reason=reason
            )
            self._untold, self._told_at = 0, now

    async def _follow_server(self) -> None:
        while True:
            try:
                address = await self._resolver.resolve(self._host, self._port, "UDP")
                if address != self._address:
                    self._connect(address)
            except (TransportError, OSError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                log.warning("trace_server_unknown", send_to=self.config.send_to, reason=reason)
            await asyncio.sleep(LOOK_UP_EVERY)

    def _connect(self, address: Address) -> None:
        """Raises OSError."""
        self._disconnect()
        self._socket, self._address = self._connected_to(address), address
        log.info("tracing", to=format_address(address), agent_id=self.config.agent_id)

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = self._address = None


def _key(config: HepConfig) -> bytes:
    if config.key_file is None:
        return b""
    try:
        key = config.key_file.read_bytes().partition(b"\n")[0].strip()
    except OSError as error:
        raise ConfigError([f"hep.key_file: {error.strerror}"]) from None
    if not 0 < len(key) <= _MAX_KEY:
        raise ConfigError([f"hep.key_file: {len(key)} bytes in the first line (allowed: 1 to 255)"])
    return key


_MAX_KEY = 255
