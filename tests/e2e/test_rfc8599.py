"""Phones that speak RFC 8599: capabilities, refresh pushes, requests inside a dialog (R4)."""

from __future__ import annotations

import asyncio
import re
import secrets
import sqlite3
import time
import uuid
from pathlib import Path

import pytest

from sipush.core.in_dialog import BETWEEN_FLOWS
from tests.e2e.daemon import APP, Daemon, in_time
from tests.e2e.wire import PATIENCE, InCall, Phone
from tests.e2e.world import World


def fcm_params(token: str) -> str:
    """What an Android app says of itself in its Contact."""
    return f";pn-provider=fcm;pn-prid={token};pn-param={APP}"


class App:
    """An app on one device: its phone comes and goes, its instance and token stay."""

    def __init__(self, world: World, daemon: Daemon, user: str = "bob") -> None:
        self.world, self.daemon, self.user = world, daemon, user
        self.instance = f"urn:uuid:{uuid.uuid4()}"
        self.token = secrets.token_urlsafe(100)
        self.caps = ""

    async def wake(self, transport: str, contact_tags: str = "", expires: int = 600) -> Phone:
        """Start it anew; it registers, and speaks of its PURR in dialogs."""
        phone = await self.world.phone(self.daemon, self.user, transport, instance=self.instance)
        uri = f"{phone.contact_uri}{fcm_params(self.token)}"
        contact = f'<{uri}>;+sip.instance="<{self.instance}>"{contact_tags}'
        result = await phone.register(contact=contact, expires=expires)
        assert result.response.status == 200, result.response.text
        self.caps = result.response["feature-caps"]
        purr = re.search(r'\+sip\.pnspurr="([^"]+)"', self.caps)
        assert purr
        phone.contact_params = f";pn-purr={purr[1]}"
        return phone


async def test_a_killed_app_is_woken_and_its_token_goes_nowhere(
    world: World, transport: str
) -> None:
    daemon = await world.daemon()
    app = App(world, daemon)
    (await app.wake(transport)).kill()
    assert app.caps.startswith('*;+sip.pns="fcm"')
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    push = await world.pushes.next()
    assert push.token == app.token
    bob = await app.wake(transport)
    incoming = await bob.incoming()
    assert incoming.push_id == push.push_id
    answer, _ = await in_time(call.final(), incoming.answer())
    await in_time(call.hang_up(answer), incoming.hung_up())
    tablet = await world.phone(daemon, "bob", transport)
    listed = await tablet.register()
    assert len(listed.response.all("contact")) == 2
    for msg in (*alice.wire.seen, *tablet.wire.seen, incoming.invite):
        assert app.token not in msg.text


@pytest.mark.parametrize("store_type", ["sqlite"])
async def test_a_service_that_nobody_can_push_by_is_refused(world: World) -> None:
    daemon = await world.daemon()
    bob = await world.phone(daemon, "bob")
    refused = await bob.register(contact=f"<{bob.contact_uri};pn-provider=acme;pn-prid=x>")
    assert refused.response.status == 555
    assert refused.response.all("feature-caps") == []
    asked = await bob.register(contact=f"<{bob.contact_uri};pn-provider=fcm>")
    assert asked.response.status == 200
    assert asked.response.all("feature-caps") == ['*;+sip.pns="fcm"']
    assert world.pushes.all == []


async def test_a_binding_that_no_push_could_keep_alive_is_too_brief(world: World) -> None:
    daemon = await world.daemon()
    bob = await world.phone(daemon, "bob")
    contact = f"<{bob.contact_uri}{fcm_params('token')}>"
    refused = await bob.register(contact=contact, expires=120)
    assert (refused.response.status, refused.response["min-expires"]) == (423, "360")
    accepted = await bob.register(contact=contact, expires=360)
    assert accepted.response.status == 200
    assert accepted.response["contact"].endswith(";expires=360")


async def test_push_ends_with_the_last_binding_though_its_token_is_not_named(
    world: World, transport: str
) -> None:
    daemon = await world.daemon()
    app = App(world, daemon)
    bob = await app.wake(transport)
    bye = f'<{bob.contact_uri};pn-provider=fcm>;+sip.instance="<{app.instance}>"'
    assert (await bob.register(contact=bye, expires=0)).response.status == 200
    alice = await world.phone(daemon, "alice", transport)
    assert (await (await alice.call("bob")).final()).status == 480
    assert world.pushes.all == []


async def test_push_ends_when_the_app_registers_without_asking_for_it(world: World) -> None:
    daemon = await world.daemon()
    app = App(world, daemon)
    bob = await app.wake("TCP")
    without = f'<{bob.contact_uri}>;+sip.instance="<{app.instance}>"'
    assert (await bob.register(contact=without)).response.status == 200
    bob.kill()
    alice = await world.phone(daemon, "alice", "TCP")
    assert (await (await alice.call("bob")).final()).status == 480
    assert world.pushes.all == []


@pytest.mark.parametrize("method", ["BYE", "INVITE"])
async def test_a_request_inside_a_dialog_wakes_the_app(
    world: World, transport: str, method: str
) -> None:
    daemon = await world.daemon()
    app = App(world, daemon)
    bob = await app.wake(transport)
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    answer, _ = await in_time(call.final(), bob.rings_and_answers())
    assert bob.contact_params in answer["contact"]
    bob.kill()
    if method == "BYE":
        ended = asyncio.create_task(call.hang_up(answer))
    else:
        ended = asyncio.create_task(call.request(answer, "INVITE"))
    push = await world.pushes.next()
    assert (push.token, push.data["msg_type"]) == (app.token, "refresh")
    bob = await app.wake(transport)
    request = await bob.wire.expect(method)
    assert request.uri == answer.contact
    assert request["x-push-id"] == ""
    InCall(bob, request).reply(200, request=request)
    response = await ended
    assert response.status == 200
    assert len(world.pushes.all) == 1


async def test_a_request_inside_a_dialog_that_nobody_wakes_for_does_not_end_the_dialog(
    world: World, transport: str
) -> None:
    daemon = await world.daemon()
    app = App(world, daemon)
    bob = await app.wake(transport)
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    answer, _ = await in_time(call.final(), bob.rings_and_answers())
    bob.kill()
    world.pushes.refuse(app.token, 404, "UNREGISTERED")
    assert (await call.request(answer, "INVITE")).status == 504


async def test_a_caller_that_was_killed_is_woken_by_the_callees_bye(
    world: World, transport: str
) -> None:
    daemon = await world.daemon()
    app = App(world, daemon, "alice")
    alice = await app.wake(transport)
    bob = await world.phone(daemon, "bob", transport)
    await bob.register()
    call = await alice.call("bob")
    _, incoming = await in_time(call.final(), bob.rings_and_answers())
    alice.kill()
    ended = asyncio.create_task(incoming.hang_up())
    assert (await world.pushes.next()).token == app.token
    alice = await app.wake(transport)
    bye = await alice.wire.expect("BYE")
    InCall(alice, bye).reply(200, request=bye)
    assert (await ended).status == 200


async def test_an_app_without_purr_is_not_woken_for_a_dialog(world: World) -> None:
    daemon = await world.daemon()
    app = App(world, daemon)
    bob = await app.wake("TCP")
    bob.contact_params = ""
    alice = await world.phone(daemon, "alice", "TCP")
    call = await alice.call("bob")
    answer, _ = await in_time(call.final(), bob.rings_and_answers())
    bob.kill()
    ended = await call.request(answer, "BYE", patience=PATIENCE + BETWEEN_FLOWS)
    assert ended.status == 480
    assert world.pushes.all == []


@pytest.mark.parametrize("store_type", ["sqlite"])
async def test_an_app_is_pushed_before_its_binding_expires_even_after_a_restart(
    world: World,
) -> None:
    daemon = await world.start()
    app = App(world, daemon)
    bob = await app.wake("UDP", contact_tags=";+sip.pnsreg", expires=600)
    assert '+sip.pnsreg="180"' in app.caps
    assert await daemon.stop() == 0
    path = Path(world.store["sqlite"]["path"])
    with sqlite3.connect(path) as store:
        store.execute("UPDATE refreshes SET due_epoch = due_epoch - 450")
        store.execute("UPDATE devices SET expires_epoch = ?", (time.time() + 150,))
    store.close()
    await daemon.start()
    push = await world.pushes.next()
    assert (push.token, push.data["msg_type"]) == (app.token, "refresh")
    assert push.received.payload["android"]["priority"] == "normal"
    assert (await bob.register()).response.status == 200
    assert len(world.pushes.all) == 1


@pytest.mark.parametrize("method", ["INFO", "INVITE"])
async def test_an_app_that_refuses_a_request_inside_a_dialog_is_awake(
    world: World, method: str
) -> None:
    daemon = await world.daemon()
    bob = await App(world, daemon).wake("TCP")
    alice = await world.phone(daemon, "alice", "TCP")
    call = await alice.call("bob")
    answer, _ = await in_time(call.final(), bob.rings_and_answers())
    asked = asyncio.create_task(call.request(answer, method))
    request = await bob.wire.expect(method)
    InCall(bob, request).reply(500, request=request)
    assert (await asked).status == 500
    assert world.pushes.all == []
