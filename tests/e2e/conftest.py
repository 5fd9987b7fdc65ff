"""Fixtures of the end-to-end tests: stores, push services and the world around a daemon."""

from __future__ import annotations

import os
import statistics
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from sipush.demo.credentials import Credentials
from sipush.demo.push_service import PushService
from tests.e2e.asterisk import fetched
from tests.e2e.daemon import APP, OTHER_APP
from tests.e2e.pushes import PushLog
from tests.e2e.shared import SharedDaemons, Stores
from tests.e2e.world import World
from tests.servers.redis_server import RedisServer

_HERE = Path(__file__).parent
_WAKE_TIMES = "wake times"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One event loop for all tests here: the daemons they share live as long as it does."""
    marker = pytest.mark.asyncio(loop_scope="session")
    for item in items:
        if _HERE in item.path.parents and pytest_asyncio.is_async_test(item):
            item.add_marker(marker, append=False)


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    """What Apple and Google issued."""
    return Credentials.create(tmp_path_factory.mktemp("credentials"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def push_log(credentials: Credentials) -> AsyncIterator[PushLog]:
    """The push services, and everything they got."""
    log = PushLog()
    with PushService(credentials, app_ids=(APP, OTHER_APP), on_push=log.received) as service:
        log.service = service
        yield log
    log.assert_no_rule_broken()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_daemons(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    push_log: PushLog,
    redis_server: RedisServer,
) -> AsyncIterator[SharedDaemons]:
    """Daemons for all tests that want the same settings and do not stop them."""
    tests = sum(_HERE in item.path.parents for item in request.session.items)
    stores = Stores(redis_server, tmp_path_factory.mktemp("stores"))
    shared = SharedDaemons(tmp_path_factory.mktemp("daemons"), stores, push_log, tests)
    yield shared
    await shared.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def asterisk_root() -> Path:
    """Where Asterisk is."""
    return await fetched()


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


@pytest_asyncio.fixture(loop_scope="session")
async def world(
    tmp_path: Path, store_type: str, shared_daemons: SharedDaemons
) -> AsyncIterator[World]:
    """A daemon's surroundings; everything in it ends with the test."""
    world = World(tmp_path, store_type, shared_daemons)
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
    times: list[float] = []
    request.node.user_properties.append((_WAKE_TIMES, times))
    return times


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how fast phones were woken; nothing depends on it."""
    for report in terminalreporter.stats.get("passed", []):
        if times := dict(report.user_properties).get(_WAKE_TIMES):
            median, worst = statistics.median(times) * 1000, max(times) * 1000
            terminalreporter.write_line(
                f"{report.nodeid}: {len(times)} wake-ups, "
                f"REGISTER to INVITE {median:.2f} ms median, {worst:.2f} ms worst"
            )
