"""The gate: what is turned away, and bans that processes share."""

from __future__ import annotations

import asyncio
import time

from sipush.core.abuse import AbusePolicy, Guard
from sipush.errors import LocationError, MessageError
from sipush.location.memory import MemoryStore
from sipush.server.gate import Gate, GateKeeper
from sipush.sip.message import Request, make_response, parse_datagram
from tests.server.wire import Wire, WireFlow
from tests.sip.messages import request_bytes

GUESSER = "192.0.2.66"
POLICY = AbusePolicy(failures=1, stranger_burst=3, stranger_rate=0.001)


class AbsentStore(MemoryStore):
    """A store that is down."""

    async def put_ban(self, source: str, until_epoch: float) -> None:
        raise LocationError("down")

    async def bans(self, now_epoch: float) -> dict[str, float]:
        raise LocationError("down")


def gate(store: MemoryStore | None = None) -> Gate:
    return Gate(Guard(POLICY), store or MemoryStore(), asyncio.get_running_loop().time)


def hears(one: Gate, ip: str = GUESSER) -> bool:
    return one.admits(WireFlow(remote=(ip, 5060)))


async def guess(one: Gate) -> None:
    await one.sign_in_failed(WireFlow(remote=(GUESSER, 5060)), one.clock() - 1)


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


async def test_what_a_stranger_sends_too_much_reaches_nobody_and_closes_its_connection() -> None:
    wire, one = Wire(), gate()
    keeper = GateKeeper(one, wire.layer, lambda request: request.uri == "sip:112@example.com")
    flow = WireFlow("TCP", ("192.0.2.1", 5060))
    for n in range(5):
        keeper.message_received(
            flow, parse_datagram(request_bytes(via=f"SIP/2.0/TCP a;branch=z9hG4bK{n}"))
        )
    assert (len(wire.events), one.turned_away, flow.closed) == (3, 2, True)
    keeper.malformed_received(flow, MessageError("x", message=parse_datagram(request_bytes())))
    assert (wire.layer.malformed, one.turned_away) == (0, 3)


async def test_responses_and_vital_requests_are_heard_from_anybody() -> None:
    wire, one = Wire(), gate()
    keeper = GateKeeper(one, wire.layer, lambda request: request.uri == "sip:112@example.com")
    flow = WireFlow("UDP", (GUESSER, 5060))
    await guess(one)
    call = parse_datagram(request_bytes("INVITE", uri="sip:112@example.com"))
    assert isinstance(call, Request)
    keeper.message_received(flow, call)
    keeper.message_received(flow, make_response(call, 200, to_tag="t"))
    keeper.message_received(flow, parse_datagram(request_bytes("INVITE")))
    assert wire.events == ["request INVITE", "stray 200"]


async def test_what_is_held_back_is_heard_later_and_in_order() -> None:
    wire = Wire()
    keeper = GateKeeper(gate(), wire.layer, lambda request: request.uri == "sip:112@example.com")
    keeper.hold_back()
    call = parse_datagram(request_bytes("INVITE", uri="sip:112@example.com"))
    for number, method in enumerate(("INFO", "BYE")):
        via = f"SIP/2.0/UDP a;branch=z9hG4bK{number}"
        keeper.message_received(WireFlow(), parse_datagram(request_bytes(method, via=via)))
    keeper.message_received(WireFlow(), call)
    assert wire.events == ["request INVITE"]
    keeper.let_in()
    assert wire.events == ["request INVITE", "request INFO", "request BYE"]
