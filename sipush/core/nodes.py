"""Several nodes on one store: who holds a phone's flow is its edge (RFC 3327, RFC 5626 §5.3).

A binding over a flow of ours has a Path whose first value leads here and names the flow. The other
nodes see a device behind a proxy, as they do one behind an edge of the operator; we, the flow.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Final

from sipush.core.bindings import Binding
from sipush.core.outbound import RouteToken, device_digest, encode_route_token
from sipush.sip.uri import with_user

THIS_FLOW: Final = ""
"""In place of a value that leads to us where there are no other nodes: before the Path of a proxy
that is reached over the flow of the REGISTER, and in no other way."""

ANY_CALL: Final = "\n"
"""In place of a Call-ID: the tokens of nodes are good for any. No Call-ID is equal to it, so that a
token which a phone has seen in a dialog is not one of them."""


def route_key(key: bytes, node: str) -> bytes:
    """The key of the route tokens of ``node``, its URI; ``key`` alone where there is one only.

    Of its own: in the route set of a dialog the tokens of two nodes follow each other.
    """
    return _key_of(key, node) if node else key


@lru_cache(maxsize=4)
def _key_of(key: bytes, node: str) -> bytes:
    return blake2b(b"routes" + node.encode(), key=key, digest_size=32).digest()


def path_here(node: str, flow: str, aor: str, device: str, key: bytes) -> str:
    """A Path value that leads to this flow by way of ``node``, its URI."""
    token = RouteToken(flow, aor, device_digest(device))
    user = encode_route_token(token, ANY_CALL, route_key(key, node))
    return f"<{with_user(node, user)};{_MARK}>"


def way_to(binding: Binding, node: str) -> tuple[str, tuple[str, ...]]:
    """How ``node``, our URI or empty, reaches the device.

    The name of the flow, empty for a connection to the first proxy; and the proxies in between.
    """
    path = binding.path
    if not path:
        return binding.flow, path
    if path[0] == THIS_FLOW or (node and path[0].endswith(_tail(node))):
        return binding.flow, path[1:]
    return "", path


def is_away(binding: Binding, node: str) -> bool:
    """Whether another node has its flow."""
    flow, path = way_to(binding, node)
    return not flow and path[0].endswith(f";{_MARK}>")


def is_in_clear(binding: Binding, node: str) -> bool:
    """Whether another node has its flow, and the way there is without TLS."""
    return is_away(binding, node) and not binding.path[0].startswith("<sips:")


def _tail(node: str) -> str:
    return f"@{node.partition(':')[2]};{_MARK}>"


_MARK: Final = "lr;node"
