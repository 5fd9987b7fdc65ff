"""Pages whose tab is closed are woken by Web Push (P6). Chromium's worker: test_browser.py."""

from __future__ import annotations

import pytest

from tests.e2e.daemon import APP, Daemon, in_time
from tests.e2e.pushes import Push, PushLog
from tests.e2e.test_messages import send, take
from tests.e2e.wire import OutCall, Phone, Registered
from tests.e2e.world import World
from tests.subscription import Subscription


@pytest.fixture
def browser(push_log: PushLog) -> Subscription:
    """A browser in which a page has subscribed."""
    return Subscription(push_log.service)


async def call_to_closed_page(world: World, browser: Subscription) -> tuple[Daemon, OutCall, Push]:
    """Alice calls bob, whose page has registered and was closed."""
    daemon = await world.daemon(listen=world.doors())
    await world.sleeping(daemon, "bob", "WSS", browser.x_push(APP))
    alice = await world.phone(daemon, "alice", "UDP")
    return daemon, await alice.call("bob"), await world.pushes.next()


async def page(world: World, daemon: Daemon, contact: str) -> tuple[Phone, Registered]:
    """A page of bob's that has registered with parameters in its Contact URI."""
    phone = await world.phone(daemon, "bob", "WSS")
    return phone, await phone.register(contact=f"<{phone.contact_uri};{contact}>")


async def test_a_closed_page_is_pushed_who_calls_and_gets_the_call_when_it_is_opened(
    world: World, browser: Subscription
) -> None:
    daemon, call, pushed = await call_to_closed_page(world, browser)
    assert (pushed.service, pushed.token) == ("webpush", browser.endpoint)
    assert (pushed.data["msg_type"], pushed.data["send_from"]) == ("audio", "alice")
    bob = await world.registered(daemon, "bob", "WSS", browser.x_push(APP))
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    assert answer.status == 200
    assert incoming.push_id == pushed.push_id
    await in_time(call.hang_up(answer), incoming.hung_up())
    assert len(world.pushes.all) == 1


async def test_a_closed_page_is_told_that_the_caller_has_given_up(
    world: World, browser: Subscription
) -> None:
    _, call, begun = await call_to_closed_page(world, browser)
    await call.cancel()
    ended = await world.pushes.next()
    assert ended.cancels
    assert ended.push_id == begun.push_id
    assert ended.received.headers["topic"] == begun.received.headers["topic"]


async def test_a_closed_page_is_pushed_a_message_and_gets_it_when_it_is_opened(
    world: World, browser: Subscription
) -> None:
    daemon = await world.daemon(listen=world.doors())
    await world.sleeping(daemon, "bob", "WSS", browser.x_push(APP))
    alice = await world.phone(daemon, "alice", "UDP")
    assert (await send(alice, "Lunch?")).status == 202
    pushed = await world.pushes.next()
    assert (pushed.data["msg_type"], pushed.data["msg_content"]) == ("im", "Lunch?")
    bob = await world.registered(daemon, "bob", "WSS", browser.x_push(APP))
    assert (await take(bob)).body == "Lunch?"


async def test_with_rfc8599_alone_a_push_carries_nothing_and_wakes_all_the_same(
    world: World, browser: Subscription, push_log: PushLog
) -> None:
    daemon = await world.daemon(listen=world.doors())
    bob, result = await page(world, daemon, browser.rfc8599())
    key = push_log.service.credentials.application_server_key
    assert result.response["feature-caps"] == f'*;+sip.pns="webpush";+sip.vapid="{key}"'
    bob.kill()
    alice = await world.phone(daemon, "alice", "UDP")
    given_up = await alice.call("bob")
    await in_time(push_log.to(browser.endpoint, 1))
    await given_up.cancel()
    call = await alice.call("bob")
    ((_, pushed),) = await in_time(push_log.to(browser.endpoint, 2))
    assert pushed.received.payload == {}
    bob, _ = await page(world, daemon, browser.rfc8599())
    ghost = await bob.incoming(call_id=given_up.call_id)
    ghost.reply(180)
    await ghost.cancelled()
    answer, incoming = await in_time(call.final(), bob.rings_and_answers(call.call_id))
    assert incoming.push_id.replace("-", "") == pushed.push_id
    await in_time(call.hang_up(answer), incoming.hung_up())


async def test_with_keys_in_the_contact_a_push_says_who_calls_and_nobody_else_sees_them(
    world: World, browser: Subscription
) -> None:
    daemon = await world.daemon(listen=world.doors())
    contact = f"{browser.rfc8599()};pn-p256dh={browser.p256dh};pn-auth={browser.auth};app-id={APP}"
    (await page(world, daemon, contact))[0].kill()
    alice = await world.phone(daemon, "alice", "UDP")
    call = await alice.call("bob")
    assert (await world.pushes.next()).data["send_from"] == "alice"
    bob, _ = await page(world, daemon, contact)
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    for text in (answer.text, incoming.invite.text, *daemon.log.all):
        assert browser.auth not in text
        assert browser.endpoint.rpartition("/")[2] not in text
    assert "pn-" not in answer["contact"]
    assert "pn-" not in incoming.invite.text
    await in_time(call.hang_up(answer), incoming.hung_up())


async def test_a_subscription_elsewhere_costs_a_warning_and_nobody_connects_there(
    world: World, browser: Subscription
) -> None:
    daemon = await world.daemon(listen=world.doors())
    bob = await world.phone(daemon, "bob", "WSS")
    elsewhere = browser.x_push(APP).replace("https://127.0.0.1", "https://127.0.0.2")
    response = (await bob.register(elsewhere)).response
    assert response.status == 200
    assert "push service is not allowed here" in response["warning"]
    bob.kill()
    alice = await world.phone(daemon, "alice", "UDP")
    assert (await (await alice.call("bob")).final()).status == 480


async def test_another_push_service_is_allowed_by_a_reload(
    world: World, browser: Subscription, push_log: PushLog
) -> None:
    daemon = await world.start(apps={APP: {"webpush": {"hosts": ["push.example.com"]}}})
    bob = await world.phone(daemon, "bob", "TCP")
    assert (await bob.register(browser.x_push(APP))).response["warning"]
    daemon.settings["apps"][APP]["webpush"]["hosts"].append(push_log.service.address)
    daemon.reload()
    await daemon.log_event("reloaded")
    assert (await bob.register(browser.x_push(APP))).response["x-push"].endswith(APP)
    bob.kill()
    alice = await world.phone(daemon, "alice", "TCP")
    await alice.call("bob")
    assert (await world.pushes.next()).token == browser.endpoint
