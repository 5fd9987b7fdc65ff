"""Flows: the two ends between which SIP messages travel (RFC 5626 §2)."""

from __future__ import annotations

from typing import Protocol

from sipush.errors import MessageError
from sipush.sip.message import Message

Address = tuple[str, int]
"""(IP address without brackets, port)."""


class Flow(Protocol):
    """A way to one peer: a UDP socket and the peer's address, or one connection."""

    @property
    def transport(self) -> str:
        """``UDP``, ``TCP``, ``TLS``, ``WS`` or ``WSS``."""

    @property
    def local(self) -> Address:
        """Our end; a wildcard listener gives the address the peer really reached."""

    @property
    def sent_by(self) -> str:
        """host[:port] for Via and Record-Route: what the listener advertises, else ``local``.

        IPv6 in brackets. On a stream the port is the listener's, not the connection's.
        """

    @property
    def remote(self) -> Address:
        """The peer's end as we see it, behind its NAT."""

    @property
    def name(self) -> str:
        """A printable name without spaces, unique among all flows of all processes.

        UDP: ``udp/<local ip>:<port>/<remote ip>:<port>`` (IPv6 in brackets), valid across
        restarts. Streams: also a part that no later connection will ever repeat.
        """

    @property
    def closed(self) -> bool:
        """Whether sending is known to be useless. Never for UDP."""

    def send(self, data: bytes) -> None:
        """Queue one message. Raises TransportError when the flow is closed or its queue is full."""

    def close(self) -> None:
        """Close a connection after what is queued; nothing for UDP."""


class Receiver(Protocol):
    """What a transport tells the server; called on the event loop, must not block or raise."""

    def messages_received(self, received: list[tuple[Flow, Message]]) -> None:
        """Whole messages arrived, in this order. Keep-alives are answered below."""

    def malformed_received(self, flow: Flow, error: MessageError) -> None:
        """Something that is not SIP arrived; a stream is closed by the transport afterwards if its
        framing is lost. ``error.message`` may allow an answer."""

    def flow_closed(self, flow: Flow) -> None:
        """A connection ended. Its ``name`` will not come again."""

    def flow_unreachable(self, flow: Flow) -> None:
        """ICMP said that a UDP peer is not there."""

    def flow_active(self, flow: Flow) -> None:
        """A keep-alive came (CRLF, STUN, a WebSocket ping or pong): somebody is awake there."""


class Transports(Protocol):
    """All listeners of one server, as the server sees them."""

    def flow(self, name: str) -> Flow | None:
        """The flow of that name, or None: its connection is gone, or its socket is not ours."""

    def sent_by(self, transport: str, remote: Address) -> str:
        """``Flow.sent_by`` of what ``connect`` would return. Raises TransportError."""

    async def connect(self, transport: str, remote: Address, server_name: str = "") -> Flow:
        """A flow to a *server* (a trusted peer): a UDP pair, an open connection, or a new one.

        Never used for a client's contact. ``server_name``: whose certificate TLS must see; empty:
        one for the IP address. Raises TransportError.
        """
