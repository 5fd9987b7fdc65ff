"""Subscribers are kept, and what changes meanwhile counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from sipush.config import RedisConfig, SqliteConfig
from sipush.core.bindings import Aor, Subscriber
from sipush.errors import LocationError
from sipush.location.redis import RedisStore
from sipush.location.sqlite import SqliteStore
from sipush.server.subscribers import Subscribers
from tests.server.stores import FallibleStore
from tests.servers.redis_server import RedisServer

AOR = "101@example.com"
OLD, NEW = Subscriber(AOR, "a" * 32), Subscriber(AOR, "b" * 32, hold=False)


class Clock:
    """Stands still."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


# -- A store that tells nobody --


async def test_what_nobody_tells_counts_after_ten_seconds(clock: Clock):
    store = FallibleStore()
    subscribers = Subscribers({}, store, clock)
    assert await subscribers.get(AOR) is None
    await store.put_subscriber(OLD)
    assert await subscribers.get(AOR) == OLD
    await store.put_subscriber(NEW)
    clock.now += 9.9
    assert await subscribers.get(AOR) == OLD
    clock.now += 0.2
    assert await subscribers.get(AOR) == NEW


async def test_while_the_store_is_silent_those_that_were_kept_are_users_still(clock: Clock):
    store = FallibleStore()
    subscribers = Subscribers({}, store, clock)
    await store.put_subscriber(OLD)
    await subscribers.get(AOR)
    store.down = True
    clock.now += 3600
    assert await subscribers.get(AOR) == OLD
    with pytest.raises(LocationError):
        await subscribers.get("102@example.com")


async def test_one_who_was_removed_does_not_come_back_while_the_store_is_silent(clock: Clock):
    store = FallibleStore()
    subscribers = Subscribers({}, store, clock)
    await store.put_subscriber(OLD)
    await subscribers.get(AOR)
    await store.remove_subscriber(AOR)
    clock.now += 11
    assert await subscribers.get(AOR) is None
    store.down = True
    with pytest.raises(LocationError):
        await subscribers.get(AOR)


async def test_users_of_the_configuration_win(clock: Clock):
    store = FallibleStore()
    await store.put_subscriber(NEW)
    subscribers = Subscribers({AOR: OLD}, store, clock)
    assert await subscribers.get(AOR) == OLD
    subscribers.replace({})
    assert await subscribers.get(AOR) == NEW


# -- A file can be asked --


class CountedStore(SqliteStore):
    """Counts how often a subscriber is read."""

    reads = 0

    async def subscriber(self, aor: Aor) -> Subscriber | None:
        self.reads += 1
        return await super().subscriber(aor)


@pytest.fixture
async def file_stores(tmp_path: Path) -> AsyncIterator[tuple[CountedStore, CountedStore]]:
    """Those of a daemon and of the CLI."""
    stores = [CountedStore(SqliteConfig(path=tmp_path / "sipush.db")) for _ in range(2)]
    for store in stores:
        await store.open()
    yield stores[0], stores[1]
    for store in stores:
        await store.close()


@pytest.mark.parametrize("by_whom", [0, 1])
async def test_a_change_in_a_file_counts_at_once_whoever_makes_it(
    file_stores: tuple[CountedStore, CountedStore], clock: Clock, by_whom: int
):
    subscribers = Subscribers({}, file_stores[0], clock)
    changing = file_stores[by_whom]
    for subscriber in (OLD, NEW, OLD):
        await changing.put_subscriber(subscriber)
        for _ in range(3):
            clock.now += 0.001
            assert await subscribers.get(AOR) == subscriber
    await changing.remove_subscriber(AOR)
    clock.now += 0.001
    assert await subscribers.get(AOR) is None


async def test_one_in_a_file_that_nobody_changes_is_read_once_in_ten_minutes(
    file_stores: tuple[CountedStore, CountedStore], clock: Clock
):
    store, _ = file_stores
    subscribers = Subscribers({}, store, clock)
    await store.put_subscriber(OLD)
    clock.now += 1
    for _ in range(599):
        clock.now += 1
        assert await subscribers.get(AOR) == OLD
    assert store.reads == 1
    clock.now += 2
    assert await subscribers.get(AOR) == OLD
    assert store.reads == 2


# -- Redis tells --


@pytest.fixture
async def store(own_redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    """The store of a daemon."""
    store = RedisStore(RedisConfig(url=own_redis_server.url, timeout=5))
    store.listen(lambda aor: None)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def other(own_redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    """The store of the CLI."""
    store = RedisStore(RedisConfig(url=own_redis_server.url))
    await store.open()
    yield store
    await store.close()


class Told:
    """Subscribers, and the changes that they were told of."""

    def __init__(self, store: RedisStore, clock: Clock) -> None:
        self.subscribers = Subscribers({}, store, clock)
        self._changes: asyncio.Queue[Aor | None] = asyncio.Queue()
        store.listen_to_subscribers(self._changes.put_nowait)

    async def get(self) -> Subscriber | None:
        return await self.subscribers.get(AOR)

    async def change(self) -> Aor | None:
        return await asyncio.wait_for(self._changes.get(), 10)


@pytest.fixture
async def told(store: RedisStore, other: RedisStore, clock: Clock) -> Told:
    """``OLD`` is known."""
    told = Told(store, clock)
    await other.put_subscriber(OLD)
    assert await told.get() == OLD
    return told


async def reads(redis_cli: Redis) -> int:
    statistics = await redis_cli.info("commandstats")
    return int(statistics["cmdstat_hgetall"]["calls"])


async def test_one_who_is_not_changed_is_read_once_in_ten_minutes(
    told: Told, redis_cli: Redis, clock: Clock
):
    for _ in range(599):
        clock.now += 1
        assert await told.get() == OLD
    assert await reads(redis_cli) == 1
    clock.now += 2
    assert await told.get() == OLD
    assert await reads(redis_cli) == 2


async def test_a_change_counts_at_once_and_the_next_one_too(told: Told, other: RedisStore):
    for subscriber in (NEW, OLD, NEW):
        await other.put_subscriber(subscriber)
        assert await told.change() == AOR
        assert await told.get() == subscriber


async def test_one_who_is_removed_is_none_at_once(told: Told, other: RedisStore):
    await other.remove_subscriber(AOR)
    assert await told.change() == AOR
    assert await told.get() is None
    await other.put_subscriber(NEW)
    assert await told.get() == NEW


async def test_a_change_by_hand_counts_too(told: Told, redis_cli: Redis):
    await redis_cli.hset(f"sipush:{{{AOR}}}:subscriber", "hold", "0")
    assert await told.change() == AOR
    assert await told.get() == Subscriber(AOR, "a" * 32, hold=False)
    await redis_cli.flushdb()
    assert await told.change() is None
    assert await told.get() is None


async def test_what_changes_while_it_is_read_is_not_kept(
    store: RedisStore, other: RedisStore, clock: Clock, own_redis_server: RedisServer
):
    told = Told(store, clock)
    await other.put_subscriber(OLD)
    for subscriber in (NEW, OLD, NEW, OLD):
        own_redis_server.pause()
        asked = asyncio.gather(*(told.get() for _ in range(20)), other.put_subscriber(subscriber))
        await asyncio.sleep(0)
        own_redis_server.resume()
        await asked
        while await told.get() != subscriber:
            assert await told.change() == AOR


async def test_what_changes_while_the_connection_is_broken_counts_when_it_is_back(
    told: Told, other: RedisStore, redis_cli: Redis
):
    await redis_cli.client_kill_filter(_type="pubsub", skipme=True)
    await other.put_subscriber(NEW)
    assert await told.change() is None
    assert await told.get() == NEW
    await other.put_subscriber(OLD)
    assert await told.change() == AOR
    assert await told.get() == OLD


async def test_without_the_right_to_track_they_are_kept_for_ten_seconds(
    other: RedisStore, redis_cli: Redis, own_redis_server: RedisServer, clock: Clock
):
    await redis_cli.execute_command("ACL", "SETUSER", "default", "-client")
    store = RedisStore(RedisConfig(url=own_redis_server.url))
    store.listen(lambda aor: None)
    await store.open()
    subscribers = Subscribers({}, store, clock)
    await other.put_subscriber(OLD)
    assert await subscribers.get(AOR) == OLD
    await other.put_subscriber(NEW)
    assert await subscribers.get(AOR) == OLD
    clock.now += 10.1
    assert await subscribers.get(AOR) == NEW
    await store.close()
