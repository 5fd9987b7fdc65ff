"""Fixtures of the end-to-end tests: stores, push services and the world around a daemon."""

from __future__ import annotations

import os
import secrets
import statistics
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from sipush.demo.credentials import Credentials
from sipush.demo.push_service import PushService
from tests.e2e.daemon import APP
from tests.e2e.pushes import Pushes
from tests.e2e.world import World
from tests.servers.redis_server import RedisServer

OTHER_APP = "com.example.other"
_WAKE_TIMES = pytest.StashKey[dict[str, list[float]]]()


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    """What Apple and Google issued."""
    return Credentials.create(tmp_path_factory.mktemp("credentials"))


@pytest.fixture
def pushes(credentials: Credentials) -> Iterator[Pushes]:
    """The push services."""
    with PushService(credentials, app_ids=(APP, OTHER_APP)) as service:
        yield Pushes(service)


@pytest.fixture(params=["UDP", "TCP"])
def transport(request: pytest.FixtureRequest) -> str:
    """How the phones of a test speak."""
    name: str = request.param
    return name


@pytest.fixture(params=["sqlite", "redis"])
def store_type(request: pytest.FixtureRequest) -> str:
    """Where the daemon of a test stores."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One Redis for all tests; each has its own prefix in it."""
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def store(store_type: str, request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """``[store]`` of a daemon: an empty SQLite file or an empty corner of a real Redis."""
    if store_type == "redis":
        redis: RedisServer = request.getfixturevalue("redis_server")
        prefix = f"test-{secrets.token_hex(4)}"
        return {"type": "redis", "redis": {"url": redis.url, "prefix": prefix}}
    return {"type": "sqlite", "sqlite": {"path": str(tmp_path / "sipush.db")}}


@pytest.fixture
async def world(tmp_path: Path, store: dict[str, Any], pushes: Pushes) -> AsyncIterator[World]:
    """A daemon's surroundings; everything in it ends with the test."""
    world = World(tmp_path, store, pushes)
    try:
        yield world
    finally:
        await world.close()


@pytest.fixture
def cycles() -> int:
    """How many wake-ups in a row: ``SIPUSH_CYCLES=200`` for the long form."""
    return int(os.environ.get("SIPUSH_CYCLES", "20"))


@pytest.fixture
def wake_times(request: pytest.FixtureRequest) -> list[float]:
    """Seconds from REGISTER sent to INVITE received, reported at the end of the run."""
    times = request.config.stash.setdefault(_WAKE_TIMES, {})
    return times.setdefault(request.node.name, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how fast phones were woken; nothing depends on it."""
    for name, times in terminalreporter.config.stash.get(_WAKE_TIMES, {}).items():
        if times:
            median, worst = statistics.median(times) * 1000, max(times) * 1000
            terminalreporter.write_line(
                f"{name}: {len(times)} wake-ups, REGISTER to INVITE {median:.2f} ms median, "
                f"{worst:.2f} ms worst"
            )
