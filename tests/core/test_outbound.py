"""Route tokens."""

from __future__ import annotations

import pytest

from sipush.core.outbound import (
    RouteToken,
    came_from,
    decode_route_token,
    device_digest,
    encode_route_token,
    purr,
    purr_in,
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


@pytest.mark.parametrize(
    ("uri", "reference"),
    [
        ("sip:bob@h;ob;PN-PURR=a-b_c;x=1", "a-b_c"),
        ("sip:bob@h;x=1?pn-purr=x", ""),
        ("sip:bob@h;pn-purr", ""),
        ("sip:bob@h", ""),
        ("tel:+4930;pn-purr=x", "x"),
    ],
)
def test_a_request_uri_says_whether_its_device_may_be_woken(uri: str, reference: str) -> None:
    assert purr_in(uri) == reference


def test_all_flows_of_an_instance_are_one_device() -> None:
    assert device_digest("instance:urn:uuid:1;2") == device_digest("instance:urn:uuid:1")
    assert device_digest("instance:a;b") != device_digest("instance:a")
    assert purr("a@b", "instance:u;2", KEY) == purr("a@b", "instance:u", KEY)


@pytest.mark.parametrize("user", ["", "bob", "====", "é", "a" * 1000, "101"])
def test_what_is_no_token_is_told_apart(user: str) -> None:
    assert decode_route_token(user, KEY) is None


@pytest.mark.parametrize(
    ("ip", "flow", "known"),
    [
        ("192.0.2.7", "udp/192.0.2.1:5060/192.0.2.7:5062", True),
        ("192.0.2.7", "tcp/192.0.2.1:5060/192.0.2.7:40000/77", True),
        ("192.0.2.7", "udp/192.0.2.7:5060/192.0.2.8:5062", False),
        ("192.0.2.7", "udp/192.0.2.1:5060/192.0.2.77:5062", False),
        ("2001:db8::7", "udp/[2001:db8::1]:5060/[2001:db8::7]:5062", True),
        ("192.0.2.7", "", False),
    ],
)
def test_a_caller_is_known_by_its_host_whatever_the_port(ip: str, flow: str, known: bool) -> None:
    assert came_from(ip, flow) is known
