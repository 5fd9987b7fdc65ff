"""The TLS handshake of an incoming connection: limited before it has cost anything."""

from __future__ import annotations

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable

from sipush.transport.connection import READ_SIZE, Connection, ConnectionTable

HANDSHAKE_TIME = 10.0
"Seconds a handshake may take."

# asyncio sets as much aside for each TLS connection, 256 KiB unless told; a record has 16 KiB.
SSLProtocol.max_size = READ_SIZE

_RECEIVED = bytearray(READ_SIZE)
"What any connection reads into: asyncio hands it on to OpenSSL in the same step."


class TlsHandshake(asyncio.Protocol):
    """An accepted TCP connection until TLS stands; then ``make`` makes what goes on with it.

    asyncio's own TLS servers tell of a connection only then: stalled handshakes would count for
    nobody, and each costs a descriptor and memory.
    """

    def __init__(
        self, table: ConnectionTable, context: ssl.SSLContext, make: Callable[[], Connection]
    ) -> None:
        self._table = table
        self._context = context
        self._make = make
        self._early: list[bytes] = []
        "What came in the packet that ended the handshake."
        self._task: asyncio.Task[None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop, with the TCP connection."""
        assert isinstance(transport, asyncio.Transport)
        peer = transport.get_extra_info("peername")
        if peer is None or not self._table.expect(peer[0]):
            transport.abort()
            return
        self._task = asyncio.get_running_loop().create_task(self._shake(transport, peer[0]))

    def data_received(self, data: bytes) -> None:
        """Called by the loop, with what TLS carried."""
        self._early.append(data)

    async def _shake(self, transport: asyncio.Transport, ip: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            tls = await loop.start_tls(
                transport,
                self,
                self._context,
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_TIME,
            )
        except OSError:  # refused, reset, too late, or no TLS at all: scanners do all of it
            transport.abort()
            return
        finally:
            self._table.expected(ip)
        if tls is None or tls.is_closing():
            return
        _read_into_one(tls)
        connection = self._make()
        tls.set_protocol(connection)
        connection.connection_made(tls)
        for data in self._early:
            connection.data_received(data)


def _read_into_one(tls: asyncio.Transport) -> None:
    """Let go of the buffer of its own, which is nearly half of what an idle TLS phone takes.

    There is no public way. Where asyncio names it otherwise, the connection keeps it.
    """
    protocol = tls._ssl_protocol  # type: ignore[attr-defined]
    protocol._ssl_buffer, protocol._ssl_buffer_view = _RECEIVED, memoryview(_RECEIVED)
