"""A browser's push subscription: where it may be pushed to, and with which keys.

The endpoint is a URL that whoever registers chooses, so only the push services that the operator
names are ever asked.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_ENDPOINT = 1024
"Characters. The longest seen, Microsoft's, have half as many."

_ENDPOINT = re.compile(
    r"https://([a-z0-9.-]+(?::[0-9]+)?)(/[a-z0-9._~!$&'()*+,;=:@/?%-]*)", re.IGNORECASE
)
_P256DH = re.compile("B[A-Za-z0-9_-]{86}")
"65 bytes, the first of which says *uncompressed* (X9.62 §4.3.6)."
_AUTH = re.compile("[A-Za-z0-9_-]{22}")
"16 bytes."


class UnusableSubscriptionError(ValueError):
    """Its text is for Warning 399: it never holds any of the subscription."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One push subscription (RFC 8030 §2)."""

    origin: str
    "``https://host[:port]`` of the push service (RFC 6454 §6.1)."
    path: str
    "Of the push resource, with its query."
    p256dh: bytes
    "The browser's public key (RFC 8291 §2.1). Empty: pushes carry nothing, as in RFC 8599 §12."
    auth: bytes
    "The authentication secret that belongs to it."


def has_keys(params: Mapping[str, str]) -> bool:
    """Whether a push may carry something."""
    return any(_keys(params))


def read_subscription(
    endpoint: str, params: Mapping[str, str], hosts: Sequence[str]
) -> Subscription:
    """The subscription a device registered with; ``params`` hold its keys.

    ``hosts``: the push services that may be asked, as ``host``, ``host:port`` or ``*.domain``.
    Raises UnusableSubscriptionError.
    """
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None or len(endpoint) > MAX_ENDPOINT:
        raise UnusableSubscriptionError("the subscription's endpoint is not an https URL")
    server = match[1].lower().removesuffix(":443")
    if not any(_is_at(server, host) for host in hosts):
        raise UnusableSubscriptionError("the subscription's push service is not allowed here")
    p256dh, auth = _keys(params)
    if (p256dh or auth) and not (_P256DH.fullmatch(p256dh) and _AUTH.fullmatch(auth)):
        raise UnusableSubscriptionError("p256dh and auth are not the keys of a subscription")
    return Subscription(f"https://{server}", match[2], _decoded(p256dh), _decoded(auth))


def _is_at(server: str, host: str) -> bool:
    return server.endswith(host[1:]) if host.startswith("*.") else server == host


def _keys(params: Mapping[str, str]) -> tuple[str, str]:
    """As X-Push has them, or the Contact."""
    return (
        params.get("p256dh") or params.get("pn-p256dh", ""),
        params.get("auth") or params.get("pn-auth", ""),
    )


def _decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
