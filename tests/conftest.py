"""Fixtures that every kind of test may use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.redis_sentinel import RedisWithSentinel
from tests.servers.redis_server import RedisServer


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
def redis_with_sentinel() -> Iterator[RedisWithSentinel]:
    """Two of them, and who watches them."""
    servers = RedisWithSentinel()
    yield servers
    servers.close()
