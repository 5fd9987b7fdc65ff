"""A real Asterisk as voicemail and PBX, on the configuration of docs/asterisk.md (W3)."""

from __future__ import annotations

import configparser
import wave
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.asterisk import Asterisk
from tests.e2e.daemon import Daemon, account, ha1, in_time, merged
from tests.e2e.wire import InCall, OutCall
from tests.e2e.world import World, apns_token, x_push

pytestmark = pytest.mark.parametrize("store_type", ["sqlite"], indirect=True)

DAVE = '"Dave" <200>'
"A caller of Asterisk's own."


@pytest_asyncio.fixture(loop_scope="session")
async def asterisk(world: World, asterisk_root: Path) -> AsyncIterator[Asterisk]:
    """One that ``beside`` starts."""
    asterisk = Asterisk(asterisk_root, world.domain)
    yield asterisk
    await asterisk.close()


async def beside(asterisk: Asterisk, world: World, **changes: Any) -> Daemon:
    """A daemon with users who have boxes there, and then Asterisk, which finds it."""
    users = {world.aor(user): {"ha1_md5": world.ha1(user)} for user in ("101", "102")}
    usual = {"wake": {"hold": 0.4, "no_answer": 0.5}, "users": users}
    daemon = await world.start(**merged(merged(asterisk.sipush, usual), changes))
    await asterisk.start()
    return daemon


async def leave_a_message(asterisk: Asterisk, call: OutCall, box: str, greeting: str) -> None:
    """The caller gets to this box, hears its greeting, and hangs up while it records."""
    answer = await call.final()
    assert answer.status == 200, answer.text
    await asterisk.said(f"Playing '{asterisk.box(box)}/{greeting}.")
    await asterisk.said("Recording the message")
    assert (await call.hang_up(answer)).status == 200
    await asterisk.said("User hung up")


async def test_who_calls_a_phone_that_never_wakes_is_recorded_in_its_box(
    world: World, asterisk: Asterisk
) -> None:
    daemon = await beside(asterisk, world)
    await world.sleeping(daemon, "101", "UDP", x_push(apns_token()))
    await asterisk.command("rtp set debug on")
    alice = await world.baresip(daemon, "alice", "UDP", register=False)
    alice.command("dial", f"sip:{world.aor('101')}")
    await asterisk.said(f"Playing '{asterisk.box('101')}/unavail.")
    await asterisk.said("Recording the message")
    await alice.rtp_received()
    await asterisk.heard(packets=50)
    logged = len(daemon.log.all)
    alice.command("hangup")
    await asterisk.said("Spawn extension (from-sipush, voicemail")
    await daemon.log_event("failed", start=logged, method="NOTIFY", status=480)
    assert len(world.pushes.all) == 1, "pushed for the lamp of new messages"

    (message,) = asterisk.box("101").glob("INBOX/*.wav")
    with wave.open(str(message)) as recording:
        samples = array("h", recording.readframes(recording.getnframes()))
    assert max(samples[-4000:]) > 5000, "silence instead of the tone that was sent"
    envelope = configparser.ConfigParser()
    envelope.read(message.with_suffix(".txt"))
    assert envelope["message"]["callerid"] == "alice"


@pytest.mark.parametrize(("cause", "greeting"), [("cfnr", "unavail"), ("cfb", "busy")])
async def test_the_caller_is_greeted_by_cause(
    world: World, asterisk: Asterisk, cause: str, greeting: str
) -> None:
    daemon = await beside(asterisk, world)
    phone = await world.registered(daemon, "101", "UDP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    call = await alice.call("101")
    incoming = await phone.incoming()
    if cause == "cfb":
        await incoming.refuse(486)
    else:
        incoming.reply(180)
        await incoming.cancelled()
    await leave_a_message(asterisk, call, "101", greeting)
    await asterisk.said(f'"CAUSE={cause}"')


async def test_a_new_message_lights_the_lamp_of_a_phone(world: World, asterisk: Asterisk) -> None:
    daemon = await beside(asterisk, world)
    phone = await world.registered(daemon, "101", "UDP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    call = await alice.call("101")
    await (await phone.incoming()).refuse(486)
    await leave_a_message(asterisk, call, "101", "busy")
    notify = await phone.wire.expect("NOTIFY")
    assert notify.body.startswith("Messages-Waiting: yes")
    InCall(phone, notify).reply(200)
    await daemon.log_event("answered", method="NOTIFY", status=200)


async def test_a_call_that_is_declined_goes_to_no_box(world: World, asterisk: Asterisk) -> None:
    daemon = await beside(asterisk, world)
    phone = await world.registered(daemon, "101", "UDP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    call = await alice.call("101")
    await (await phone.incoming()).refuse(603)
    assert (await call.final()).status == 603
    assert "\n0 calls processed" in await asterisk.command("core show calls")


@pytest.mark.parametrize(("extension", "box"), [("voicemail", "102"), ("first-voicemail", "101")])
async def test_the_box_is_that_of_whom_the_caller_called_last_or_first(
    world: World, asterisk: Asterisk, extension: str, box: str
) -> None:
    users = {
        world.aor("101"): {"fallback": f"sip:{world.aor('102')}"},
        world.aor("102"): {"fallback": asterisk.uri(extension)},
    }
    daemon = await beside(asterisk, world, users=users)
    await world.sleeping(daemon, "101", "UDP", x_push(apns_token()))
    await world.sleeping(daemon, "102", "UDP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    await leave_a_message(asterisk, await alice.call("101"), box, "unavail")


async def test_a_ring_group_has_a_box(world: World, asterisk: Asterisk) -> None:
    group = {world.aor("600"): {"members": [world.aor("101"), world.aor("102")]}}
    daemon = await beside(asterisk, world, groups=group)
    await world.sleeping(daemon, "102", "UDP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    await leave_a_message(asterisk, await alice.call("600"), "600", "unavail")


@pytest.mark.parametrize(
    ("extension", "header", "box"),
    [
        (
            "voicemail",
            r'Diversion: <sip:10-2%40default,us@127.0.0.1>;reason="\" | \"1?s(x)"',
            "10-2defaultus",
        ),
        ("first-voicemail", "History-Info: <sip:10-2&600,us@127.0.0.1>;index=1", "10-2600us"),
    ],
)
async def test_nobody_puts_options_of_voicemail_into_a_call(
    world: World, asterisk: Asterisk, extension: str, header: str, box: str
) -> None:
    """Not even by way of a server that sipush trusts."""
    daemon = await beside(asterisk, world, peers=[{"name": "other", "address": "127.0.0.3"}])
    other = await world.phone(daemon, "carol", ip="127.0.0.3")
    call = await other.call(extension, headers=[header], challenged=False)
    await asterisk.said(f'VoiceMail("PJSIP/sipush-00000000", "{box}@default,u")')
    assert (await call.final()).status >= 200


async def test_what_a_caller_says_of_where_his_call_has_been_names_no_box(
    world: World, asterisk: Asterisk
) -> None:
    daemon = await beside(asterisk, world)
    alice = await world.phone(daemon, "alice")
    await alice.call("voicemail", headers=["Diversion: <sip:102@127.0.0.1>;reason=no-answer"])
    await asterisk.said('VoiceMail("PJSIP/sipush-00000000", "@default,u")')


async def test_a_phone_calls_a_number_of_asterisk(world: World, asterisk: Asterisk) -> None:
    daemon = await beside(asterisk, world)
    phone = await world.phone(daemon, "101")
    call = await phone.call("97")
    answer = await call.final()
    assert answer.status == 200
    await asterisk.said('VoiceMailMain("PJSIP/sipush-00000000", "101@default")')
    await asterisk.said("Playing 'vm-password.")
    assert (await call.hang_up(answer)).status == 200


@pytest.mark.parametrize(
    ("transport", "ends"), [("UDP", "phone"), ("TCP", "asterisk")], indirect=["transport"]
)
async def test_a_call_of_asterisk_wakes_a_phone(
    world: World, asterisk: Asterisk, transport: str, ends: str
) -> None:
    daemon = await beside(asterisk, world, wake={"hold": 8.0})
    push = x_push(apns_token())
    await world.sleeping(daemon, "101", transport, push)
    asterisk.call("Local/101@to-sipush", DAVE)
    pushed = await world.pushes.next()
    assert pushed.data["send_from"] == "200"
    phone = await world.registered(daemon, "101", transport, push)
    incoming = await phone.rings_and_answers()
    assert incoming.invite["from"].startswith(f'"Dave" <sip:200@{world.domain}>')
    await asterisk.said("answered Local/101@to-sipush")
    if ends == "phone":
        assert (await incoming.hang_up()).status == 200
    else:
        await in_time(asterisk.command("channel request hangup all"), incoming.hung_up())
    await asterisk.said("Call completed to Local/101@to-sipush")


async def test_a_held_call_of_asterisk_outlives_the_server(
    world: World, asterisk: Asterisk
) -> None:
    daemon = await beside(asterisk, world, wake={"hold": 8.0})
    push = x_push(apns_token())
    await world.sleeping(daemon, "101", "UDP", push)
    asterisk.call("Local/101@to-sipush", DAVE)
    await world.pushes.next()
    await daemon.restart_after_kill()
    incoming = await (await world.registered(daemon, "101", "UDP", push)).rings_and_answers()
    await asterisk.said("answered Local/101@to-sipush")
    assert (await incoming.hang_up()).status == 200
    await asterisk.said("Call completed to Local/101@to-sipush")


async def test_asterisk_calls_a_user_of_a_second_domain(world: World, asterisk: Asterisk) -> None:
    domain = f"second-{world.domain}"
    daemon = await beside(
        asterisk,
        world,
        sip={"domains": [world.domain, domain]},
        users={f"101@{domain}": {"ha1_md5": ha1("101", domain)}},
    )
    phone = await world.phone(daemon, "101", who=account("101", domain))
    await phone.register()
    asterisk.call(f"PJSIP/sipush/sip:101@{domain}", DAVE)
    incoming = await phone.rings_and_answers()
    assert (await incoming.hang_up()).status == 200


async def test_a_phone_that_wakes_too_late_learns_that_another_one_took_the_call_of_asterisk(
    world: World, asterisk: Asterisk
) -> None:
    daemon = await beside(asterisk, world, wake={"hold": 8.0})
    push = x_push(apns_token())
    await world.sleeping(daemon, "101", "UDP", push)
    awake = await world.registered(daemon, "102", "UDP", x_push(apns_token()))
    asterisk.call("Local/500@to-sipush", DAVE)
    incoming = await awake.incoming()
    incoming.reply(180)
    await world.pushes.next()
    await incoming.answer()
    await daemon.log_event("failed", status=487)
    late = await (await world.registered(daemon, "101", "UDP", push)).incoming()
    late.reply(180)
    assert "cause=200" in (await late.cancelled())["reason"]
    assert (await incoming.hang_up()).status == 200


async def test_a_call_of_asterisk_that_nobody_takes_comes_back_to_its_voicemail(
    world: World, asterisk: Asterisk
) -> None:
    daemon = await beside(asterisk, world)
    await world.sleeping(daemon, "101", "UDP", x_push(apns_token()))
    asterisk.call("Local/101@to-sipush", DAVE)
    await asterisk.said(f"Playing '{asterisk.box('101')}/unavail.")
    await asterisk.command("channel request hangup all")
    await asterisk.said("Call completed to Local/101@to-sipush")


async def test_asterisk_sees_whether_sipush_is_reachable(world: World, asterisk: Asterisk) -> None:
    daemon = await beside(asterisk, world)
    await asterisk.command("pjsip qualify sipush")
    await asterisk.said("Endpoint sipush is now Reachable")
    await daemon.kill()
    await asterisk.command("pjsip qualify sipush")
    await asterisk.said("Endpoint sipush is now Unreachable")
