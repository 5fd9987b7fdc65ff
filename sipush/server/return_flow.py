"""The way back to a caller whose connection is gone (RFC 3261 §18.2.2)."""

from __future__ import annotations

import structlog

from sipush.errors import TransportError
from sipush.server.tasks import Tasks
from sipush.sip.fields import Via
from sipush.sip.grammar import is_ip
from sipush.transport.address import DEFAULT_PORTS
from sipush.transport.flow import Address, Flow, Transports

log = structlog.get_logger()


class ReturnFlow:
    """Sends responses over a connection opened to where the Via says the caller listens.

    Opened with the first response; what cannot be delivered is lost, as a response may be.
    """

    def __init__(self, transports: Transports, via: Via, ip: str = "") -> None:
        """``via``: the caller's, stamped with ``received``; ``ip``: his address, if it is known."""
        host = ip or (via.params.get("received") or via.host).strip("[]")
        port = via.port or DEFAULT_PORTS.get(via.transport, 5060)
        if via.transport == "UDP" and (rport := via.params.get("rport")):
            port = int(rport)
        self.transport = via.transport
        self.remote: Address = (host, port)
        self.local: Address = ("", 0)
        self.sent_by = _sent_by(transports, via.transport, self.remote)
        self.name = f"return/{via.transport.lower()}/{host}:{port}"
        self.refused = False
        "Whether nothing is sent."
        self._transports = transports
        self._tasks = Tasks()
        self._flow: Flow | None = None
        self._unsent: list[bytes] = []

    def refuse(self) -> None:
        """The Via may not lead there; nor for who takes the call over, and reads the name."""
        self.refused = True
        self.name = f"return/{self.transport.lower()}/{self.remote[0]}:0"

    @property
    def closed(self) -> bool:
        """Whether a connection that the caller opens is the better way."""
        return self._flow is None or self._flow.closed

    def send(self, data: bytes) -> None:
        """See ``Flow``; never raises."""
        if self._flow is not None and not self._flow.closed:
            self._flow.send(data)
            return
        self._unsent.append(data)
        if len(self._unsent) == 1:
            self._tasks.spawn(self._connect())

    async def _connect(self) -> None:
        try:
            if not is_ip(self.remote[0]):
                raise TransportError("the Via names no address")
            if self.refused:
                raise TransportError("no port for SIP, on this host, and no peer's")
            self._flow = await self._transports.connect(self.transport, self.remote)
            for data in self._unsent:
                self._flow.send(data)
        except TransportError as error:
            log.info("response_lost", flow=self.name, reason=str(error))
        finally:
            self._unsent.clear()

    def close(self) -> None:
        """Nothing: the connection belongs to the transports."""


def _sent_by(transports: Transports, transport: str, remote: Address) -> str:
    """For the Record-Route of a call that goes on; empty when nothing can be sent back anyhow."""
    if not is_ip(remote[0]):
        return ""
    try:
        return transports.sent_by(transport, remote)
    except TransportError:
        return ""
