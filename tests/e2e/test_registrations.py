"""What a REGISTER does to later calls, and what is found of it in the store (R1-R7, P4)."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from dataclasses import replace
from typing import Any

import pytest
import redis

from tests.e2e.daemon import APP, OTHER_APP, Daemon, in_time
from tests.e2e.pushes import PushLog
from tests.e2e.wire import Account
from tests.e2e.world import World, apns_token, fcm_token, x_push
from tests.subscription import Subscription

URN = "urn:uuid:00000000-0000-4000-8000-00000000000{}"


def stored(world: World, user: str, what: str) -> list[dict[str, Any]]:
    """The rows of a user as an administrator reads them: ``bindings`` or ``push_records``."""
    store = world.store
    if store["type"] == "sqlite":
        with sqlite3.connect(f"file:{store['sqlite']['path']}?mode=ro", uri=True) as database:
            database.row_factory = sqlite3.Row
            query = f"SELECT * FROM {what} WHERE aor = ? ORDER BY device"
            return [dict(row) for row in database.execute(query, [world.aor(user)])]
    part = ("bindings", "push_records").index(what)
    with redis.Redis.from_url(store["redis"]["url"]) as client:
        rows = client.hgetall(f"{store['redis']['prefix']}:{{{world.aor(user)}}}:devices")
        texts = [rows[device].split(b"\n\n")[part] for device in sorted(rows)]
        return [json.loads(text) for text in texts if text]


async def test_bindings_and_push_records_are_in_the_store_and_outlive_kill_9(
    world: World, transport: str
) -> None:
    daemon = await world.start()
    tokens = [apns_token(), fcm_token()]
    pushes = [x_push(tokens[0]), x_push(tokens[1], "android")]
    phones = [
        await world.registered(daemon, "bob", transport, push, URN.format(n))
        for n, push in enumerate(pushes)
    ]
    await daemon.kill()
    contacts = [phone.contact_uri for phone in phones]
    assert [row["contact"] for row in stored(world, "bob", "bindings")] == contacts
    records = stored(world, "bob", "push_records")
    assert [row["call_token"] for row in records] == tokens
    assert [row["platform"] for row in records] == ["apns", "fcm"]
    assert {row["app_id"] for row in records} == {APP}

    await daemon.start()
    asker = await world.phone(daemon, "bob", transport)
    listed = (await asker.register(contact="")).response.all("contact")
    assert {contact.partition(";expires")[0].split(">")[0][1:] for contact in listed} == set(
        contacts
    )
    for phone in phones:
        phone.kill()
    alice = await world.phone(daemon, "alice", transport)
    await alice.call("bob")
    pushed = {(await world.pushes.next()).token for _ in phones}
    assert pushed == set(tokens)


@pytest.mark.parametrize("contact", ["its own", "*"])
async def test_a_phone_that_says_goodbye_but_allows_push_is_woken(
    world: World, transport: str, contact: str
) -> None:
    daemon = await world.daemon()
    token = apns_token()
    bob = await world.registered(daemon, "bob", transport, x_push(token))
    which = None if contact == "its own" else contact
    gone = await bob.register(x_push(token), expires=0, contact=which)
    assert (gone.response.status, gone.response.all("contact")) == (200, [])
    bob.kill()
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    assert (await world.pushes.next()).token == token
    reborn = await world.registered(daemon, "bob", transport, x_push(token))
    answer, _ = await in_time(call.final(), reborn.rings_and_answers())
    assert answer.status == 200


@pytest.mark.parametrize("contact", ["its own", "*"])
async def test_a_phone_that_says_goodbye_and_switches_push_off_is_not_pushed(
    world: World, transport: str, contact: str
) -> None:
    daemon = await world.daemon()
    push = x_push(apns_token())
    bob = await world.registered(daemon, "bob", transport, push)
    which = None if contact == "its own" else contact
    off = push.replace("true", "false")
    assert (await bob.register(off, expires=0, contact=which)).response.status == 200
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    assert (await call.final()).status == 480
    assert world.pushes.all == []


async def test_an_awake_phone_that_switches_push_off_is_called_and_not_pushed(
    world: World, transport: str
) -> None:
    daemon = await world.daemon(wake={"hold": 0.5})
    push = x_push(apns_token())
    bob = await world.registered(daemon, "bob", transport, push)
    await bob.register(push.replace("true", "false"))
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    await in_time(call.hang_up(answer), incoming.hung_up())
    bob.kill()
    again = await alice.call("bob")
    assert (await again.final()).status in (408, 480)
    assert world.pushes.all == []


@pytest.mark.parametrize(
    ("push", "fault"),
    [
        (x_push("aa11", app_id="com.example.unknown"), "com.example.unknown"),
        ("device-os=ios;device-uid=aa11", "app-id is missing"),
        ("", "device-os is missing"),
    ],
    ids=["unknown app-id", "no app-id", "empty"],
)
async def test_a_push_header_that_cannot_be_used_costs_the_push_and_not_the_registration(
    world: World, transport: str, push: str, fault: str
) -> None:
    daemon = await world.daemon()
    bob = await world.phone(daemon, "bob", transport)
    response = (await bob.register(headers=[f"X-Push: {push}"])).response
    assert response.status == 200
    assert response["warning"].startswith(f"399 {world.domain} ")
    assert fault in response["warning"]
    assert response["x-push"] == ""
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    await in_time(call.hang_up(answer), incoming.hung_up())
    await bob.register(expires=0)
    asleep = await alice.call("bob")
    assert (await asleep.final()).status == 480
    assert world.pushes.all == []


@pytest.mark.parametrize(
    ("device_os", "app_id", "service"),
    [("android", APP, "fcm"), ("android", OTHER_APP, "webhook"), ("harmony", OTHER_APP, "webhook")],
    ids=["android by FCM", "android by webhook", "another platform by webhook"],
)
async def test_phones_of_every_platform_are_woken(
    world: World, transport: str, device_os: str, app_id: str, service: str
) -> None:
    daemon = await world.daemon()
    push = x_push(fcm_token(), device_os, app_id)
    await world.sleeping(daemon, "bob", transport, push)
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    pushed = await world.pushes.next()
    assert pushed.service == service
    reborn = await world.registered(daemon, "bob", transport, push)
    answer, incoming = await in_time(call.final(), reborn.rings_and_answers())
    assert answer.status == 200
    assert incoming.push_id == pushed.push_id
    await in_time(call.hang_up(answer), incoming.hung_up())
    assert len(world.pushes.all) == 1


@pytest.mark.parametrize(
    ("device_os", "status", "reason"),
    [("ios", 410, "Unregistered"), ("android", 404, "UNREGISTERED"), ("web", 410, "")],
    ids=["APNs", "FCM", "Web Push"],
)
async def test_a_dead_token_ends_the_wait_and_is_forgotten(
    world: World, transport: str, device_os: str, status: int, reason: str, push_log: PushLog
) -> None:
    daemon = await world.daemon(wake={"hold": 60.0, "probe": 60.0})
    browser = Subscription(push_log.service)
    token = {"ios": apns_token(), "android": fcm_token(), "web": browser.endpoint}[device_os]
    push = browser.x_push(APP) if device_os == "web" else x_push(token, device_os)
    bob = await world.registered(daemon, "bob", transport, push)
    await bob.register(push, expires=0)
    world.pushes.refuse(token, status, reason)
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    assert (await call.final()).status == 480
    await daemon.log_event("push_record_removed", aor=world.aor("bob"))
    again = await alice.call("bob")
    assert (await again.final()).status == 480
    assert len(world.pushes.all) == 1


async def test_the_log_tells_who_came_and_went_and_refreshes_only_for_debugging(
    world: World, transport: str
) -> None:
    daemon = await world.start()
    push = x_push(apns_token())
    phone = await world.registered(daemon, "bob", transport, push)
    await phone.register(push)
    await phone.register(push, expires=0)
    await daemon.log_event("unregistered")
    told = [
        (record["event"], record["level"])
        for record in daemon.records
        if record["event"] in ("registered", "unregistered")
    ]
    assert told == [("registered", "info"), ("registered", "debug"), ("unregistered", "info")]


@pytest.mark.parametrize("store_type", ["redis"], indirect=True)
async def test_a_user_whom_the_cli_changes_or_removes_counts_at_once_on_every_node(
    world: World,
) -> None:
    first = await world.start()
    nodes = [first, await world.start(store=first.settings["store"])]
    dave = world.aor("dave")
    old, new = (replace(world.account("dave"), password=word) for word in ("old", "new"))

    async def answers(account: Account) -> list[int]:
        phones = [await world.phone(node, "dave", who=account) for node in nodes]
        return [(await phone.register()).response.status for phone in phones]

    await sipush(first, "user", "add", dave, password="old")
    assert await answers(old) == [200, 200]
    await sipush(first, "user", "add", dave, password="new")
    assert await answers(old) == [401, 401]
    assert await answers(new) == [200, 200]
    await sipush(first, "user", "remove", dave)
    assert await answers(new) == [401, 401]


async def sipush(daemon: Daemon, *command: str, password: str = "") -> None:
    """The command line, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sipush.cli", *command, "--config", str(daemon.config)),
        stdin=asyncio.subprocess.PIPE,
    )
    await process.communicate(password.encode())
    assert process.returncode == 0
