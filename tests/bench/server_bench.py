"""Whole servers, driven over the wire; figures are CPU microseconds per operation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from tests.bench.measure import drive, memory_kb
from tests.bench.servers import DOMAIN, RIG, Kamailio, Server, Sipush
from tests.servers.ports import free_port

USERS = 10_000
PHONES = 2_000
"Callees of calls and messages."
HELD = 1_000
WAKE_RATE = "50"
"Phones that come back each second: one by one, not a crowd."
SECONDS = "4"

Result = dict[str, Any]


class Load(NamedTuple):
    """What is offered, where an operation does not say it itself."""

    transport: str = "udp"
    rate: int = 0
    "Operations a second; 0: as many as the server can take, 64 at a time."


def blaster() -> Path:
    """The load generator in C, compiled when its source is newer."""
    source = RIG / "sipblast.c"
    binary = Path(tempfile.gettempdir()) / f"sipush-bench-sipblast-{os.getuid()}"
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["gcc", "-O2", "-o", binary, source, "-lm", "-lssl"], check=True)
    return binary


def _blast(server: Server, mode: str, users: int, load: Load, *more: str) -> Result:
    target = f"127.0.0.1:{server.tls_port}" if load.transport == "tls" else server.target
    command = [blaster(), mode, target, "--domain", DOMAIN, "--users", str(users), *more]
    command += ["--rate", str(load.rate)] if load.rate else ["--window", "64"]
    command += [] if load.transport == "udp" else [f"--{load.transport}"]
    return drive(server.pids, command)


def register(server: Server, load: Load) -> Result:
    """REGISTER 401 REGISTER 200 of users that are registered already."""
    first = Load(load.transport)
    _blast(server, "register", USERS, first, "--count", str(USERS), "--seconds", "30")
    return _blast(server, "register", USERS, load, "--seconds", SECONDS)


def refresh(server: Server, load: Load) -> Result:
    """REGISTER with a nonce that is known, 200."""
    return _blast(server, "refresh", USERS, load, "--seconds", SECONDS)


def call(server: Server, load: Load) -> Result:
    """INVITE 180 200 ACK BYE 200 through the proxy."""
    return _blast(server, "call", PHONES, load, "--seconds", SECONDS)


def message(server: Server, load: Load) -> Result:
    """MESSAGE 200 through the proxy."""
    return _blast(server, "message", PHONES, load, "--seconds", SECONDS)


def options(server: Server, load: Load) -> Result:
    """OPTIONS 200: the floor."""
    return _blast(server, "options", 1, load, "--seconds", SECONDS)


def _hold(
    server: Server, load: Load, *more: str, at: Callable[[str], None] = lambda word: None
) -> Result:
    seen: dict[str, int] = {}

    def weigh(word: str) -> None:
        at(word)
        seen[word] = sum(memory_kb(pid) for pid in server.pids.values())

    push = ["--push-port", str(server.push_port)] if isinstance(server, Kamailio) else ["--no-push"]
    if not isinstance(server, Kamailio):
        push += ["--push-port", str(free_port())]
    command: list[str | Path] = [sys.executable, RIG / "hold.py", server.target]
    command += ["--domain", DOMAIN, "--calls", str(HELD), *push, *more]
    command += ["--tls-port", str(server.tls_port)]
    result = drive(server.pids, [*command, "--transport", load.transport], weigh)
    result["kb_per_held"] = (seen["HELD"] - seen["PRIMED"]) / max(1, result["held"])
    if "completed" in result:
        result["wake_p50_ms"] = result["wake_ms"]["p50"]
        result["wake_p99_ms"] = result["wake_ms"]["p99"]
        if result["completed"] != HELD:
            result["lost"] = HELD - result["completed"]
    return result


def wake(server: Server, load: Load) -> Result:
    """Held calls whose phones come back one by one."""
    return _hold(server, load, "--wake-rate", WAKE_RATE)


def burst(server: Server, load: Load) -> Result:
    """Held calls whose phones come back all at once."""
    return _hold(server, load)


def _push(server: Server, load: Load, device_os: str) -> Result:
    """A thousand calls at once to phones that sleep, and how long others wait meanwhile."""
    assert isinstance(server, Sipush)
    began, received = 0.0, dict[str, Any]()

    def note(word: str) -> None:
        nonlocal began, received
        if word == "PRIMED":
            began = time.time()
        elif word == "HELD":  # before the calls are cancelled, which FCM devices are told of
            received = server.pushed()

    with _probe(server) as waits:
        result = _hold(
            server,
            load,
            *("--device-os", device_os, "--call-rate", "1000000", "--no-wake", "--push-wait", "12"),
            at=note,
        )
    end = received["last_epoch"] or time.time()
    during = sorted(wait for sent, wait in waits if began <= sent <= end and wait is not None)
    lost = sum(wait is None for _, wait in waits)
    result |= {
        "push_all_ms": (end - began) * 1000,
        "register_p50_ms": during[len(during) // 2],
        "register_p99_ms": during[len(during) * 99 // 100],
        "register_max_ms": during[-1],
        "pushes": received["pushes"],
    }
    if received["pushes"] != HELD or received["devices"] != HELD or lost:
        result["lost"] = HELD - received["devices"] + lost
        result["doubled"] = received["pushes"] - received["devices"]
    if received["violations"]:
        raise RuntimeError(f"the push service complains: {received['violations']}")
    return result


@contextmanager
def _probe(server: Server) -> Iterator[list[tuple[float, float | None]]]:
    """A phone that registers all the time; when it did, and how many ms each answer took."""
    command = [sys.executable, RIG / "probe.py", server.target, "--domain", DOMAIN]
    waits: list[tuple[float, float | None]] = []
    with subprocess.Popen(
        [*map(str, command), "--user", f"u{USERS - 1:06d}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "READY\n":
            raise RuntimeError("the probe could not register")
        yield waits
        waits += json.loads(process.communicate("\n")[0])


def push_apns(server: Server, load: Load) -> Result:
    """A thousand pushes at once over APNs, and how long a REGISTER waits meanwhile."""
    return _push(server, load, "ios")


def push_fcm(server: Server, load: Load) -> Result:
    """The same over FCM."""
    return _push(server, load, "android")


OPERATIONS: dict[str, Callable[[Server, Load], Result]] = {
    each.__name__: each for each in (register, refresh, call, message, options)
}
OPERATIONS |= {each.__name__: each for each in (wake, burst, push_apns, push_fcm)}
HOLDING = ("wake", "burst", "push_apns", "push_fcm")
PUSHING = ("push_apns", "push_fcm")
TIMES = (
    *("wake_p50_ms", "wake_p99_ms", "kb_per_held", "lost"),
    *("register_p50_ms", "register_p99_ms", "register_max_ms", "push_all_ms", "pushes", "doubled"),
)


@contextmanager
def running(kind: str, hold: bool, *, tls: bool = False, users: int = USERS) -> Iterator[Server]:
    """A server by name: ``memory``, ``sqlite``, ``redis``, ``kamailio-fm``, ``kamailio-redis-qm``…

    ``hold``: with something to push phones with; ``tls``: so that Kamailio listens for it too.
    ``users``: how many sipush knows; Kamailio knows any.
    """
    with tempfile.TemporaryDirectory(prefix="sipush-bench-") as directory:
        path = Path(directory) / "server"
        server: Server
        name, _, rest = kind.partition("-")
        if name == "kamailio":
            variant = "redis" if "redis" in rest else "hold" if hold else "memory"
            server = Kamailio(path, variant, malloc=rest.rpartition("-")[2], tls=tls)
        else:
            server = Sipush(path, kind, users, push=hold)
        try:
            yield server
        finally:
            server.stop()


def run(
    kinds: Sequence[str], operations: Sequence[str], load: Load, repeat: int
) -> Iterator[Result]:
    """One row for each operation: the median and spread of each server, taken in turn."""
    for name in operations:
        hold = name in HOLDING
        runs: dict[str, list[Result]] = {kind: [] for kind in kinds}
        for _ in range(repeat):
            for kind in kinds:
                if "kamailio" in kind and (name in PUSHING or ("redis" in kind and hold)):
                    continue
                with running(kind, hold, tls=load.transport == "tls") as server:
                    runs[kind].append(OPERATIONS[name](server, load))
        yield {
            "operation": name,
            "transport": load.transport,
            "rate": load.rate,
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
