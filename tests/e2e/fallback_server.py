"""A server of the operator (a PBX, an emergency gateway) that calls are sent to over UDP."""

from __future__ import annotations

from types import TracebackType

from tests.e2e.daemon import PBX, Daemon
from tests.e2e.wire import Account, InCall, Phone, Wire
from tests.servers.ports import free_port


class FallbackServer:
    """Its port is known before the daemon is. It listens once it is entered."""

    def __init__(self, ip: str = PBX) -> None:
        self.ip = ip
        self.port = free_port()
        self._phone = Phone(Account("pbx", "", ip), Wire("UDP", ("", 0)))

    def uri(self, user: str) -> str:
        """One of its extensions."""
        return f"sip:{user}@{self.ip}:{self.port}"

    def phone(self, daemon: Daemon) -> Phone:
        """What speaks for it to this daemon."""
        self._phone.wire.server = daemon.at("UDP", self.ip)
        return self._phone

    async def answers(self, daemon: Daemon) -> InCall:
        """Take the next call."""
        return await self.phone(daemon).rings_and_answers()

    async def __aenter__(self) -> FallbackServer:
        self._phone.wire = await Wire.open("UDP", ("", 0), self.ip, self.port)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._phone.kill()
