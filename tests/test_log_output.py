"""A log that nobody reads, or that cannot be written, holds up nothing and is told of later."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pty
import socket
import subprocess
import sys
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
import structlog

from sipush import logs
from sipush.config import LogConfig

PATIENCE = 20.0
MANY = 30_000
"Lines of more than MOST_KEPT and what pipes hold."


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def _sockets() -> tuple[int, int]:
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def _terminal() -> tuple[int, int]:
    reader, writer = pty.openpty()
    tty.setraw(writer)
    return reader, writer


@pytest.fixture(params=[os.pipe])
def pipe(request: pytest.FixtureRequest) -> Iterator[tuple[int, TextIO]]:
    """Where it is read, and where the log goes."""
    reader, writer = request.param()
    with open(writer, "w", encoding="utf-8") as stream:
        yield reader, stream


@pytest.fixture
def full() -> Iterator[TextIO]:
    """A device on which there is never room."""
    with Path("/dev/full").open("w", encoding="utf-8") as stream:
        yield stream


@pytest.fixture
def errors() -> list[dict[str, Any]]:
    """What the event loop of a test complains of."""
    return []


def start(stream: TextIO) -> Callable[..., None]:
    logs.configure(LogConfig(format="json"), stream)
    info: Callable[..., None] = structlog.get_logger().info
    return info


async def turns(count: int = 20) -> None:
    """What a flush would set off has happened, if it sets off anything."""
    for _ in range(count):
        await asyncio.sleep(0)


async def read_until(reader: int, event: str) -> list[dict[str, Any]]:
    """The records up to the first ``event``."""

    def read() -> list[dict[str, Any]]:
        said = b""
        while f'"event":"{event}"'.encode() not in said or not said.endswith(b"\n"):
            said += os.read(reader, 65_536)
        return [json.loads(line) for line in said.splitlines()]

    async with asyncio.timeout(PATIENCE):
        return await asyncio.to_thread(read)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("pipe", [os.pipe, _sockets, _terminal], indirect=True)
async def test_a_reader_who_stalls_holds_up_nothing_and_is_told_what_is_missing(
    pipe: tuple[int, TextIO],
) -> None:
    reader, stream = pipe
    say = start(stream)
    for number in range(MANY):  # would wait for ever
        say("one", number=number)
        if number % 100 == 0:
            await turns(1)
    say("last")
    await turns()
    *records, told = await read_until(reader, "log_lines_lost")
    numbers = [record["number"] for record in records]
    assert numbers == list(range(len(numbers)))  # in order, none in between
    assert len(numbers) + told["count"] == MANY + 1
    assert told["level"] == "warning"
    say("after")
    assert [record["event"] for record in await read_until(reader, "after")] == ["after"]


async def test_what_a_slow_reader_takes_later_is_not_lost(pipe: tuple[int, TextIO]) -> None:
    reader, stream = pipe
    say = start(stream)
    for number in range(2000):
        say("one", number=number)
    await turns()
    say("last")
    records = await read_until(reader, "last")
    assert [record.get("number") for record in records] == [*range(2000), None]


async def test_a_full_device_costs_its_lines_and_nothing_else(
    pipe: tuple[int, TextIO], full: TextIO, errors: list[dict[str, Any]]
) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    reader, writer = pipe
    say = start(full)
    for _ in range(3):
        say("lost")
        await turns()
    os.dup2(writer.fileno(), full.fileno())  # there is room again
    say("after")
    records = await read_until(reader, "after")
    assert [(each["event"], each.get("count")) for each in records] == [
        ("log_lines_lost", 3),
        ("after", None),
    ]
    assert errors == []


async def test_a_reader_who_has_gone_costs_its_lines_and_nothing_else(
    pipe: tuple[int, TextIO], errors: list[dict[str, Any]]
) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    reader, stream = pipe
    say = start(stream)
    os.close(reader)
    for _ in range(3):
        say("lost")
        await turns()
    assert errors == []


FULL_DISK = """
import resource, signal, sys, structlog
from sipush import logs
from sipush.config import LogConfig
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
logs.configure(LogConfig(), sys.stderr)
say = structlog.get_logger().info
say("before")
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
say("cut", text="x" * 200)
say("lost")
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
say("after")
"""


def test_a_file_that_is_full_loses_lines_and_the_next_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w") as stream:
        subprocess.run([sys.executable, "-c", FULL_DISK], stderr=stream, check=True, timeout=60)
    before, cut, told, after = path.read_text().splitlines()
    assert json.loads(before)["event"] == "before"
    assert cut.startswith('{"text":"xxx')
    assert (json.loads(told)["event"], json.loads(told)["count"]) == ("log_lines_lost", 2)
    assert json.loads(after)["event"] == "after"


def test_the_last_lines_reach_a_reader_who_is_slow(pipe: tuple[int, TextIO]) -> None:
    reader, stream = pipe
    sink = logs.configure(LogConfig(format="json"), stream)

    async def end() -> None:
        for number in range(1000):
            structlog.get_logger().info("one", number=number)
        await turns()

    asyncio.run(end())
    with subprocess.Popen(["wc", "-l"], stdin=reader, stdout=subprocess.PIPE, text=True) as slow:
        sink.finish()
        os.close(reader)
        stream.close()
        assert slow.communicate()[0].strip() == "1000"
