"""The gate: what is turned away, and bans that processes share."""

from __future__ import annotations

import asyncio
import time
from ipaddress import ip_network

import pytest
from structlog.testing import capture_logs

from sipush.core.abuse import AbusePolicy, Guard, Verdict
from sipush.core.guesses import Guesses
from sipush.errors import LocationError, MessageError
from sipush.location.memory import MemoryStore
from sipush.server import gate as module
from sipush.server.gate import Gate, GateKeeper
from sipush.server.locations import Locations
from sipush.sip.message import Request, make_response, parse_datagram
from sipush.turns import Turns
from tests.server.stores import ChangedStore
from tests.server.wire import Wire, WireFlow
from tests.sip.messages import request_bytes

GUESSER, BOB = "192.0.2.66", "bob@example.com"
POLICY = AbusePolicy(failures=1, stranger_burst=3, stranger_rate=0.001)


class AbsentStore(ChangedStore):
    """A store that is down."""

    async def put_ban(self, source: str, until_epoch: float) -> None:
        raise LocationError("down")

    async def bans(self, now_epoch: float) -> dict[str, float]:
        raise LocationError("down")


def gate(store: MemoryStore | AbsentStore | None = None) -> Gate:
    store = store or MemoryStore()
    clock = asyncio.get_running_loop().time
    return Gate(Guard(POLICY), Guesses(2, 100), store, Locations(store), clock)


def hears(one: Gate, ip: str = GUESSER) -> bool:
    return one.judge(WireFlow(remote=(ip, 5060))) is Verdict.ADMIT


async def guess(one: Gate, ip: str = GUESSER) -> None:
    await one.sign_in_failed(WireFlow(remote=(ip, 5060)), BOB, one.clock() - 1, "call")


async def test_a_ban_holds_in_every_process_until_it_is_lifted() -> None:
    store = MemoryStore()
    one, other = gate(store), gate(store)
    await guess(one)
    assert not hears(one)
    assert hears(other)
    await other.look_at_bans()
    assert not hears(other)
    await store.remove_ban(GUESSER)
    for each in (one, other):
        await each.look_at_bans()
        assert hears(each)


async def test_who_may_keep_a_connection_by_keep_alives_alone() -> None:
    one, stranger = gate(), WireFlow(remote=(GUESSER, 5060))
    assert not one.may_stay(stranger)
    one.signed_in(WireFlow(remote=(GUESSER, 5070)), BOB)
    assert one.may_stay(stranger)
    other = WireFlow(remote=("192.0.2.67", 5060))
    one.guard.policy = AbusePolicy(peers=(ip_network("192.0.2.67"),))
    assert one.may_stay(other)


async def test_a_ban_that_is_being_stored_is_not_taken_for_lifted() -> None:
    one = gate()
    before: set[str] = set()
    await guess(one)
    one._take_over({}, before)
    assert not hears(one)


async def test_a_ban_holds_where_it_was_made_when_the_store_is_down() -> None:
    one = gate(AbsentStore())
    await guess(one)
    await one.look_at_bans()
    assert not hears(one)


async def test_a_ban_from_the_store_ends_in_time() -> None:
    store = MemoryStore()
    await store.put_ban(GUESSER, time.time() + 600)
    one = gate(store)
    await one.look_at_bans()
    (until,) = one.guard.bans(one.clock()).values()
    assert 599 < until - one.clock() <= 600


def stranger_sends(one: Gate, wire: Wire, flow: WireFlow, times: int) -> GateKeeper:
    keeper = GateKeeper(
        one, wire.layer, lambda request: request.uri == "sip:112@example.com", Turns()
    )
    for n in range(times):
        via = f"SIP/2.0/{flow.transport} a;branch=z9hG4bK{n}"
        keeper.messages_received([(flow, parse_datagram(request_bytes(via=via)))])
    return keeper


async def test_what_a_stranger_sends_too_much_reaches_nobody_and_its_connection_is_told() -> None:
    wire, one = Wire(), gate()
    flow = WireFlow("TCP", ("192.0.2.1", 5060))
    keeper = stranger_sends(one, wire, flow, 5)
    assert (len(wire.events), one.turned_away, flow.closed) == (3, 2, True)
    (refusal,) = [data for _, data in flow.sent if b"503" in data]
    assert refusal.startswith(b"SIP/2.0 503 Too Many Requests Before Signing In\r\n")
    assert b"\r\nRetry-After: 5\r\n" in refusal
    keeper.malformed_received(flow, MessageError("x", message=parse_datagram(request_bytes())))
    assert (wire.layer.malformed, one.turned_away) == (0, 3)


async def test_nobody_is_told_over_udp_nor_who_is_banned() -> None:
    for transport, ip in (("UDP", "192.0.2.1"), ("TCP", GUESSER)):
        wire, one, flow = Wire(), gate(), WireFlow(transport, (ip, 5060))
        await guess(one)
        stranger_sends(one, wire, flow, 5)
        assert one.turned_away >= 2
        assert [data for _, data in flow.sent if b"503" in data] == []


async def test_the_operator_is_told_of_strangers_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = gate()
    with capture_logs() as logs:
        stranger_sends(one, Wire(), WireFlow(), 100)
        monkeypatch.setattr(module, "TELL_EVERY", 0.0)
        stranger_sends(one, Wire(), WireFlow(), 1)
    told = [line for line in logs if line["event"] == "strangers_not_heard"]
    assert [(line["messages"], line["remote"]) for line in told] == [
        (1, "192.0.2.1"),
        (97, "192.0.2.1"),
    ]
    assert "limits.stranger_burst" in told[0]["reason"]


async def test_guesses_from_everywhere_slow_the_user_there_and_this_is_told_once() -> None:
    one, register = gate(), parse_datagram(request_bytes("REGISTER"))
    assert isinstance(register, Request)
    with capture_logs() as logs:
        for n in range(4):
            await guess(one, f"198.51.100.{n}")
    assert [line["aor"] for line in logs if line["event"] == "user_slowed"] == [BOB]
    assert await one.slows(WireFlow(remote=("203.0.113.1", 5060)), BOB, register) > 0
    assert await one.slows(WireFlow(remote=("203.0.113.1", 5060)), "al@a", register) == 0
    one.signed_in(WireFlow(remote=("203.0.113.1", 5060)), BOB)
    assert await one.slows(WireFlow(remote=("203.0.113.1", 5060)), BOB, register) == 0


async def test_responses_and_vital_requests_are_heard_from_anybody() -> None:
    wire, one = Wire(), gate()
    keeper = GateKeeper(
        one, wire.layer, lambda request: request.uri == "sip:112@example.com", Turns()
    )
    flow = WireFlow("UDP", (GUESSER, 5060))
    await guess(one)
    call = parse_datagram(request_bytes("INVITE", uri="sip:112@example.com"))
    assert isinstance(call, Request)
    keeper.messages_received([(flow, call)])
    keeper.messages_received([(flow, make_response(call, 200, to_tag="t"))])
    keeper.messages_received([(flow, parse_datagram(request_bytes("INVITE")))])
    assert wire.events == ["request INVITE", "stray 200"]


async def test_what_is_held_back_is_heard_later_and_in_order() -> None:
    wire = Wire()
    keeper = GateKeeper(
        gate(), wire.layer, lambda request: request.uri == "sip:112@example.com", Turns()
    )
    keeper.hold_back()
    call = parse_datagram(request_bytes("INVITE", uri="sip:112@example.com"))
    for number, method in enumerate(("INFO", "BYE")):
        via = f"SIP/2.0/UDP a;branch=z9hG4bK{number}"
        keeper.messages_received([(WireFlow(), parse_datagram(request_bytes(method, via=via)))])
    keeper.messages_received([(WireFlow(), call)])
    assert wire.events == ["request INVITE"]
    keeper.let_in()
    assert wire.events == ["request INVITE", "request INFO", "request BYE"]


async def test_a_register_goes_ahead_of_calls_that_wait_and_a_cancel_does_not() -> None:
    wire, one = Wire(), gate()
    flow = WireFlow()
    one.guard.signed_in(flow.remote[0], one.clock())
    turns = Turns()
    keeper = GateKeeper(one, wire.layer, lambda _: False, turns)
    for number in range(2):
        via = f"SIP/2.0/UDP a;branch=z9hG4bK{number}"
        keeper.messages_received([(flow, parse_datagram(request_bytes("INVITE", via=via)))])
    keeper.messages_received([(flow, parse_datagram(request_bytes("CANCEL", via=via)))])
    keeper.messages_received(
        [(flow, parse_datagram(request_bytes("REGISTER", via="SIP/2.0/UDP a;branch=z9hG4bKr")))]
    )
    while turns.waiting:  # noqa: ASYNC110 - that is up to the loop
        await asyncio.sleep(0)
    register_ahead = ["request INVITE", "request REGISTER", "request INVITE", "cancelled"]
    assert wire.events == register_ahead


async def test_what_came_with_a_call_and_before_it_is_heard_before_it() -> None:
    wire, one = Wire(), gate()
    flow = WireFlow()
    one.guard.signed_in(flow.remote[0], one.clock())
    keeper = GateKeeper(one, wire.layer, lambda _: False, Turns())
    keeper.messages_received(
        [
            (
                flow,
                parse_datagram(request_bytes(method, via=f"SIP/2.0/UDP a;branch=z9hG4bK{method}")),
            )
            for method in ("REGISTER", "INVITE", "BYE")
        ]
    )
    assert wire.events == ["request REGISTER", "request INVITE", "request BYE"]


async def test_an_emergency_call_goes_ahead_of_all_calls_that_wait_however_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_HELD_BACK", 3)
    wire, one = Wire(), gate()
    flow = WireFlow()
    one.guard.signed_in(flow.remote[0], one.clock())
    turns = Turns()
    keeper = GateKeeper(one, wire.layer, lambda each: each.uri == "sip:112@example.com", turns)
    for number in range(10):
        via = f"SIP/2.0/UDP a;branch=z9hG4bK{number}"
        keeper.messages_received([(flow, parse_datagram(request_bytes("INVITE", via=via)))])
    assert (len(wire.events), turns.waiting) == (1, 3)
    emergency, via = "sip:112@example.com", "SIP/2.0/UDP a;branch=z9hG4bKe"
    keeper.messages_received(
        [(flow, parse_datagram(request_bytes("INVITE", uri=emergency, via=via)))]
    )
    keeper.messages_received(
        [(flow, parse_datagram(request_bytes("CANCEL", uri=emergency, via=via)))]
    )
    assert wire.events == ["request INVITE", "request INVITE", "cancelled"]
