"""SIP over TCP and TLS (RFC 3261 §18)."""

from __future__ import annotations

from sipush.sip.framing import StreamFramer
from sipush.transport.address import ListenAddress
from sipush.transport.connection import Connection, ConnectionTable


class StreamConnection(Connection):
    """One TCP or TLS connection."""

    def __init__(
        self, table: ConnectionTable, address: ListenAddress, *, is_incoming: bool
    ) -> None:
        super().__init__(table, address, is_incoming=is_incoming)
        self._framer = StreamFramer(self._limits.message_size)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        frames = self._framer.feed(data)
        if frames:
            self._stop_timer()
        elif data == b"\r\n":  # all that some phones send
            self._receiver.flow_active(self)
        for frame in frames:
            self._received(frame)
        if self._framer.lost:
            self._table.pass_on()  # with what to answer
            self.close()
        elif self._framer.is_waiting and self._timer is None:
            self._start_timer(self._limits.message_timeout)
