"""Addresses: how they are written, and which of them are ours."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from sipush.sip.grammar import is_ip
from sipush.transport.flow import Address

DEFAULT_PORTS = {"UDP": 5060, "TCP": 5060, "TLS": 5061, "WS": 80, "WSS": 443}
"The port of a sent-by or URI that names none (RFC 3261 §18.1.1, RFC 7118 §5)."

WILDCARDS = ("0.0.0.0", "::")


def format_host(host: str) -> str:
    """The host as SIP writes it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def format_address(address: Address) -> str:
    """``host:port``, an IPv6 address in brackets."""
    return f"{format_host(address[0])}:{address[1]}"


def split_host_port(text: str) -> tuple[str, int | None]:
    """The host (without brackets) and the port of ``host[:port]``; a bare IPv6 address has none.

    Raises ValueError.
    """
    if text.count(":") > 1 and not text.startswith("["):
        return text, None
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        return text.strip("[]"), None
    if not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"not a port: {port!r}")
    return host.strip("[]"), int(port)


def parse_address(text: str) -> Address:
    """The inverse of ``format_address``. Raises ValueError unless it names an IP and a port."""
    host, port = split_host_port(text)
    if port is None:
        raise ValueError(f"no port: {text!r}")
    ipaddress.ip_address(host)
    return host, port


def family_of(ip: str) -> socket.AddressFamily:
    """``AF_INET`` or ``AF_INET6``."""
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


_own: set[str] = set()


def is_own(ip: str) -> bool:
    """Whether ``ip`` is an address of this machine: whether one can bind to it.

    An address once seen here counts as ours until the process ends, one not yet here is tried anew.
    """
    if ip in _own:
        return True
    if ip in WILDCARDS:
        return False
    try:
        with socket.socket(family_of(ip), socket.SOCK_DGRAM) as probe:
            probe.bind((ip, 0))
    except OSError:
        return False
    _own.add(ip)
    return True


def source_ip(remote: Address) -> str | None:
    """Our address that the routing table uses towards ``remote``, or None without a route."""
    try:
        with socket.socket(family_of(remote[0]), socket.SOCK_DGRAM) as probe:
            probe.connect(remote)
            return str(probe.getsockname()[0])
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where one listener is reached."""

    transport: str
    "``UDP``, ``TCP``, ``TLS``, ``WS`` or ``WSS``."
    bound: Address
    "What the socket is bound to; a wildcard stands for every address of its family."
    advertise: str | None = None
    "host[:port] that peers see instead; without a port it is the bound one."
    proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    "Reverse proxies, which know where a WebSocket really comes from."

    @property
    def is_wildcard(self) -> bool:
        """Whether it listens on every address of its family."""
        return self.bound[0] in WILDCARDS

    def sent_by(self, local_ip: str) -> str:
        """``Flow.sent_by`` of a flow whose end here is ``local_ip``."""
        if self.advertise is None:
            return format_address((local_ip if self.is_wildcard else self.bound[0], self.bound[1]))
        host, port = split_host_port(self.advertise)
        return format_address((host, self.bound[1] if port is None else port))

    def is_host(self, host: str) -> bool:
        """Whether a host (lower-case, without brackets) names where this listener is."""
        if self.advertise is not None and host == split_host_port(self.advertise)[0].lower():
            return True
        return is_ip(host) and self.is_bound_to((host, self.bound[1]))

    def is_reached_at(self, host: str, port: int | None) -> bool:
        """Whether host (without brackets) and port of a URI name this listener."""
        if port is None:
            port = DEFAULT_PORTS[self.transport]
        if self.advertise is not None:
            name, advertised_port = split_host_port(self.advertise)
            if (host, port) == (name.lower(), advertised_port or self.bound[1]):
                return True
        return is_ip(host) and self.is_bound_to((host, port))

    def is_bound_to(self, local: Address) -> bool:
        """Whether a packet sent to our ``local`` reaches this listener's socket."""
        ip, port = local
        if port != self.bound[1]:
            return False
        if not self.is_wildcard:
            return ip == self.bound[0]
        return family_of(ip) == family_of(self.bound[0]) and is_own(ip)

    def __str__(self) -> str:
        advertised = f" (as {self.advertise})" if self.advertise else ""
        return f"{self.transport.lower()} {format_address(self.bound)}{advertised}"


def bind_socket(transport: str, address: Address) -> socket.socket:
    """A non-blocking socket bound to ``address``; streams may rebind at once after a restart.

    An IPv6 wildcard takes IPv6 only, so that an IPv4 listener may stand beside it. Raises OSError,
    or ValueError when the host is not an IP address.
    """
    ipaddress.ip_address(address[0])
    family = family_of(address[0])
    kind = socket.SOCK_DGRAM if transport == "UDP" else socket.SOCK_STREAM
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock
