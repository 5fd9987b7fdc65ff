"""kill -9 of the server at every step of a hold: the call still completes (W11)."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from sipush.core.bindings import Location, Registration
from tests.e2e.daemon import PBX, in_time
from tests.e2e.robots import branch_of
from tests.e2e.wire import Phone, _Stream
from tests.e2e.world import World, apns_token, x_push

LONG = {"hold": 60.0, "probe": 0.25}
"It goes on while the server starts, which may take a busy machine longer than the usual 8 s."


async def test_a_phone_that_wakes_after_the_crash_gets_the_call(
    world: World, transport: str
) -> None:
    daemon = await world.start(wake=LONG)
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", transport, push)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    pushed = await world.pushes.next()
    await daemon.restart_after_kill()
    await daemon.log_event("call_resumed")
    reborn = await world.registered(daemon, "bob", transport, push)
    answer, incoming = await in_time(call.final(), reborn.rings_and_answers())
    assert answer.status == 200
    assert incoming.push_id == pushed.push_id
    told = await daemon.log_event("wake_up", outcome="answered")
    assert told["woke_after"] > 0
    await in_time(call.hang_up(answer), incoming.hung_up())


async def test_two_crashes_are_survived_like_one(world: World) -> None:
    daemon = await world.start(wake=LONG)
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await world.pushes.next()
    for _ in range(2):
        await daemon.restart_after_kill()
        await daemon.log_event("call_resumed")
    reborn = await world.registered(daemon, "bob", "TCP", push)
    answer, _ = await in_time(call.final(), reborn.rings_and_answers())
    assert answer.status == 200


async def test_a_ringing_phone_answers_after_the_crash(world: World) -> None:
    daemon = await world.start(wake=LONG)
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "UDP", push)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await world.pushes.next()
    reborn = await world.registered(daemon, "bob", "UDP", push)
    incoming = await reborn.incoming()
    incoming.reply(180)
    await daemon.log_event("response", status=180)
    await daemon.restart_after_kill()
    again = await incoming.expect("INVITE")  # in the same transaction: a retransmission
    assert again["via"] == incoming.invite["via"]
    answer, _ = await in_time(call.final(), incoming.answer())
    assert answer.status == 200
    await in_time(incoming.hang_up(), call.hung_up())


async def test_a_caller_can_give_up_after_the_crash(world: World) -> None:
    daemon = await world.start(wake=LONG)
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "UDP", push)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await world.pushes.next()
    await daemon.restart_after_kill()
    cancelled, final = await in_time(call.cancel(), call.final())
    assert (cancelled.status, final.status) == (200, 487)
    # Too late: the phone sees the call begin and end.
    reborn = await world.registered(daemon, "bob", "UDP", push)
    incoming = await reborn.incoming()
    incoming.reply(180)
    await incoming.cancelled()


async def test_a_tombstone_outlives_the_crash(world: World) -> None:
    daemon = await world.start(wake=LONG)
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "UDP", push)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await world.pushes.next()
    await in_time(call.cancel(), call.final())
    await daemon.restart_after_kill()
    await daemon.log_event("call_resumed")
    reborn = await world.registered(daemon, "bob", "UDP", push)
    incoming = await reborn.incoming()
    incoming.reply(180)
    await incoming.cancelled()
    assert await daemon.stop() == 0


async def test_a_phone_that_woke_too_late_sees_the_end_though_the_server_dies(
    world: World, transport: str
) -> None:
    daemon = await world.start(wake=LONG)
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", transport, push)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await world.pushes.next()
    await in_time(call.cancel("Reason: Q.850;cause=16"), call.final())
    bob = await world.registered(daemon, "bob", transport, push)
    first = await bob.incoming()
    await alice.register()  # what has become of the call is stored before that
    await daemon.restart_after_kill()
    if transport == "TCP":
        bob = await world.registered(daemon, "bob", "TCP", push)
    again = await bob.incoming()
    assert branch_of(again.invite) == branch_of(first.invite)  # a retransmission, to the phone
    again.reply(180)
    assert (await again.cancelled())["reason"] == "Q.850;cause=16"


@pytest.mark.parametrize(
    ("hold", "headers", "status"), [(3.0, (), 480), (30.0, ("Expires: 3",), 487)]
)
async def test_the_hold_ends_at_the_time_it_would_have(
    world: World, hold: float, headers: tuple[str, ...], status: int
) -> None:
    daemon = await world.start(wake={"hold": hold, "probe": 0.25})
    await world.sleeping(daemon, "bob", "TCP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob", headers=headers)
    await world.pushes.next()
    await daemon.restart_after_kill()
    assert (await call.final()).status == status


async def test_a_caller_hears_of_the_end_of_the_hold_though_the_push_service_is_silent(
    world: World, transport: str
) -> None:
    daemon = await world.start(wake={"hold": 3.0, "probe": 0.25})
    token = apns_token()
    world.pushes.ignore(token)
    await world.sleeping(daemon, "bob", "TCP", x_push(token))
    alice = await world.phone(daemon, "alice", transport)
    async with AsyncExitStack() as stack:
        if transport == "TCP":  # its connection is gone; else nobody could tell it
            await stack.enter_async_context(listening(alice))
        call = await alice.call("bob")
        await world.pushes.next()
        await daemon.restart_after_kill()
        assert (await call.expect(480)).status == 480


async def test_a_tcp_caller_gets_the_answer_where_it_listens(world: World) -> None:
    daemon = await world.start(wake=LONG)
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "UDP", push)
    alice = await world.phone(daemon, "alice", "TCP")
    async with listening(alice):
        call = await alice.call("bob")
        await world.pushes.next()
        await daemon.restart_after_kill()
        await daemon.log_event("call_resumed")
        reborn = await world.registered(daemon, "bob", "UDP", push)
        incoming = await reborn.incoming()
        incoming.reply(200, f"Contact: <{reborn.contact_uri}>")
        answer = await call.expect(200)
        assert answer.tag("to")
        # Its ACK comes back by our Record-Route.
        host, port = daemon.at("TCP")
        assert f"@{host}:{port};" in answer.all("record-route")[-1]


@pytest.mark.parametrize("gone", ["server", "connection"])
async def test_a_tcp_caller_who_gives_up_over_a_new_connection_hears_the_end_there(
    world: World, gone: str
) -> None:
    daemon = await world.start(wake=LONG)
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "UDP", push)
    alice = await world.phone(daemon, "alice", "TCP")
    call = await alice.call("bob")
    await world.pushes.next()
    if gone == "server":
        await daemon.restart_after_kill()
        await daemon.log_event("call_resumed")
    else:
        alice.kill()
    call.phone = await world.phone(daemon, "alice", "TCP")
    call.phone.wire.host = alice.wire.host_port  # the Via of a CANCEL is that of its INVITE
    cancelled, final = await in_time(call.cancel(), call.final())
    assert (cancelled.status, final.status) == (200, 487)


async def test_a_tcp_caller_whose_connection_broke_gets_the_answer_where_it_listens(
    world: World,
) -> None:
    daemon = await world.start(wake=LONG)
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "UDP", push)
    alice = await world.phone(daemon, "alice", "TCP")
    async with listening(alice):
        call = await alice.call("bob")
        await world.pushes.next()
        alice.kill()
        bob = await world.registered(daemon, "bob", "UDP", push)
        incoming = await bob.incoming()
        incoming.reply(200, f"Contact: <{bob.contact_uri}>")
        assert (await call.expect(200)).tag("to") == incoming.tag


@asynccontextmanager
async def listening(phone: Phone) -> AsyncIterator[None]:
    """The phone accepts connections where its Via says (RFC 3261 §18.2.2): at its own port.

    On the host of the server it may name no other; tests/e2e/test_call_back.py has one elsewhere.
    """
    loop = asyncio.get_running_loop()
    phone.wire.share_port()
    server = await loop.create_server(lambda: _Stream(phone.wire), *phone.wire.local)
    yield
    server.close()


async def test_a_call_to_a_dead_flow_is_safe_from_the_100_on(world: World) -> None:
    daemon = await world.start(wake=LONG)
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await call.expect(100)
    await daemon.restart_after_kill()
    reborn = await world.registered(daemon, "bob", "TCP", push)
    answer, incoming = await in_time(call.final(), reborn.rings_and_answers())
    assert answer.status == 200
    await in_time(call.hang_up(answer), incoming.hung_up())


async def test_a_call_to_a_silent_contact_is_safe_from_the_100_on(
    world: World, transport: str
) -> None:
    daemon = await world.start(wake={"hold": 30.0, "probe": 2.0})
    push = x_push(apns_token())
    silent = await world.registered(daemon, "bob", transport, push)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await call.expect(100)
    await daemon.restart_after_kill()
    silent.kill()
    await world.pushes.next()
    reborn = await world.registered(daemon, "bob", transport, push)
    answer, incoming = await in_time(call.final(), reborn.rings_and_answers())
    assert answer.status == 200
    await in_time(call.hang_up(answer), incoming.hung_up())


async def test_a_registration_that_nobody_heard_of_before_the_crash_counts(world: World) -> None:
    """It was stored before the call was, for the last time; then the server died."""
    daemon = await world.start(wake=LONG)
    push = x_push(apns_token())
    asleep = await world.registered(daemon, "bob", "UDP", push)
    asleep.kill()
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    registered_epoch = time.time()
    await world.pushes.next()
    reborn = await world.phone(daemon, "bob")
    await daemon.kill()
    async with daemon.opened_store() as store:
        (old,) = (await store.lookup(world.aor("bob"), registered_epoch)).bindings
        flow = old.flow.replace(f":{asleep.wire.local[1]}", f":{reborn.wire.local[1]}")
        new = replace(old, flow=flow, cseq=old.cseq + 1, registered_epoch=registered_epoch)
        registration = Registration(
            old.aor, old.call_id, new.cseq, registered_epoch, max_contacts=10, bind=(new,)
        )
        assert isinstance(await store.bind(registration), Location)
    await daemon.start()
    answer, _ = await in_time(call.final(), reborn.rings_and_answers())
    assert answer.status == 200


async def test_a_ringing_phone_whose_connection_broke_gets_the_same_invite_again(
    world: World,
) -> None:
    daemon = await world.start(wake=LONG)
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await world.pushes.next()
    first = await (await world.registered(daemon, "bob", "TCP", push)).incoming()
    first.reply(180)
    await daemon.log_event("response", status=180)
    await daemon.restart_after_kill()
    reconnected = await world.registered(daemon, "bob", "TCP", push)
    again = await reconnected.incoming()
    assert branch_of(again.invite) == branch_of(first.invite)  # a retransmission, to the phone
    answer, _ = await in_time(call.final(), again.answer())
    assert answer.status == 200


async def test_a_ringing_phone_whose_connection_broke_hears_that_the_caller_gave_up(
    world: World,
) -> None:
    daemon = await world.start(wake=LONG)
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await world.pushes.next()
    first = await (await world.registered(daemon, "bob", "TCP", push)).incoming()
    first.reply(180)
    await daemon.log_event("response", status=180)
    await daemon.restart_after_kill()
    _, final = await in_time(call.cancel("Reason: Q.850;cause=16"), call.final())
    assert final.status == 487
    again = await (await world.registered(daemon, "bob", "TCP", push)).incoming()
    assert branch_of(again.invite) == branch_of(first.invite)
    again.reply(180)
    assert (await again.cancelled())["reason"] == "Q.850;cause=16"


async def test_the_reason_of_a_caller_who_gave_up_outlives_the_crash(world: World) -> None:
    daemon = await world.start(wake=LONG)
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "UDP", push)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await world.pushes.next()
    await in_time(call.cancel("Reason: Q.850;cause=16"), call.final())
    await daemon.restart_after_kill()
    late = await (await world.registered(daemon, "bob", "UDP", push)).incoming()
    late.reply(180)
    assert (await late.cancelled())["reason"] == "Q.850;cause=16"


async def test_an_answer_that_was_lost_in_the_crash_arrives_when_the_phone_repeats_it(
    world: World, transport: str
) -> None:
    daemon = await world.start(wake=LONG)
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", transport, push)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await world.pushes.next()
    incoming = await (await world.registered(daemon, "bob", transport, push)).incoming()
    incoming.reply(200)
    first = await call.expect(200)
    await daemon.restart_after_kill()
    # Over a stream it repeats it over its next connection.
    incoming.phone = await world.registered(daemon, "bob", transport, push)
    incoming.reply(200)
    answer, _ = await in_time(call.final(), incoming.expect("ACK"))
    assert answer.tag("to") == first.tag("to")


async def test_an_invite_that_is_repeated_after_its_answer_and_a_crash_is_no_new_call(
    world: World, transport: str
) -> None:
    daemon = await world.start(wake=LONG)
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "UDP", push)
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    await world.pushes.next()
    incoming = await (await world.registered(daemon, "bob", "UDP", push)).incoming()
    incoming.reply(200)
    await call.expect(200)  # and nothing of it is left with her but the INVITE
    await daemon.restart_after_kill()
    await daemon.log_event("call_resumed")
    if transport == "TCP":
        again = await world.phone(daemon, "alice", transport)
        again.wire.host = alice.wire.host_port
        call.phone = again
    call.resend_invite()
    await call.phone.wire.heard()
    incoming.reply(200)
    answer, _ = await in_time(call.final(), incoming.expect("ACK"))
    assert answer.tag("to") == incoming.tag
    assert incoming.phone.wire.count("INVITE") == 1


async def test_a_refusal_that_was_lost_in_the_crash_is_sent_again(world: World) -> None:
    daemon = await world.start(wake={"hold": 0.5, "probe": 0.25})
    await world.sleeping(daemon, "bob", "TCP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await call.expect(480)
    await daemon.kill()
    alice.wire.forget()
    await daemon.start()
    assert (await call.final()).status == 480


@pytest.mark.parametrize("caller", ["peer", "user"])
async def test_an_invite_that_is_repeated_to_the_next_process_rings_its_phone_once(
    world: World, caller: str
) -> None:
    daemon = await world.start(wake=LONG)
    push = x_push(apns_token())
    bob = await world.registered(daemon, "bob", "UDP", push)
    phone = await world.phone(daemon, "alice", ip=PBX if caller == "peer" else "127.0.0.1")
    call = await phone.call("bob", challenged=caller == "user")
    first = await bob.incoming()
    await daemon.restart_after_kill()  # before the 100: the caller knows of nothing
    call.resend_invite()
    again = await bob.incoming()
    assert branch_of(again.invite) == branch_of(first.invite)
    assert again.push_id == first.push_id
    answer, _ = await in_time(call.final(), again.answer())
    assert answer.status == 200


async def test_a_phone_that_had_moved_under_the_invite_keeps_the_call(world: World) -> None:
    """The next process knows nothing of the first flow: its first INVITE is a merged one."""
    daemon = await world.start()
    urn = f"urn:uuid:{uuid.uuid4()}"
    old = await world.registered(daemon, "bob", "UDP", "", urn)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await old.incoming()
    moved = await world.registered(daemon, "bob", "UDP", "", urn)
    in_hand = await moved.incoming()
    await daemon.restart_after_kill()
    call.resend_invite()  # the network has lost the 100
    await (await moved.incoming()).refuse(482)  # §8.2.2.2
    again = await moved.incoming()
    assert branch_of(again.invite) == branch_of(in_hand.invite)  # a retransmission, to the phone
    answer, _ = await in_time(call.final(), again.answer())
    assert answer.status == 200
    await in_time(call.hang_up(answer), again.hung_up())


async def test_a_phone_that_still_ends_the_call_of_its_group_is_called_again_after_the_crash(
    world: World,
) -> None:
    members = [world.aor("bob"), world.aor("carol")]
    group = {"members": members, "fallback": f"sip:{world.aor('bob')}"}
    daemon = await world.start(wake=LONG, groups={world.aor("desk"): group})
    bob = await world.registered(daemon, "bob", "UDP", x_push(apns_token()))
    token = apns_token()
    await world.sleeping(daemon, "carol", "TCP", x_push(token))
    world.pushes.refuse(token, 410, "Unregistered")
    alice = await world.phone(daemon, "alice")
    call = await alice.call("desk")
    await world.pushes.next()
    await (await bob.incoming()).refuse(486)
    await (await bob.incoming()).refuse(482)
    await daemon.restart_after_kill()
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    assert answer.status == 200
    await in_time(call.hang_up(answer), incoming.hung_up())
