"""Who is heard: every row of the table in docs/abuse.md, and what it does not say."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import pytest

from sipush.core import abuse
from sipush.core.abuse import (
    KNOWN_FACTOR,
    KNOWN_FOR,
    AbusePolicy,
    Failure,
    Guard,
    Verdict,
    is_vital,
    source_name,
)
from sipush.core.emergency import EmergencyPolicy
from sipush.core.outbound import RouteToken, encode_route_token
from sipush.core.routing import Realm
from sipush.sip.headers import Headers
from sipush.sip.message import Request

DOCUMENT = Path(__file__).parents[2] / "docs" / "abuse.md"
SOURCE, PEER = "192.0.2.7", "198.51.100.1"
POLICY = AbusePolicy(
    stranger_rate=10,
    stranger_burst=5,
    failures=4,
    failure_window=100,
    ban_time=600,
    peers=(ip_network("198.51.100.0/24"),),
)
NOW = 1000.0
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for line in DOCUMENT.read_text().split("| source is |")[1].split("\n\n")[0].splitlines()[2:]
]
KEY = b"k" * 32


def fail(guard: Guard, address: str, times: int, now: float = NOW) -> Failure:
    """The last of some failures in a row."""
    for _ in range(times - 1):
        assert not guard.failed(address, now).banned
    return guard.failed(address, now)


def source_that_is(state: str) -> tuple[Guard, str]:
    guard = Guard(POLICY)
    match state:
        case "known":
            guard.signed_in(SOURCE, NOW)
        case "banned":
            guard.ban(SOURCE, NOW + POLICY.ban_time)
        case "peer":
            return guard, PEER
    return guard, SOURCE


def heard(guard: Guard, address: str, now: float) -> str:
    return "heard" if guard.judge(address, now) is Verdict.ADMIT else "not heard"


def above_the_rate(guard: Guard, address: str) -> str:
    for _ in range(POLICY.stranger_burst):
        guard.judge(address, NOW)
    return heard(guard, address, NOW)


def sign_in(guard: Guard, address: str) -> str:
    done = heard(guard, address, NOW)
    guard.signed_in(address, NOW)
    return done


def failed(guard: Guard, address: str, times: int) -> str:
    failure = fail(guard, address, times)
    if failure.banned:
        return "banned"
    return "answered late" if failure.delay else "answered at once"


def lift(guard: Guard, address: str) -> str:
    guard.lift(address)
    return heard(guard, address, NOW)


INPUTS: dict[str, Callable[[Guard, str], str]] = {
    "request within `limits.stranger_rate`": lambda guard, a: heard(guard, a, NOW),
    "request above it": above_the_rate,
    "sign-in": sign_in,
    "failed sign-in": lambda guard, a: failed(guard, a, 3),
    "failed sign-in as often as bans a stranger": lambda guard, a: failed(guard, a, 4),
    "failed sign-in once too often": lambda guard, a: failed(
        guard, a, 4 if not guard.is_known(a, NOW) else 4 * KNOWN_FACTOR
    ),
    "two hours without a sign-in": lambda guard, a: heard(guard, a, NOW + KNOWN_FOR),
    "end of `limits.ban_time`": lambda guard, a: heard(guard, a, NOW + POLICY.ban_time),
    "`sipush bans lift`": lift,
}


def state_of(guard: Guard, address: str, now: float) -> str:
    """As an observer finds it."""
    if guard.client(address) == "":
        return "peer"
    if guard.judge(address, now) is Verdict.BANNED:
        return "banned"
    return "known" if guard.is_known(address, now) else "stranger"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_a_source_behaves_as_documented(row: tuple[str, ...]) -> None:
    state, what, becomes, done = row
    guard, address = source_that_is(state)
    guard.judge(address, NOW)
    assert INPUTS[what](guard, address) == done
    later = {"two hours without a sign-in": KNOWN_FOR, "end of `limits.ban_time`": 600}
    assert state_of(guard, address, NOW + later.get(what, 0)) == becomes


def test_every_input_is_documented() -> None:
    assert {row[1] for row in ROWS} == set(INPUTS)


def test_the_bucket_of_a_stranger_fills_again() -> None:
    guard = Guard(POLICY)
    heard_at_once = [guard.judge(SOURCE, NOW) for _ in range(7)].count(Verdict.ADMIT)
    heard_later = [guard.judge(SOURCE, NOW + 0.35) for _ in range(7)].count(Verdict.ADMIT)
    heard_much_later = [guard.judge(SOURCE, NOW + 99) for _ in range(7)].count(Verdict.ADMIT)
    assert (heard_at_once, heard_later, heard_much_later) == (5, 3, 5)


def test_a_clock_that_stands_still_or_goes_back_fills_nothing() -> None:
    guard = Guard(POLICY)
    verdicts = [guard.judge(SOURCE, NOW - n) for n in range(10)]
    assert verdicts.count(Verdict.ADMIT) == 5


def test_each_failure_is_answered_later_than_the_one_before() -> None:
    guard = Guard(AbusePolicy(failures=12))
    delays = [guard.failed(SOURCE, NOW).delay for _ in range(12)]
    assert delays == [0, 0, 0.25, 0.5, 1, 2, 4, 4, 4, 4, 4, 4]


def test_failures_count_within_their_window_only() -> None:
    guard = Guard(POLICY)
    for n in range(20):
        assert not guard.failed(SOURCE, NOW + n * 40).banned


def test_a_sign_in_of_his_own_does_not_make_a_guesser_forgotten() -> None:
    guard = Guard(POLICY)
    banned = []
    for _ in range(4 * KNOWN_FACTOR):
        guard.signed_in(SOURCE, NOW)
        banned.append(bool(guard.failed(SOURCE, NOW).banned))
    assert banned.index(True) == 4 * KNOWN_FACTOR - 1


def test_without_a_limit_nobody_is_banned() -> None:
    guard = Guard(AbusePolicy(failures=0))
    assert {guard.failed(SOURCE, NOW) for _ in range(1000)} == {Failure(0.0)}


def test_a_banned_source_that_signs_in_elsewhere_at_the_same_time_stays_banned() -> None:
    guard = Guard(POLICY)
    assert fail(guard, SOURCE, 4).banned == SOURCE
    guard.signed_in(SOURCE, NOW)
    assert guard.judge(SOURCE, NOW + 599) is Verdict.BANNED
    assert guard.bans(NOW + 599) == {SOURCE: NOW + 600}
    assert guard.bans(NOW + 600) == {}


def test_a_guess_that_was_heard_before_the_ban_is_found_out() -> None:
    guard = Guard(POLICY)
    assert guard.judge(SOURCE, NOW) is Verdict.ADMIT
    assert not guard.is_banned(SOURCE, NOW)
    guard.ban(SOURCE, NOW + 600)
    assert guard.is_banned(SOURCE, NOW + 599)
    assert not guard.is_banned(SOURCE, NOW + 600)
    guard.ban(PEER, NOW + 600)
    assert not guard.is_banned(PEER, NOW)


def test_one_host_with_all_addresses_of_its_ipv6_network_is_one_source() -> None:
    guard = Guard(POLICY)
    addresses = [f"2001:db8:0:7::{n:x}" for n in range(1, 5)]
    failures = [guard.failed(address, NOW) for address in addresses]
    assert failures[-1].banned == "2001:db8:0:7::/64"
    assert guard.judge("2001:db8:0:7:ffff::1", NOW) is Verdict.BANNED
    assert guard.judge("2001:db8:0:8::1", NOW) is Verdict.ADMIT


def test_the_neighbours_of_a_peer_are_none() -> None:
    guard = Guard(AbusePolicy(stranger_burst=1, peers=(ip_network("2001:db8::1/128"),)))
    for _ in range(10):
        assert guard.judge("2001:db8::1", NOW) is Verdict.ADMIT
    assert guard.client("2001:db8::1") == ""
    assert guard.client("2001:db8::2") == "2001:db8::/64"
    guard.judge("2001:db8::2", NOW)
    assert guard.judge("2001:db8::3", NOW) is Verdict.TOO_MANY


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_a_source_has_a_name_that_an_operator_can_type(address: str, name: str) -> None:
    assert source_name(address) == name


def test_a_new_policy_finds_out_anew_who_is_a_peer() -> None:
    guard = Guard(POLICY)
    guard.ban(SOURCE, NOW + 600)
    guard.judge(PEER, NOW)
    assert guard.client(PEER) == ""
    guard.policy = AbusePolicy()
    guard.judge(PEER, NOW)
    assert guard.client(PEER) == PEER
    assert guard.judge(SOURCE, NOW) is Verdict.BANNED


def test_memory_is_bounded_and_forged_addresses_push_out_neither_phones_nor_guessers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(abuse, "MAX_SOURCES", 40)
    guard = Guard(POLICY)
    guard.signed_in("192.0.2.1", NOW)
    fail(guard, "192.0.2.2", 3)
    for n in range(1000):
        guard.judge(f"203.0.{n // 250}.{n % 250}", NOW)
        guard.judge(f"2001:db8:0:{n:x}::1", NOW)
        assert len(guard) <= 40
    assert guard.is_known("192.0.2.1", NOW)
    assert guard.failed("192.0.2.2", NOW).banned


def test_of_those_who_signed_in_nothing_is_kept_but_that_they_are_known() -> None:
    guard = Guard(POLICY)
    addresses = [f"203.0.{n // 250}.{n % 250}" for n in range(1000)]
    for address in addresses:
        guard.judge(address, NOW)
        guard.signed_in(address, NOW)
    assert len(guard) == 0
    assert all(guard.is_known(address, NOW + 7100) for address in addresses)
    assert not any(guard.is_known(address, NOW + KNOWN_FOR) for address in addresses)


def request(method: str, uri: str, *routes: str, to_tag: str = ";tag=1") -> Request:
    headers = Headers()
    headers.append("To", f"<{uri}>{to_tag}")
    headers.append("Call-ID", "call-1")
    for route in routes:
        headers.append("Route", route)
    return Request(method, uri, headers)


def test_emergency_calls_and_what_belongs_to_a_call_are_vital() -> None:
    emergency = EmergencyPolicy(frozenset({"112"}), ("sip:psap@192.0.2.1",))
    ours = encode_route_token(RouteToken("udp/a/b", ""), "call-1", KEY)
    elsewhere = encode_route_token(RouteToken("udp/a/b", ""), "call-2", KEY)
    forged = encode_route_token(RouteToken("udp/a/b", ""), "call-1", b"j" * 32)
    vital = {
        "call": request("INVITE", "sip:112@example.com"),
        "call to our address": request("MESSAGE", "sip:112@192.0.2.9"),
        "its CANCEL": request("CANCEL", "urn:service:sos"),
        "its ACK": request("ACK", "tel:112"),
        "BYE inside a call": request("BYE", "sip:a@b", f"<sip:{ours}@192.0.2.1;lr>"),
    }
    others = {
        "sign-in in disguise": request("REGISTER", "sip:112@example.com"),
        "emergency call of another domain": request("INVITE", "sip:112@example.org"),
        "another call": request("INVITE", "sip:113@example.com"),
        "forged Route": request("BYE", "sip:a@b", f"<sip:{forged}@192.0.2.1;lr>"),
        "Route of another call": request("BYE", "sip:a@b", f"<sip:{elsewhere}@192.0.2.1;lr>"),
        "foreign Route": request("BYE", "sip:a@b", "<sip:192.0.2.1;lr>"),
        "broken Route": request("BYE", "sip:a@b", "<<"),
        "no Route": request("BYE", "sip:a@b"),
        "no To tag": request("INVITE", "sip:a@b", f"<sip:{ours}@192.0.2.1;lr>", to_tag=""),
    }
    realm = Realm(
        ("example.com",), frozenset(), lambda host, port: False, lambda host: host == "192.0.2.9"
    )
    seen = {name: is_vital(each, KEY, emergency, realm) for name, each in vital.items()}
    assert seen == dict.fromkeys(vital, True)
    seen = {name: is_vital(each, KEY, emergency, realm) for name, each in others.items()}
    assert seen == dict.fromkeys(others, False)
    assert not is_vital(vital["call"], KEY, EmergencyPolicy(), realm)
