"""Fixtures that every kind of test may use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis

from tests.servers.redis_sentinel import RedisWithSentinel
from tests.servers.redis_server import RedisServer

# A busy machine is no fault of what is tested, nor of the examples.
settings.register_profile(
    "whatever the load", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("whatever the load")


def pytest_configure() -> None:
    """A compiled module hides the file that it was made from: never test yesterday's."""
    for compiled in Path("sipush").rglob("*.so"):
        source = compiled.with_name(compiled.name.partition(".")[0] + ".py")
        if source.exists() and source.stat().st_mtime > compiled.stat().st_mtime:
            pytest.exit(f"{source} has changed since make compile: again, or make uncompile", 1)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One Redis for the whole run: use a key prefix of your own, and do not stop it."""
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def own_redis_server() -> Iterator[RedisServer]:
    """A Redis to be killed, stalled or flushed."""
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
async def redis_cli(own_redis_server: RedisServer) -> AsyncIterator[Redis]:
    """What an operator sees and does there."""
    async with Redis.from_url(own_redis_server.url, decode_responses=True) as client:
        yield client


@pytest.fixture
def redis_with_sentinel() -> Iterator[RedisWithSentinel]:
    """Two of them, and who watches them."""
    servers = RedisWithSentinel()
    yield servers
    servers.close()
