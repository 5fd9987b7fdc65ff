"""Two processes on one Redis: the calls of the one that dies are the other's (W11, D5)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sipush.server.held_calls import LEASE
from tests.e2e.daemon import PBX, Daemon, in_time
from tests.e2e.wire import OutCall, new_branch
from tests.e2e.world import World, apns_token, x_push

pytestmark = pytest.mark.parametrize("store_type", ["redis"], indirect=True)


async def calls(world: World, daemon: Daemon, user: str) -> OutCall:
    """The PBX, which is not challenged, calls a phone that sleeps."""
    return await (await world.phone(daemon, "200", ip=PBX)).call(user, challenged=False)


async def fails_over(world: World, call: OutCall, daemon: Daemon) -> OutCall:
    """The next server that the caller knows (RFC 3263 §4.3)."""
    again = replace(call, phone=await world.phone(daemon, "200", ip=PBX), branch=new_branch())
    again.resend_invite()
    return again


async def test_another_process_goes_on_with_a_dead_ones_call(world: World) -> None:
    first = await world.start(wake={"hold": 60.0, "probe": 0.25})
    second = await world.start(wake={"hold": 60.0, "probe": 0.25}, store=first.settings["store"])
    push = {user: x_push(apns_token()) for user in ("alice", "bob", "carol")}
    for user, header in push.items():
        await world.sleeping(first, user, "TCP" if user == "bob" else "UDP", header)
    caller = await world.phone(first, "alice")
    call = await caller.call("bob")
    pushed = await world.pushes.next()
    left = await calls(world, first, "carol")
    lost = await world.pushes.next()
    waiting = await calls(world, first, "alice")
    await world.pushes.next()
    await first.kill()

    # Two callers do not wait for the other process to take over: one of them is answered there.
    left_for = await fails_over(world, left, second)
    await world.pushes.next()
    carol = await world.registered(second, "carol", "UDP", push["carol"])
    answer, incoming = await in_time(left_for.final(), carol.rings_and_answers())
    assert answer.status == 200
    waits_for = await fails_over(world, waiting, second)
    pushed_anew = await world.pushes.next()

    await second.log_event("call_resumed", call_id=call.call_id, patience=2 * LEASE)
    reborn = await world.registered(second, "bob", "TCP", push["bob"])
    resumed = await reborn.incoming()
    assert resumed.push_id == pushed.push_id
    resumed.reply(180)
    resumed.reply(200, f"Contact: <{reborn.contact_uri}>")
    assert (await call.expect(200)).tag("to")

    # What the one who was answered has left behind begins and ends, for an app that shows a push.
    assert (await left.final()).status == 487
    late = await carol.incoming()
    assert late.push_id == lost.push_id != incoming.push_id
    late.reply(180)
    assert (await late.cancelled())["reason"] == 'SIP;cause=200;text="Call completed elsewhere"'

    # The other call has its phone called once, when it wakes.
    assert (await waiting.final()).status == 482
    alice = await world.registered(second, "alice", "UDP", push["alice"])
    answer, incoming = await in_time(waits_for.final(), alice.rings_and_answers())
    assert answer.status == 200
    assert incoming.push_id == pushed_anew.push_id
    await alice.wire.heard()
    assert alice.wire.count("INVITE") == 1


async def test_who_sends_another_node_the_same_again_is_answered_there_alone(world: World) -> None:
    """Its address has moved there with all that is sent to it."""
    first = await world.start(wake={"hold": 60.0, "probe": 0.25})
    second = await world.start(wake={"hold": 60.0, "probe": 0.25}, store=first.settings["store"])
    await world.sleeping(first, "bob", "UDP", x_push(apns_token()), "urn:uuid:1")
    call = await calls(world, first, "bob")
    await world.pushes.next()
    await call.expect(180)
    await first.kill()
    push = x_push(apns_token())
    await world.sleeping(second, "bob", "UDP", push, "urn:uuid:1")
    again = replace(call, phone=await world.phone(second, "200", ip=PBX))
    wire, old = again.phone.wire, call.phone.wire.host_port
    plain = wire.send

    def same_via(text: str | bytes) -> None:
        assert isinstance(text, str)
        plain(text.replace(f"{wire.host_port};branch", f"{old};branch"))

    wire.send = same_via  # type: ignore[method-assign]
    again.resend_invite()
    await again.expect(180)
    await second.log_event("call_repeated_here", patience=2 * LEASE)
    bob = await world.registered(second, "bob", "UDP", push, "urn:uuid:1")
    incoming = await bob.incoming()
    incoming.reply(180)
    await again.expect(180)
    await in_time(again.cancel(), again.final(), incoming.cancelled())
    assert call.phone.wire.count(482) == 0
