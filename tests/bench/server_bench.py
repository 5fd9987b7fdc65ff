"""Whole servers, driven over the wire; figures are CPU microseconds per operation."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.measure import drive, memory_kb
from tests.bench.servers import DOMAIN, RIG, Kamailio, Server, Sipush
from tests.e2e.process import free_port

USERS = 10_000
PHONES = 2_000
"Callees of calls and messages."
HELD = 1_000
WAKE_RATE = "50"
"Phones that come back each second: one by one, not a crowd."
SECONDS = "4"

Result = dict[str, Any]


def blaster() -> Path:
    """The load generator in C, compiled when its source is newer."""
    source = RIG / "sipblast.c"
    binary = Path(tempfile.gettempdir()) / f"sipush-bench-sipblast-{os.getuid()}"
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["gcc", "-O2", "-o", binary, source, "-lm"], check=True)
    return binary


def _blast(server: Server, mode: str, users: int, tcp: bool, *more: str) -> Result:
    load = [blaster(), mode, server.target, "--domain", DOMAIN, "--users", str(users)]
    load += ["--window", "64", *(["--tcp"] if tcp else []), *more]
    return drive(server.pids, load)


def register(server: Server, tcp: bool) -> Result:
    """REGISTER 401 REGISTER 200 of users that are registered already."""
    _blast(server, "register", USERS, tcp, "--count", str(USERS), "--seconds", "30")
    return _blast(server, "register", USERS, tcp, "--seconds", SECONDS)


def refresh(server: Server, tcp: bool) -> Result:
    """REGISTER with a nonce that is known, 200."""
    return _blast(server, "refresh", USERS, tcp, "--seconds", SECONDS)


def call(server: Server, tcp: bool) -> Result:
    """INVITE 180 200 ACK BYE 200 through the proxy."""
    return _blast(server, "call", PHONES, tcp, "--seconds", SECONDS)


def message(server: Server, tcp: bool) -> Result:
    """MESSAGE 200 through the proxy."""
    return _blast(server, "message", PHONES, tcp, "--seconds", SECONDS)


def options(server: Server, tcp: bool) -> Result:
    """OPTIONS 200: the floor."""
    return _blast(server, "options", 1, tcp, "--seconds", SECONDS)


def _hold(server: Server, tcp: bool, *more: str) -> Result:
    seen: dict[str, int] = {}

    def weigh(word: str) -> None:
        seen[word] = sum(memory_kb(pid) for pid in server.pids.values())

    push = ["--push-port", str(server.push_port)] if isinstance(server, Kamailio) else ["--no-push"]
    if not isinstance(server, Kamailio):
        push += ["--push-port", str(free_port())]
    command: list[str | Path] = [sys.executable, RIG / "hold.py", server.target]
    command += ["--domain", DOMAIN, "--calls", str(HELD), *push, *more]
    result = drive(server.pids, [*command, "--transport", "tcp" if tcp else "udp"], weigh)
    result["kb_per_held"] = (seen["HELD"] - seen["PRIMED"]) / max(1, result["held"])
    result["wake_p50_ms"] = result["wake_ms"]["p50"]
    result["wake_p99_ms"] = result["wake_ms"]["p99"]
    if result["completed"] != HELD:
        result["lost"] = HELD - result["completed"]
    return result


def wake(server: Server, tcp: bool) -> Result:
    """Held calls whose phones come back one by one."""
    return _hold(server, tcp, "--wake-rate", WAKE_RATE)


def burst(server: Server, tcp: bool) -> Result:
    """Held calls whose phones come back all at once."""
    return _hold(server, tcp)


OPERATIONS: dict[str, Callable[[Server, bool], Result]] = {
    each.__name__: each for each in (register, refresh, call, message, options, wake, burst)
}
HOLDING = ("wake", "burst")
TIMES = ("wake_p50_ms", "wake_p99_ms", "kb_per_held", "lost")


@contextmanager
def running(kind: str, hold: bool) -> Iterator[Server]:
    """A server by name: ``memory``, ``sqlite``, ``redis``, ``kamailio-fm``, ``kamailio-redis-qm``…

    ``hold``: with something to push phones with.
    """
    with tempfile.TemporaryDirectory(prefix="sipush-bench-") as directory:
        path = Path(directory) / "server"
        server: Server
        name, _, rest = kind.partition("-")
        if name == "kamailio":
            variant = "redis" if "redis" in rest else "hold" if hold else "memory"
            server = Kamailio(path, variant, malloc=rest.rpartition("-")[2])
        else:
            server = Sipush(path, kind, USERS, push=hold)
        try:
            yield server
        finally:
            server.stop()


def run(
    kinds: Sequence[str], operations: Sequence[str], transport: str, repeat: int
) -> Iterator[Result]:
    """One row for each operation: the median and spread of each server, taken in turn."""
    tcp = transport == "tcp"
    for name in operations:
        runs: dict[str, list[Result]] = {kind: [] for kind in kinds}
        for _ in range(repeat):
            for kind in kinds:
                if name in HOLDING and "redis" in kind and "kamailio" in kind:
                    continue
                with running(kind, hold=name in HOLDING) as server:
                    runs[kind].append(OPERATIONS[name](server, tcp))
        yield {
            "operation": name,
            "transport": transport,
            "servers": {kind: _summary(results) for kind, results in runs.items() if results},
        }


def _summary(results: Sequence[Result]) -> Result:
    costs = [result["cpu_us"] for result in results]
    summary: Result = {
        "cpu_us": round(median(costs), 1),
        "spread": [round(min(costs), 1), round(max(costs), 1)],
        "per_second": round(median(result.get("per_second", 0) for result in results)),
    }
    for key in TIMES:
        if any(key in result for result in results):
            summary[key] = round(median(result.get(key, 0) for result in results), 2)
    return summary
