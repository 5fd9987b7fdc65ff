"""All listeners of one server, and the flows over them (the ``Transports`` port)."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from functools import partial

from sipush.config import ListenConfig
from sipush.errors import ConfigError, TransportError
from sipush.transport.address import (
    DEFAULT_PORTS,
    ListenAddress,
    bind_socket,
    family_of,
    format_address,
    format_host,
    source_ip,
)
from sipush.transport.connection import Connection, ConnectionTable, Limits
from sipush.transport.flow import Address, Flow, Receiver
from sipush.transport.handshake import TlsHandshake
from sipush.transport.mirror import Mirror
from sipush.transport.stream import StreamConnection
from sipush.transport.tls import Certificate, ServerTls, client_context
from sipush.transport.udp import UdpListener
from sipush.transport.websocket import WebSocketConnection

_CONNECT_TIMEOUT = 5.0
_BACKLOG = 1024
"Connections that the kernel keeps until we accept them."
_ACCEPTS = 64
"""Connections accepted before other work of the loop gets its turn. When file descriptors run out,
asyncio fails as often before it waits for a second."""

_Server = tuple[str, Address, str]
"Transport, address, and over TLS the name in its certificate."


class Listeners:
    """Opens what the configuration lists; finds flows, and makes them to trusted peers."""

    def __init__(
        self,
        configs: Sequence[ListenConfig],
        limits: Limits | None = None,
        client_tls: ssl.SSLContext | None = None,
    ) -> None:
        """``client_tls``: how servers we connect to are verified; None: by the system's CAs.

        Raises ConfigError when a certificate cannot be used.
        """
        self._client_tls = client_tls
        self._configs = [
            (c, None if c.tls is None else ServerTls([c.tls, *c.sni])) for c in configs
        ]
        self._udp: dict[ListenAddress, UdpListener] = {}
        self._servers: dict[ListenAddress, asyncio.Server] = {}
        self._tls: dict[ListenAddress, ServerTls] = {}
        self._table = ConnectionTable(limits or Limits())
        self._connects: dict[_Server, asyncio.Task[Connection]] = {}
        "Under way, or open."

    async def open(
        self, receiver: Receiver, may_stay: Callable[[Flow], bool] | None = None
    ) -> None:
        """Open every listener, or none. Raises TransportError naming the one that cannot be.

        ``may_stay``: whose connections may last on keep-alives alone; None: nobody's.
        """
        self._table.receiver = receiver
        if may_stay is not None:
            self._table.may_stay = may_stay
        for config, tls in self._configs:
            try:
                await self._open_one(config, tls, receiver)
            except (OSError, ValueError) as error:
                await self.close()
                where = f"{config.transport} {format_address((config.address, config.port))}"
                raise TransportError(f"{where}: {_reason(error)}") from error

    async def _open_one(
        self, config: ListenConfig, tls: ServerTls | None, receiver: Receiver
    ) -> None:
        transport = config.transport.upper()
        sock = bind_socket(transport, (config.address, config.port))
        address = ListenAddress(
            transport, sock.getsockname()[:2], config.advertise, tuple(config.proxies)
        )
        if transport == "UDP":
            self._udp[address] = UdpListener(sock, address, receiver)
            self._udp[address].mirror = self._table.mirror
            return
        try:
            self._servers[address] = await asyncio.get_running_loop().create_server(
                partial(self._incoming, address, tls), sock=sock, backlog=_ACCEPTS
            )
            sock.listen(_BACKLOG)
        except OSError:
            sock.close()
            raise
        if tls is not None:
            self._tls[address] = tls

    def _incoming(self, address: ListenAddress, tls: ServerTls | None) -> asyncio.BaseProtocol:
        make = partial(self._connection, address)
        return TlsHandshake(self._table, tls.context, make) if tls else make()

    def _connection(self, address: ListenAddress) -> Connection:
        if address.transport in ("WS", "WSS"):
            return WebSocketConnection(self._table, address)
        return StreamConnection(self._table, address, is_incoming=True)

    def limit(self, limits: Limits) -> None:
        """Have other limits for connections to come."""
        self._table.limits = limits

    def mirror_to(self, mirror: Mirror | None) -> None:
        """Have a copy of every message from now on go there; None: nowhere."""
        self._table.mirror = mirror
        for listener in self._udp.values():
            listener.mirror = mirror

    def stop_accepting(self) -> None:
        """Take no new connections; open ones and UDP go on, for calls that must still end."""
        for server in self._servers.values():
            server.close()

    async def close(self) -> None:
        """Close everything, and wait until it is. May be called twice, and before ``open``."""
        self.stop_accepting()
        for task in self._connects.values():
            task.cancel()
        await self._table.close()
        for listener in self._udp.values():
            listener.close()

    @property
    def addresses(self) -> list[ListenAddress]:
        """Every listener, with the port it got; empty before ``open``."""
        return [*self._udp, *self._servers]

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._table)

    @property
    def families(self) -> set[socket.AddressFamily]:
        """The address families we listen on, known before ``open``."""
        return {family_of(config.address) for config, _ in self._configs}

    def is_ours(self, host: str, port: int | None) -> bool:
        """Whether host (lower-case, no brackets) and port of a URI name one of our listeners.

        What a certificate of ours names is the listener that shows it.
        """
        return any(address.is_reached_at(host, port) for address in self.addresses) or any(
            address.bound[1] == (port or DEFAULT_PORTS[address.transport]) and tls.is_for(host)
            for address, tls in self._tls.items()
        )

    def reload_certificates(self) -> None:
        """Read certificates and keys anew, for connections to come.

        Raises ConfigError for those that cannot be used; of these the old ones stay.
        """
        problems = []
        for _, tls in self._configs:
            if tls is not None:
                try:
                    tls.reload()
                except ConfigError as error:
                    problems += error.problems
        if problems:
            raise ConfigError(problems)

    @property
    def certificates(self) -> list[Certificate]:
        """Those our TLS and WSS listeners show."""
        return [each for _, tls in self._configs if tls is not None for each in tls.certificates]

    def flow(self, name: str) -> Flow | None:
        """The flow of that name, or None: its connection is gone, or its socket is not ours."""
        if not name.startswith("udp/"):
            return self._table.flow(name)
        for listener in self._udp.values():
            if (flow := listener.flow_named(name)) is not None:
                return flow
        return None

    def sent_by(self, transport: str, remote: Address) -> str:
        """See ``Transports``."""
        address, local_ip = self._way_to(transport, remote)
        return address.sent_by(local_ip) if address is not None else format_host(local_ip)

    async def connect(self, transport: str, remote: Address, server_name: str = "") -> Flow:
        """A flow to a *server*: a UDP pair, the connection we have to it, or a new one.

        ``server_name``: whose certificate TLS must see; else one for the IP address. Raises
        TransportError.
        """
        transport = transport.upper()
        if transport == "UDP":
            return self._udp_flow(remote)
        if transport not in ("TCP", "TLS"):
            raise TransportError(f"{transport} {format_address(remote)}: not for outgoing flows")
        key = (transport, remote, server_name.strip("[]") if transport == "TLS" else "")
        task = self._connects.get(key)
        if task is None or _is_over(task):
            task = asyncio.create_task(self._connect(*key))
            self._connects[key] = task
            task.add_done_callback(partial(self._connected, key))
        return await asyncio.shield(task)

    def _connected(self, key: _Server, task: asyncio.Task[Connection]) -> None:
        """A connection is known by where it leads as long as it is open."""
        if _is_over(task):
            self._forget(key, task)
        else:
            task.result().on_lost = partial(self._forget, key, task)

    def _forget(self, key: _Server, task: asyncio.Task[Connection]) -> None:
        if self._connects.get(key) is task:
            del self._connects[key]

    def _udp_flow(self, remote: Address) -> Flow:
        address, local_ip = self._way_to("UDP", remote)
        if address is None:
            raise TransportError(f"udp {format_address(remote)}: no listener of its family")
        return self._udp[address].flow_to(local_ip, remote)

    async def _connect(self, transport: str, remote: Address, server_name: str) -> Connection:
        address, local_ip = self._way_to(transport, remote)
        if address is None:  # a peer can then reach us over this connection only
            address = ListenAddress(transport, (local_ip, 0))
        is_tls = transport == "TLS"
        if is_tls and self._client_tls is None:
            self._client_tls = client_context()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                _, connection = await asyncio.get_running_loop().create_connection(
                    partial(StreamConnection, self._table, address, is_incoming=False),
                    *remote,
                    ssl=self._client_tls if is_tls else None,
                    server_hostname=(server_name or remote[0]) if is_tls else None,
                )
        except (OSError, TimeoutError) as error:
            where = f"{transport.lower()} {format_address(remote)}"
            raise TransportError(f"{where}: {_reason(error)}") from error
        return connection

    def _way_to(self, transport: str, remote: Address) -> tuple[ListenAddress | None, str]:
        """The listener that ``remote`` is best reached from, and our IP address there.

        Raises TransportError when there is no route.
        """
        source = source_ip(remote)
        if source is None:
            raise TransportError(f"{transport.lower()} {format_address(remote)}: no route")
        usable = [
            address
            for address in self.addresses
            if address.transport == transport and family_of(address.bound[0]) == family_of(source)
        ]
        exact = [address for address in usable if address.bound[0] == source]
        wildcard = [address for address in usable if address.is_wildcard]
        return next(iter(exact + wildcard + usable), None), source


def _reason(error: Exception) -> str:
    """What went wrong, in the system's words; asyncio puts the address in their place."""
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno).lower()
    return "timed out" if isinstance(error, TimeoutError) else str(error)


def _is_over(task: asyncio.Task[Connection]) -> bool:
    if not task.done():
        return False
    return task.cancelled() or task.exception() is not None or task.result().closed
