"""Packets of HEP version 3 (sipcapture.org, HEP3 Network Protocol Specification)."""

from __future__ import annotations

import socket
import struct
from typing import Final

from sipush.transport.flow import Address

PORT: Final = 9060
"Where capture servers listen, unless told otherwise."

MAX_PACKET: Final = 65_507
"Bytes: the most that an IPv4 datagram carries."
CUT: Final = b"\r\n[cut]"
"The end of a message that was too long."
MAX_ID: Final = 255
"Bytes of a Call-ID that are still a correlation ID."

_HEADER: Final = struct.Struct("!4sH")
_CHUNK: Final = struct.Struct("!HHH")
_BYTE, _PORT, _NUMBER = struct.Struct("!B"), struct.Struct("!H"), struct.Struct("!I")

_FAMILY, _PROTOCOL = 0x01, 0x02
_SOURCE4, _DESTINATION4, _SOURCE6, _DESTINATION6 = 0x03, 0x04, 0x05, 0x06
_SOURCE_PORT, _DESTINATION_PORT = 0x07, 0x08
_SECONDS, _MICROSECONDS = 0x09, 0x0A
_PAYLOAD_TYPE, _AGENT_ID, _KEY, _PAYLOAD = 0x0B, 0x0C, 0x0E, 0x0F
_CORRELATION_ID, _NODE_NAME = 0x11, 0x13

_SIP: Final = 1
_IPV4, _IPV6 = 2, 10
"Linux's AF_INET and AF_INET6, on every system."


def agent_chunks(agent_id: int, key: bytes, node_name: str) -> bytes:
    """Who sends the packets: the same in each of them. An empty key or name is left out."""
    return (
        _chunk(_AGENT_ID, _NUMBER.pack(agent_id))
        + (_chunk(_NODE_NAME, node_name.encode()) if node_name else b"")
        + (_chunk(_KEY, key) if key else b"")
    )


def end_chunks(transport: str, source: Address, destination: Address) -> bytes:
    """Between which ends, and how. ``transport``: ``UDP``, or any that runs over TCP."""
    protocol = socket.IPPROTO_UDP if transport == "UDP" else socket.IPPROTO_TCP
    return (
        _addresses(protocol, source[0].partition("%")[0], destination[0].partition("%")[0])
        + _chunk(_SOURCE_PORT, _PORT.pack(source[1]))
        + _chunk(_DESTINATION_PORT, _PORT.pack(destination[1]))
    )


def sip_packet(ends: bytes, epoch_ns: int, agent: bytes, call_id: bytes, message: bytes) -> bytes:
    """The packet for one message; what is too long for a datagram is cut, and says so."""
    seconds, nanoseconds = divmod(epoch_ns, 1_000_000_000)
    head = (
        ends
        + _chunk(_SECONDS, _NUMBER.pack(seconds))
        + _chunk(_MICROSECONDS, _NUMBER.pack(nanoseconds // 1000))
        + _chunk(_PAYLOAD_TYPE, _BYTE.pack(_SIP))
        + agent
        + (_chunk(_CORRELATION_ID, call_id) if 0 < len(call_id) <= MAX_ID else b"")
    )
    room = MAX_PACKET - _HEADER.size - len(head) - _CHUNK.size
    if len(message) > room:
        message = message[: room - len(CUT)] + CUT
    chunks = head + _chunk(_PAYLOAD, message)
    return _HEADER.pack(b"HEP3", _HEADER.size + len(chunks)) + chunks


def _chunk(kind: int, value: bytes) -> bytes:
    """Of vendor 0: one that everybody knows."""
    return _CHUNK.pack(0, kind, _CHUNK.size + len(value)) + value


def _addresses(protocol: int, source: str, destination: str) -> bytes:
    """Where a proxy tells an IPv6 address of a phone, ours may be IPv4: then both go as IPv6."""
    if ":" not in source and ":" not in destination:
        return (
            _chunk(_FAMILY, _BYTE.pack(_IPV4))
            + _chunk(_PROTOCOL, _BYTE.pack(protocol))
            + _chunk(_SOURCE4, socket.inet_pton(socket.AF_INET, source))
            + _chunk(_DESTINATION4, socket.inet_pton(socket.AF_INET, destination))
        )
    return (
        _chunk(_FAMILY, _BYTE.pack(_IPV6))
        + _chunk(_PROTOCOL, _BYTE.pack(protocol))
        + _chunk(_SOURCE6, _packed_ipv6(source))
        + _chunk(_DESTINATION6, _packed_ipv6(destination))
    )


def _packed_ipv6(ip: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, ip if ":" in ip else f"::ffff:{ip}")
