"""Where the server behind a host name is (RFC 3263, its last step only).

NAPTR and SRV records (RFC 3263 §4.1, §4.2) are not looked up: a host without a port is asked at the
default port of its transport.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection
from typing import Any

from sipush.errors import TransportError
from sipush.sip.grammar import is_ip
from sipush.transport.address import DEFAULT_PORTS
from sipush.transport.flow import Address

_MAX_CACHED = 1000


class Resolver:
    """Names of trusted peers to addresses; inside a call with a peer, what the other side wrote."""

    def __init__(
        self,
        families: Collection[socket.AddressFamily] = (socket.AF_INET, socket.AF_INET6),
        lifetime: float = 30,
        timeout: float = 3,
    ) -> None:
        """``families``: what we can send to. Seconds: how long an answer is good, and one may take.

        When no new answer comes, the old one is good for another ``lifetime``.
        """
        self._families = families
        self._lifetime = lifetime
        self._timeout = timeout
        self._cache: dict[str, tuple[float, str]] = {}
        self._asked: dict[str, asyncio.Future[list[Any]]] = {}
        "Under way. Each occupies a thread until the system gives up, long after we do."

    async def resolve(self, host: str, port: int | None, transport: str) -> Address:
        """The address of ``host`` (a name, or an IP without brackets), preferred by the system.

        ``transport`` (``UDP``, …) gives the port where ``port`` is None. Raises TransportError.
        """
        usual_port = DEFAULT_PORTS.get(transport.upper())
        if usual_port is None:
            raise TransportError(f"{host}: no such transport: {transport}")
        port = usual_port if port is None else port
        return (host if is_ip(host) else await self._look_up(host)), port

    async def _look_up(self, host: str) -> str:
        loop = asyncio.get_running_loop()
        known = self._cache.get(host)
        if known is not None and loop.time() < known[0]:
            return known[1]
        asked = self._ask(host)
        # Not within asyncio.timeout, which needs a task: requests are answered without one.
        await asyncio.wait([asked], timeout=self._timeout)
        try:
            if not asked.done():
                raise TimeoutError
            infos = asked.result()
        except (OSError, TimeoutError, UnicodeError) as error:
            if known is None:
                raise TransportError(f"{host}: {_reason(error)}") from error
            return self._keep(host, known[1])
        ip = next((str(i[4][0]) for i in infos if i[0] in self._families), None)
        if ip is None:
            raise TransportError(f"{host}: no address of a family we listen on")
        return self._keep(host, ip)

    def _ask(self, host: str) -> asyncio.Future[list[Any]]:
        asked = self._asked.get(host)
        if asked is None:
            loop = asyncio.get_running_loop()
            asked = loop.create_task(loop.getaddrinfo(host, None, type=socket.SOCK_DGRAM))
            self._asked[host] = asked
            asked.add_done_callback(lambda done: self._answered(host, done))
        return asked

    def _answered(self, host: str, done: asyncio.Future[list[Any]]) -> None:
        del self._asked[host]
        if not done.cancelled():
            done.exception()  # seen, though perhaps nobody waits any more

    def _keep(self, host: str, ip: str) -> str:
        if len(self._cache) >= _MAX_CACHED:
            self._cache.clear()
        self._cache[host] = (asyncio.get_running_loop().time() + self._lifetime, ip)
        return ip


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "name server does not answer"
    return str(getattr(error, "strerror", None) or error)
