"""Route tokens: what our Record-Route says about the way back to one side (RFC 5626 §5.2, §5.3).

A request inside a dialog comes back with the token in its Route and needs no state here: the token
names the device, whose newest flow is looked up, and the flow of the day it was made.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import a2b_base64, b2a_base64
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b, sha256
from hmac import compare_digest
from ipaddress import ip_address
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from sipush.core.bindings import Aor, without_reg_id
from sipush.core.keyed_hash import keyed_hash
from sipush.errors import MessageError
from sipush.sip.fields import parse_name_addr

_IV_BYTES: Final = 12
_COUNTER: Final = bytes(4)
"Behind the IV it fills a block of AES, and counts the blocks of a text."
_DAY_BYTES: Final = 3
_PURR_MAC_BYTES: Final = 12
"With the day a multiple of three: no padding, which a URI parameter cannot hold."


@dataclass(slots=True, init=False)
class RouteToken:
    """Where requests towards one side of a dialog go."""

    flow: str
    "Name of the flow that side used when the dialog was made; empty: none of ours."
    aor: str
    "AOR of a registered device, or empty."
    device: str
    "``device_digest`` of its device key, or empty."
    port: int
    "Where a caller on a connection, or the proxy that he uses, takes others; 0: he has not said."

    def __init__(self, flow: str, aor: str = "", device: str = "", port: int = 0) -> None:
        self.flow = flow
        self.aor = aor
        self.device = device
        self.port = port


@lru_cache(maxsize=4096)
def device_digest(device: str) -> str:
    """A short name for a device, on whichever flow, that tells nobody its token or instance.

    Empty for none.
    """
    if not device:
        return ""
    name = without_reg_id(device)
    digest = sha256(name.encode("utf-8", "surrogateescape")).digest()
    return urlsafe_b64encode(digest[:6]).decode()


def purr(aor: Aor, device: str, key: bytes, now_epoch: float) -> str:
    """The Proxy Unique Registration Reference of a device (RFC 8599 §6.2.1).

    The same on every flow of the device and another one each day, which nobody else can link. Older
    ones stay known for as long as any dialog lasts, without being stored.
    """
    return _purr(aor, device, key, int(now_epoch // 86400))


def is_purr_of(reference: str, aor: Aor, device: str, key: bytes) -> bool:
    """Whether ``reference`` is a PURR of the device, of whatever day."""
    try:
        raw = urlsafe_b64decode(reference.encode("ascii"))
    except ValueError:
        return False
    day = int.from_bytes(raw[:_DAY_BYTES], "big")
    return compare_digest(_purr(aor, device, key, day), reference)


def _purr(aor: Aor, device: str, key: bytes, day: int) -> str:
    when = day.to_bytes(_DAY_BYTES, "big")
    text = f"{aor}\n{without_reg_id(device)}".encode("utf-8", "surrogateescape")
    mac = blake2b(b"purr" + when + text, key=key, digest_size=_PURR_MAC_BYTES).digest()
    return urlsafe_b64encode(when + mac).decode()


def purr_in(uri: str) -> str:
    """The PURR in a Request-URI: its device lets itself be woken for it (RFC 8599 §6.1)."""
    if "pn-purr" not in uri.lower():
        return ""
    for param in uri.partition("?")[0].split(";")[1:]:
        name, _, value = param.partition("=")
        if name.lower() == "pn-purr":
            return value
    return ""


def encode_route_token(token: RouteToken, call_id: str, key: bytes) -> str:
    """The token as one opaque user part: nobody can make one up, or read who and where it is.

    Good with this Call-ID only: who has seen it in one call must not reach the phone by it later,
    nor know an anonymous caller (RFC 3323) by it.
    """
    flow = f"{token.flow} {token.port}" if token.port else token.flow
    text = f"{flow}\n{token.aor}\n{token.device}".encode("utf-8", "surrogateescape")
    mac_key, cipher = _keys(key)
    iv = _iv(text, call_id, mac_key)
    user = b2a_base64(iv + _xored(text, iv, cipher), newline=False).decode()
    return user.rstrip("=").replace("+", "-").replace("/", "_")


def decode_route_token(user: str, call_id: str, key: bytes) -> RouteToken | None:
    """The token in a user part, or None when it is not one that we made for this Call-ID."""
    mac_key, cipher = _keys(key)
    try:
        raw = a2b_base64(user.replace("-", "+").replace("_", "/") + "==")
        iv = raw[:_IV_BYTES]
        text = _xored(raw[_IV_BYTES:], iv, cipher)
    except ValueError:
        return None
    parts = text.decode("utf-8", "surrogateescape").split("\n")
    if len(parts) != 3 or not compare_digest(iv, _iv(text, call_id, mac_key)):
        return None
    flow, port = parts[0], 0
    if " " in flow:
        flow, _, named = flow.partition(" ")
        port = int(named)
    return RouteToken(flow, parts[1], parts[2], port)


def came_from(ip: str, flow: str) -> bool:
    """Whether the flow of this name (``Flow.name``) leads to the host with address ``ip``.

    The port is left out: behind a NAT it changes between a REGISTER and the call.
    """
    return ip != "" and remote_ip(flow) == ip


def leads_to(value: str, flow: str) -> bool:
    """Whether the proxy that a Path value names by its address is where that flow leads.

    The port counts over UDP only: a proxy opens its connections from another one.
    """
    try:
        uri = parse_name_addr(value).sip_uri
        if ip_address(uri.address) != ip_address(remote_ip(flow)):
            return False
    except (MessageError, ValueError):
        return False
    usual = 5061 if uri.scheme == "sips" or uri.transport == "tls" else 5060
    return not flow.startswith("udp/") or leads_to_port(flow, uri.port or usual)


def is_usual_port(port: int | None) -> bool:
    """Whether a server that listens at that port, None for the default, speaks SIP."""
    return port in (None, 5060, 5061)


def remote_ip(flow: str) -> str:
    """The address of the host that the flow of this name leads to, or empty."""
    return _remote(flow).rpartition(":")[0].strip("[]")


def leads_to_port(flow: str, port: int | None) -> bool:
    """Whether the flow of this name leads to that port."""
    return _remote(flow).rpartition(":")[2] == str(port)


def _remote(flow: str) -> str:
    parts = flow.split("/")
    return parts[2] if len(parts) > 2 else ""


@lru_cache(maxsize=4)
def _keys(key: bytes) -> tuple[bytes, CipherContext]:
    keys = blake2b(b"route", key=key, digest_size=32).digest()
    return keys[:16], Cipher(AES(keys[16:]), CTR(bytes(16))).encryptor()


def _iv(text: bytes, call_id: str, key: bytes) -> bytes:
    """The MAC of a token, and the IV of its text, a synthetic one as in RFC 5297.

    So no two texts are enciphered alike, and what was deciphered is ours if it has that MAC. The
    Call-ID begins after the third line.
    """
    call = call_id.encode("utf-8", "surrogateescape")
    return keyed_hash(key, text + b"\n" + call, _IV_BYTES)


def _xored(text: bytes, iv: bytes, cipher: CipherContext) -> bytes:
    """``text`` under AES in counter mode, its own inverse. ValueError: the IV is too short."""
    cipher.reset_nonce(iv + _COUNTER)
    return cipher.update(text)
