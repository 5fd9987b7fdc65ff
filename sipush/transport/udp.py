"""SIP over UDP (RFC 3261 §18): one socket, read in batches; Linux only.

asyncio's own datagram transport costs a loop turn per datagram. Here one wake-up of the loop drains
up to ``BATCH`` of them.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from fcntl import ioctl
from termios import FIONREAD
from time import monotonic
from typing import Final

import structlog

from sipush.errors import MessageError, TransportError
from sipush.sip.message import Message, parse_datagram
from sipush.transport.address import ListenAddress, family_of, format_address, parse_address
from sipush.transport.flow import Address, Flow, Receiver
from sipush.transport.mirror import Mirror
from sipush.transport.stun import binding_response

AT_ONCE = 24
"""Datagrams that are read, then parsed, then heard and then answered, each step for all of them:
what a step runs stays in the processor's caches, and so does, of so many, what it works on
(docs/performance.md)."""
BATCH: Final = 256
"Datagrams read before other work of the loop gets its turn …"
SLICE = 0.01
"… or as many as are read and answered in so many seconds."

CALLS: Final = (b"INVITE ", b"CANCEL ")
"""How datagrams begin that are heard after all others: reading one costs a tenth of hearing it, and
a thousand calls at once must not keep a REGISTER waiting that came behind them."""
CALLS_SLICE = 0.003
"Seconds in which they are heard before other work of the loop gets its turn."
MAX_CALLS = 4096
"Of them that have been read and not heard; beyond it the socket is left alone."

SOCKET_BUFFER = 4 << 20
"Bytes asked of the kernel for each direction; it may grant less (net.core.rmem_max)."

MAX_FLOWS = 1_000
"""Flows kept at hand, 400 bytes each; beyond, all are forgotten: they hold no state that the next
datagram lacks, and making one takes a fiftieth of what a refresh does."""

MIN_MESSAGE: Final = 12
"No SIP message is shorter; phones keep their NAT open with all kinds of short junk."

_MAX_DATAGRAM: Final = 65_535
_MAX_PAYLOAD: Final = 65_507
"Bytes of a message that fit into one, headers of IPv4 and UDP left out."
_SEND_ATTEMPTS: Final = 3
_NO_LENGTH: Final = bytes(4)
"What FIONREAD says when no datagram waits (``man 7 udp``)."

# Linux values that Python 3.11's socket module does not name.
_IP_PKTINFO = 8
_IP_RECVERR = 11
_IPV6_RECVERR = 25

_EXTENDED_ERROR = struct.Struct("=IBBB")
"errno, origin, ICMP type, ICMP code: the head of struct sock_extended_err."
_ORIGIN_ICMP, _ORIGIN_ICMP6 = 2, 3
_UNREACHABLE, _UNREACHABLE6 = 3, 1
_FRAGMENTATION_NEEDED = 4

_SocketAddress = tuple[str, int] | tuple[str, int, int, int]
_Ancillary = list[tuple[int, int, bytes]]

log = structlog.get_logger()


class UdpFlow:
    """A UDP socket and a peer. Two flows of the same ``name`` are the same flow."""

    __slots__ = ("_listener", "ancillary", "local", "name", "remote", "sent_by", "target")

    transport = "UDP"
    closed = False

    def __init__(self, listener: UdpListener, end: _OwnEnd, target: _SocketAddress) -> None:
        self._listener = listener
        self.target = target
        self.ancillary = end.ancillary
        self.local = end.local
        self.remote: Address = (target[0], target[1])
        self.sent_by = end.sent_by
        ip, port = self.remote  # written as by format_address, without its two interpreted calls
        self.name = f"{end.prefix}[{ip}]:{port}" if ":" in ip else f"{end.prefix}{ip}:{port}"

    def send(self, data: bytes) -> None:
        """Send one datagram, at the end of this turn of the event loop or, while all is quiet, now.

        It is lost without a word when the socket's buffer is full; any other error makes the flow
        unreachable. Raises TransportError when it is too large, or the socket closed.
        """
        listener = self._listener
        listener.send(self, data)
        if listener.mirror is not None:
            listener.mirror.sent(self, data)

    def close(self) -> None:
        """Nothing: there is no connection."""

    def __repr__(self) -> str:
        return f"<UdpFlow {self.name}>"


class _OwnEnd:
    """An address of ours, and what the flows from it have in common."""

    __slots__ = ("ancillary", "flows", "local", "prefix", "sent_by")

    def __init__(self, local: Address, sent_by: str, ancillary: _Ancillary) -> None:
        self.local = local
        self.sent_by = sent_by
        self.ancillary = ancillary
        self.prefix = f"udp/{format_address(local)}/"
        "How their names begin."
        self.flows: dict[_SocketAddress, UdpFlow] = {}
        "By peer."


class UdpListener:
    """One bound UDP socket, and the flows over it.

    On a wildcard every datagram comes with the address it was sent to, and answers leave from
    there: a phone behind a NAT hears no other.
    """

    def __init__(self, sock: socket.socket, address: ListenAddress, receiver: Receiver) -> None:
        """``sock`` is non-blocking and bound; it is ours from now on."""
        self.address = address
        self.unsent = 0
        "Datagrams dropped because the socket's buffer was full."
        self.mirror: Mirror | None = None
        "Gets a copy of every message."
        self._sock = sock
        self._receiver = receiver
        self._ends: dict[bytes, _OwnEnd] = {}
        "By packed address; empty for the bound one."
        self._at_hand = 0
        "Flows of all of them."
        self._named: dict[str, UdpFlow] = {}
        "All of them by name: phones that have just registered are called over their flow."
        self._outgoing: list[tuple[UdpFlow, bytes]] = []
        self._will_send = False
        self._quiet = False
        """Whether what came last came alone. Then nothing is gained by sending together, and what
        follows an answer (timers, lines of the log, another turn of the loop) would delay it."""
        self._calls: deque[tuple[bytes, UdpFlow]] = deque()
        self._will_hear = False
        self._is_ipv6 = sock.family == socket.AF_INET6
        self._receive: Callable[[], tuple[bytes, UdpFlow]]
        self._receive = self._receive_any if address.is_wildcard else self._receive_one
        self._set_options()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)

    def _set_options(self) -> None:
        sock = self._sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        if self._is_ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
            if self.address.is_wildcard:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
            if self.address.is_wildcard:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)

    def flow_to(self, local_ip: str, remote: Address) -> UdpFlow:
        """The flow from our address ``local_ip`` to ``remote``, both of the socket's family."""
        packed = b""
        if self.address.is_wildcard:
            packed = socket.inet_pton(family_of(local_ip), local_ip)
        return self._flow(self._target(*remote), packed)

    def _target(self, ip: str, port: int) -> _SocketAddress:
        """As the kernel gives it."""
        return (ip, port, 0, _scope_id(ip)) if self._is_ipv6 else (ip, port)

    def flow_named(self, name: str) -> UdpFlow | None:
        """The flow with this ``Flow.name``, or None when its local end is not this socket."""
        return self._named.get(name) or self._from_own_end(name) or self._made_by(name)

    def _from_own_end(self, name: str) -> UdpFlow | None:
        """The same where our end has been heard at, in a tenth of the time."""
        for end in self._ends.values():
            if name.startswith(end.prefix):
                ip, _, port = name[len(end.prefix) :].rpartition(":")
                ip = ip.strip("[]")
                if _is_address(self._sock.family, ip, port):
                    return self._flow_from(end, self._target(ip, int(port)))
        return None

    def _made_by(self, name: str) -> UdpFlow | None:
        try:
            local, remote = (parse_address(text) for text in name.split("/")[1:])
        except ValueError:
            return None
        if not self.address.is_bound_to(local) or family_of(remote[0]) != family_of(local[0]):
            return None
        return self.flow_to(local[0], remote)

    def close(self) -> None:
        """Stop receiving and close the socket. May be called twice."""
        if self._sock.fileno() != -1:
            self._send_all()
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self._calls.clear()

    def send(self, flow: UdpFlow, data: bytes) -> None:
        """See ``UdpFlow``."""
        if len(data) > _MAX_PAYLOAD:
            raise TransportError(f"udp {format_address(flow.remote)}: message too long")
        if self._sock.fileno() == -1:
            raise TransportError(f"udp {format_address(flow.remote)}: closed")
        if self._quiet and not self._outgoing:
            failure = self._send(data, flow.target, flow.ancillary)
            if failure is not None:  # later: whoever sends is not to hear of it before that is done
                self._loop.call_soon(self._not_sent, flow, failure)
            return
        self._outgoing.append((flow, data))
        if not self._will_send:
            self._will_send = True
            self._loop.call_soon(self._send_all)

    def _send_all(self) -> None:
        self._will_send = False
        outgoing, self._outgoing = self._outgoing, []
        for flow, data in outgoing:
            failure = self._send(data, flow.target, flow.ancillary)
            if failure is not None:
                self._not_sent(flow, failure)

    def _not_sent(self, flow: UdpFlow, failure: OSError) -> None:
        log.debug("datagram_not_sent", flow=flow.name, error=failure.strerror)
        self._receiver.flow_unreachable(flow)

    def _send(self, data: bytes, target: _SocketAddress, ancillary: _Ancillary) -> OSError | None:
        """Why the kernel refuses it; None also when it only has no room for it."""
        failure: OSError | None = None
        for _ in range(_SEND_ATTEMPTS):
            try:
                if ancillary:
                    self._sock.sendmsg((data,), ancillary, 0, target)
                else:
                    self._sock.sendto(data, target)
            except BlockingIOError:
                self.unsent += 1
                return None
            except OSError as error:
                # Perhaps not about this datagram: the kernel reports an earlier peer's ICMP error
                # on the next call, whatever it is for, and only once.
                failure = error
            else:
                return None
        return failure

    def _readable(self) -> None:
        self._read()
        if not self._will_hear:
            self._hear_calls()

    def _read(self) -> None:
        """Hear what has come; of errors only then: whoever is gone may have answered before."""
        if self._read_datagrams():
            self._read_errors()

    def _read_datagrams(self) -> bool:
        """Whether there are errors to be read too."""
        end, any_came, failed = monotonic() + SLICE, False, False
        for _ in range(0, BATCH, AT_ONCE):
            if len(self._calls) >= MAX_CALLS:
                break
            datagrams, is_last, met_error = self._receive_some()
            self._quiet = is_last and not any_came and len(datagrams) == 1
            any_came = any_came or bool(datagrams)
            failed = failed or met_error
            at_once: list[tuple[bytes, UdpFlow]] = []
            for data, flow in datagrams:
                if data.startswith(CALLS):
                    self._calls.append((data, flow))
                else:
                    at_once.append((data, flow))
            self._hear(at_once)
            if is_last or monotonic() > end:
                break
        return failed or not any_came  # woken by the error queue alone

    def _receive_some(self) -> tuple[list[tuple[bytes, UdpFlow]], bool, bool]:
        """At most AT_ONCE datagrams, whether no more are there, and whether there was an error.

        That may be a peer's: one who is gone must not keep the others waiting.
        """
        datagrams: list[tuple[bytes, UdpFlow]] = []
        failed = False
        for _ in range(AT_ONCE):
            try:
                datagrams.append(self._receive())
            except BlockingIOError:
                return datagrams, True, failed
            except OSError:
                failed = True
            if (
                len(datagrams) == 1
                and ioctl(self._sock.fileno(), FIONREAD, _NO_LENGTH) == _NO_LENGTH
            ):
                return datagrams, True, failed  # to try in vain takes ten times as long as to ask
        return datagrams, False, failed

    def _hear_calls(self) -> None:
        self._will_hear = False
        if not self._calls:
            return
        end = monotonic() + CALLS_SLICE
        while self._calls:
            self._hear([self._calls.popleft()])
            if self._calls and monotonic() > end:
                self._will_hear = True
                self._loop.call_soon(self._hear_calls)
                return

    def _hear(self, datagrams: list[tuple[bytes, UdpFlow]]) -> None:
        messages: list[tuple[Flow, Message]] = []
        for data, flow in datagrams:
            if len(data) < MIN_MESSAGE:
                self._receiver.flow_active(flow)
                continue
            if self.mirror is not None:
                self.mirror.received(flow, data)
            try:
                messages.append((flow, parse_datagram(data)))
            except MessageError as error:
                self._malformed(flow, data, error)
        self._will_send = True
        try:
            self._receiver.messages_received(messages)
        finally:
            self._send_all()

    def _malformed(self, flow: UdpFlow, data: bytes, error: MessageError) -> None:
        if not data.strip(b"\r\n\0 \t"):
            self._receiver.flow_active(flow)
            return
        answer = binding_response(data, flow.remote)
        if answer is None:
            self._receiver.malformed_received(flow, error)
        else:
            with suppress(TransportError):
                flow.send(answer)
            self._receiver.flow_active(flow)

    def _receive_one(self) -> tuple[bytes, UdpFlow]:
        data, target = self._sock.recvfrom(_MAX_DATAGRAM)
        return data, self._flow(target, b"")

    def _receive_any(self) -> tuple[bytes, UdpFlow]:
        data, ancillary, _, target = self._sock.recvmsg(_MAX_DATAGRAM, 64)
        return data, self._flow(target, self._local_ip(ancillary))

    def _local_ip(self, ancillary: _Ancillary) -> bytes:
        """The packed address of ours in the IP_PKTINFO or IPV6_PKTINFO among ``ancillary``."""
        for _, kind, data in ancillary:
            if self._is_ipv6:
                if kind == socket.IPV6_PKTINFO:
                    return data[:16]
            elif kind == _IP_PKTINFO:  # where to answer from; for an error, where it came to
                return data[8:12] if data[4:8] == bytes(4) else data[4:8]
        return b""

    def _flow(self, target: _SocketAddress, local: bytes) -> UdpFlow:
        """The flow to ``target``; ``local``: packed address to send from, empty for the bound."""
        end = self._ends.get(local)
        if end is None:
            end = self._ends[local] = self._new_end(local)
        return self._flow_from(end, target)

    def _flow_from(self, end: _OwnEnd, target: _SocketAddress) -> UdpFlow:
        flow = end.flows.get(target)
        if flow is None:
            if self._at_hand >= MAX_FLOWS:
                self._forget_flows()
            self._at_hand += 1
            flow = end.flows[target] = UdpFlow(self, end, target)
            self._named[flow.name] = flow
        return flow

    def _forget_flows(self) -> None:
        self._at_hand = 0
        self._named.clear()
        for end in self._ends.values():
            end.flows.clear()

    def _new_end(self, local: bytes) -> _OwnEnd:
        if not local:
            bound = self.address.bound
            return _OwnEnd(bound, self.address.sent_by(bound[0]), [])
        local_ip = socket.inet_ntop(self._sock.family, local)
        if self._is_ipv6:
            info = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, local + bytes(4))
        else:
            info = (socket.IPPROTO_IP, _IP_PKTINFO, bytes(4) + local + bytes(4))
        local_address = (local_ip, self.address.bound[1])
        return _OwnEnd(local_address, self.address.sent_by(local_ip), [info])

    def _read_errors(self) -> None:
        """Tell of every peer that ICMP called unreachable (``man 7 ip``, IP_RECVERR)."""
        for _ in range(BATCH):
            try:
                _, ancillary, _, target = self._sock.recvmsg(0, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return
            if any(_is_unreachable(*item) for item in ancillary):
                self._receiver.flow_unreachable(self._flow(target, self._local_ip(ancillary)))


def _is_address(family: int, ip: str, port: str) -> bool:
    """Whether these are an address without scope and a port."""
    try:
        socket.inet_pton(family, ip)
    except (OSError, ValueError):
        return False
    return port.isdecimal() and int(port) <= 65535


def _scope_id(ip: str) -> int:
    """The interface that a link-local address is of; 0: none, or it has gone."""
    _, percent, interface = ip.partition("%")
    if not percent:
        return 0
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return 0


def _is_unreachable(level: int, kind: int, data: bytes) -> bool:
    if (level, kind) not in (
        (socket.IPPROTO_IP, _IP_RECVERR),
        (socket.IPPROTO_IPV6, _IPV6_RECVERR),
    ):
        return False
    _, origin, icmp_type, code = _EXTENDED_ERROR.unpack_from(data)
    if (origin, icmp_type) == (_ORIGIN_ICMP, _UNREACHABLE):
        return bool(code != _FRAGMENTATION_NEEDED)
    return (origin, icmp_type) == (_ORIGIN_ICMP6, _UNREACHABLE6)
