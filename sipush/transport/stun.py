"""STUN keep-alives on the SIP port (RFC 5626 §4.4.2, RFC 5389)."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, ip_address

from sipush.transport.flow import Address

_MAGIC_COOKIE = 0x2112A442
_BINDING_REQUEST = 0x0001
_BINDING_SUCCESS = 0x0101
_XOR_MAPPED_ADDRESS = 0x0020
_HEADER = struct.Struct("!HHI12s")


def binding_response(datagram: bytes, remote: Address) -> bytes | None:
    """The Binding success response to ``datagram``, or None when it is no Binding request."""
    if len(datagram) < _HEADER.size:
        return None
    kind, length, cookie, transaction = _HEADER.unpack_from(datagram)
    if kind != _BINDING_REQUEST or cookie != _MAGIC_COOKIE:
        return None
    if length != len(datagram) - _HEADER.size:
        return None
    value = _xor_mapped_address(remote, transaction)
    attribute = struct.pack("!HH", _XOR_MAPPED_ADDRESS, len(value)) + value
    return _HEADER.pack(_BINDING_SUCCESS, len(attribute), cookie, transaction) + attribute


def _xor_mapped_address(remote: Address, transaction: bytes) -> bytes:
    """RFC 5389 §15.2: port and address, each XORed with what a NAT will not rewrite."""
    ip = ip_address(remote[0])
    family = 1 if isinstance(ip, IPv4Address) else 2
    mask = struct.pack("!I", _MAGIC_COOKIE) + transaction
    masked = bytes(a ^ b for a, b in zip(ip.packed, mask, strict=False))
    return struct.pack("!BBH", 0, family, remote[1] ^ (_MAGIC_COOKIE >> 16)) + masked
