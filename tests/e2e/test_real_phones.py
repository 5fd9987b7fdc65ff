"""The same story with phones that we did not write: SIPp, baresip, Linphone, asyncsip."""

from __future__ import annotations

import re
import secrets
import uuid
from collections.abc import Awaitable

import pytest

from tests.e2e.baresip import Baresip
from tests.e2e.daemon import APP, Daemon, in_time
from tests.e2e.linphone import Linphone
from tests.e2e.sipp import Sipp
from tests.e2e.world import World, apns_token, fcm_token, x_push


async def sipp_phone(
    world: World, daemon: Daemon, transport: str, token: str, answers: str = "answer_200"
) -> Sipp:
    """A SIPp process that has registered bob and takes his calls."""
    push = f"X-Push: {x_push(token)}"
    phone = await world.sipp(daemon, "bob", "phone", transport, answers=answers, push=push)
    echo = await phone.said("registered")
    assert "app-id" in echo, "the 200 OK must carry the push header, the sign that we push"
    return phone


async def test_a_sipp_phone_is_killed_pushed_restarted_and_called_by_sipp(
    world: World, transport: str
) -> None:
    daemon = await world.daemon()
    token = apns_token()
    await (await sipp_phone(world, daemon, transport, token)).kill()
    woken = world.pushes.starts(lambda: sipp_phone(world, daemon, transport, token))
    caller = await world.sipp(daemon, "alice", "caller", transport, to="bob")
    pushed, reborn = await woken
    invited = await reborn.said("invited")
    assert pushed.push_id in invited
    await in_time(caller.succeeded(), reborn.said("hung up"))
    await caller.said("answered")


async def test_a_woken_sipp_phone_is_busy(world: World, transport: str) -> None:
    daemon = await world.daemon()
    token = apns_token()
    await (await sipp_phone(world, daemon, transport, token)).kill()
    woken = world.pushes.starts(lambda: sipp_phone(world, daemon, transport, token, "answer_486"))
    caller = await world.sipp(daemon, "alice", "caller_486", transport, to="bob")
    _, reborn = await woken
    await in_time(caller.succeeded(), reborn.said("refused"))


async def test_sipp_gives_up_while_the_phone_is_being_woken(world: World, transport: str) -> None:
    daemon = await world.daemon()
    await (await sipp_phone(world, daemon, transport, apns_token())).kill()
    caller = await world.sipp(daemon, "alice", "caller_cancel", transport, to="bob")
    await in_time(caller.succeeded(), world.pushes.next())


async def test_sipp_waits_in_vain(world: World, transport: str) -> None:
    daemon = await world.daemon(wake={"hold": 0.5})
    await (await sipp_phone(world, daemon, transport, apns_token())).kill()
    caller = await world.sipp(daemon, "alice", "caller_480", transport, to="bob")
    await in_time(caller.succeeded(), world.pushes.next())


@pytest.mark.parametrize("transport", ["UDP", "TCP", "TLS"])
async def test_baresip_is_killed_pushed_restarted_and_audio_flows_both_ways(
    world: World, transport: str
) -> None:
    """baresip knows no push header: its app registers the token beside it, for the same device."""
    daemon = await world.daemon(listen=world.doors())
    device, push = str(uuid.uuid4()), x_push(apns_token())
    app = await world.phone(daemon, "bob", transport, instance=f"urn:uuid:{device}")
    assert (await app.register(push)).response.status == 200
    app.kill()

    def start_bob() -> Awaitable[Baresip]:
        return world.baresip(daemon, "bob", transport, instance=device)

    bob = await start_bob()
    await bob.registered()
    await bob.kill()

    alice = await world.baresip(daemon, "alice", transport)
    await alice.registered()
    woken = world.pushes.starts(start_bob)
    alice.command("dial", f"sip:{world.aor('bob')}")
    await alice.event("CALL_RINGING")
    _, reborn = await woken
    await in_time(alice.event("CALL_ESTABLISHED"), reborn.event("CALL_ESTABLISHED"))
    await in_time(alice.rtp_received(), reborn.rtp_received())
    alice.command("hangup")
    await reborn.event("CALL_CLOSED")
    assert len(world.pushes.all) == 1


RFC8599 = "pn-provider=fcm;pn-prid={token};pn-param={app}"
OLDER = "app-id={app};pn-type=firebase;pn-tok={token}"


@pytest.mark.parametrize(
    ("transport", "params"),
    [("UDP", RFC8599), ("TCP", RFC8599), ("TLS", RFC8599), ("TCP", OLDER)],
    ids=["UDP", "TCP", "TLS", "older parameters"],
)
async def test_linphone_is_killed_pushed_restarted_and_answers_with_audio(
    world: World, transport: str, params: str
) -> None:
    """The parameters in its Contact URI are all that tells how to wake it."""
    daemon = await world.daemon(listen=world.doors())
    token, instance = fcm_token(), str(uuid.uuid4())
    push = params.format(token=token.replace(":", "%3A"), app=APP)

    def start_bob() -> Awaitable[Linphone]:
        return world.linphone(daemon, "bob", transport, instance=instance, push=push)

    bob = await start_bob()
    registered = await daemon.log_event("registered", aor=world.aor("bob"))
    assert registered["push"] == [APP]
    await bob.kill()

    alice = await world.baresip(daemon, "alice", transport)
    await alice.registered()
    woken = world.pushes.starts(start_bob)
    alice.command("dial", f"sip:{world.aor('bob')}")
    await alice.event("CALL_RINGING")
    pushed, reborn = await woken
    assert pushed.token == token
    await in_time(alice.event("CALL_ESTABLISHED"), reborn.connected())
    await alice.rtp_received()
    alice.command("hangup")
    await reborn.hung_up()
    assert len(world.pushes.all) == 1


async def test_an_asyncsip_phone_is_killed_pushed_restarted_and_answers(world: World) -> None:
    daemon = await world.daemon()
    push = x_push(secrets.token_urlsafe(120), "android")
    app = await world.asyncsip(daemon, "bob", push)
    await app.output.find(lambda line: line == "registered [200]", "asyncsip's registration")
    await app.kill()
    alice = await world.phone(daemon, "alice")
    woken = world.pushes.starts(lambda: world.asyncsip(daemon, "bob", push))
    call = await alice.call("bob")
    pushed, reborn = await woken
    assert pushed.service == "fcm"
    said = await reborn.output.find(lambda line: line.startswith("invited"), "asyncsip's call")
    assert re.search(r"\[(.*)\]", said)[1] == pushed.push_id  # type: ignore[index]
    answer = await call.final()
    assert answer.status == 200
    bye, _ = await in_time(
        call.hang_up(answer), reborn.output.find(lambda line: line == "hung up", "its BYE")
    )
    assert bye.status == 200
