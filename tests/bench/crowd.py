"""Does a refresh cost the same among 100,000 users? The whole server, over UDP."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from tests.bench.measure import drive
from tests.bench.server_bench import blaster
from tests.bench.servers import DOMAIN, Sipush

SIZES = [10_000, 100_000]
REFRESHES = 5_000
OTHERS = 25_000
"""REGISTERs of others between two of one user: a server remembers the last 20,000 users for some
ends, and others for seconds."""
ROUNDS = 3


def run(store: str, sizes: list[int]) -> list[dict[str, Any]]:
    """One row for each size. All users have registered before the first refresh is measured.

    The servers are measured in turn: what else goes on in the machine meets all alike.
    """
    costs: dict[int, list[float]] = {size: [] for size in sizes}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="sipush-crowd-")))
        servers = {}
        for size in sizes:
            servers[size] = Sipush(directory / str(size), store, size)
            stack.callback(servers[size].stop)
            _register(servers[size], range(size), size)
        for number in range(ROUNDS):
            for size, server in servers.items():
                costs[size].append(_refresh(server, size, number))
    return [
        {"store": store, "users": size, "refresh_us": round(median(each), 1)}
        | {"rounds_us": [round(cost, 1) for cost in each]}
        for size, each in costs.items()
    ]


def _refresh(server: Sipush, size: int, number: int) -> float:
    """CPU µs of a refresh by users of whom nothing was heard for a while, others each round."""
    phones = min(size // 2, REFRESHES)
    others = min(size - phones, OTHERS)
    first = (size - phones - others) * number // (ROUNDS - 1)

    def between(word: str) -> None:
        if word == "PRIMED":
            _register(server, range(first + phones, first + phones + others), OTHERS)

    load = _load(server, "refresh", range(first, first + phones))
    result = drive(server.pids, [*load, "--count", str(REFRESHES)], between)
    if result["codes"] != {"200": REFRESHES}:
        raise RuntimeError(f"not every REGISTER was accepted at once: {result['codes']}")
    return float(result["cpu_us"])


def _register(server: Sipush, users: range, count: int) -> None:
    drive(server.pids, [*_load(server, "register", users), "--count", str(count)])


def _load(server: Sipush, mode: str, users: range) -> list[str | Path]:
    command = [blaster(), mode, server.target, "--domain", DOMAIN, "--seconds", "3600"]
    return [*command, "--users", str(len(users)), "--base", str(users.start)]
