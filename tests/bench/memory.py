"""What phones that do nothing, and calls on hold, cost in memory: of a server that is warm."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tests.bench.measure import drive, memory_kb
from tests.bench.server_bench import running
from tests.bench.servers import DOMAIN, RIG, Server, Sipush

WARM = 500
COUNT = 1000
QUIET = 40
"Seconds after which nothing is left of what has happened (64*T1, and some)."
PHONES = {"udp": (COUNT, 3000, 5000), "tcp": (COUNT,), "tls": (COUNT,)}
"""Over UDP more, as of the first thousands more is kept than of others. What many that come at once
leave for half a minute is room that Python keeps, and counts here too."""


def run(kinds: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One row for each server and what it holds: kB each, over so many of them."""
    for kind in kinds:
        for transport in PHONES:
            with running(kind, hold=False) as server:
                assert isinstance(server, Sipush)
                for what, kilobytes in _idle(server, transport):
                    yield _row(kind, what, kilobytes)
        with running(kind, hold=True) as server:
            yield _row(kind, "held call", _held(server))


def _row(kind: str, what: str, kilobytes: float) -> dict[str, Any]:
    return {"server": kind, "what": what, "kb": round(kilobytes, 1)}


def _memory(server: Server) -> int:
    """Of the server itself: what the store's own process holds is not in it."""
    return memory_kb(server.pids["server"])


def _idle(server: Sipush, transport: str) -> Iterator[tuple[str, float]]:
    with ExitStack() as stack:
        stack.enter_context(_phones(server, transport, 0, WARM))
        time.sleep(QUIET)
        there = WARM
        for count in PHONES[transport]:
            before = _memory(server)
            stack.enter_context(_phones(server, transport, there, count))
            time.sleep(QUIET)
            what = f"idle phone over {transport}, {count} after {there}"
            yield what, (_memory(server) - before) / count
            there += count


@contextmanager
def _phones(server: Sipush, transport: str, base: int, count: int) -> Iterator[None]:
    command = [sys.executable, RIG / "idle.py", server.target, "--domain", DOMAIN]
    command += ["--phones", count, "--base", base]
    command += ["--transport", transport, "--tls-port", server.tls_port]
    with subprocess.Popen(
        [*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "READY\n":
            raise RuntimeError("the phones could not register")
        yield


def _held(server: Server) -> float:
    """A thousand, after as many were held, woken and answered."""
    seen: dict[str, int] = {}
    hold = [sys.executable, RIG / "hold.py", server.target, "--domain", DOMAIN, "--no-push"]
    hold += ["--calls", COUNT, "--push-wait", 5]
    drive(server.pids, [*map(str, hold), "--wake-rate", "200"])
    time.sleep(QUIET)

    def weigh(word: str) -> None:
        seen[word] = _memory(server)

    result = drive(server.pids, [*map(str, hold), "--no-wake"], weigh)
    return (seen["HELD"] - seen["PRIMED"]) / max(1, result["held"])
