"""Do REGISTER, refresh and call cost the same among a million users? The whole server, over UDP."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench import growth
from tests.bench.measure import drive
from tests.bench.server_bench import blaster, running
from tests.bench.servers import DOMAIN, Server, Sipush

SIZES = [1000, 100_000, 1_000_000]
IN_MEMORY = [1000, 100_000]
"Of a store that is filled by as many REGISTERs."
PHONES = [500, 5_000]
"""Scattered evenly among all users, whose operations are measured in turn: as many as there can be
among a thousand, and ten times as many. The first tell what more bindings cost, the others what
it costs too that more phones are active, of whom less is in a processor's caches."""
OPERATIONS = 10_000
REGISTERS = 20_000
"""Of others, before REGISTERs and refreshes are measured: a server remembers who was there last for
some ends, and what was answered in the last seconds for others."""
ROUNDS = 9
"As one round differs from the next by a fifth where others use the machine."


def run(store: str, sizes: list[int]) -> list[dict[str, Any]]:
    """One row for each size: CPU µs of each operation among as many bindings.

    The servers are measured in turn: what else goes on in the machine meets all alike. Growth is
    the median of what each round says, against the first size and number of phones.
    """
    peer = store.startswith("kamailio")
    sizes = sizes or (IN_MEMORY if peer or store == "memory" else SIZES)
    if min(sizes) < 2 * PHONES[0]:
        raise SystemExit(f"--sizes: at least {2 * PHONES[0]}, as half of the phones call the other")
    modes = ("register", "refresh") if peer else ("register", "refresh", "call")
    costs = {n: {which: list[float]() for which in _measures(n, modes)} for n in sizes}
    with ExitStack() as stack:
        servers = {}
        for size in sizes:
            servers[size] = stack.enter_context(running(store, hold=False, users=size))
            _fill(servers[size], store, size)
        for number in range(ROUNDS):
            for size, server in servers.items():
                for (mode, phones), rounds in costs[size].items():
                    rounds.append(_measure(server, mode, size, phones, number))
    rows = []
    for size in sizes:
        ready_after = round(servers[size].ready_after, 2)
        rows.append({"store": store, "bindings": size, "ready_after_s": ready_after})
        for (mode, phones), rounds in costs[size].items():
            fewest = zip(rounds, costs[sizes[0]][mode, PHONES[0]], strict=True)
            grown = median(us / least for us, least in fewest) - 1
            rows[-1] |= {
                f"{mode}_{phones}_us": round(median(rounds), 1),
                f"{mode}_{phones}_growth": f"{grown:+.0%}",
                f"{mode}_{phones}_rounds": list(map(round, rounds)),
            }
    return rows


def _measures(size: int, modes: tuple[str, ...]) -> list[tuple[str, int]]:
    """What is measured among as many bindings: which operation, by how many phones."""
    return [(mode, n) for n in PHONES if 2 * n <= size for mode in modes]


def _fill(server: Server, store: str, size: int) -> None:
    """Directly, where the store outlives the daemon."""
    if isinstance(server, Sipush) and store != "memory":
        server.end_daemon()
        asyncio.run(growth.fill(server, size))
        server.start()
    else:
        _register(server, range(size), size, size)


def _measure(server: Server, mode: str, size: int, phones: int, number: int) -> float:
    """CPU µs of an operation of users of whom nothing was heard for a while, or of a call to some.

    They are others in each round.
    """
    others = min(size - phones, REGISTERS)
    first = (size - phones - others) * number // (ROUNDS - 1)

    def between(word: str) -> None:
        if word == "PRIMED" and mode != "call":
            _register(server, range(first + phones, first + phones + others), size, REGISTERS)

    load = _load(mode, server, range(first, first + phones), size)
    result = drive(server.pids, [*load, "--count", str(OPERATIONS)], between)
    if result["ok"] != OPERATIONS or result["rechallenged"]:
        raise RuntimeError(f"not every {mode} succeeded at once: {result['codes']}")
    return float(result["cpu_us"])


def _register(server: Server, users: range, size: int, registers: int) -> None:
    load = _load("register", server, users, size)
    drive(server.pids, [*load, "--count", str(registers)])


def _load(mode: str, server: Server, users: range, size: int) -> list[str | Path]:
    command = [blaster(), mode, server.target, "--domain", DOMAIN, "--seconds", "3600"]
    command += ["--giveup", "60"]  # a disk that others use may keep all waiting for seconds
    command += ["--users", str(len(users)), "--base", str(users.start)]
    return [*command, "--among", str(size)]
