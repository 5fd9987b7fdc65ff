"""Users with several devices, platforms and apps (W10, P1, P2, P3, P4)."""

from __future__ import annotations

import uuid

from tests.e2e.daemon import OTHER_APP, in_time
from tests.e2e.world import World, apns_token, fcm_token, x_push


def instance() -> str:
    """A device's URN."""
    return f"urn:uuid:{uuid.uuid4()}"


async def test_both_devices_are_woken_and_the_slower_one_is_cancelled(
    world: World, transport: str
) -> None:
    daemon = await world.daemon()
    devices = [(x_push(apns_token()), instance()) for _ in range(2)]
    for push, urn in devices:
        await world.sleeping(daemon, "bob", transport, push, urn)
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    pushed = [await world.pushes.next() for _ in devices]
    assert len({push.push_id for push in pushed}) == 1
    assert len({push.token for push in pushed}) == 2
    phones = [await world.registered(daemon, "bob", transport, push, urn) for push, urn in devices]
    first, second = [await phone.incoming() for phone in phones]
    assert first.push_id == second.push_id == pushed[0].push_id
    first.reply(180)
    second.reply(180)
    await call.expect(180)
    answer, _, cancel = await in_time(call.final(), first.answer(), second.cancelled())
    assert answer.status == 200
    assert "cause=200" in cancel["reason"]
    await in_time(call.hang_up(answer), first.hung_up())
    assert len(world.pushes.all) == 2


async def test_an_awake_device_answers_while_another_one_sleeps(
    world: World, transport: str
) -> None:
    daemon = await world.daemon()
    await world.sleeping(daemon, "bob", transport, x_push(apns_token()), instance())
    desk = await world.phone(daemon, "bob", transport, instance=instance())
    await desk.register()
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    answer, incoming = await in_time(call.final(), desk.rings_and_answers())
    assert answer.status == 200
    await in_time(call.hang_up(answer), incoming.hung_up())


async def test_a_device_without_push_that_appears_during_the_hold_joins(
    world: World, transport: str
) -> None:
    daemon = await world.daemon()
    await world.sleeping(daemon, "bob", transport, x_push(apns_token()), instance())
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    await world.pushes.next()
    desk = await world.phone(daemon, "bob", transport, instance=instance())
    await desk.register()
    answer, _ = await in_time(call.final(), desk.rings_and_answers())
    assert answer.status == 200


async def test_a_user_of_apns_fcm_and_webhook_apps_is_woken_by_all_three(world: World) -> None:
    daemon = await world.daemon()
    apns, fcm = apns_token(), fcm_token()
    headers = [x_push(apns), x_push(fcm, "android"), x_push("abc", "android", OTHER_APP)]
    for push in headers:
        await world.sleeping(daemon, "bob", "TCP", push, instance())
    alice = await world.phone(daemon, "alice", "TCP")
    call = await alice.call("bob")
    pushed = {push.service: push for push in [await world.pushes.next() for _ in headers]}
    assert pushed["apns"].token == apns
    assert pushed["fcm"].token == fcm
    assert pushed["webhook"].data["from_number"] == "alice"
    assert len({push.push_id for push in pushed.values()}) == 1
    reborn = await world.registered(daemon, "bob", "TCP", headers[1])
    answer, incoming = await in_time(call.final(), reborn.rings_and_answers())
    assert answer.status == 200
    assert incoming.push_id == pushed["fcm"].push_id


async def test_a_new_token_of_the_same_device_ends_the_old_one(
    world: World, transport: str
) -> None:
    daemon = await world.daemon()
    urn, old, new = instance(), apns_token(), apns_token()
    await world.sleeping(daemon, "bob", transport, x_push(old), urn)
    await world.sleeping(daemon, "bob", transport, x_push(new), urn)
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    assert (await world.pushes.next()).token == new
    reborn = await world.registered(daemon, "bob", transport, x_push(new), urn)
    answer, _ = await in_time(call.final(), reborn.rings_and_answers())
    assert answer.status == 200
    assert [push.token for push in world.pushes.all] == [new]


async def test_an_app_that_always_pushes_is_called_and_pushed_at_once(world: World) -> None:
    daemon = await world.daemon(wake={"push": "always"})
    bob = await world.registered(daemon, "bob", "TCP", x_push(apns_token()), instance())
    alice = await world.phone(daemon, "alice", "TCP")
    call = await alice.call("bob")
    pushed, incoming = await in_time(world.pushes.next(), bob.incoming())
    assert incoming.push_id == pushed.push_id
    answer, _ = await in_time(call.final(), incoming.answer())
    assert answer.status == 200


async def test_a_call_rings_no_more_devices_at_a_time_than_its_max_breadth(world: World) -> None:
    """RFC 5393 §5.3.3."""
    daemon = await world.daemon()
    phones = [
        await world.phone(daemon, "bob", "TCP", instance=f"urn:uuid:{uuid.uuid4()}")
        for _ in range(3)
    ]
    for phone in phones:
        await phone.register()
    alice = await world.phone(daemon, "alice", "TCP")
    call = await alice.call("bob", headers=["Max-Breadth: 2"])
    newest, second = await phones[2].incoming(), await phones[1].incoming()
    assert newest.invite["max-breadth"] == second.invite["max-breadth"] == "1"
    await second.refuse(486)
    answer, _ = await in_time(call.final(), newest.answer())
    assert answer.status == 200
    await phones[0].wire.options()
    assert phones[0].wire.count("INVITE") == 0
    await in_time(call.hang_up(answer), newest.hung_up())
    none = await alice.call("bob", headers=["Max-Breadth: 0"])
    assert (await none.final()).status == 440
