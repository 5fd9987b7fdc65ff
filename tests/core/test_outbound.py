"""Route tokens."""

from __future__ import annotations

import base64
import re
from dataclasses import replace

import pytest

from sipush.core.outbound import (
    RouteToken,
    came_from,
    decode_route_token,
    device_digest,
    encode_route_token,
    is_purr_of,
    leads_to_port,
    purr,
    purr_in,
    remote_ip,
)
from sipush.sip.uri import parse_sip_uri

KEY = b"k" * 32
CALL = "a84b4c76e66710@pc33"
TOKEN = RouteToken(
    "udp/127.0.0.1:5060/[::1]:4000", "bob@example.com", device_digest("instance:urn:uuid:1")
)


def test_a_token_comes_back_as_it_was() -> None:
    assert decode_route_token(encode_route_token(TOKEN, CALL, KEY), CALL, KEY) == TOKEN


def test_a_token_is_a_user_part_that_every_proxy_carries_unchanged() -> None:
    user = encode_route_token(TOKEN, CALL, KEY)
    assert parse_sip_uri(f"sip:{user}@127.0.0.1;lr").user == user
    assert "%" not in user
    assert ";" not in user


def test_a_token_does_not_tell_whose_it_is_or_where() -> None:
    user = encode_route_token(TOKEN, CALL, KEY)
    raw = base64.urlsafe_b64decode(user + "=" * (-len(user) % 4))
    for secret in (b"bob", b"example", b"127.0.0.1", b"udp", TOKEN.device.encode()):
        assert secret not in raw
    for other in (
        encode_route_token(replace(TOKEN, aor="bab@example.com"), CALL, KEY),
        encode_route_token(TOKEN, "another call", KEY),
    ):
        assert other[12:20] != user[12:20], "the same key stream twice gives both texts away"


def test_a_token_of_another_key_is_nobodys() -> None:
    assert decode_route_token(encode_route_token(TOKEN, CALL, b"x" * 32), CALL, KEY) is None


def test_a_token_is_good_for_its_own_call_only() -> None:
    user = encode_route_token(TOKEN, CALL, KEY)
    for other in ("", CALL.upper(), f"{CALL}x", "another"):
        assert decode_route_token(user, other, KEY) is None


def test_a_token_in_whose_parts_a_line_ends_is_nobodys() -> None:
    """Where the Call-ID begins would not be clear."""
    user = encode_route_token(replace(TOKEN, aor="bob\n@example.com"), CALL, KEY)
    assert decode_route_token(user, CALL, KEY) is None


def test_no_byte_of_a_token_can_be_changed() -> None:
    user = encode_route_token(TOKEN, CALL, KEY)
    for i, char in enumerate(user[:-1]):
        forged = user[:i] + ("A" if char != "A" else "B") + user[i + 1 :]
        assert decode_route_token(forged, CALL, KEY) is None


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
    assert purr("a@b", "instance:u;2", KEY, 0) == purr("a@b", "instance:u", KEY, 0)


def test_a_purr_is_new_every_day_and_known_for_ever() -> None:
    days = [purr("a@b", "instance:u", KEY, day * 86400.0) for day in range(20000, 20003)]
    assert len(set(days)) == 3
    assert purr("a@b", "instance:u", KEY, 20000 * 86400.0 + 86399) == days[0]
    assert all(is_purr_of(reference, "a@b", "instance:u;7", KEY) for reference in days)


def test_a_purr_is_nobody_elses_and_cannot_be_made_up() -> None:
    reference = purr("a@b", "instance:u", KEY, 1.8e9)
    assert not is_purr_of(reference, "a@b", "instance:v", KEY)
    assert not is_purr_of(reference, "c@b", "instance:u", KEY)
    assert not is_purr_of(reference, "a@b", "instance:u", b"x" * 32)
    forged = purr("a@b", "instance:u", KEY, 1.9e9)[:4] + reference[4:]
    assert not is_purr_of(forged, "a@b", "instance:u", KEY)


@pytest.mark.parametrize("reference", ["", "x", "AAAA", "é", "=" * 8, "a" * 1000, "_" * 20])
def test_what_is_no_purr_is_nobodys(reference: str) -> None:
    assert not is_purr_of(reference, "a@b", "instance:u", KEY)


def test_a_purr_is_a_parameter_value_as_it_is() -> None:
    references = [purr(f"{n}@b", "d", KEY, 1.8e9) for n in range(100)]
    assert all(re.fullmatch("[A-Za-z0-9_-]{20}", reference) for reference in references)


@pytest.mark.parametrize("user", ["", "bob", "====", "é", "a" * 1000, "101"])
def test_what_is_no_token_is_told_apart(user: str) -> None:
    assert decode_route_token(user, CALL, KEY) is None


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


def test_the_port_at_which_a_caller_takes_connections_comes_back() -> None:
    token = RouteToken("tcp/192.0.2.1:5060/192.0.2.7:40000/77", "bob@x", "", 5070)
    user = encode_route_token(token, CALL, KEY)
    assert decode_route_token(user, CALL, KEY) == token
    assert user != encode_route_token(RouteToken(token.flow, "bob@x", ""), CALL, KEY)


def test_the_port_that_a_flow_leads_to_is_in_its_name() -> None:
    assert leads_to_port("tcp/192.0.2.1:6379/192.0.2.7:40000/77", 40000)
    assert leads_to_port("udp/[2001:db8::1]:5060/[2001:db8::7]:5080", 5080)
    assert not leads_to_port("tcp/192.0.2.1:6379/192.0.2.7:40000/77", 6379)
    assert not leads_to_port("", 6379)


def test_the_host_of_a_flow_is_in_its_name() -> None:
    assert remote_ip("tcp/[2001:db8::1]:5060/[2001:db8::7]:5062/3") == "2001:db8::7"
    assert remote_ip("udp/192.0.2.1:5060/192.0.2.7:5062") == "192.0.2.7"
    assert not remote_ip("")
