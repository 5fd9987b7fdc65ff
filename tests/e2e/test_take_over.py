"""Two processes on one Redis: the calls of the one that dies are the other's (W11, D5)."""

from __future__ import annotations

import pytest

from sipush.server.held_calls import LEASE
from tests.e2e.world import World, apns_token, x_push

pytestmark = pytest.mark.parametrize("store_type", ["redis"], indirect=True)


async def test_another_process_goes_on_with_a_dead_ones_call(world: World) -> None:
    first = await world.start(wake={"hold": 60.0, "probe": 0.25})
    second = await world.start(wake={"hold": 60.0, "probe": 0.25}, store=first.settings["store"])
    push = x_push(apns_token())
    await world.sleeping(first, "bob", "TCP", push)
    alice = await world.phone(first, "alice")
    call = await alice.call("bob")
    pushed = await world.pushes.next()
    await first.kill()
    await second.log_event("call_resumed", patience=2 * LEASE)
    reborn = await world.registered(second, "bob", "TCP", push)
    incoming = await reborn.incoming()
    assert incoming.push_id == pushed.push_id
    incoming.reply(180)
    incoming.reply(200, f"Contact: <{reborn.contact_uri}>")
    assert (await call.expect(200)).tag("to")
