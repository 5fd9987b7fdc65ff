"""Route tokens."""

from __future__ import annotations

import pytest

from sipush.core.outbound import (
    RouteToken,
    decode_route_token,
    device_digest,
    encode_route_token,
)
from sipush.sip.uri import parse_sip_uri

KEY = b"k" * 32
TOKEN = RouteToken(
    "udp/127.0.0.1:5060/[::1]:4000", "bob@example.com", device_digest("instance:urn:uuid:1")
)


def test_a_token_comes_back_as_it_was() -> None:
    assert decode_route_token(encode_route_token(TOKEN, KEY), KEY) == TOKEN


def test_a_token_is_a_user_part_that_every_proxy_carries_unchanged() -> None:
    user = encode_route_token(TOKEN, KEY)
    assert parse_sip_uri(f"sip:{user}@127.0.0.1;lr").user == user
    assert "%" not in user
    assert ";" not in user


def test_a_token_of_another_key_is_nobodys() -> None:
    assert decode_route_token(encode_route_token(TOKEN, b"x" * 32), KEY) is None


def test_no_byte_of_a_token_can_be_changed() -> None:
    user = encode_route_token(TOKEN, KEY)
    for i, char in enumerate(user[:-1]):
        forged = user[:i] + ("A" if char != "A" else "B") + user[i + 1 :]
        assert decode_route_token(forged, KEY) is None


@pytest.mark.parametrize("user", ["", "bob", "====", "é", "a" * 1000, "101"])
def test_what_is_no_token_is_told_apart(user: str) -> None:
    assert decode_route_token(user, KEY) is None
