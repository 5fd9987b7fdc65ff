"""Ring groups: members' devices woken together or in turn, one fallback for all (W5)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.daemon import PBX, Daemon, in_time
from tests.e2e.fallback_server import FallbackServer
from tests.e2e.robots import branch_of
from tests.e2e.world import World, apns_token, x_push

pytestmark = pytest.mark.parametrize("store_type", ["sqlite"], indirect=True)

LONG = 60.0


async def grouped(world: World, **group: Any) -> Daemon:
    """A daemon with the group ``desk`` of bob and carol."""
    members = {"members": [world.aor("bob"), world.aor("carol")]}
    return await world.start(wake={"hold": 8.0}, groups={world.aor("desk"): members | group})


async def asleep(world: World, daemon: Daemon, user: str, transport: str = "UDP") -> str:
    """A user's phone is killed; its push header."""
    push = x_push(apns_token())
    await world.sleeping(daemon, user, transport, push)
    return push


async def test_all_members_are_woken_and_whoever_answers_gets_the_call(
    world: World, transport: str
) -> None:
    daemon = await grouped(world)
    pushes = {user: await asleep(world, daemon, user, transport) for user in ("bob", "carol")}
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("desk")
    pushed = [await world.pushes.next() for _ in pushes]
    assert len({push.push_id for push in pushed}) == 1
    assert len({push.token for push in pushed}) == 2
    bob, carol = [
        await world.registered(daemon, user, transport, push) for user, push in pushes.items()
    ]
    to_bob, to_carol = await bob.incoming(), await carol.incoming()
    to_bob.reply(180)
    to_carol.reply(180)
    answer, _, cancel = await in_time(call.final(), to_carol.answer(), to_bob.cancelled())
    assert answer.status == 200
    assert "cause=200" in cancel["reason"]
    await in_time(call.hang_up(answer), to_carol.hung_up())


async def test_a_member_who_declines_does_not_end_the_call_for_the_others(world: World) -> None:
    daemon = await grouped(world)
    phones = [await world.phone(daemon, user) for user in ("bob", "carol")]
    for phone in phones:
        await phone.register()
    alice = await world.phone(daemon, "alice")
    call = await alice.call("desk")
    to_bob, to_carol = [await phone.incoming() for phone in phones]
    to_carol.reply(180)
    await to_bob.refuse(603)
    answer, _ = await in_time(call.final(), to_carol.answer())
    assert answer.status == 200


async def test_in_turn_the_next_member_is_woken_when_the_first_does_not_answer(
    world: World,
) -> None:
    daemon = await grouped(world, strategy="in-turn", time=0.7)
    bob = await world.phone(daemon, "bob")
    await bob.register()
    push = await asleep(world, daemon, "carol")
    alice = await world.phone(daemon, "alice")
    call = await alice.call("desk")
    to_bob = await bob.incoming()
    to_bob.reply(180)
    await call.expect(180)
    assert world.pushes.all == []
    await to_bob.cancelled()
    await world.pushes.next()
    carol = await world.registered(daemon, "carol", "UDP", push)
    answer, _ = await in_time(call.final(), carol.rings_and_answers())
    assert answer.status == 200


async def test_in_turn_a_busy_member_does_not_use_up_his_time(world: World) -> None:
    daemon = await grouped(world, strategy="in-turn", time=LONG)
    phones = [await world.phone(daemon, user) for user in ("bob", "carol")]
    for phone in phones:
        await phone.register()
    alice = await world.phone(daemon, "alice")
    call = await alice.call("desk")
    await (await phones[0].incoming()).refuse(486)
    answer, _ = await in_time(call.final(), phones[1].rings_and_answers())
    assert answer.status == 200


async def test_a_member_who_wakes_after_his_turn_sees_the_call_end(world: World) -> None:
    daemon = await grouped(world, strategy="in-turn", time=0.7)
    push = await asleep(world, daemon, "bob")
    carol = await world.phone(daemon, "carol")
    await carol.register()
    alice = await world.phone(daemon, "alice")
    call = await alice.call("desk")
    await world.pushes.next()
    to_carol = await carol.incoming()
    to_carol.reply(180)
    bob = await world.registered(daemon, "bob", "UDP", push)
    to_bob = await bob.incoming()
    to_bob.reply(180)
    await to_bob.cancelled()
    answer, _ = await in_time(call.final(), to_carol.answer())
    assert answer.status == 200


async def test_a_group_falls_through_as_one(world: World) -> None:
    async with FallbackServer() as pbx:
        daemon = await world.start(
            wake={"hold": 0.5},
            users={world.aor("bob"): {"fallback": f"sip:bobs-own@{PBX}:1"}},
            groups={
                world.aor("desk"): {
                    "members": [world.aor("bob"), world.aor("carol")],
                    "fallback": {"unreachable": pbx.uri("desk-box")},
                }
            },
        )
        for user in ("bob", "carol"):
            await asleep(world, daemon, user)
        alice = await world.phone(daemon, "alice")
        call = await alice.call("desk")
        answer, incoming = await in_time(call.final(), pbx.answers(daemon))
        assert answer.status == 200
        assert incoming.invite.uri == pbx.uri("desk-box")
        assert incoming.invite.all("diversion") == [
            f"<sip:{world.aor('desk')}>;reason=unavailable;counter=1"
        ]


async def test_a_member_nobody_knows_is_left_out(world: World) -> None:
    daemon = await world.start(
        groups={world.aor("desk"): {"members": [world.aor("nobody"), world.aor("bob")]}}
    )
    bob = await world.phone(daemon, "bob")
    await bob.register()
    alice = await world.phone(daemon, "alice")
    call = await alice.call("desk")
    answer, _ = await in_time(call.final(), bob.rings_and_answers())
    assert answer.status == 200
    await daemon.log_event("group_member_unknown", aor=world.aor("nobody"))


async def test_a_member_who_calls_the_group_is_not_called_back(world: World) -> None:
    daemon = await grouped(world)
    phones = [await world.phone(daemon, user) for user in ("bob", "carol")]
    for phone in phones:
        await phone.register()
    call = await phones[0].call("desk")
    answer, _ = await in_time(call.final(), phones[1].rings_and_answers())
    assert answer.status == 200
    assert phones[0].wire.count("INVITE") == 0


async def test_a_group_falls_back_to_a_member_whose_phone_still_ends_the_call(
    world: World,
) -> None:
    daemon = await grouped(world, strategy="in-turn", time=0.7, fallback=f"sip:{world.aor('bob')}")
    phones = [await world.phone(daemon, user) for user in ("bob", "carol")]
    for phone in phones:
        await phone.register()
    bob, carol = phones
    alice = await world.phone(daemon, "alice")
    call = await alice.call("desk")
    first = await bob.incoming()
    first.reply(180)
    await first.cancelled()
    await (await carol.incoming()).refuse(486)
    # Its transaction lives for T4 after the ACK: to the phone the request is merged (§8.2.2.2).
    for _ in range(2):
        await (await bob.incoming()).refuse(482)
    answer, second = await in_time(call.final(), bob.rings_and_answers())
    assert answer.status == 200
    assert branch_of(second.invite) != branch_of(first.invite)
    assert world.aor("desk") in second.invite["diversion"]
    await in_time(call.hang_up(answer), second.hung_up())


async def test_a_caller_can_give_up_while_a_phone_still_ends_the_call(world: World) -> None:
    daemon = await grouped(world, fallback=f"sip:{world.aor('bob')}")
    phones = [await world.phone(daemon, user) for user in ("bob", "carol")]
    for phone in phones:
        await phone.register()
    alice = await world.phone(daemon, "alice")
    call = await alice.call("desk")
    for phone in (*phones, phones[0]):
        await (await phone.incoming()).refuse(486 if phone.wire.count("INVITE") == 1 else 482)
    cancelled, final = await in_time(call.cancel(), call.final())
    assert (cancelled.status, final.status) == (200, 487)
