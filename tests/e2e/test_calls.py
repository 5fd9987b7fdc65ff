"""What happens inside a call, and when two devices answer it (D1, W10)."""

from __future__ import annotations

import uuid

import pytest

from tests.e2e.daemon import in_time
from tests.e2e.wire import FINAL, SDP, new_branch
from tests.e2e.world import World, apns_token, x_push

IN_DIALOG = [
    *(("INVITE", SDP), ("UPDATE", SDP)),
    *((method, "") for method in ("INFO", "MESSAGE", "REFER", "NOTIFY")),
]


@pytest.mark.parametrize(("method", "body"), IN_DIALOG, ids=[name for name, _ in IN_DIALOG])
async def test_both_sides_of_a_call_can_send_requests_inside_it(
    world: World, transport: str, method: str, body: str
) -> None:
    daemon = await world.daemon()
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", transport, push)
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    await world.pushes.next()
    reborn = await world.registered(daemon, "bob", transport, push)
    answer, incoming = await in_time(call.final(), reborn.rings_and_answers())

    accepted, request = await in_time(
        call.request(answer, method, body), incoming.requested(method, body)
    )
    assert (accepted.status, accepted.body, request.body) == (200, body, body)
    if method == "INVITE":
        await incoming.expect("ACK")

    accepted, request = await in_time(incoming.request(method, body), call.requested(method, body))
    assert (accepted.status, accepted.body, request.body) == (200, body, body)
    if method == "INVITE":
        await call.expect("ACK")

    bye, _ = await in_time(call.hang_up(answer), incoming.hung_up())
    assert bye.status == 200
    assert len(world.pushes.all) == 1


async def test_early_media_is_acknowledged_and_changed_before_the_answer(
    world: World, transport: str
) -> None:
    """RFC 3262 and RFC 3311, inside an early dialog."""
    daemon = await world.daemon()
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", transport, push)
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob", headers=["Supported: 100rel"])
    await world.pushes.next()
    incoming = await (await world.registered(daemon, "bob", transport, push)).incoming()
    incoming.reply(183, "Require: 100rel", "RSeq: 1", "Content-Type: application/sdp", body=SDP)
    early = await call.expect(183)
    assert (early["rseq"], early.body) == ("1", SDP)
    for method, body in (("PRACK", ""), ("UPDATE", SDP)):
        accepted, _ = await in_time(
            call.request(early, method, body), incoming.requested(method, body)
        )
        assert (accepted.status, accepted.body) == (200, body)
    answer, _ = await in_time(call.final(), incoming.answer())
    assert answer.status == 200


async def test_a_change_of_a_call_can_be_given_up(world: World, transport: str) -> None:
    """A CANCEL of a re-INVITE (RFC 3261 §9)."""
    daemon = await world.daemon()
    bob = await world.registered(daemon, "bob", transport, x_push(apns_token()))
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    call.cseq += 1
    routes = [f"Route: {value}" for value in reversed(answer.all("record-route"))]
    where = (answer.contact, new_branch(), answer.tag("to"))
    alice.wire.send(call._request("INVITE", *where, *routes, body=SDP))
    changed = await incoming.expect("INVITE")
    incoming.reply(180, request=changed)
    await call.expect(180)
    alice.wire.send(call._request("CANCEL", *where, *routes))
    cancel = await incoming.expect("CANCEL")
    incoming.reply(200, request=cancel)
    incoming.reply(487, request=changed)
    await incoming.expect("ACK")
    assert (await call.expect(FINAL)).status == 487
    alice.wire.send(call._request("ACK", *where))
    bye, _ = await in_time(call.hang_up(answer), incoming.hung_up())
    assert bye.status == 200


async def test_when_two_devices_answer_at_once_the_caller_gets_both_answers(
    world: World, transport: str
) -> None:
    daemon = await world.daemon()
    phones = [
        await world.registered(daemon, "bob", transport, x_push(apns_token()), urn)
        for urn in (f"urn:uuid:{uuid.uuid4()}", f"urn:uuid:{uuid.uuid4()}")
    ]
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    first, second = [await phone.incoming() for phone in phones]
    first.reply(200, "Content-Type: application/sdp", body=SDP)
    answer = await call.final()
    await first.expect("ACK")
    # It had picked up before the CANCEL reached it.
    second.reply(200, "Content-Type: application/sdp", body=SDP)
    late = await call.final()
    await second.expect("ACK")
    assert {answer.tag("to"), late.tag("to")} == {first.tag, second.tag}
    for msg, phone in ((late, second), (answer, first)):
        bye, _ = await in_time(call.hang_up(msg), phone.hung_up())
        assert bye.status == 200


async def test_a_call_goes_on_while_its_phone_moves_to_another_port(world: World) -> None:
    """RFC 5626 §5.3: requests inside the dialog go to the newest flow of the device."""
    daemon = await world.daemon()
    push, urn = x_push(apns_token()), f"urn:uuid:{uuid.uuid4()}"
    bob = await world.registered(daemon, "bob", "TCP", push, urn)
    alice = await world.phone(daemon, "alice", "TCP")
    call = await alice.call("bob")
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    bob.kill()
    incoming.phone = await world.registered(daemon, "bob", "TCP", push, urn)
    bye, _ = await in_time(call.hang_up(answer), incoming.hung_up())
    assert bye.status == 200
    assert world.pushes.all == []
