"""Do a refresh and a call cost the same among a million users? The whole server, over UDP."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from tests.bench import growth
from tests.bench.measure import drive
from tests.bench.server_bench import blaster
from tests.bench.servers import DOMAIN, Sipush

SIZES = [1000, 100_000, 1_000_000]
IN_MEMORY = [1000, 100_000]
"Of a store that is filled by as many REGISTERs."
PHONES = 5_000
"Scattered evenly among all users."
OPERATIONS = 5_000
OTHERS = 20_000
"""REGISTERs of others between two of one user: a server remembers the last 20,000 users for some
ends, and others for seconds."""
ROUNDS = 5


def run(store: str, sizes: list[int]) -> list[dict[str, Any]]:
    """One row for each size: CPU µs of a refresh and of a call among as many bindings.

    The servers are measured in turn: what else goes on in the machine meets all alike.
    """
    sizes = sizes or (IN_MEMORY if store == "memory" else SIZES)
    costs: dict[int, dict[str, list[float]]] = {n: {"refresh": [], "call": []} for n in sizes}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="sipush-crowd-")))
        servers = {}
        for size in sizes:
            servers[size] = Sipush(directory / str(size), store, size)
            stack.callback(servers[size].stop)
            _fill(servers[size], store, size)
        for number in range(ROUNDS):
            for size, server in servers.items():
                for mode, rounds in costs[size].items():
                    rounds.append(_measure(server, mode, size, number))
    return [
        {"store": store, "bindings": size, "ready_after_s": round(servers[size].ready_after, 2)}
        | {f"{mode}_us": round(median(rounds), 1) for mode, rounds in costs[size].items()}
        | {f"{mode}_rounds": list(map(round, rounds)) for mode, rounds in costs[size].items()}
        for size in sizes
    ]


def _fill(server: Sipush, store: str, size: int) -> None:
    """Directly, where the store outlives the daemon."""
    if store == "memory":
        _register(server, range(size), size)
    else:
        server.end_daemon()
        asyncio.run(growth.fill(server, size))
        server.start()


def _measure(server: Sipush, mode: str, size: int, number: int) -> float:
    """CPU µs of a refresh by users of whom nothing was heard for a while, or of a call to some.

    They are others in each round.
    """
    phones = min(size // 2, PHONES)
    others = min(size - phones, OTHERS)
    first = (size - phones - others) * number // (ROUNDS - 1)

    def between(word: str) -> None:
        if word == "PRIMED" and mode == "refresh":
            _register(server, range(first + phones, first + phones + others), size)

    load = _load(mode, server, range(first, first + phones), size)
    result = drive(server.pids, [*load, "--count", str(OPERATIONS)], between)
    if result["ok"] != OPERATIONS or result["rechallenged"]:
        raise RuntimeError(f"not every {mode} succeeded at once: {result['codes']}")
    return float(result["cpu_us"])


def _register(server: Sipush, users: range, size: int) -> None:
    load = _load("register", server, users, size)
    drive(server.pids, [*load, "--count", str(len(users))])


def _load(mode: str, server: Sipush, users: range, size: int) -> list[str | Path]:
    command = [blaster(), mode, server.target, "--domain", DOMAIN, "--seconds", "3600"]
    command += ["--giveup", "60"]  # a disk that others use may keep all waiting for seconds
    command += ["--users", str(len(users)), "--base", str(users.start)]
    return [*command, "--among", str(size)]
