"""A real NAT between phones and the server: Linux network namespaces (root only)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

_NETWORK = f"198.18.{os.getpid() % 256}"
"The public side (RFC 2544: nobody's), another one for tests that run beside these."
SERVER = f"{_NETWORK}.1"
"The server's end."
PUBLIC = f"{_NETWORK}.2"
"The NAT's."
PRIVATE = "10.77.0.2"
"The phones'."

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_NETWORK = 0x40000000

# A firewall as at home: what was not asked for from inside is dropped without a word, and every
# mapping gets a port of its own.
_PLAN = f"""
ip netns add {{nat}}
ip netns add {{phone}}
ip link add {{link}} type veth peer name public netns {{nat}}
ip address add {SERVER}/24 dev {{link}}
ip link set {{link}} up
ip -n {{nat}} address add {PUBLIC}/24 dev public
ip -n {{nat}} link set public up
ip -n {{nat}} link add private type veth peer name eth0 netns {{phone}}
ip -n {{nat}} address add 10.77.0.1/24 dev private
ip -n {{nat}} link set private up
ip -n {{phone}} address add {PRIVATE}/24 dev eth0
ip -n {{phone}} link set lo up
ip -n {{phone}} link set eth0 up
ip -n {{phone}} route add default via 10.77.0.1
ip netns exec {{nat}} sysctl -q -w net.ipv4.ip_forward=1
ip netns exec {{nat}} iptables -t nat -A POSTROUTING -o public -j MASQUERADE --random
ip netns exec {{nat}} iptables -A INPUT -i public -j DROP
ip netns exec {{nat}} iptables -A FORWARD -i public -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
ip netns exec {{nat}} iptables -A FORWARD -i public -j DROP
"""  # noqa: E501

_BESIDE = f"198.19.{os.getpid() % 256}"
"The network of the server and its neighbour, likewise nobody's."
SERVER_BESIDE = f"{_BESIDE}.1"
"The server's end."
NEIGHBOUR = f"{_BESIDE}.2"
"The neighbour's."

_NEIGHBOUR_PLAN = f"""
ip netns add {{name}}
ip link add {{name}} type veth peer name eth0 netns {{name}}
ip address add {SERVER_BESIDE}/24 dev {{name}}
ip link set {{name}} up
ip -n {{name}} address add {NEIGHBOUR}/24 dev eth0
ip -n {{name}} link set lo up
ip -n {{name}} link set eth0 up
"""


@dataclass(frozen=True, slots=True)
class Nat:
    """Phones have ``PRIVATE``; the server, which is where the tests are, sees ``PUBLIC``."""

    nat: str
    phone: str
    link: str

    @classmethod
    def make(cls) -> Nat:
        """Both namespaces and the links between them. Raises PermissionError."""
        name = f"sipush{os.getpid()}"
        nat = cls(f"{name}-nat", f"{name}-phone", name)
        try:
            for line in _PLAN.strip().splitlines():
                _run(line.format(nat=nat.nat, phone=nat.phone, link=nat.link))
        except BaseException:
            nat.remove()
            raise
        return nat

    def remove(self) -> None:
        """The namespaces, and with them the links."""
        for namespace in (self.phone, self.nat):
            subprocess.run(["ip", "netns", "delete", namespace], check=False, capture_output=True)

    def inside(self) -> AbstractContextManager[None]:
        """Sockets made in this context are behind the NAT. Do not await in it."""
        return _inside(self.phone)

    @property
    def command(self) -> tuple[str, ...]:
        """What a program is started with to run behind the NAT."""
        return ("ip", "netns", "exec", self.phone)

    def forget(self) -> None:
        """Every mapping, as after a power cut: MASQUERADE drops them with its interface."""
        _run(f"ip -n {self.nat} link set public down")
        _run(f"ip -n {self.nat} link set public up")


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another host in the server's network, with nothing between the two."""

    name: str

    @classmethod
    def make(cls) -> Neighbour:
        """The namespace and the link to it. Raises PermissionError."""
        neighbour = cls(f"sipush{os.getpid()}n")
        try:
            for line in _NEIGHBOUR_PLAN.strip().splitlines():
                _run(line.format(name=neighbour.name))
        except BaseException:
            neighbour.remove()
            raise
        return neighbour

    def remove(self) -> None:
        """The namespace, and with it the link."""
        subprocess.run(["ip", "netns", "delete", self.name], check=False, capture_output=True)

    def inside(self) -> AbstractContextManager[None]:
        """Sockets made in this context are there. Do not await in it."""
        return _inside(self.name)


@contextlib.contextmanager
def _inside(namespace: str) -> Iterator[None]:
    with open("/proc/self/ns/net") as home, open(f"/run/netns/{namespace}") as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


def _enter(namespace: int) -> None:
    if _LIBC.setns(namespace, _NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "setns")


def _run(line: str) -> None:
    done = subprocess.run(line.split(), check=False, capture_output=True, text=True)
    if "ermi" in done.stderr:  # Operation not permitted, Permission denied, a lack of permission
        raise PermissionError(done.stderr)
    assert done.returncode == 0, (line, done.stderr)
