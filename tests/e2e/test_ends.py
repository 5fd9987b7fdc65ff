"""How a call ends for those who still wake, and what is told of each wake-up (W8, W9)."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import pytest

from sipush.core.wake_up import WakeUpOutcome
from tests.e2e.daemon import APP, OTHER_APP, in_time
from tests.e2e.world import World, apns_token, fcm_token, x_push

TABLE = Path(__file__).parents[2] / "docs/response-context.md"
GIVEN_UP = 'SIP;cause=200;text="Call completed elsewhere", Q.850;cause=26'
"""As Asterisk says, in two lines, when another of its phones has answered: true, and not of our
making."""


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
        given = [f"Reason: {value}" for value in reason.split(", ") if value]
        _, final, _ = await in_time(call.cancel(*given), call.final(), at_desk.cancelled())
    assert final.status == status

    told = [await world.pushes.next() for _ in range(2)]  # APNs would make it a second call
    assert {push.service for push in told} == {"fcm", "webhook"}
    assert all(push.cancels for push in told)
    for push, urn in apps.values():
        late = await (await world.registered(daemon, "bob", "UDP", push, urn)).incoming()
        assert late.push_id == pushed[0].push_id
        late.reply(180)
        lines = [value for name, value in (await late.cancelled()).headers if name == "reason"]
        assert ", ".join(lines) == reason
        assert not any("," in line for line in lines)
    for _ in apps:
        await daemon.log_event("wake_up", call_id=call.call_id, outcome="too-late")
    assert len(world.pushes.all) == 5


@pytest.mark.parametrize("answers_late", [False, True])
async def test_who_gives_up_does_not_wait_for_a_phone_that_died_ringing(
    world: World, answers_late: bool
) -> None:
    daemon = await world.daemon()
    desk = await world.phone(daemon, "bob")
    await desk.register()
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    at_desk = await desk.incoming()
    at_desk.reply(180)
    await call.expect(180)
    await call.cancel()
    assert (await call.final(patience=5.0)).status == 487  # and not after 32 s (§9.1)
    await at_desk.expect("CANCEL")
    if answers_late:
        await in_time(at_desk.answer(), at_desk.hung_up())
        answers = {each.status for each in alice.wire.seen if each.method == "INVITE"}
        assert {status for status in answers if status >= 200} == {407, 487}


async def test_a_push_is_worth_nothing_after_the_time_in_the_callers_expires(world: World) -> None:
    daemon = await world.daemon()
    await world.sleeping(daemon, "bob", "UDP", x_push(apns_token()), f"urn:uuid:{uuid.uuid4()}")
    push = x_push(fcm_token(), "android")
    await world.sleeping(daemon, "bob", "UDP", push, f"urn:uuid:{uuid.uuid4()}")
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob", headers=["Expires: 4"])
    pushed = [await world.pushes.next() for _ in range(2)]
    received = {push.service: push.received for push in pushed}
    assert time.time() - 4 < int(received["apns"].headers["apns-expiration"]) <= time.time() + 4
    assert 1 <= int(received["fcm"].payload["android"]["ttl"].rstrip("s")) <= 4
    assert (await call.final()).status == 487


def rows() -> list[tuple[str, ...]]:
    """What came of each wake-up, from the table in the documents."""
    table = TABLE.read_text(encoding="utf-8")
    section = table.partition("## What came of each wake-up")[2].partition("\n## ")[0]
    lines = [line.strip("| ") for line in section.splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.split("|")) for line in lines[2:]]


@pytest.mark.parametrize(("device", "status", "outcome", "push_took", "woke_after"), rows())
async def test_each_wake_up_is_told_once_with_its_times(
    world: World, device: str, status: str, outcome: str, push_took: str, woke_after: str
) -> None:
    start = world.start if "app" in device else world.daemon  # one that is reloaded is its own
    daemon = await start(wake={"hold": 5.0, "tombstone": 4.0})
    token = apns_token()
    push = x_push(token)
    await world.sleeping(daemon, "bob", "UDP", push)
    if "token" in device:
        world.pushes.refuse(token, 410, "Unregistered")
    elif "service" in device:
        world.pushes.refuse(token, 403, "InvalidProviderToken")
    elif "app" in device:
        del daemon.settings["apps"][APP]
        daemon.reload()
        await daemon.log_event("reloaded")
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob", headers=["Expires: 2"] if "Expires" in device else ())
    if "app" not in device:
        pushed = await world.pushes.next()
        await daemon.log_event("push_finished", push_id=pushed.push_id)  # else it took no time yet
    if outcome in ("too-late", "not-needed"):
        await call.cancel()
        await daemon.log_event("failed", call_id=call.call_id, status=487)
    if device.startswith("wakes"):
        incoming = await (await world.registered(daemon, "bob", "UDP", push)).incoming()
        incoming.reply(180)
    if outcome == "answered":
        final, _ = await in_time(call.final(), incoming.answer())
    elif outcome == "refused":
        final, _ = await in_time(call.final(), incoming.refuse(486))
    elif outcome == "no-answer":
        final, _, _ = await in_time(call.final(), call.cancel(), incoming.cancelled())
    elif outcome == "too-late":
        final, _ = await in_time(call.final(), incoming.cancelled())
    else:
        final = await call.final()
    assert final.status == int(status)

    told = await daemon.log_event("wake_up", call_id=call.call_id)
    assert told["outcome"] == outcome
    assert (told["aor"], told["platform"]) == (world.aor("bob"), "apns")
    assert [told[name] is None for name in ("push_took", "woke_after")] == [
        push_took == "null",
        woke_after == "null",
    ]
    assert all(told[name] is None or told[name] >= 0 for name in ("push_took", "woke_after"))
    await daemon.has_no_requests()
    of_call = [each for each in daemon.records if each.get("call_id") == call.call_id]
    assert [each["event"] for each in of_call].count("wake_up") == 1
    assert token not in "\n".join(daemon.log.all)


def test_every_outcome_is_in_the_table() -> None:
    assert {row[2] for row in rows()} == {outcome.value for outcome in WakeUpOutcome}
