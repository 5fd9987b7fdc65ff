"""A regression check that no other load on the machine can disturb: how many functions are called.

The limits are what was needed when they were last set, and a tenth. Whoever goes above one has
made the hot path longer; whoever goes well below lowers it.
"""

import gc
import io
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import FrameType

import pytest
import structlog

from sipush import logs
from tests.bench.in_process import Server, configuration


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    config = configuration(tmp_path)
    handlers = logging.getLogger().handlers[:]
    logs.configure(config.log, io.StringIO())
    yield Server(config)
    structlog.reset_defaults()
    logging.getLogger().handlers[:] = handlers


async def calls_of(operation: Callable[[], Awaitable[bytes]]) -> int:
    """How many functions, Python's own included, are called when everything is warm.

    The least of some runs: in one of them something may be due that is seldom done.
    """
    counts = []
    count = 0

    def count_calls(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    gc.disable()
    for _ in range(5):
        count = 0
        sys.setprofile(count_calls)
        try:
            answer = await operation()
        finally:
            sys.setprofile(None)
        assert answer.startswith(b"SIP/2.0 200 ")
        counts.append(count)
    gc.enable()
    return min(counts)


@pytest.mark.parametrize(
    ("name", "limit"),
    [("register", 1250), ("refresh", 930), ("call", 3350), ("message", 980), ("wake", 5750)],
)
async def test_an_operation_takes_no_more_calls_than_before(
    server: Server, name: str, limit: int
) -> None:
    await server.register()
    assert await calls_of(getattr(server, name)) <= limit
