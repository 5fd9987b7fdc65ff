"""The admin API and its page (docs/admin.md): what an operator sees while phones are woken."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from tests.e2e.browser import Browser, BrowserPhone
from tests.e2e.daemon import PBX, Daemon, in_time
from tests.e2e.test_faults import let_files_grow
from tests.e2e.test_metrics import read
from tests.e2e.wire import PATIENCE, Account, OutCall
from tests.e2e.world import World, apns_token, fcm_token, x_push
from tests.servers.ports import free_port
from tests.servers.redis_server import RedisServer

TOKEN = "a-token-that-nobody-guesses"
HOSTILE = "<img src=x onerror=document.title=1>"


@pytest.fixture
def store_type(request: pytest.FixtureRequest) -> str:
    """SQLite where nothing else is said."""
    return str(getattr(request, "param", "sqlite"))


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``admin.token_file``."""
    path = tmp_path_factory.mktemp("admin") / "token"
    path.write_text(f"{TOKEN}\n")
    return path


@dataclass(frozen=True, slots=True)
class Admin:
    """An operator's client. What it reads never holds a secret."""

    address: str
    secrets: list[str]
    "What must not be in any answer."
    token: str = TOKEN

    async def ask(self, method: str, path: str, **how: Any) -> httpx.Response:
        """One request, with the token unless ``headers`` say something else."""
        headers = {"Authorization": f"Bearer {self.token}"} | how.pop("headers", {})
        async with httpx.AsyncClient(timeout=PATIENCE) as client:
            url = f"http://{self.address}{path}"
            response = await client.request(method, url, headers=headers, **how)
        assert [each for each in self.secrets if each in response.text] == []
        return response

    async def get(self, path: str, **query: str) -> Any:
        """The JSON of a good answer."""
        response = await self.ask("GET", path, params=query)
        assert response.status_code == 200, response.text
        return response.json()

    async def until(self, holds: Callable[[Any], Any], path: str, **query: str) -> Any:
        """The first answer for which ``holds`` gives something, and what it gives."""
        async with asyncio.timeout(PATIENCE):
            while True:
                if found := holds(await self.get(path, **query)):
                    return found
                await asyncio.sleep(0.01)

    async def device(self, aor: str) -> Any:
        """The only device of a user."""
        ((user,),) = ((await self.get("/api/locations", aor=aor))["users"],)
        (device,) = user["devices"]
        return device

    async def test_push(self, aor: str, **fields: Any) -> httpx.Response:
        """The push test button."""
        device = (await self.device(aor))["id"]
        return await self.ask(
            "POST", "/api/push-tests", json={"aor": aor, "device": device} | fields
        )


def is_refused(response: httpx.Response, status: int) -> str:
    """The reason."""
    assert response.status_code == status, response.text
    assert response.json()["error"]["status"] == status
    return str(response.json()["error"]["reason"])


async def address_of(daemon: Daemon) -> str:
    """host:port."""
    return str((await daemon.log_event("admin_served"))["address"])


@pytest_asyncio.fixture(loop_scope="session")
async def daemon(world: World, token_file: Path) -> Daemon:
    """One that all tests here share."""
    return await world.daemon(admin={"listen": "127.0.0.1:0", "token_file": str(token_file)})


@pytest_asyncio.fixture(loop_scope="session")
async def admin(world: World, daemon: Daemon) -> Admin:
    """The operator."""
    passwords = [world.account(user).password for user in ("alice", "bob")]
    digests = [world.ha1(user) for user in ("alice", "bob")]
    return Admin(await address_of(daemon), [*passwords, *digests, TOKEN])


async def test_a_call_that_waits_is_shown_and_then_its_ladder(
    world: World, daemon: Daemon, admin: Admin
) -> None:
    token = apns_token()
    admin.secrets.append(token)
    push = x_push(token)
    await world.sleeping(daemon, "bob", "TCP", push)
    asleep = await admin.until(
        lambda found: found["users"][0]["devices"][0]["state"] == "asleep" and found["users"][0],
        "/api/locations",
        aor=world.aor("bob"),
    )
    (device,) = asleep["devices"]
    assert device["push"]["app_id"] == "com.example.softphone"

    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await world.pushes.next()

    def accepted(found: Any) -> Any:
        mine = (c for c in found["calls"] if c["call_id"] == call.call_id)
        return next((c for c in mine if "accepted" in str(c["devices"][0]["push"])), None)

    held = await admin.until(accepted, "/api/waking")
    assert (held["caller"], held["callee"]) == (world.aor("alice"), world.aor("bob"))
    assert held["waited"] >= 0
    assert held["devices"][0]["state"] == "being woken"
    assert held["devices"][0]["id"] == device["id"]
    assert (await admin.device(world.aor("bob")))["state"] == "waking"

    reborn = await world.registered(daemon, "bob", "TCP", push)
    answer, incoming = await in_time(call.final(), reborn.rings_and_answers())
    await in_time(call.hang_up(answer), incoming.hung_up())
    await daemon.log_event("wake_up", call_id=call.call_id)
    ladder = await admin.get("/api/ladder", call_id=call.call_id)
    assert (ladder["state"], ladder["status"]) == ("ended", 200)
    assert [(s["event"], s["source"], s["target"]) for s in ladder["steps"]] == [
        ("arrived", "caller", "sipush"),
        ("refused", "sipush", "caller"),
        ("arrived", "caller", "sipush"),
        ("routed", "sipush", "sipush"),
        ("told", "sipush", "caller"),
        ("push_sent", "sipush", "push"),
        ("push_finished", "push", "sipush"),
        ("device_registered", "phone", "sipush"),
        ("forwarded", "sipush", "phone"),
        ("response", "phone", "sipush"),
        ("told", "sipush", "caller"),
        ("response", "phone", "sipush"),
        ("answered", "sipush", "caller"),
        ("wake_up", "sipush", "sipush"),
        ("arrived", "caller", "sipush"),
        ("arrived", "caller", "sipush"),
        ("forwarded", "sipush", "phone"),
        ("response", "phone", "sipush"),
        ("answered", "sipush", "caller"),
    ]
    assert [s["text"] for s in ladder["steps"] if "caller" in (s["source"], s["target"])] == [
        f"INVITE sip:bob@{world.domain}",
        "407 Proxy Authentication Required",
        f"INVITE sip:bob@{world.domain}",
        "180 Ringing",
        "180 Ringing",
        "200 OK",
        "ACK",
        "BYE",
        "200 OK (BYE)",
    ]
    assert [step["after"] for step in ladder["steps"]] == sorted(
        step["after"] for step in ladder["steps"]
    )
    assert call.call_id not in str((await admin.get("/api/waking"))["calls"])
    listed = (await admin.get("/api/calls", user=world.domain))["calls"]
    assert [each["call_id"] for each in listed] == [call.call_id]


async def test_a_phone_that_is_silent_at_its_udp_address_is_waking(
    world: World, daemon: Daemon, admin: Admin
) -> None:
    await world.registered(daemon, "bob", "UDP", x_push(apns_token()))
    assert (await admin.device(world.aor("bob")))["state"] == "registered"
    alice = await world.phone(daemon, "alice")
    await alice.call("bob")
    await world.pushes.next()
    assert (await admin.device(world.aor("bob")))["state"] == "waking"
    listed = await admin.get("/api/locations", state="waking")
    assert world.aor("bob") in {user["aor"] for user in listed["users"]}


async def test_the_callee_s_bye_comes_from_the_called_side(
    world: World, daemon: Daemon, admin: Admin
) -> None:
    bob = await world.registered(daemon, "bob", "TCP", "")
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    _, incoming = await in_time(call.final(), bob.rings_and_answers())
    await in_time(incoming.hang_up(), call.hung_up())
    ladder = await admin.until(
        lambda found: found["state"] == "ended" and found, "/api/ladder", call_id=call.call_id
    )
    byes = [s for s in ladder["steps"] if s["text"].startswith("BYE") or "(BYE)" in s["text"]]
    assert [(s["source"], s["target"]) for s in byes][:2] == [
        ("phone", "sipush"),
        ("sipush", "caller"),
    ]


async def test_a_caller_who_gives_up_is_seen_to(world: World, daemon: Daemon, admin: Admin) -> None:
    await world.sleeping(daemon, "bob", "TCP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await world.pushes.next()
    await in_time(call.cancel(), call.final())
    ladder = await admin.get("/api/ladder", call_id=call.call_id)
    assert (ladder["state"], ladder["status"]) == ("failed", 487)
    events = [step["event"] for step in ladder["steps"]]
    assert events.index("cancel_received") < events.index("failed")


async def test_a_caller_with_a_wrong_password_is_seen_among_the_calls(
    world: World, daemon: Daemon, admin: Admin
) -> None:
    who = Account("alice", "wrong", world.domain)
    alice = await world.phone(daemon, "alice", who=who)
    call = await alice.call("bob")
    await call.expect(407)
    (listed,) = (await admin.get("/api/calls", user=world.domain))["calls"]
    assert (listed["state"], listed["status"]) == ("refused", 407)


async def test_what_had_become_of_a_call_is_known_after_a_crash(
    world: World, token_file: Path
) -> None:
    listen = {"listen": "127.0.0.1:0", "token_file": str(token_file)}
    few = {"calls": 4}  # none of them has one of the few places of calls that went nowhere
    daemon = await world.start(admin=listen | few, wake={"hold": 60.0, "probe": 0.25})
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "TCP", push)
    await world.sleeping(daemon, "carol", "TCP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    calls = []
    for user in ("bob", "carol", "carol"):
        calls.append(await alice.call(user))
        await world.pushes.next()
    reborn = await world.registered(daemon, "bob", "TCP", push)
    await in_time(calls[0].final(), reborn.rings_and_answers())
    await in_time(calls[1].cancel(), calls[1].final())
    await daemon.restart_after_kill()
    admin = Admin(await address_of(daemon), [])
    found = await admin.until(
        lambda found: len(found["calls"]) == len(calls) and found["calls"], "/api/calls"
    )
    states = {call["call_id"]: (call["state"], call["status"]) for call in found}
    assert [states[call.call_id] for call in calls] == [
        ("answered", 200),
        ("failed", 487),
        ("under way", None),
    ]
    ladder = await admin.get("/api/ladder", call_id=calls[1].call_id)
    assert ladder["steps"][1]["text"].endswith("has died, which had answered 487")


@pytest.mark.parametrize("device_os", ["ios", "android"])
async def test_a_push_test_reaches_the_device_without_ringing(
    world: World, daemon: Daemon, admin: Admin, device_os: str
) -> None:
    voip, alert = apns_token(), apns_token()
    token = f"{voip}|{alert}" if device_os == "ios" else fcm_token()
    admin.secrets.extend(token.split("|"))
    push = x_push(token, device_os)
    await world.sleeping(daemon, "bob", "TCP", push)
    response = await admin.test_push(world.aor("bob"))
    assert response.status_code == 200, response.text
    test = response.json()
    assert (test["result"], test["ring"]) == ("accepted", False)
    assert test["words"] == "the push service has accepted it"
    pushed = await world.pushes.next()
    assert pushed.push_id == test["id"]
    assert pushed.data["msg_type"] == "refresh"
    assert pushed.token == (alert if device_os == "ios" else token)
    await world.registered(daemon, "bob", "TCP", push)
    over = await admin.until(
        lambda found: next(
            (each for each in found["tests"] if each["id"] == test["id"] and each["over"]), None
        ),
        "/api/push-tests",
    )
    assert over["registered_after"] >= over["took"]
    assert len(world.pushes.all) == 1


async def test_a_test_that_rings_is_a_voip_push_to_ios_and_is_taken_back_on_android(
    world: World, daemon: Daemon, admin: Admin
) -> None:
    voip, token = apns_token(), fcm_token()
    await world.sleeping(daemon, "bob", "TCP", x_push(f"{voip}|{apns_token()}"))
    await world.sleeping(daemon, "carol", "TCP", x_push(token, "android"))
    for user, expected in (("bob", voip), ("carol", token)):
        response = await admin.test_push(world.aor(user), ring=True)
        assert response.json()["result"] == "accepted", response.text
        pushed = await world.pushes.next()
        assert (pushed.token, pushed.data["msg_type"]) == (expected, "audio")
    await world.registered(daemon, "carol", "TCP", x_push(token, "android"))
    taken_back = await world.pushes.next()
    assert (taken_back.token, taken_back.cancels) == (token, True)


async def test_a_dead_token_is_told_and_its_record_removed(
    world: World, daemon: Daemon, admin: Admin
) -> None:
    token = fcm_token()
    await world.sleeping(daemon, "bob", "TCP", x_push(token, "android"))
    world.pushes.refuse(token, 404, "UNREGISTERED")
    response = await admin.test_push(world.aor("bob"))
    test = response.json()
    assert (test["result"], test["reason"], test["status"]) == ("token-dead", "UNREGISTERED", 404)
    assert "start the app once" in test["words"]
    device = await admin.device(world.aor("bob"))
    assert (device["state"], device["push"]) == ("unreachable", None)


async def test_a_device_that_a_call_is_waking_is_not_pushed_for_a_test(
    world: World, daemon: Daemon, admin: Admin
) -> None:
    await world.sleeping(daemon, "bob", "TCP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    await alice.call("bob")
    await world.pushes.next()
    reason = is_refused(await admin.test_push(world.aor("bob")), 409)
    assert "a call is waking that device" in reason
    assert len(world.pushes.all) == 1


async def test_a_device_is_tested_once_at_a_time(
    world: World, daemon: Daemon, admin: Admin
) -> None:
    await world.sleeping(daemon, "bob", "TCP", x_push(fcm_token(), "android"))
    assert (await admin.test_push(world.aor("bob"))).status_code == 200
    assert "still running" in is_refused(await admin.test_push(world.aor("bob")), 409)
    assert len(world.pushes.all) == 1


@pytest.mark.parametrize("store_type", ["sqlite", "redis"], indirect=True)
async def test_users_are_listed_page_by_page(world: World, token_file: Path) -> None:
    listen = {"listen": "127.0.0.1:0", "token_file": str(token_file)}
    daemon = await world.start(admin=listen)
    for user in ("alice", "bob", "carol"):
        push = x_push(fcm_token(), "android") if user == "carol" else ""
        await world.registered(daemon, user, "UDP", push)
    admin = Admin(await address_of(daemon), [])
    seen, after = [], ""
    while after is not None:
        page = await admin.get("/api/locations", limit="2", after=after)
        seen.append([user["aor"] for user in page["users"]])
        after = page["next"]
    alice, bob, carol = map(world.aor, ("alice", "bob", "carol"))
    assert seen == [[alice, bob], [carol]]
    assert (await admin.get("/api/locations", state="asleep"))["users"] == []
    assert len((await admin.get("/api/locations", state="registered"))["users"]) == 3


@pytest.mark.parametrize("store_type", ["sqlite", "redis"], indirect=True)
async def test_a_user_who_cannot_be_read_is_named_among_the_others(
    world: World, token_file: Path, store_type: str
) -> None:
    listen = {"listen": "127.0.0.1:0", "token_file": str(token_file)}
    daemon = await world.start(admin=listen)
    for user in ("alice", "bob", "carol"):
        await world.registered(daemon, user, "UDP", "")
    bob = world.aor("bob")
    if store_type == "sqlite":
        with closing(sqlite3.connect(daemon.settings["store"]["sqlite"]["path"])) as file:
            file.execute("UPDATE devices SET cseq = 'what?' WHERE aor = ?", (bob,))
            file.commit()
    else:
        redis = daemon.settings["store"]["redis"]
        async with Redis.from_url(redis["url"]) as client:
            await client.hset(f"{redis['prefix']}:{{{bob}}}:devices", "spoilt", "what?")
    admin = Admin(await address_of(daemon), [])
    users = (await admin.get("/api/locations", state="registered"))["users"]
    assert [user["aor"] for user in users] == [*map(world.aor, ("alice", "bob", "carol"))]
    assert [bool(user["problem"]) for user in users] == [False, True, False]
    (found,) = (await admin.get("/api/locations", aor="bob"))["users"]
    assert bob in found["problem"]
    assert "cannot be read" in found["problem"]
    daemon.assert_no_traceback()


async def test_only_who_has_the_token_gets_in(admin: Admin) -> None:
    for wrong in ({"Authorization": "Bearer wrong"}, {"Authorization": ""}):
        for method, path in (("GET", "/api/calls"), ("GET", "/api/x"), ("POST", "/api/push-tests")):
            response = await admin.ask(method, path, headers=wrong)
            assert "token" in is_refused(response, 401)
            assert response.headers["www-authenticate"] == "Bearer"
    assert (await admin.ask("GET", "/", headers={"Authorization": ""})).status_code == 200


async def test_another_host_is_refused_everywhere(admin: Admin) -> None:
    for path in ("/", "/healthz", "/api/calls"):
        response = await admin.ask("GET", path, headers={"Host": "rebound.example.org"})
        assert "Host" in is_refused(response, 421)
    assert (await admin.ask("GET", "/", headers={"Host": "localhost:80"})).status_code == 200


async def test_who_keeps_a_request_to_himself_is_closed_and_keeps_nobody_out(admin: Admin) -> None:
    host, _, port = admin.address.rpartition(":")
    head = f"POST /api/push-tests HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n"
    body = "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    starts = ["", head, head + body, f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n{head}"]

    async def kept(start: str) -> bytes:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(start.encode())
        said = await reader.read()
        writer.close()
        return said

    said = await in_time(*map(kept, starts * 15))  # nearly as many as are served at once
    assert [text[:12] for text in said[:4]] == [b"", b"", b"HTTP/1.1 408", b"HTTP/1.1 200"]
    assert await admin.get("/healthz") == {"status": "alive"}


async def test_what_cannot_be_done_is_told_in_json(world: World, admin: Admin) -> None:
    test = {"aor": world.aor("bob"), "device": "00000000"}
    post = "/api/push-tests"
    assert "no device" in is_refused(await admin.ask("POST", post, json=test), 404)
    plain = {"Content-Type": "text/plain"}
    refused = await admin.ask("POST", post, content=json.dumps(test), headers=plain)
    assert "application/json" in is_refused(refused, 415)
    assert "allowed" in is_refused(await admin.ask("POST", post, json={"aor": 1}), 400)
    assert "JSON" in is_refused(await admin.ask("POST", post, json=[]), 400)
    json_type = {"Content-Type": "application/json"}
    deep = await admin.ask("POST", post, content="[" * 3900, headers=json_type)
    assert "JSON" in is_refused(deep, 400)
    for half in ('{"aor": "\\ud800", "device": "0"}', '{"aor": "bob", "device": "\\ud800"}'):
        refused = await admin.ask("POST", post, content=half, headers=json_type)
        assert "allowed" in is_refused(refused, 400)
    long = await admin.ask("POST", post, json={"aor": "x" * 5000})
    assert "4096" in is_refused(long, 413)
    for path in ("/api/none", "/api/ladder?call_id=none", "/none"):
        is_refused(await admin.ask("GET", path), 404)
    is_refused(await admin.ask("DELETE", "/api/calls"), 405)
    for query in ("limit=0", "limit=x", "limit=101", "after=zz", "state=dead"):
        reason = is_refused(await admin.ask("GET", f"/api/locations?{query}"), 400)
        assert reason.startswith(query.partition("=")[0])


async def test_who_leaves_in_the_middle_of_a_request_leaves_no_traceback(
    daemon: Daemon, admin: Admin
) -> None:
    said, (host, _, port) = len(daemon.log.all), admin.address.rpartition(":")
    for body in ("Content-Length: 9\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\nf\r\n{"):
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /api/push-tests HTTP/1.1\r\nHost: {admin.address}\r\n"
        access = f"Authorization: Bearer {admin.token}\r\nContent-Type: application/json\r\n"
        writer.write((head + access + body).encode())
        writer.write_eof()
        await in_time(reader.read())
        writer.close()
    assert (await admin.ask("GET", "/healthz")).status_code == 200
    daemon.assert_no_traceback(said)


async def test_without_a_token_loopback_may_look_and_nobody_may_act(world: World) -> None:
    daemon = await world.start(admin={"listen": "127.0.0.1:0"})
    admin = Admin(await address_of(daemon), [], token="none at all")
    assert (await admin.get("/api/calls"))["calls"] == []
    assert (await admin.get("/api/status"))["can_test"] is False
    test = {"aor": world.aor("bob"), "device": "00000000"}
    reason = is_refused(await admin.ask("POST", "/api/push-tests", json=test), 403)
    assert "admin.token_file" in reason


async def test_health_and_readiness_follow_the_server_to_its_end(
    world: World, token_file: Path
) -> None:
    changes = {"listen": "127.0.0.1:0", "token_file": str(token_file)}
    daemon = await world.start(admin=changes)
    admin = Admin(await address_of(daemon), [], token="none")
    assert await admin.get("/healthz") == {"status": "alive"}
    assert await admin.get("/readyz") == {"status": "ready"}
    await world.sleeping(daemon, "bob", "TCP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    await alice.call("bob")
    await world.pushes.next()  # which keeps it up
    daemon.terminate()
    await daemon.log_event("draining")
    assert "draining" in is_refused(await admin.ask("GET", "/readyz"), 503)
    assert await admin.get("/healthz") == {"status": "alive"}
    daemon.terminate()
    assert await daemon.ended() == 0


@pytest.mark.parametrize("store_type", ["redis"], indirect=True)
async def test_a_server_whose_store_is_gone_is_not_ready_until_it_is_back(
    world: World, own_redis_server: RedisServer
) -> None:
    world.store["redis"] |= {"url": own_redis_server.url, "timeout": 0.5}
    daemon = await world.start(admin={"listen": "127.0.0.1:0"})
    admin = Admin(await address_of(daemon), [], token="none")
    assert await admin.get("/readyz") == {"status": "ready"}
    own_redis_server.kill()
    assert "store" in is_refused(await admin.ask("GET", "/readyz"), 503)
    assert "store" in is_refused(await admin.ask("GET", "/api/locations?aor=bob"), 503)
    own_redis_server.start()
    assert await admin.get("/readyz") == {"status": "ready"}


@asynccontextmanager
async def full_disk(daemon: Daemon) -> AsyncIterator[None]:
    """Meanwhile no file of the daemon may grow."""
    let_files_grow(daemon, 0)
    yield
    let_files_grow(daemon, resource.RLIM_INFINITY)


@asynccontextmanager
async def no_memory(server: RedisServer) -> AsyncIterator[None]:
    """Meanwhile Redis takes nothing more."""
    async with Redis.from_url(server.url) as operator:
        await operator.config_set("maxmemory", "1")
        yield
        await operator.config_set("maxmemory", "0")


@asynccontextmanager
async def demoted(server: RedisServer) -> AsyncIterator[None]:
    """Meanwhile Redis follows another one, which is not there."""
    async with Redis.from_url(server.url) as operator:
        await operator.replicaof("127.0.0.1", "1")
        yield
        await operator.replicaof("NO", "ONE")


@pytest.mark.parametrize(
    ("store_type", "fault"),
    [("sqlite", full_disk), ("redis", no_memory), ("redis", demoted)],
    indirect=["store_type"],
)
async def test_a_server_whose_store_takes_nothing_is_not_ready_and_counts_who_was_told(
    world: World,
    own_redis_server: RedisServer,
    store_type: str,
    fault: Callable[[Any], AbstractAsyncContextManager[None]],
) -> None:
    if store_type == "redis":
        world.store["redis"]["url"] = own_redis_server.url
    metrics = {"listen": "127.0.0.1:0"}
    daemon = await world.start(admin={"listen": "127.0.0.1:0"}, metrics=metrics)
    admin = Admin(await address_of(daemon), [], token="none")
    counted = (await daemon.log_event("metrics_served"))["address"]
    bob = await world.registered(daemon, "bob", "UDP", "")
    assert await admin.get("/readyz") == {"status": "ready"}
    async with fault(daemon if store_type == "sqlite" else own_redis_server):
        assert (await bob.register()).response.status == 503
        assert "store cannot be used" in is_refused(await admin.ask("GET", "/readyz"), 503)
    samples = await read(counted)
    assert samples["sipush_registers_total outcome=failed"] == 1
    assert samples["sipush_registers_total outcome=refused"] == 0
    assert await admin.get("/readyz") == {"status": "ready"}
    assert (await bob.register()).response.status == 200


async def test_a_user_whom_nobody_knows_is_told_from_one_who_has_not_registered(
    world: World, admin: Admin
) -> None:
    for user, known in (("bob", True), ("nobody", False)):
        for scheme in ("", "sip:", "SIPS:"):
            (found,) = (await admin.get("/api/locations", aor=scheme + world.aor(user)))["users"]
            assert (found["devices"], found["known"]) == ([], known)


async def test_a_port_that_is_taken_is_told_before_anything_is_served(
    world: World, admin: Admin
) -> None:
    with pytest.raises(AssertionError, match="cannot_start") as caught:
        await world.start(admin={"listen": admin.address})
    assert f"admin {admin.address}: Address already in use" in str(caught.value)


async def test_nothing_is_served_unless_somebody_says_where(world: World) -> None:
    daemon = await world.start()
    assert "admin_served" not in {record["event"] for record in daemon.records}


async def test_a_new_token_counts_after_a_reload(world: World, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    listen = {"listen": "127.0.0.1:0", "token_file": str(token_file)}
    daemon = await world.start(admin=listen)
    admin = Admin(await address_of(daemon), [])
    token_file.write_text("short")
    daemon.reload()
    failed = await daemon.log_event("reload_failed")
    assert "admin.token_file" in failed["problems"][0]
    await admin.get("/api/status")
    token_file.write_text("another-token-that-nobody-guesses")
    daemon.settings["admin"]["listen"] = "127.0.0.1:1"
    daemon.reload()
    await daemon.log_event("reloaded")
    await daemon.log_event("restart_needed", section="admin")
    is_refused(await admin.ask("GET", "/api/status"), 401)
    await Admin(admin.address, [], token="another-token-that-nobody-guesses").get("/api/status")


async def test_what_is_open_keeps_its_token_until_the_restart_that_closes_it(
    world: World, token_file: Path
) -> None:
    listen = f"0.0.0.0:{free_port('0.0.0.0')}"
    daemon = await world.start(admin={"listen": listen, "token_file": str(token_file)})
    admin = Admin(listen.replace("0.0.0.0", "127.0.0.1"), [])
    for section in ({}, {"listen": "127.0.0.1:1"}, {"token_file": str(token_file)}):
        for _ in range(2):  # the second time the file is as it was before
            daemon.settings["admin"], said = section, len(daemon.log.all)
            daemon.reload()
            await daemon.log_event("restart_needed", start=said, section="admin")
            await daemon.log_event("reloaded", start=said)
            is_refused(await admin.ask("GET", "/api/status", headers={"Authorization": ""}), 401)
            await admin.get("/api/status")


async def test_on_loopback_a_token_can_be_taken_away(world: World, token_file: Path) -> None:
    listen = f"127.0.0.1:{free_port('127.0.0.1')}"
    daemon = await world.start(admin={"listen": listen, "token_file": str(token_file)})
    daemon.settings["admin"] = {"listen": listen}
    daemon.reload()
    await daemon.log_event("reloaded")
    admin = Admin(listen, [], token="none at all")
    assert (await admin.get("/api/status"))["can_test"] is False


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def browser(
    tmp_path_factory: pytest.TempPathFactory, push_log: Any
) -> AsyncIterator[Browser]:
    """A real one."""
    certificate = push_log.service.credentials.certificate_file
    browser = await Browser.start(tmp_path_factory.mktemp("chromium"), None, certificate)
    yield browser
    await browser.kill()


async def until(page: BrowserPhone, expression: str) -> Any:
    """Wait in the page until it is true; looked at whenever the page changes."""
    return await page.evaluate(
        f"""new Promise((resolve) => {{
            const look = () => {{
                const found = {expression};
                if (found) {{ seen.disconnect(); resolve(found); }}
            }};
            const seen = new MutationObserver(look);
            seen.observe(document, {{ subtree: true, childList: true, attributes: true,
                                      characterData: true }});
            look();
        }})"""
    )


async def test_the_page_shows_hostile_names_as_text_and_tests_a_push(
    world: World, daemon: Daemon, admin: Admin, browser: Browser
) -> None:
    token = fcm_token()
    bob = await world.phone(daemon, "bob", "TCP")
    await bob.register(x_push(token, "android"), headers=[f"User-Agent: {HOSTILE}"])
    alice = await world.phone(daemon, "alice")
    alice.display_name = HOSTILE
    call = await alice.call("bob")
    await (await bob.incoming()).refuse(486)
    assert (await call.final()).status == 486
    page = await browser.open(await browser.context(), f"http://{admin.address}/")
    await page.evaluate("violations = 0; document.addEventListener("
                        "'securitypolicyviolation', () => violations += 1); null")  # fmt: skip
    await until(page, "!document.getElementById('sign-in').hidden")
    await page.evaluate(f"$('token').value = {json.dumps(TOKEN)}; $('sign-in').requestSubmit()")
    await until(page, "!$('main').hidden && $('calls').children.length")
    shown = await until(
        page,
        f"[...$('calls').children].find((c) => c.textContent.includes('{world.domain}'))"
        "?.textContent",
    )
    assert HOSTILE in shown
    assert "486" in shown
    await page.evaluate(f"$('user').value = 'bob@{world.domain}'; $('find-users').requestSubmit()")
    device = "document.querySelector('#users .device')"
    text = await until(page, f"$('users').children.length === 1 && {device}?.textContent")
    assert HOSTILE in text
    await page.evaluate(f"{device}.querySelector('.test').click()")
    pushed = await world.pushes.next()
    assert pushed.token == token
    outcome = await until(page, f"{device}.querySelector('.outcome').textContent")
    assert "the push service has accepted it" in outcome
    ladder = (
        f"[...$('calls').children].find((c) => c.textContent.includes('{world.domain}')).firstChild"
    )
    await page.evaluate(f"{ladder}.open = true")
    steps = await until(page, f"{ladder}.querySelectorAll('.arrow').length")
    assert steps >= 6
    assert await page.evaluate("document.title") == "sipush"
    assert await page.evaluate("document.querySelectorAll('img').length") == 0
    assert await page.evaluate("violations") == 0


async def opened(browser: Browser, admin: Admin) -> BrowserPhone:
    """The page, with the token in it."""
    page = await browser.open(await browser.context(), f"http://{admin.address}/")
    await until(page, "!$('sign-in').hidden")
    await page.evaluate(f"$('token').value = {json.dumps(TOKEN)}; $('sign-in').requestSubmit()")
    await until(page, "!$('main').hidden")
    return page


async def test_a_call_forked_to_two_users_waits_twice_and_is_answered_once(
    world: World, daemon: Daemon, admin: Admin, browser: Browser
) -> None:
    pushes = {user: x_push(apns_token()) for user in ("bob", "carol")}
    for user, push in pushes.items():
        await world.sleeping(daemon, user, "TCP", push)
    pbx = await world.phone(daemon, "200", "TCP", ip=PBX)
    call_id = f"forked-{world.domain}"
    to_bob = await pbx.call("bob", challenged=False, call_id=call_id)
    to_carol = OutCall(pbx, f"sip:carol@{world.domain}", (), call_id, tag=to_bob.tag)
    to_carol.send_invite()
    for _ in pushes:
        await world.pushes.next()

    def mine(found: Any) -> list[Any]:
        return [call for call in found["calls"] if call["call_id"] == call_id]

    held = mine(await admin.get("/api/waking"))
    assert {call["callee"] for call in held} == set(map(world.aor, pushes))
    assert len({call["id"] for call in held}) == 2
    page = await opened(browser, admin)
    cards = f"[...$('waking').children].filter((c) => c.textContent.includes('{call_id}')).length"
    for _ in range(3):
        await page.evaluate("go()")
        assert await page.evaluate(cards) == 2
    await to_carol.cancel()
    assert (await to_carol.final()).status == 487
    (call,) = mine(await admin.get("/api/calls"))
    assert (call["state"], call["status"]) == ("under way", None)
    reborn = await world.registered(daemon, "bob", "TCP", pushes["bob"])
    await in_time(to_bob.final(), reborn.rings_and_answers())
    (call,) = mine(await admin.get("/api/calls"))
    assert (call["state"], call["status"]) == ("answered", 200)
    await page.evaluate("go()")
    assert await page.evaluate(cards) == 0


async def test_things_in_a_list_that_share_a_key_come_and_go_with_it(
    admin: Admin, browser: Browser
) -> None:
    page = await opened(browser, admin)
    await page.evaluate("list = el('ul'); null")
    for keys in ("aab", "aaab", "ba", "a", ""):
        await page.evaluate(
            f"each(list, [...'{keys}'], (k) => k, () => el('li'), (child, k) => put(child, k))"
        )
        assert await page.evaluate("list.textContent") == keys


async def test_a_page_that_shows_nobody_says_why(
    world: World, token_file: Path, browser: Browser
) -> None:
    daemon = await world.start(admin={"listen": "127.0.0.1:0", "token_file": str(token_file)})
    page = await opened(browser, Admin(await address_of(daemon), []))
    for user, state, words in (
        (f"nobody@{world.domain}", "", "There is no such user."),
        (f"sip:carol@{world.domain}", "", "The user has no device."),
        ("", "", "Nothing is registered."),
        ("", "unreachable", "No user has a device that is unreachable."),
    ):
        await page.evaluate(f"$('user').value = '{user}'; $('state').value = '{state}'; null")
        await page.evaluate("refreshUsers()")
        assert await page.evaluate("!$('no-users').hidden && $('no-users').textContent") == words
    await world.registered(daemon, "bob", "UDP", "")
    await page.evaluate(f"$('user').value = 'sip:bob@{world.domain}'; refreshUsers()")
    await until(page, "$('no-users').hidden && document.querySelector('#users .device')")
    spoilt = "{users: [{aor: 'a@b', devices: [], problem: 'spoilt'}], next: null}"
    told = "$('no-users').hidden && document.querySelector('#users .bad').textContent"
    assert await page.evaluate(f"showUsers({spoilt}); {told}") == "spoilt"


async def test_the_keyboard_stays_where_it_is(
    world: World, daemon: Daemon, admin: Admin, browser: Browser
) -> None:
    await world.sleeping(daemon, "bob", "TCP", x_push(fcm_token(), "android"))
    page = await browser.open(await browser.context(), f"http://{admin.address}/")
    assert await until(page, "document.activeElement.id") == "token"
    await page.evaluate(f"$('token').value = {json.dumps(TOKEN)}; $('sign-in').requestSubmit()")
    await until(page, "!$('main').hidden")
    await page.evaluate(f"$('user').value = 'bob@{world.domain}'; refreshUsers()")
    await page.evaluate("document.querySelector('#users .test').focus()")
    for _ in range(2):  # the second time while the test runs: nothing happens
        for type_ in ("keyDown", "keyUp"):
            key = {"key": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
            await browser.command("Input.dispatchKeyEvent", page.session, type=type_, **key)
        await until(page, "document.activeElement.ariaDisabled === 'true'")
        assert await page.evaluate("document.activeElement.className") == "test"
    await world.pushes.next()
    assert len(world.pushes.all) == 1


@pytest.mark.parametrize("width", [320, 769])
async def test_nothing_is_squeezed_into_slivers_on_a_narrow_screen(
    world: World, daemon: Daemon, admin: Admin, browser: Browser, width: int
) -> None:
    push = x_push(fcm_token(), "android")
    await world.sleeping(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await world.pushes.next()
    reborn = await world.registered(daemon, "bob", "TCP", push)
    answer, incoming = await in_time(call.final(), reborn.rings_and_answers())
    await in_time(call.hang_up(answer), incoming.hung_up())
    page = await opened(browser, admin)
    size = {"height": 800, "deviceScaleFactor": 1, "mobile": False}
    await browser.command("Emulation.setDeviceMetricsOverride", page.session, width=width, **size)
    await page.evaluate(f"$('user').value = 'bob@{world.domain}'; $('find-users').requestSubmit()")
    await until(page, "document.querySelector('#users .device .fact')?.textContent")
    shown = f"[...$('calls').children].find((c) => c.textContent.includes('{world.domain}'))"
    await page.evaluate(f"{shown}.firstChild.open = true")
    await until(page, f"{shown}.querySelectorAll('.arrow').length > 10")
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    narrowest = await page.evaluate(
        f"Math.min(...[...{shown}.querySelectorAll('.arrow, .remark'), "
        "...document.querySelectorAll('#users .fact')]"
        ".filter((e) => e.textContent).map((e) => e.offsetWidth))"
    )
    assert narrowest >= 120
    tallest = await page.evaluate(
        f"Math.max(...[...{shown}.querySelectorAll('.arrow, .remark')].map((e) => e.offsetHeight))"
    )
    assert tallest <= 6 * 22  # lines of a URI


async def test_the_page_runs_nothing_but_its_own_script(admin: Admin, browser: Browser) -> None:
    response = await admin.ask("GET", "/")
    policy = response.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'")
    assert re.findall(r"(?:src|href)\s*=", response.text) == []
    page = await browser.open(await browser.context(), f"http://{admin.address}/")
    caught = await page.evaluate(
        "(() => { try { document.body.innerHTML = '<b>'; return 'done'; }"
        " catch (error) { return error.name; } })()"
    )
    assert caught == "TypeError"
