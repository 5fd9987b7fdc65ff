"""How a call ends for those who still wake, and what is told of each wake-up (W8, W9)."""

from __future__ import annotations

import uuid

import pytest

from tests.e2e.daemon import OTHER_APP, in_time
from tests.e2e.world import World, apns_token, fcm_token, x_push

GIVEN_UP = 'SIP;cause=200;text="Call completed elsewhere"'
"As a PBX says whose other branch was answered: true, and not of our making."


@pytest.mark.parametrize(
    ("end", "status", "reason"),
    [
        ("given up", 487, GIVEN_UP),
        ("given up without a reason", 487, ""),
        ("answered", 200, 'SIP;cause=200;text="Call completed elsewhere"'),
        ("declined", 603, 'SIP;cause=603;text="Declined elsewhere"'),
    ],
)
async def test_whoever_wakes_too_late_sees_why_and_hears_of_it_over_its_service(
    world: World, end: str, status: int, reason: str
) -> None:
    daemon = await world.daemon()
    apps = {
        service: (push, f"urn:uuid:{uuid.uuid4()}")
        for service, push in (
            ("apns", x_push(apns_token())),
            ("fcm", x_push(fcm_token(), "android")),
            ("webhook", x_push("abc", "android", OTHER_APP)),
        )
    }
    for push, urn in apps.values():
        await world.sleeping(daemon, "bob", "UDP", push, urn)
    desk = await world.phone(daemon, "bob")
    await desk.register()
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    at_desk = await desk.incoming()
    at_desk.reply(180)
    pushed = [await world.pushes.next() for _ in apps]
    assert {push.service for push in pushed} == set(apps)

    if end == "answered":
        final, _ = await in_time(call.final(), at_desk.answer())
    elif end == "declined":
        final, _ = await in_time(call.final(), at_desk.refuse(603))
    else:
        given = [f"Reason: {reason}"] if reason else []
        _, final, _ = await in_time(call.cancel(*given), call.final(), at_desk.cancelled())
    assert final.status == status

    told = [await world.pushes.next() for _ in range(2)]  # APNs would make it a second call
    assert {push.service for push in told} == {"fcm", "webhook"}
    assert all(push.cancels for push in told)
    for push, urn in apps.values():
        late = await (await world.registered(daemon, "bob", "UDP", push, urn)).incoming()
        assert late.push_id == pushed[0].push_id
        late.reply(180)
        assert (await late.cancelled())["reason"] == reason
    for _ in apps:
        await daemon.log_event("wake_up", call_id=call.call_id, outcome="too-late")
    assert len(world.pushes.all) == 5


@pytest.mark.parametrize(
    ("outcome", "status", "service_says"),
    [
        ("refused", 486, None),
        ("no-answer", 487, None),
        ("token-dead", 480, (410, "Unregistered")),
        ("push-failed", 480, (403, "InvalidProviderToken")),
    ],
)
async def test_each_wake_up_is_told_once_with_its_times(
    world: World, outcome: str, status: int, service_says: tuple[int, str] | None
) -> None:
    daemon = await world.daemon()
    token = apns_token()
    push = x_push(token)
    await world.sleeping(daemon, "bob", "UDP", push)
    if service_says:
        world.pushes.refuse(token, *service_says)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    pushed = await world.pushes.next()
    if not service_says:
        incoming = await (await world.registered(daemon, "bob", "UDP", push)).incoming()
        incoming.reply(180)
        if outcome == "refused":
            await incoming.refuse(486)
        else:
            await in_time(call.cancel(), incoming.cancelled())
    assert (await call.final()).status == status
    told = await daemon.log_event("wake_up", call_id=call.call_id)
    assert told["outcome"] == outcome
    assert (told["aor"], told["platform"]) == (world.aor("bob"), "apns")
    assert told["push_id"] == pushed.push_id
    assert told["push_took"] >= 0
    assert (told["woke_after"] is None) is bool(service_says)
    assert token not in "\n".join(daemon.log.all)
