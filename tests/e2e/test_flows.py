"""Phones and their flows: keep-alives, several flows, SBCs in between (D1, R7, W10)."""

from __future__ import annotations

import pytest

from tests.e2e.daemon import in_time
from tests.e2e.world import World, apns_token, x_push


@pytest.mark.parametrize("transport", ["TCP"])
async def test_a_keep_alive_of_a_silent_phone_is_a_wake(world: World, transport: str) -> None:
    daemon = await world.start()
    bob = await world.registered(daemon, "bob", transport, x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    first = await bob.incoming()
    await world.pushes.next()
    bob.wire.send("\r\n\r\n")
    again = await bob.incoming()
    assert again.invite["via"] == first.invite["via"]
    again.reply(180)
    await call.expect(180)
    answer, _ = await in_time(call.final(), again.answer())
    assert answer.status == 200
    assert len(world.pushes.all) == 1
    assert bob.wire.count("INVITE") == 2


@pytest.mark.parametrize("transport", ["TCP"])
async def test_an_options_ping_of_a_silent_phone_is_a_wake(world: World, transport: str) -> None:
    daemon = await world.start()
    bob = await world.registered(daemon, "bob", transport, x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await bob.incoming()
    await world.pushes.next()
    assert (await bob.wire.options()).status == 200
    again = await bob.incoming()
    answer, _ = await in_time(call.final(), again.answer())
    assert answer.status == 200
