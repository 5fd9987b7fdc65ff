"""The main job: a killed phone rings (W1, W2, W6, W7), message by message."""

from __future__ import annotations

import uuid

import pytest

from tests.e2e.daemon import Daemon, in_time
from tests.e2e.wire import OutCall, Phone
from tests.e2e.world import World, apns_token, fcm_token, x_push

PATIENT = {"hold": 60.0, "probe": 60.0}
"So long that a test that waits for it fails."


async def wake_and_answer(
    world: World, daemon: Daemon, transport: str, call: OutCall, push: str, instance: str = ""
) -> None:
    """What the app does when the push arrives, and the whole call after it."""
    pushed = await world.pushes.next()
    uuid.UUID(pushed.push_id)
    reborn = await world.registered(daemon, "bob", transport, push, instance)
    incoming = await reborn.incoming()
    assert incoming.push_id == pushed.push_id
    incoming.reply(180)
    assert (await call.expect(180)).tag("to")
    answer, _ = await in_time(call.final(), incoming.answer())
    assert answer.status == 200
    bye, _ = await in_time(call.hang_up(answer), incoming.hung_up())
    assert bye.status == 200
    assert len(world.pushes.all) == 1


def final_statuses(phone: Phone, call: OutCall) -> set[int]:
    """The final responses to the call's INVITEs."""
    return {
        msg.status
        for msg in phone.wire.seen
        if msg.status >= 200 and msg["call-id"] == call.call_id and msg.method == "INVITE"
    }


async def test_a_killed_phone_is_pushed_and_answers_from_another_port(
    world: World, transport: str
) -> None:
    daemon = await world.daemon()
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", transport, push)
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    await call.expect(100)
    await wake_and_answer(world, daemon, transport, call, push)
    assert final_statuses(alice, call) == {407, 200}


async def test_the_push_says_who_calls_whom(world: World, transport: str) -> None:
    daemon = await world.daemon()
    token = apns_token()
    await world.sleeping(daemon, "bob", transport, x_push(token))
    alice = await world.phone(daemon, "alice", transport)
    await alice.call("bob")
    pushed = await world.pushes.next()
    assert (pushed.service, pushed.token) == ("apns", token)
    assert pushed.data["send_from"] == "alice"
    assert pushed.data["send_to"] == f"sip:bob@{world.domain}"
    assert pushed.data["msg_type"] == "audio"


async def test_the_registration_says_that_we_push(world: World, transport: str) -> None:
    daemon = await world.daemon()
    phone = await world.phone(daemon, "bob", transport)
    result = await phone.register(x_push(apns_token()))
    assert "x-push" in dict(result.response.headers)


async def test_a_live_phone_is_called_without_a_push(world: World, transport: str) -> None:
    daemon = await world.daemon()
    bob = await world.registered(daemon, "bob", transport, x_push(apns_token()))
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    await in_time(call.hang_up(answer), incoming.hung_up())
    assert world.pushes.all == []


async def test_a_call_can_be_ended_by_the_woken_phone(world: World, transport: str) -> None:
    daemon = await world.daemon()
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", transport, push)
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    await world.pushes.next()
    reborn = await world.registered(daemon, "bob", transport, push)
    answer, incoming = await in_time(call.final(), reborn.rings_and_answers())
    assert answer.status == 200
    bye, reply = await in_time(call.hung_up(), incoming.hang_up())
    assert (bye.method, reply.status) == ("BYE", 200)


async def test_a_closed_tcp_flow_is_pushed_at_once(world: World) -> None:
    daemon = await world.daemon(wake=PATIENT)
    push = x_push(apns_token())
    bob = await world.registered(daemon, "bob", "TCP", push)
    bob.kill(reset=True)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await wake_and_answer(world, daemon, "TCP", call, push)


async def test_a_tcp_flow_that_closes_under_the_invite_is_pushed_at_once(world: World) -> None:
    daemon = await world.daemon(wake=PATIENT)
    push = x_push(apns_token())
    bob = await world.registered(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await bob.incoming()
    bob.kill()
    await wake_and_answer(world, daemon, "TCP", call, push)


async def test_an_unreachable_udp_port_is_pushed_at_once(world: World) -> None:
    daemon = await world.daemon(wake=PATIENT)
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "UDP", push)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await wake_and_answer(world, daemon, "UDP", call, push)


async def test_a_silent_phone_is_pushed_after_the_probe(world: World, transport: str) -> None:
    daemon = await world.daemon()
    push, instance = x_push(apns_token()), f"urn:uuid:{uuid.uuid4()}"
    bob = await world.registered(daemon, "bob", transport, push, instance)
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    await bob.incoming()  # and it never says a word
    await wake_and_answer(world, daemon, transport, call, push, instance)


@pytest.mark.parametrize("status", [408, 430, 480, 500, 503])
async def test_a_dead_branch_is_swallowed_and_the_phone_pushed(
    world: World, transport: str, status: int
) -> None:
    daemon = await world.daemon(wake=PATIENT)
    push, instance = x_push(apns_token()), f"urn:uuid:{uuid.uuid4()}"
    bob = await world.registered(daemon, "bob", transport, push, instance)
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    await (await bob.incoming()).refuse(status)
    await wake_and_answer(world, daemon, transport, call, push, instance)
    assert final_statuses(alice, call) == {407, 200}


@pytest.mark.parametrize("status", [408, 480, 500, 503])
async def test_a_proxy_without_path_that_says_100_may_still_say_that_the_phone_is_dead(
    world: World, status: int
) -> None:
    daemon = await world.daemon()
    push, instance = x_push(apns_token()), f"urn:uuid:{uuid.uuid4()}"
    proxy = await world.registered(daemon, "bob", "UDP", push, instance)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    incoming = await proxy.incoming()
    incoming.reply(100)
    await incoming.refuse(status)
    await wake_and_answer(world, daemon, "UDP", call, push, instance)
    assert final_statuses(alice, call) == {407, 200}


async def test_a_phone_without_any_contact_is_woken(world: World, transport: str) -> None:
    daemon = await world.daemon()
    push = x_push(apns_token())
    bob = await world.registered(daemon, "bob", transport, push)
    gone = await bob.register(push, expires=0)
    assert gone.response.status == 200
    assert gone.response.all("contact") == []
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    await wake_and_answer(world, daemon, transport, call, push)


async def test_the_caller_hears_the_configured_ringback_while_the_phone_wakes(
    world: World,
) -> None:
    daemon = await world.daemon(wake={"ringback": "183"})
    await world.sleeping(daemon, "bob", "UDP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    progress = await call.expect(183)
    assert progress.body == ""


async def test_without_hold_the_caller_gets_480_at_once_and_nobody_is_pushed(
    world: World, transport: str
) -> None:
    daemon = await world.daemon(wake=PATIENT)
    push = x_push(apns_token())
    phone = await world.registered(daemon, "never-held", transport, push)
    await phone.register(push, expires=0)
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("never-held")
    assert (await call.final()).status == 480
    assert world.pushes.all == []
    await daemon.log_event("not_pushed", reason="hold is switched off for this user")


async def test_when_the_hold_is_over_the_caller_gets_480(world: World, transport: str) -> None:
    daemon = await world.daemon(wake={"hold": 0.5})
    await world.sleeping(daemon, "bob", transport, x_push(apns_token()))
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    assert (await call.final()).status == 480
    assert len(world.pushes.all) == 1


async def test_a_user_may_have_a_window_of_its_own(world: World) -> None:
    daemon = await world.daemon(wake=PATIENT)
    await world.sleeping(daemon, "hardly-held", "UDP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    call = await alice.call("hardly-held")
    assert (await call.final()).status == 480


async def test_a_caller_who_gives_up_gets_487_and_the_phone_no_call(
    world: World, transport: str
) -> None:
    daemon = await world.daemon()
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", transport, push)
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    await world.pushes.next()
    cancelled, final = await in_time(call.cancel(), call.final())
    assert (cancelled.status, final.status) == (200, 487)


@pytest.mark.parametrize("device_os", ["ios", "android"])
async def test_a_push_that_waits_to_be_repeated_is_withdrawn_when_the_caller_gives_up(
    world: World, device_os: str
) -> None:
    daemon = await world.daemon()
    token = apns_token() if device_os == "ios" else fcm_token()
    push = x_push(token, device_os)
    await world.sleeping(daemon, "bob", "TCP", push)
    world.pushes.put_off(token)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    pushed = await world.pushes.next()
    cancelled, final = await in_time(call.cancel(), call.final())
    assert (cancelled.status, final.status) == (200, 487)
    await daemon.log_event("push_finished", push_id=pushed.push_id, result="withdrawn")
    # The phone knows nothing of the call: it hears nothing of its end either.
    reborn = await world.registered(daemon, "bob", "TCP", push)
    await reborn.wire.options()
    assert reborn.wire.count("INVITE") == 0
    assert len(world.pushes.all) == 1


async def test_a_push_that_waits_to_be_repeated_is_withdrawn_when_the_phone_is_back(
    world: World,
) -> None:
    daemon = await world.daemon()
    token = fcm_token()
    push = x_push(token, "android")
    await world.sleeping(daemon, "bob", "UDP", push)
    world.pushes.put_off(token)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await wake_and_answer(world, daemon, "UDP", call, push)
    await daemon.log_event("push_finished", push_id=world.pushes.all[0].push_id, result="withdrawn")
    assert len(world.pushes.all) == 1


async def test_a_caller_who_gives_up_stops_the_ringing(world: World, transport: str) -> None:
    daemon = await world.daemon()
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", transport, push)
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    await world.pushes.next()
    reborn = await world.registered(daemon, "bob", transport, push)
    incoming = await reborn.incoming()
    incoming.reply(180)
    await call.expect(180)
    _, final, _ = await in_time(call.cancel(), call.final(), incoming.cancelled())
    assert final.status == 487


async def test_a_woken_phone_may_refuse(world: World, transport: str) -> None:
    daemon = await world.daemon()
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", transport, push)
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    await world.pushes.next()
    reborn = await world.registered(daemon, "bob", transport, push)
    incoming = await reborn.incoming()
    final, _ = await in_time(call.final(), incoming.refuse(486))
    assert final.status == 486
    assert len(world.pushes.all) == 1


async def test_a_routine_refresh_does_not_ring_twice(world: World, transport: str) -> None:
    daemon = await world.daemon()
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", transport, push)
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    await world.pushes.next()
    reborn = await world.registered(daemon, "bob", transport, push)
    incoming = await reborn.incoming()
    incoming.reply(180)
    await call.expect(180)
    await reborn.register(push)
    answer, _ = await in_time(call.final(), incoming.answer())
    assert answer.status == 200
    branches = {msg["via"] for msg in reborn.wire.seen if msg.method == "INVITE"}
    assert len(branches) == 1


async def test_a_woken_phone_that_takes_its_old_contact_back_as_it_registers_is_called_once(
    world: World, transport: str
) -> None:
    daemon = await world.daemon()
    push = x_push(apns_token())
    old = await world.registered(daemon, "bob", transport, push)
    old.kill()
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    await world.pushes.next()
    reborn = await world.phone(daemon, "bob", transport)
    both = f"<{old.contact_uri}>;expires=0, <{reborn.contact_uri}>"
    response = (await reborn.register(push, contact=both)).response
    assert response.contact == reborn.contact_uri
    assert len(response.all("contact")) == 1
    answer, incoming = await in_time(call.final(), reborn.rings_and_answers())
    await in_time(call.hang_up(answer), incoming.hung_up())
    assert reborn.wire.count("INVITE") == 1


async def test_two_callers_at_once_of_one_sleeping_phone_both_get_through(
    world: World, transport: str
) -> None:
    daemon = await world.daemon()
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", transport, push)
    callers = [await world.phone(daemon, user, transport) for user in ("alice", "carol")]
    calls = await in_time(*(caller.call("bob") for caller in callers))
    pushed = {(await world.pushes.next()).push_id for _ in calls}
    assert len(pushed) == 2
    reborn = await world.registered(daemon, "bob", transport, push)
    incoming = [await reborn.incoming() for _ in calls]
    assert {call.push_id for call in incoming} == pushed
    *finals, _, _ = await in_time(
        *(call.final() for call in calls), *(call.answer() for call in incoming)
    )
    assert [final.status for final in finals] == [200, 200]
    assert len(world.pushes.all) == 2
    assert reborn.wire.count("INVITE") == 2
