"""The daemon dies, restarts, reloads, drains, and loses its store (O1)."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.daemon import APP, OTHER_APP, START_PATIENCE, in_time
from tests.e2e.process import Program
from tests.e2e.test_calls import IN_DIALOG
from tests.e2e.test_crash_during_hold import listening
from tests.e2e.wire import PATIENCE
from tests.e2e.world import World, apns_token, x_push
from tests.servers.redis_server import RedisServer


async def test_a_sleeping_phone_is_woken_after_kill_9_of_the_server(
    world: World, transport: str
) -> None:
    daemon = await world.start()
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", transport, push)
    await daemon.restart_after_kill()
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    pushed = await world.pushes.next()
    reborn = await world.registered(daemon, "bob", transport, push)
    answer, incoming = await in_time(call.final(), reborn.rings_and_answers())
    assert answer.status == 200
    assert incoming.push_id == pushed.push_id


async def test_a_udp_phone_is_still_called_after_kill_9_of_the_server(world: World) -> None:
    daemon = await world.start()
    bob = await world.registered(daemon, "bob", "UDP", x_push(apns_token()))
    await daemon.restart_after_kill()
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    answer, _ = await in_time(call.final(), bob.rings_and_answers())
    assert answer.status == 200
    assert world.pushes.all == []


async def test_a_tcp_phone_that_lost_its_server_is_woken_without_a_dial_out(world: World) -> None:
    daemon = await world.start()
    push = x_push(apns_token())
    bob = await world.registered(daemon, "bob", "TCP", push)
    await daemon.restart_after_kill()
    await bob.wire.closed.wait()
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await world.pushes.next()
    reborn = await world.registered(daemon, "bob", "TCP", push)
    answer, _ = await in_time(call.final(), reborn.rings_and_answers())
    assert answer.status == 200


async def test_a_reload_adds_a_user_and_an_app_and_keeps_the_held_call(world: World) -> None:
    daemon = await world.start()
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await world.pushes.next()

    daemon.settings["users"][world.aor("dave")] = {"ha1_md5": world.ha1("dave")}
    app = daemon.settings["apps"][APP]
    daemon.settings["apps"]["new"] = {"apns": {**app["apns"], "bundle_id": OTHER_APP}}
    daemon.reload()
    await daemon.log_event("reloaded")

    await world.sleeping(daemon, "dave", "TCP", x_push(apns_token(), app_id="new"))
    other = await alice.call("dave")
    assert (await world.pushes.next()).received.headers["apns-topic"] == f"{OTHER_APP}.voip"
    await in_time(other.cancel(), other.final())

    reborn = await world.registered(daemon, "bob", "TCP", push)
    answer, _ = await in_time(call.final(), reborn.rings_and_answers())
    assert answer.status == 200


def _wait_for_imports(pid: int) -> None:
    """Until that process reads the modules it needs, and has done nothing yet."""
    end = time.monotonic() + PATIENCE
    while "pydantic_core" not in Path("/proc", str(pid), "maps").read_text():
        assert time.monotonic() < end
        time.sleep(0.001)


async def test_signals_during_a_start_are_taken_when_it_can(world: World) -> None:
    daemon = await world.start()
    await daemon.stop()
    command = (sys.executable, "-m", "sipush.cli", "run", "--config", daemon.config)
    daemon.program = await Program.start(*command)
    await asyncio.to_thread(_wait_for_imports, daemon.program.process.pid)
    daemon.program.signal(signal.SIGHUP)
    daemon.program.signal(signal.SIGUSR1)
    for event in ("ready", "reloaded", "state"):
        await daemon.log_event(event, patience=START_PATIENCE)


@pytest.mark.parametrize("broken", [{"wakes": {}}, {}], ids=["unknown key", "empty file"])
async def test_a_broken_reload_changes_nothing(
    world: World, broken: dict[str, dict[str, str]]
) -> None:
    daemon = await world.start()
    daemon.settings = daemon.settings | broken if broken else {}
    daemon.reload()
    await daemon.log_event("reload_failed")
    bob = await world.phone(daemon, "bob")
    assert (await bob.register()).response.status == 200


async def test_a_reload_that_fails_names_all_files_that_cannot_be_used(
    world: World, tmp_path: Path
) -> None:
    daemon = await world.start()
    short = tmp_path / "short"
    short.write_text("short\n")
    webhook = {"url": "https://example.com", "secret_file": str(short)}
    daemon.settings["apps"]["com.example.web"] = {"webhook": webhook}
    daemon.settings["admin"] = {"token_file": str(short)}
    daemon.reload()
    failed = await daemon.log_event("reload_failed")
    assert [problem.partition(": ")[0] for problem in failed["problems"]] == [
        'apps."com.example.web".webhook.secret_file',
        "admin.token_file",
    ]


async def test_a_reload_changes_how_users_are_asked_who_they_are(world: World) -> None:
    daemon = await world.start()
    bob = await world.registered(daemon, "bob", "UDP", "")
    for registration, told in (
        ({"algorithms": ["SHA-256"]}, "algorithm=SHA-256"),
        ({"nonce_lifetime": 1e-06}, "stale=true"),
    ):
        daemon.settings["registration"], said = registration, len(daemon.log.all)
        daemon.reload()
        await daemon.log_event("reloaded", start=said)
        asked = (await bob.register()).response
        assert asked.status == 401
        assert told in asked["www-authenticate"]


async def test_sigterm_lets_a_held_call_be_answered_and_takes_no_new_one(
    world: World, transport: str
) -> None:
    daemon = await world.start()
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", transport, push)
    alice = await world.phone(daemon, "alice", transport)
    carol = await world.phone(daemon, "carol", transport)
    held = await alice.call("bob")
    await world.pushes.next()

    daemon.terminate()
    await daemon.log_event("draining")
    refused = await carol.call("bob")
    assert (await refused.final()).status == 503

    # A stop accepts no connections any more.
    reborn = await world.registered(daemon, "bob", "UDP", push)
    answer, _ = await in_time(held.final(), reborn.rings_and_answers())
    assert answer.status == 200
    assert await daemon.ended() == 0


async def test_a_call_that_was_answered_before_a_restart_can_be_hung_up_after_it(
    world: World,
) -> None:
    daemon = await world.start()
    bob = await world.registered(daemon, "bob", "UDP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    assert await daemon.stop() == 0
    await daemon.start()
    bye, _ = await in_time(call.hang_up(answer), incoming.hung_up())
    assert bye.status == 200


async def test_what_is_asked_inside_a_call_gets_through_after_a_restart_and_a_new_register(
    world: World, transport: str
) -> None:
    daemon = await world.start()
    push, own = x_push(apns_token()), x_push(apns_token())
    await world.sleeping(daemon, "bob", transport, push)
    alice = await world.registered(daemon, "alice", transport, own)
    call = await alice.call("bob")
    await world.pushes.next()
    bob = await world.registered(daemon, "bob", transport, push)
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    await daemon.restart_after_kill()
    # Both from another port, and with the Contact that the dialog does not know.
    call.phone = await world.registered(daemon, "alice", transport, own)
    incoming.phone = await world.registered(daemon, "bob", transport, push)
    for method, body in IN_DIALOG:
        accepted, _ = await in_time(
            call.request(answer, method, body), incoming.requested(method, body)
        )
        assert (accepted.status, accepted.body) == (200, body)
        if method == "INVITE":
            await incoming.expect("ACK")
        accepted, _ = await in_time(incoming.request(method, body), call.requested(method, body))
        assert (accepted.status, accepted.body) == (200, body)
        if method == "INVITE":
            await call.expect("ACK")
    bye, _ = await in_time(call.hang_up(answer), incoming.hung_up())
    assert bye.status == 200
    assert len(world.pushes.all) == 1


async def test_a_bye_waits_for_a_phone_that_has_not_come_back_yet(world: World) -> None:
    daemon = await world.start()
    push = x_push(apns_token())
    bob = await world.registered(daemon, "bob", "TCP", push)
    alice = await world.registered(daemon, "alice", "TCP", x_push(apns_token()))
    call = await alice.call("bob")
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    await daemon.restart_after_kill()
    # Alice is back, over another connection and with another Contact; bob is not.
    call.phone = await world.phone(daemon, "alice", "TCP")
    hanging_up = asyncio.create_task(call.hang_up(answer))
    await daemon.log_event("in_dialog_waits")
    incoming.phone = await world.registered(daemon, "bob", "TCP", push)
    await incoming.hung_up()
    assert (await hanging_up).status == 200


async def test_a_caller_with_a_new_connection_gets_the_bye_after_a_restart(world: World) -> None:
    daemon = await world.start()
    push, own = x_push(apns_token()), x_push(apns_token())
    bob = await world.registered(daemon, "bob", "UDP", push)
    alice = await world.registered(daemon, "alice", "TCP", own)
    call = await alice.call("bob")
    _, incoming = await in_time(call.final(), bob.rings_and_answers())
    await daemon.restart_after_kill()
    call.phone = await world.registered(daemon, "alice", "TCP", own)
    await in_time(incoming.hang_up(), call.hung_up())


async def test_a_caller_who_never_registered_is_called_back_after_a_restart(world: World) -> None:
    daemon = await world.start()
    bob = await world.registered(daemon, "bob", "UDP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice", "TCP")
    async with listening(alice):
        call = await alice.call("bob")
        _, incoming = await in_time(call.final(), bob.rings_and_answers())
        await daemon.restart_after_kill()
        hanging_up = asyncio.create_task(incoming.hang_up())
        assert (await alice.wire.expect("BYE"))["call-id"] == call.call_id
        hanging_up.cancel()


async def test_who_calls_back_reaches_no_other_server_of_the_caller_s_host(world: World) -> None:
    """The URI is the word of who calls back, who may want to write into a database there."""
    daemon = await world.start()
    bob = await world.registered(daemon, "bob", "UDP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice", "TCP")
    heard: list[bytes] = []

    class Database(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            heard.append(b"")

    database = await asyncio.get_running_loop().create_server(Database, "127.0.0.1", 0)
    port = database.sockets[0].getsockname()[1]
    call = await alice.call("bob")
    _, incoming = await in_time(call.final(), bob.rings_and_answers())
    await daemon.restart_after_kill()
    contact = f"<sip:alice@127.0.0.1:{port};transport=tcp>"
    headers = [(n, contact if n == "contact" else v) for n, v in incoming.invite.headers]
    incoming.invite.headers = headers
    assert (await incoming.request("INFO")).status == 480
    assert heard == []
    database.close()


async def test_a_register_that_is_repeated_around_a_restart_counts_once(world: World) -> None:
    daemon = await world.start()
    push = x_push(apns_token())
    await world.sleeping(daemon, "carol", "UDP", push)
    alice = await world.phone(daemon, "alice")
    held = await alice.call("carol")
    await world.pushes.next()
    bob = await world.registered(daemon, "bob", "UDP", x_push(apns_token()))

    daemon.terminate()
    await daemon.log_event("draining")
    again = await bob.resend_register()
    assert (again.status, len(again.all("contact"))) == (200, 1)
    await in_time(held.cancel(), held.final())
    assert await daemon.ended() == 0

    await daemon.start()
    challenged = await bob.resend_register()
    assert challenged.status == 401
    assert "stale=true" in challenged["www-authenticate"]
    renewed = (await bob.register()).response
    assert (renewed.status, len(renewed.all("contact"))) == (200, 1)
    call = await alice.call("bob")
    answer, _ = await in_time(call.final(), bob.rings_and_answers())
    assert answer.status == 200
    assert bob.wire.count("INVITE") == 1


async def test_an_idle_server_stops_at_once(world: World) -> None:
    daemon = await world.start()
    assert await daemon.stop() == 0


@pytest.mark.parametrize("store_type", ["redis"], indirect=True)
async def test_while_redis_is_away_registrations_are_refused_and_then_recover(
    world: World, own_redis_server: RedisServer, transport: str
) -> None:
    world.store["redis"]["url"] = own_redis_server.url
    daemon = await world.start()
    push = x_push(apns_token())
    bob = await world.registered(daemon, "bob", transport, push)
    own_redis_server.kill()
    refused = (await bob.register(push)).response
    own_redis_server.start()
    assert refused.status == 503
    assert int(refused["retry-after"]) > 0
    assert (await bob.register(push)).response.status == 200
