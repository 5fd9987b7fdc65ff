"""What callers and phones see while something under the server fails: docs/faults.md."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.e2e.daemon import Daemon, in_time
from tests.e2e.fallback_server import FallbackServer
from tests.e2e.wire import OutCall, Phone
from tests.e2e.world import World, apns_token, x_push
from tests.servers.redis_relay import RedisRelay
from tests.servers.redis_sentinel import MASTER, RedisWithSentinel
from tests.servers.redis_server import RedisServer

ON_REDIS = pytest.mark.parametrize("store_type", ["redis"], indirect=True)
ON_SQLITE = pytest.mark.parametrize("store_type", ["sqlite"], indirect=True)


async def completes(call: OutCall, callee: Phone) -> None:
    """The call is answered, acknowledged and hung up."""
    answer, incoming = await in_time(call.final(), callee.rings_and_answers())
    assert answer.status == 200
    bye, _ = await in_time(call.hang_up(answer), incoming.hung_up())
    assert bye.status == 200


# -- Redis --


async def on_own_redis(world: World, server: RedisServer) -> Daemon:
    """A daemon on a Redis that may fail."""
    world.store["redis"]["url"] = server.url
    world.store["redis"]["timeout"] = 0.5
    return await world.start()


@asynccontextmanager
async def stopped(server: RedisServer) -> AsyncIterator[None]:
    """Redis is stalled meanwhile."""
    server.pause()
    try:
        yield
    finally:
        server.resume()


@ON_REDIS
async def test_calls_to_phones_seen_before_go_on_while_redis_is_down(
    world: World, own_redis_server: RedisServer, transport: str
) -> None:
    daemon = await on_own_redis(world, own_redis_server)
    bob = await world.registered(daemon, "bob", transport, x_push(apns_token()))
    alice = await world.phone(daemon, "alice", transport)
    own_redis_server.kill()
    refused = (await bob.register()).response
    assert (refused.status, bool(refused["retry-after"])) == (503, True)
    await completes(await alice.call("bob"), bob)
    unknown = await alice.call("carol")
    final = await unknown.final()
    assert (final.status, bool(final["retry-after"])) == (503, True)
    own_redis_server.start()
    assert (await bob.register()).response.status == 200


@ON_REDIS
async def test_a_caller_is_told_that_we_try_only_once_a_held_call_is_stored(
    world: World, own_redis_server: RedisServer
) -> None:
    daemon = await on_own_redis(world, own_redis_server)
    await world.sleeping(daemon, "bob", "TCP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    loop = asyncio.get_running_loop()
    own_redis_server.pause()
    resumed: list[float] = []

    def resume() -> None:
        resumed.append(loop.time())
        own_redis_server.resume()

    loop.call_later(0.35, resume)  # longer than RFC 3261 §17.2.1 gives us for the 100
    call = await alice.call("bob")
    trying = await call.expect(100)
    assert trying.at >= resumed[0]
    await world.pushes.next()


@ON_REDIS
async def test_calls_to_phones_seen_before_go_on_while_redis_is_stalled(
    world: World, own_redis_server: RedisServer
) -> None:
    daemon = await on_own_redis(world, own_redis_server)
    bob = await world.registered(daemon, "bob", "TCP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice", "TCP")
    async with stopped(own_redis_server):
        refused = (await bob.register()).response
        assert (refused.status, bool(refused["retry-after"])) == (503, True)
        await completes(await alice.call("bob"), bob)
    assert (await bob.register()).response.status == 200


@ON_REDIS
async def test_a_call_under_way_is_answered_and_hung_up_while_redis_is_down(
    world: World, own_redis_server: RedisServer
) -> None:
    daemon = await on_own_redis(world, own_redis_server)
    bob = await world.registered(daemon, "bob", "UDP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    incoming = await bob.incoming()
    own_redis_server.kill()
    answer, _ = await in_time(call.final(), incoming.answer())
    bye, _ = await in_time(call.hang_up(answer), incoming.hung_up())
    assert (answer.status, bye.status) == (200, 200)


@ON_REDIS
async def test_a_held_call_completes_when_redis_is_back_within_the_hold(
    world: World, own_redis_server: RedisServer
) -> None:
    daemon = await on_own_redis(world, own_redis_server)
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await world.pushes.next()
    own_redis_server.kill()
    reborn = await world.phone(daemon, "bob", "TCP")
    assert (await reborn.register(push)).response.status == 503
    own_redis_server.start()
    assert (await reborn.register(push)).response.status == 200
    await completes(call, reborn)


@ON_REDIS
async def test_a_push_is_not_sent_again_for_a_write_that_redis_carried_out_late(
    world: World, own_redis_server: RedisServer
) -> None:
    """The first state of a held call: the push goes out without it, and the server dies."""
    async with RedisRelay(own_redis_server.port) as relay:
        world.store["redis"] |= {"url": relay.url, "timeout": 0.5}
        daemon = await world.start()
        await world.sleeping(daemon, "bob", "TCP", x_push(apns_token()))
        alice = await world.phone(daemon, "alice")
        relay.stall_at(b"{held}:calls:")
        await alice.call("bob")
        await world.pushes.next()
        await daemon.kill()
        relay.go_on()
        await daemon.start()
        assert "call_resumed" not in {record["event"] for record in daemon.records}


@ON_REDIS
async def test_a_call_that_is_falling_back_when_the_server_dies_falls_back_in_the_next_life(
    world: World, own_redis_server: RedisServer
) -> None:
    async with RedisRelay(own_redis_server.port) as relay:
        world.store["redis"] |= {"url": relay.url, "timeout": 60.0}
        daemon = await world.start(
            wake={"hold": 0.5},
            users={world.aor("bob"): {"fallback": f"sip:{world.aor('carol')}"}},
        )
        await world.sleeping(daemon, "bob", "TCP", x_push(apns_token()))
        carol = await world.phone(daemon, "carol")
        await carol.register()
        alice = await world.phone(daemon, "alice")
        relay.stall_at(f"{{{world.aor('carol')}}}:devices".encode())
        call = await alice.call("bob")
        await relay.stalled.wait()
        await daemon.kill()
        relay.go_on()
        await daemon.start()
        answer, incoming = await in_time(call.final(), carol.rings_and_answers())
        assert answer.status == 200
        assert incoming.invite.all("diversion") == [
            f"<sip:{world.aor('bob')}>;reason=unavailable;counter=1"
        ]


async def that_helps(world: World, relay: RedisRelay, centre: FallbackServer) -> Daemon:
    """A daemon that would wait for Redis as long as it takes."""
    world.store["redis"] |= {"url": relay.url, "timeout": 60.0}
    address = {"country": "DE", "A3": "Berlin"}
    return await world.start(
        emergency={
            "numbers": ["112"],
            "route": [centre.uri("psap")],
            "addresses": {world.aor("alice"): address},
        }
    )


@ON_REDIS
async def test_an_emergency_call_does_not_wait_for_the_calls_of_an_earlier_life(
    world: World, own_redis_server: RedisServer
) -> None:
    async with FallbackServer() as centre, RedisRelay(own_redis_server.port) as relay:
        daemon = await that_helps(world, relay, centre)
        await daemon.kill()
        relay.stall_at(b":leases")
        starting = asyncio.create_task(daemon.start())
        await relay.stalled.wait()
        alice = await world.phone(daemon, "alice")
        ordinary = await alice.call("bob", challenged=False)
        call = await alice.call("112", challenged=False)
        answer, incoming = await in_time(call.final(), centre.answers(daemon))
        assert answer.status == 200
        await in_time(call.hang_up(answer), incoming.hung_up())
        assert {msg["call-id"] for msg in alice.wire.seen} == {call.call_id}
        relay.go_on()
        await ordinary.expect(407)
        await starting


@ON_REDIS
@pytest.mark.parametrize("seen_before", [True, False])
async def test_an_emergency_call_does_not_wait_for_a_silent_store(
    world: World, own_redis_server: RedisServer, seen_before: bool
) -> None:
    async with FallbackServer() as centre, RedisRelay(own_redis_server.port) as relay:
        daemon = await that_helps(world, relay, centre)
        alice = await world.phone(daemon, "alice")
        if seen_before:
            await alice.register()
        relay.stall_at(b"")
        call = await alice.call("112", challenged=False)
        answer, incoming = await in_time(call.final(), centre.answers(daemon))
        assert answer.status == 200
        assert bool(incoming.invite["geolocation"]) is seen_before
        await in_time(call.hang_up(answer), incoming.hung_up())
        relay.go_on()


@ON_REDIS
async def test_after_redis_lost_its_data_the_next_register_registers_anew(
    world: World, own_redis_server: RedisServer
) -> None:
    daemon = await on_own_redis(world, own_redis_server)
    push = x_push(apns_token())
    bob = await world.registered(daemon, "bob", "TCP", push)
    alice = await world.phone(daemon, "alice")
    own_redis_server.kill()
    own_redis_server.start()
    assert (await (await alice.call("bob")).final()).status == 480
    assert (await bob.register(push)).response.status == 200
    await completes(await alice.call("bob"), bob)


@ON_REDIS
async def test_with_redis_out_of_memory_phones_wait_and_calls_go_on(
    world: World, own_redis_server: RedisServer
) -> None:
    daemon = await on_own_redis(world, own_redis_server)
    bob = await world.registered(daemon, "bob", "TCP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    operator = Redis.from_url(own_redis_server.url)
    await operator.config_set("maxmemory", "1")
    refused = (await bob.register()).response
    assert (refused.status, bool(refused["retry-after"])) == (503, True)
    await completes(await alice.call("bob"), bob)
    await operator.config_set("maxmemory", "0")
    await operator.aclose()
    assert (await bob.register()).response.status == 200


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), "OOM"),
        (("REPLICAOF", "127.0.0.1", "1"), "READONLY"),
    ],
)
@ON_REDIS
async def test_a_start_on_a_store_that_cannot_be_written_says_why(
    world: World, own_redis_server: RedisServer, fault: tuple[str, ...], reason: str
) -> None:
    async with Redis.from_url(own_redis_server.url) as operator:
        await operator.execute_command(*fault)
    with pytest.raises(AssertionError, match=f"{reason}.*cannot_start") as caught:
        await on_own_redis(world, own_redis_server)
    assert "Traceback" not in str(caught.value)


@ON_REDIS
async def test_a_registration_elsewhere_that_was_missed_releases_the_call_afterwards(
    world: World, own_redis_server: RedisServer
) -> None:
    world.store["redis"]["url"] = own_redis_server.url
    here = await world.start(wake={"hold": 20.0, "probe": 0.25})
    there = await world.start()
    push = x_push(apns_token())
    await world.sleeping(here, "bob", "UDP", push)
    alice = await world.phone(here, "alice")
    call = await alice.call("bob")
    await world.pushes.next()
    operator = Redis.from_url(own_redis_server.url)
    (hearing,) = [
        client
        for client in await operator.client_list(_type="pubsub")
        if client["addr"] in await addresses(here)
    ]
    await operator.client_kill_filter(_id=hearing["id"])
    reborn = await world.phone(there, "bob", "UDP")
    reborn.wire.server = there.at("UDP")
    assert (await reborn.register(push)).response.status == 200
    await operator.aclose()
    await here.log_event("device_registered")
    await in_time(call.cancel(), call.final())


async def addresses(daemon: Daemon) -> set[str]:
    """Our ends of the TCP connections of a process, as Redis writes them."""
    assert daemon.program is not None
    directory = Path(f"/proc/{daemon.program.process.pid}")
    inodes = {os.readlink(link) for link in (directory / "fd").iterdir()}
    rows = [line.split() for line in (directory / "net/tcp").read_text().splitlines()[1:]]
    return {
        f"127.0.0.1:{int(row[1].partition(':')[2], 16)}"
        for row in rows
        if f"socket:[{row[9]}]" in inodes
    }


@ON_REDIS
async def test_after_a_failover_phones_come_back_and_sleepers_are_woken(
    world: World, redis_with_sentinel: RedisWithSentinel
) -> None:
    redis = world.store["redis"]
    redis |= {"sentinels": [redis_with_sentinel.address], "master": MASTER, "timeout": 0.5}
    daemon = await world.start()
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "TCP", push)
    await asyncio.to_thread(redis_with_sentinel.replicated)
    redis_with_sentinel.primary.kill()
    refused = (await (await world.phone(daemon, "carol")).register()).response
    assert (refused.status, bool(refused["retry-after"])) == (503, True)
    await asyncio.to_thread(redis_with_sentinel.failed_over)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await world.pushes.next()
    bob = await world.registered(daemon, "bob", "TCP", push)
    await completes(call, bob)


# -- the disk --


@ON_SQLITE
async def test_with_a_full_disk_phones_wait_and_calls_go_on(world: World) -> None:
    daemon = await world.start()
    bob = await world.registered(daemon, "bob", "TCP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    let_files_grow(daemon, 0)
    refused = (await bob.register()).response
    assert (refused.status, bool(refused["retry-after"])) == (503, True)
    await completes(await alice.call("bob"), bob)
    let_files_grow(daemon, resource.RLIM_INFINITY)
    assert (await bob.register()).response.status == 200


def let_files_grow(daemon: Daemon, size: int) -> None:
    """Bytes that a file of the daemon may have."""
    assert daemon.program is not None
    pid = daemon.program.process.pid
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@ON_SQLITE
async def test_while_another_process_locks_the_file_phones_wait_and_calls_go_on(
    world: World,
) -> None:
    daemon = await world.start()
    bob = await world.registered(daemon, "bob", "TCP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    other = sqlite3.connect(world.store["sqlite"]["path"], isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    refused, _ = await in_time(bob.register(), rings(alice, "bob", bob))
    assert (refused.response.status, bool(refused.response["retry-after"])) == (503, True)
    other.execute("ROLLBACK")
    other.close()
    assert (await bob.register()).response.status == 200


async def rings(caller: Phone, user: str, callee: Phone) -> None:
    """A call completes."""
    await completes(await caller.call(user), callee)


# -- names --

SILENT = """
import socket, threading
answered = socket.getaddrinfo
def getaddrinfo(host, *rest, **more):
    if str(host).endswith(".example.net"):
        threading.Event().wait(60)
    return answered(host, *rest, **more)
socket.getaddrinfo = getaddrinfo
"""


@ON_SQLITE
async def test_a_silent_name_server_holds_up_only_the_calls_that_need_the_name(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SILENT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    users = {world.aor("carol"): {"fallback": "sip:carol@pbx.example.net"}}
    daemon = await world.start(users=users)
    alice = await world.phone(daemon, "alice")
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "TCP", push)
    stuck = [await alice.call("carol") for _ in range(20)]
    call = await alice.call("bob")
    await world.pushes.next()
    bob = await world.registered(daemon, "bob", "TCP", push)
    await completes(call, bob)
    assert all(not alice.wire.count(status) for status in (480, 500, 503))
    finals = await in_time(*(call.final() for call in stuck))
    assert {final.status for final in finals} == {480}


# -- the process --


@ON_SQLITE
async def test_without_file_descriptors_for_more_phones_everything_else_goes_on(
    world: World,
) -> None:
    daemon = await world.start()
    bob = await world.registered(daemon, "bob", "TCP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    assert daemon.program is not None
    pid = daemon.program.process.pid
    used = len(os.listdir(f"/proc/{pid}/fd"))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 10, used + 10))
    crowd = [world.adopt(await world.phone(daemon, "carol", "TCP")) for _ in range(30)]
    await daemon.log_event("out_of_file_descriptors")
    await completes(await alice.call("bob"), bob)
    for phone in crowd[:25]:
        phone.kill()
    welcome = await world.phone(daemon, "carol", "TCP")
    assert (await welcome.register()).response.status == 200
    told = sum(record["event"] == "out_of_file_descriptors" for record in daemon.records)
    assert told < 10


@ON_SQLITE
async def test_a_process_that_was_stopped_says_how_long_and_goes_on(world: World) -> None:
    daemon = await world.start()
    bob = await world.registered(daemon, "bob", "UDP", x_push(apns_token()))
    assert daemon.program is not None
    daemon.program.signal(signal.SIGSTOP)
    await asyncio.sleep(0.6)  # the fault itself
    daemon.program.signal(signal.SIGCONT)
    assert (await daemon.log_event("event_loop_blocked"))["seconds"] > 0.3
    assert (await bob.register()).response.status == 200


@ON_SQLITE
async def test_while_nobody_reads_the_log_calls_go_on(world: World) -> None:
    daemon = await world.start()
    alice = await world.phone(daemon, "alice")
    bob = await world.registered(daemon, "bob", "UDP", x_push(apns_token()))
    assert daemon.program is not None
    said = len(daemon.log.all)
    with daemon.program.unread(4096):
        for _ in range(40):  # far more than fits
            daemon.program.signal(signal.SIGUSR1)
            assert (await bob.register()).response.status == 200
        await completes(await alice.call("bob"), bob)
    call = await alice.call("bob")
    await daemon.log_event("routed", start=said, call_id=call.call_id)
    await completes(call, bob)
    assert "log_lines_lost" not in {record["event"] for record in daemon.records}


@ON_SQLITE
async def test_after_the_reader_of_the_log_has_gone_calls_go_on(world: World) -> None:
    daemon = await world.start()
    alice = await world.phone(daemon, "alice")
    bob = await world.registered(daemon, "bob", "UDP", x_push(apns_token()))
    assert daemon.program is not None
    daemon.program.close_output()
    for _ in range(3):
        daemon.program.signal(signal.SIGUSR1)
        await completes(await alice.call("bob"), bob)
