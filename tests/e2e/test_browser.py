"""Browsers call and are called: JsSIP and WebRTC in Chromium (D2)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from sipush.demo.credentials import Credentials
from sipush.demo.push_service import PushService
from tests.e2e.browser import Browser, BrowserPhone, BrowserPushService, Site
from tests.e2e.daemon import APP, Daemon, in_time
from tests.e2e.pushes import Push, PushLog
from tests.e2e.world import World, apns_token, x_push
from tests.subscription import Subscription

MEDIA_PATIENCE = 30.0
"Seconds: ICE and DTLS repeat what was lost after one, two, four …, beside a browser that starts."


@pytest.fixture
def store_type() -> str:
    """Browsers do not depend on the store."""
    return "sqlite"


@pytest.fixture(params=["WS", "WSS"])
def transport(request: pytest.FixtureRequest) -> str:
    """How the browsers of a test speak."""
    name: str = request.param
    return name


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """Where browsers get the phone from."""
    site = await Site.open(tmp_path_factory.mktemp("site"))
    yield site
    site.server.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def browser(
    tmp_path_factory: pytest.TempPathFactory, site: Site, credentials: Credentials
) -> AsyncIterator[Browser]:
    """One that lives as long as the tests."""
    directory = tmp_path_factory.mktemp("chromium")
    browser = await Browser.start(directory, site, credentials.certificate_file)
    yield browser
    await browser.kill()


async def phone(
    world: World, browser: Browser, daemon: Daemon, user: str, transport: str, push: str = ""
) -> BrowserPhone:
    """A page that has registered."""
    host, port = daemon.at(transport)
    page = await browser.phone(f"{transport.lower()}://{host}:{port}", world.account(user), push)
    echo = await page.get("registered")
    assert bool(echo) == bool(push), "the 200 OK echoes the push header, the sign that we push"
    return page


async def test_a_browser_is_killed_pushed_restarted_and_media_flows_both_ways(
    world: World,
    browser: Browser,
    site: Site,
    transport: str,
    tmp_path: Path,
) -> None:
    daemon = await world.daemon(listen=world.doors())
    push, certificate = x_push(apns_token()), world.credentials.certificate_file
    mortal = await Browser.start(tmp_path / "chromium", site, certificate)
    await phone(world, mortal, daemon, "bob", transport, push)
    await mortal.kill()

    alice = await phone(world, browser, daemon, "alice", transport)
    woken = world.pushes.starts(lambda: phone(world, browser, daemon, "bob", transport, push))
    await alice.do(f"phone.call('sip:bob@{world.domain}')")
    assert await alice.get("ringing")
    pushed, bob = await woken
    invited = await bob.get("invited")
    assert invited["pushId"] == pushed.push_id
    assert ".invalid;transport=ws" in invited["uri"]
    await bob.do("phone.answer()")
    await in_time(alice.get("confirmed"), bob.get("confirmed"))
    await in_time(alice.get("received(10)"), bob.get("received(10)"))
    await alice.do("phone.hangUp()")
    assert await bob.get("ended") == "Terminated"


@dataclass
class WebApp:
    """Bob's page and service worker, as docs/apps.md has them.

    Chromium cannot subscribe without the internet: ``http_ece`` decrypts in its place.
    """

    world: World
    browser: Browser
    daemon: Daemon
    context: str
    key: str
    subscription: Subscription

    @classmethod
    async def install(cls, world: World, browser: Browser, service: PushService) -> WebApp:
        """As the user's first visit does."""
        daemon, context = await world.daemon(listen=world.doors()), await browser.context()
        key = service.credentials.application_server_key
        return cls(world, browser, daemon, context, key, Subscription(service))

    async def open(self) -> BrowserPhone:
        """Its page, which has not registered yet."""
        page = await self.browser.open(self.context)
        await page.do(
            "PushManager.prototype.subscribe = async ({ userVisibleOnly, applicationServerKey }) =>"
            f" userVisibleOnly && applicationServerKey === '{self.key}'"
            f" && {{ toJSON: () => ({json.dumps(self.subscription.to_json())}) }}"
        )
        return page

    async def register(self, page: BrowserPhone) -> None:
        """As the page does when it is loaded."""
        header = await page.evaluate(f"pushHeader('{APP}', '{self.key}')")
        host, port = self.daemon.at("WSS")
        await page.start(f"wss://{host}:{port}", self.world.account("bob"), header)
        assert await page.get("registered")

    async def closed(self) -> BrowserPushService:
        """It has registered and its tab was closed: what wakes it now."""
        page = await self.open()
        await self.register(page)
        service = await self.browser.push_service(self.context)
        await page.close()
        return service

    async def shown(self, service: BrowserPushService, push: Push, text: str) -> BrowserPhone:
        """Its page, once the push has been delivered and is the only notification."""
        await service.deliver(push.data)
        page = await self.open()
        notification = await page.evaluate(f"notification({json.dumps(push.data)})")
        expected = {"title": "alice", "body": text, "tag": push.push_id, "number": 1}
        assert notification == expected
        return page


async def test_a_closed_tab_is_woken_by_web_push_and_its_page_takes_the_call(
    world: World, browser: Browser, push_log: PushLog
) -> None:
    app = await WebApp.install(world, browser, push_log.service)
    service = await app.closed()
    alice = await phone(world, browser, app.daemon, "alice", "WSS")
    await alice.do(f"phone.call('sip:bob@{world.domain}')")
    pushed = await world.pushes.next()
    page = await app.shown(service, pushed, "Incoming call: alice")
    await app.register(page)  # the user has clicked
    assert (await page.get("invited"))["pushId"] == pushed.push_id
    await page.do("phone.answer()")
    await in_time(alice.get("confirmed"), page.get("confirmed"))
    await page.do("phone.hangUp()")
    assert await alice.get("ended") == "Terminated"


async def test_the_end_of_a_call_replaces_its_notification(
    world: World, browser: Browser, push_log: PushLog
) -> None:
    app = await WebApp.install(world, browser, push_log.service)
    service = await app.closed()
    alice = await world.phone(app.daemon, "alice", "TCP")
    call = await alice.call("bob")
    page = await app.shown(service, await world.pushes.next(), "Incoming call: alice")
    await page.close()
    await call.cancel()
    await app.shown(service, await world.pushes.next(), "Call ended: alice")


async def test_a_browser_is_called_by_baresip_and_media_flows_both_ways(
    world: World, browser: Browser, transport: str
) -> None:
    daemon = await world.daemon(listen=world.doors())
    bob = await phone(world, browser, daemon, "bob", transport)
    alice = await world.baresip(daemon, "alice", "UDP", webrtc=True)
    await alice.registered()
    alice.command("dial", f"sip:bob@{world.domain}")
    await bob.get("invited")
    await bob.do("phone.answer()")
    await in_time(alice.event("CALL_ESTABLISHED"), bob.get("confirmed"))
    media = alice.rtp_received(MEDIA_PATIENCE), bob.get("received(10)")
    await in_time(*media, patience=MEDIA_PATIENCE)
    await bob.do("phone.hangUp()")
    await alice.event("CALL_CLOSED")


async def test_a_browser_hears_that_a_call_it_makes_is_refused(
    world: World, browser: Browser, transport: str
) -> None:
    daemon = await world.daemon(listen=world.doors())
    bob = await world.phone(daemon, "bob", "TCP")
    await bob.register()
    alice = await phone(world, browser, daemon, "alice", transport)
    await alice.do(f"phone.call('sip:bob@{world.domain}')")
    incoming = await bob.incoming()
    await incoming.refuse(486)
    outcome = await alice.get("confirmed.catch(error => error.message)")
    assert outcome == "Busy 486"


async def test_a_browser_cancels_a_call_to_a_sleeping_phone(
    world: World, browser: Browser, transport: str
) -> None:
    daemon = await world.daemon(listen=world.doors())
    await world.sleeping(daemon, "bob", "TCP", x_push(apns_token()))
    alice = await phone(world, browser, daemon, "alice", transport)
    await alice.do(f"phone.call('sip:bob@{world.domain}')")
    await world.pushes.next()
    await alice.get("ringing")
    await alice.do("phone.hangUp()")
    assert await alice.get("confirmed.catch(error => error.message)") == "Canceled "
    await daemon.log_event("failed", status=487)
