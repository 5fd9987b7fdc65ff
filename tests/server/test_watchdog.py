"""The watchdog: what blocks the event loop is named."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from sipush.server.watchdog import INTERVAL, LIMIT, Watchdog


@pytest.fixture
async def watchdog() -> AsyncIterator[Watchdog]:
    watchdog = Watchdog()
    yield watchdog
    watchdog.stop()


async def test_what_blocks_the_loop_is_told_once_with_its_stack(watchdog: Watchdog) -> None:
    with capture_logs() as log:
        hold_everybody_up(0.8)
        await asyncio.sleep(INTERVAL)  # the next sign of life is due by then
    (told,) = log
    assert told["event"] == "event_loop_blocked"
    assert told["seconds"] > 0.5
    assert told["by"][-1].endswith(" hold_everybody_up")


async def test_a_loop_that_only_waits_is_not_blocked(watchdog: Watchdog) -> None:
    with capture_logs() as log:
        await asyncio.sleep(INTERVAL + 2 * LIMIT)  # not for something to happen: for nothing to
    assert log == []


def hold_everybody_up(seconds: float) -> None:
    time.sleep(seconds)  # the fault itself
