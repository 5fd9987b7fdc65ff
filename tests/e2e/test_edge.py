"""In front of a real Asterisk that has the extensions and their passwords (D3, docs/edge.md)."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e.asterisk import EDGE, Asterisk
from tests.e2e.daemon import APP, PBX, Daemon, in_time, merged
from tests.e2e.linphone import Linphone
from tests.e2e.test_messages import OutMessage, take
from tests.e2e.test_nodes import NODES
from tests.e2e.wire import SDP, Account, OutCall, Phone
from tests.e2e.world import World, apns_token, fcm_token, x_push
from tests.servers.ports import free_port

LIST = "database show registrar"
on_sqlite = pytest.mark.parametrize("store_type", ["sqlite"], indirect=True)


@pytest_asyncio.fixture(loop_scope="session")
async def asterisk(world: World, asterisk_root: Path) -> AsyncIterator[Asterisk]:
    """One that ``behind`` starts."""
    asterisk = Asterisk(asterisk_root, world.domain, EDGE)
    yield asterisk
    await asterisk.close()


async def behind(asterisk: Asterisk, world: World, **changes: Any) -> Daemon:
    """A daemon that knows no user, and the Asterisk that does."""
    usual = merged(asterisk.sipush, {"wake": {"hold": 8.0}})
    daemon = await world.start(users=None, **merged(usual, changes))
    await asterisk.start()
    return daemon


async def awake(world: World, daemon: Daemon, user: str, transport: str = "UDP") -> Phone:
    """A phone that is not pushed."""
    return await world.registered(daemon, user, transport, "")


async def at_asterisk(world: World, daemon: Daemon) -> Phone:
    """What speaks from Asterisk's address."""
    return await world.phone(daemon, "", ip=PBX, who=Account("pbx", "", PBX))


async def contacts(asterisk: Asterisk, extension: str) -> list[str]:
    """Those that Asterisk has of an extension."""
    stored = re.findall(r"^/registrar/contact/.*?: (\{.*\})", await asterisk.command(LIST), re.M)
    found = [json.loads(each) for each in stored]
    return [each["uri"].replace("^3B", ";") for each in found if each["endpoint"] == extension]


async def test_a_call_of_another_extension_wakes_a_phone(
    world: World, asterisk: Asterisk, transport: str
) -> None:
    daemon = await behind(asterisk, world)
    push = x_push(apns_token())
    await world.sleeping(daemon, "101", transport, push)
    dave = await awake(world, daemon, "102", transport)
    call = await dave.call("101")
    pushed = await world.pushes.next()
    assert pushed.data["send_from"] == "102"
    phone = await world.registered(daemon, "101", transport, push)
    answer, incoming = await in_time(call.final(), phone.rings_and_answers())
    assert answer.status == 200
    assert incoming.invite.uri == phone.contact_uri
    assert incoming.push_id == pushed.push_id
    await in_time(incoming.hang_up(), call.hung_up())
    assert len(await contacts(asterisk, "101")) == 1
    assert len(world.pushes.all) == 1


@on_sqlite
@pytest.mark.parametrize(
    ("usual", "other"),
    [("support_path = yes", "support_path = no"), ("rtp_symmetric", "rewrite_contact")],
    ids=["without Path", "with contacts rewritten"],
)
async def test_an_asterisk_with_other_settings_finds_the_phone(
    world: World, asterisk: Asterisk, usual: str, other: str
) -> None:
    asterisk.configure("pjsip.conf", usual, other)
    daemon = await behind(asterisk, world)
    push = x_push(apns_token())
    await world.sleeping(daemon, "101", "TCP", push)
    dave = await awake(world, daemon, "102")
    call = await dave.call("101")
    await world.pushes.next()
    phone = await world.registered(daemon, "101", "TCP", push)
    answer, incoming = await in_time(call.final(), phone.rings_and_answers())
    assert (await incoming.request("INVITE", SDP)).status == 200
    await in_time(call.hang_up(answer), incoming.hung_up())


@on_sqlite
async def test_a_phone_that_is_awake_is_called_and_calls(world: World, asterisk: Asterisk) -> None:
    daemon = await behind(asterisk, world)
    phone = await world.registered(daemon, "101", "TCP", x_push(apns_token()))
    dave = await awake(world, daemon, "102")
    call = await dave.call("101")
    answer, incoming = await in_time(call.final(), phone.rings_and_answers())
    assert (await call.request(answer, "INVITE", SDP)).status == 200
    await in_time(call.hang_up(answer), incoming.hung_up())
    call = await phone.call("102")
    answer, incoming = await in_time(call.final(), dave.rings_and_answers())
    await in_time(incoming.hang_up(), call.hung_up())
    assert not world.pushes.all


@on_sqlite
async def test_audio_flows_through_asterisk_to_a_phone_that_was_woken(
    world: World, asterisk: Asterisk
) -> None:
    """baresip knows no push header: its app registers the token beside it, for the same device."""
    daemon = await behind(asterisk, world)
    device, push = str(uuid.uuid4()), x_push(apns_token())
    await world.sleeping(daemon, "101", "UDP", push, f"urn:uuid:{device}")
    woken = world.pushes.starts(lambda: world.baresip(daemon, "101", "UDP", instance=device))
    dave = await world.baresip(daemon, "102", "UDP")
    await dave.registered()
    dave.command("dial", f"sip:{world.aor('101')}")
    await dave.event("CALL_RINGING")
    _, phone = await woken
    await in_time(dave.event("CALL_ESTABLISHED"), phone.event("CALL_ESTABLISHED"))
    await in_time(dave.rtp_received(), phone.rtp_received())
    dave.command("hangup")
    await phone.event("CALL_CLOSED")
    assert len(world.pushes.all) == 1


@on_sqlite
async def test_linphone_is_woken_by_parameters_that_asterisk_never_sees(
    world: World, asterisk: Asterisk
) -> None:
    daemon = await behind(asterisk, world)
    device, token = str(uuid.uuid4()), fcm_token()
    params = f"pn-provider=fcm;pn-prid={token};pn-param={APP}"

    def start() -> Awaitable[Linphone]:
        return world.linphone(daemon, "101", "TCP", instance=device, push=params)

    phone = await start()
    registered = await daemon.log_event("registered", aor=world.aor("101"))
    assert registered["push"] == [APP]
    await phone.kill()
    dave = await world.baresip(daemon, "102", "UDP")
    await dave.registered()
    woken = world.pushes.starts(start)
    dave.command("dial", f"sip:{world.aor('101')}")
    pushed, phone = await woken
    assert pushed.token == token
    await in_time(dave.event("CALL_ESTABLISHED"), phone.connected())
    await dave.rtp_received()
    (contact,) = await contacts(asterisk, "101")
    assert "pn-" not in contact
    dave.command("hangup")
    await phone.hung_up()
    assert len(world.pushes.all) == 1


@on_sqlite
async def test_a_wrong_password_is_refused_by_asterisk_and_counts_as_a_guess(
    world: World, asterisk: Asterisk
) -> None:
    daemon = await behind(asterisk, world, limits={"failed_sign_ins": 4})
    guesser = await world.phone(daemon, "101", who=Account("101", "guess", world.domain))
    for _ in range(2):
        assert (await guesser.register()).response.status == 401
    call = await guesser.call("102")
    assert (await call.final()).status == 401
    await daemon.log_event("banned", source="127.0.0.1")
    assert await contacts(asterisk, "101") == []


@on_sqlite
async def test_an_app_that_unregisters_with_push_left_on_stays_an_extension(
    world: World, asterisk: Asterisk
) -> None:
    daemon = await behind(asterisk, world)
    push = x_push(apns_token())
    phone = await world.registered(daemon, "101", "UDP", push)
    response = (await phone.register(push, expires=0)).response
    assert (response.status, response["contact"]) == (200, "")
    phone.kill()
    assert len(await contacts(asterisk, "101")) == 1
    dave = await awake(world, daemon, "102")
    call = await dave.call("101")
    await world.pushes.next()
    phone = await world.registered(daemon, "101", "UDP", push)
    answer, incoming = await in_time(call.final(), phone.rings_and_answers())
    await in_time(call.hang_up(answer), incoming.hung_up())

    off = push.replace("push=true", "push=false")
    assert (await phone.register(off, expires=0)).response.status == 200
    assert await contacts(asterisk, "101") == []
    call = await dave.call("101")
    assert (await call.final()).status == 404  # Asterisk has nobody to call


@on_sqlite
async def test_the_caller_gives_up(world: World, asterisk: Asterisk) -> None:
    daemon = await behind(asterisk, world)
    push = x_push(apns_token())
    await world.sleeping(daemon, "101", "UDP", push)
    dave = await awake(world, daemon, "102")
    call = await dave.call("101")
    await call.expect(180)
    await world.pushes.next()
    _, final = await in_time(call.cancel(), call.final())
    assert final.status == 487
    await daemon.log_event("failed", status=487, method="INVITE")
    late = await (await world.registered(daemon, "101", "UDP", push)).incoming()
    late.reply(180)
    await late.cancelled()


@on_sqlite
async def test_a_held_call_outlives_the_server(world: World, asterisk: Asterisk) -> None:
    daemon = await behind(asterisk, world)
    push = x_push(apns_token())
    await world.sleeping(daemon, "101", "UDP", push)
    dave = await awake(world, daemon, "102")
    call = await dave.call("101")
    await world.pushes.next()
    await daemon.restart_after_kill()
    phone = await world.registered(daemon, "101", "UDP", push)
    answer, incoming = await in_time(call.final(), phone.rings_and_answers())
    assert answer.status == 200
    await in_time(call.hang_up(answer), incoming.hung_up())
    assert len(world.pushes.all) == 1


@on_sqlite
async def test_each_device_of_an_extension_is_called_once(world: World, asterisk: Asterisk) -> None:
    daemon = await behind(asterisk, world)
    push = x_push(apns_token())
    await world.sleeping(daemon, "101", "UDP", push)
    tablet = await world.registered(daemon, "101", "UDP", x_push(apns_token()))
    dave = await awake(world, daemon, "102")
    call = await dave.call("*101")
    ringing = await tablet.incoming()
    ringing.reply(180)
    await world.pushes.next()
    phone = await world.registered(daemon, "101", "UDP", push)
    answer, incoming, _ = await in_time(
        call.final(), phone.rings_and_answers(), ringing.cancelled()
    )
    await in_time(call.hang_up(answer), incoming.hung_up())
    assert (phone.wire.count("INVITE"), tablet.wire.count("INVITE")) == (1, 1)
    assert len(world.pushes.all) == 1


@on_sqlite
async def test_who_has_too_many_devices_here_gets_no_contact_there(
    world: World, asterisk: Asterisk
) -> None:
    daemon = await behind(asterisk, world, registration={"max_contacts": 1})
    await awake(world, daemon, "101")
    second = await world.phone(daemon, "101")
    assert (await second.register()).response.status == 403
    assert len(await contacts(asterisk, "101")) == 1


@on_sqlite
async def test_asterisk_finds_a_phone_reachable_that_can_be_woken(
    world: World, asterisk: Asterisk
) -> None:
    daemon = await behind(asterisk, world)
    await world.sleeping(daemon, "101", "TCP", x_push(fcm_token(), "android"))
    await asterisk.command("pjsip set logger on")
    await asterisk.command("pjsip qualify 101")
    await asterisk.said("SIP/2.0 200 OK")
    assert " Avail " in await asterisk.command("pjsip show contacts")


@on_sqlite
async def test_a_device_is_reached_by_asterisk_alone(world: World, asterisk: Asterisk) -> None:
    daemon = await behind(asterisk, world)
    await awake(world, daemon, "101")
    (contact,) = await contacts(asterisk, "101")
    stranger = await world.phone(daemon, "nobody")
    call = OutCall(stranger, contact, (), "stolen")
    call.send_invite()
    assert (await call.final()).status == 403
    call = OutCall(await at_asterisk(world, daemon), f"{contact}x", (), "made-up")
    call.send_invite()
    assert (await call.final()).status == 404


@on_sqlite
async def test_a_message_of_asterisk_waits_for_a_phone_that_sleeps(
    world: World, asterisk: Asterisk
) -> None:
    daemon = await behind(asterisk, world)
    push = x_push(fcm_token(), "android")
    phone = await world.registered(daemon, "101", "UDP", push)
    (contact,) = await contacts(asterisk, "101")
    sender = await at_asterisk(world, daemon)
    sent, came = await in_time(OutMessage(sender, contact, "hello").sent(), take(phone))
    assert (sent.status, came.body, came.uri) == (200, "hello", phone.contact_uri)
    phone.kill()
    assert (await OutMessage(sender, contact, "asleep?").sent()).status == 202
    await world.pushes.next()
    phone = await world.registered(daemon, "101", "UDP", push)
    assert (await take(phone)).body == "asleep?"


@on_sqlite
async def test_a_phone_is_pushed_before_asterisk_forgets_it(
    world: World, asterisk: Asterisk
) -> None:
    asterisk.configure("pjsip.conf", "= 604800", "= 3600")
    daemon = await behind(asterisk, world)
    await world.sleeping(daemon, "101", "UDP", x_push(fcm_token(), "android"))
    await world.sleeping(daemon, "102", "UDP", x_push(apns_token()))
    await daemon.log_event("registration_too_short", aor=world.aor("102"))
    await daemon.kill()
    async with daemon.opened_store() as store:
        now = time.time()
        assert await store.take_refreshes(now + 3600 - 150 - 60) == []
        ((aor, _),) = await store.take_refreshes(now + 3600 - 150 + 60)
        assert aor == world.aor("101")


@on_sqlite
async def test_who_registers_while_asterisk_is_away_is_told_to_come_again(
    world: World, asterisk: Asterisk
) -> None:
    daemon = await world.start(users=None, **asterisk.sipush)
    phone = await world.phone(daemon, "101")
    response = (await phone.register()).response
    assert (response.status, response["retry-after"]) == (503, "5")


@pytest.mark.parametrize("store_type", ["redis"], indirect=True)
async def test_a_phone_that_comes_back_to_another_node_is_one_contact_and_gets_the_held_call(
    world: World, asterisk: Asterisk
) -> None:
    doors = asterisk.sipush
    first = await world.start(users=None, **as_node(doors))
    other = free_port("127.0.0.1")
    listen = [{**door, "port": other} for door in doors["listen"]]
    changed = as_node({**doors, "listen": listen}) | {"store": first.settings["store"]}
    second = await world.start(users=None, **changed)
    await asterisk.start()
    push = x_push(apns_token())
    await world.sleeping(first, "101", "UDP", push)
    dave = await awake(world, first, "102")
    call = await dave.call("101")
    await world.pushes.next()
    phone = await world.registered(second, "101", "UDP", push)
    assert len(await contacts(asterisk, "101")) == 1
    answer, incoming = await in_time(call.final(), phone.rings_and_answers())
    await in_time(call.hang_up(answer), incoming.hung_up())
    call = await dave.call("101")
    answer, incoming = await in_time(call.final(), phone.rings_and_answers())
    await in_time(incoming.hang_up(), call.hung_up())
    assert len(world.pushes.all) == 1


def as_node(sipush: dict[str, Any]) -> dict[str, Any]:
    """The configuration of one of several nodes, which are peers of each other."""
    port = free_port(NODES)
    return {
        **sipush,
        "listen": [*sipush["listen"], {"transport": "udp", "address": NODES, "port": port}],
        "node": {"uri": f"sip:{NODES}:{port}"},
        "peers": [*sipush["peers"], {"name": "nodes", "address": NODES}],
    }
