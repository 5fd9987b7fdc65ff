"""Users whose calls go elsewhere or are busy by policy: nothing is rung, nothing pushed (W4)."""

from __future__ import annotations

import pytest

from tests.e2e.daemon import in_time
from tests.e2e.fallback_server import FallbackServer
from tests.e2e.world import World, apns_token, x_push

pytestmark = pytest.mark.parametrize("store_type", ["sqlite"], indirect=True)


async def test_a_call_that_is_forwarded_away_pushes_nobody(world: World) -> None:
    async with FallbackServer() as pbx:
        users = {world.aor("bob"): {"forward": pbx.uri("mobile")}}
        daemon = await world.start(users=users)
        await world.sleeping(daemon, "bob", "UDP", x_push(apns_token()))
        alice = await world.phone(daemon, "alice")
        call = await alice.call("bob")
        answer, to_pbx = await in_time(call.final(), pbx.answers(daemon))
        assert answer.status == 200
        assert to_pbx.invite.all("diversion") == [
            f"<sip:{world.aor('bob')}>;reason=unconditional;counter=1"
        ]
        assert world.pushes.all == []


async def test_a_user_who_does_not_want_to_be_disturbed_is_busy_and_not_pushed(
    world: World,
) -> None:
    daemon = await world.start(users={world.aor("bob"): {"do_not_disturb": True}})
    await world.sleeping(daemon, "bob", "UDP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    assert (await call.final()).status == 486
    assert world.pushes.all == []


async def test_a_busy_users_calls_go_to_the_fallback_for_busy(world: World) -> None:
    async with FallbackServer() as pbx:
        policy = {"do_not_disturb": True, "fallback": {"busy": pbx.uri("busy")}}
        daemon = await world.start(users={world.aor("bob"): policy})
        await world.sleeping(daemon, "bob", "UDP", x_push(apns_token()))
        alice = await world.phone(daemon, "alice")
        call = await alice.call("bob")
        answer, to_pbx = await in_time(call.final(), pbx.answers(daemon))
        assert answer.status == 200
        assert to_pbx.invite.uri == pbx.uri("busy")
        assert world.pushes.all == []


async def test_a_dead_phone_is_not_pushed_while_another_rings_where_the_policy_says_so(
    world: World,
) -> None:
    daemon = await world.start(wake={"push_while_ringing": False, "probe": 0.5, "hold": 8.0})
    desk = await world.phone(daemon, "bob")
    await desk.register()
    await world.sleeping(daemon, "bob", "TCP", x_push(apns_token()))
    silent = await world.registered(daemon, "bob", "UDP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    sleeping = await world.pushes.next()  # nothing rang yet
    ringing = await desk.incoming()
    ringing.reply(180)
    for _ in range(3):  # silent past the probe: the INVITE has been repeated after 0.5 and 1.5 s
        await silent.incoming()
    await in_time(call.cancel(), ringing.cancelled())
    assert (await call.final()).status == 487
    assert [push.token for push in world.pushes.all] == [sleeping.token]
