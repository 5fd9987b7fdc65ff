"""Does a REGISTER cost the same with a million bindings? The stores themselves, and the start."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from sipush.config import load
from sipush.core.bindings import Binding, Location, Platform, PushRecord, Registration
from sipush.location import make_store
from sipush.location.store import LocationStore
from tests.bench.measure import cpu_seconds
from tests.bench.servers import APP_ID, Sipush, aor

SIZES = [1000, 100_000, 1_000_000]
SAMPLE = 300
ROUNDS = 10
TOGETHER = 500


def run(store: str, sizes: list[int]) -> list[dict[str, Any]]:
    """One row for each size, each in a store of its own.

    They are measured in turn, many times over: what else goes on in the machine meets all alike.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="sipush-growth-")))
        servers = {size: Sipush(directory / str(size), store, 1000) for size in sizes}
        for server in servers.values():
            stack.callback(server.stop)
            server.end_daemon()
        rows = asyncio.run(_measure(servers))
        for row, server in zip(rows, servers.values(), strict=True):
            server.start()
            row |= {"store": store, "ready_after_s": round(server.ready_after, 2)}
    return rows


async def fill(server: Sipush, size: int) -> None:
    """Bind as many users, the daemon of ``server`` not being there."""
    async with _opened(server) as store:
        await _fill(store, size)


async def _fill(store: LocationStore, size: int) -> None:
    for start in range(0, size, TOGETHER):
        await _bind(store, range(start, min(start + TOGETHER, size)), 1)


async def _measure(servers: dict[int, Sipush]) -> list[dict[str, Any]]:
    costs: dict[tuple[int, str], list[float]] = defaultdict(list)
    async with AsyncExitStack() as stack:
        stores = {n: await stack.enter_async_context(_opened(s)) for n, s in servers.items()}
        for size, store in stores.items():
            await _fill(store, size)
        for number in range(ROUNDS):
            for size, store in stores.items():
                sample = random.sample(range(size), SAMPLE)
                redis = servers[size].pids.get("redis")
                for name, work in _operations(store, sample, number).items():
                    before = _used(redis)
                    await work()
                    costs[size, name].append((_used(redis) - before) / SAMPLE * 1e6)
    return [
        {"bindings": size}
        | {f"{name}_us": round(fmean(costs[size, name]), 1) for name in _OPERATIONS}
        for size in servers
    ]


_OPERATIONS = ("bind", "bind_together", "lookup")


def _operations(
    store: LocationStore, sample: list[int], number: int
) -> dict[str, Callable[[], Coroutine[None, None, None]]]:
    """One by one, as on an idle server, and many at a time, as on a busy one."""

    async def bind() -> None:
        for each in sample:
            await _bind(store, [each], 2 * number + 2)

    async def bind_together() -> None:
        await _bind(store, sample, 2 * number + 3)

    async def lookup() -> None:
        now = time.time()
        for each in sample:
            assert (await store.lookup(aor(each), now)).bindings

    return dict(zip(_OPERATIONS, (bind, bind_together, lookup), strict=True))


@asynccontextmanager
async def _opened(server: Sipush) -> AsyncIterator[LocationStore]:
    store = make_store(load(server.config).store)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def _bind(store: LocationStore, numbers: list[int] | range, cseq: int) -> None:
    registrations = [_registration(number, cseq) for number in numbers]
    for outcome in await asyncio.gather(*map(store.bind, registrations)):
        assert isinstance(outcome, Location)


def _registration(number: int, cseq: int) -> Registration:
    """What the phone of that user in ``rig/sipblast.c`` says."""
    now = time.time()
    name, token = aor(number), _token(number)
    contact = f"sip:u{number:06d}@127.0.0.1:{1024 + number % 60000}"
    flow = f"udp/127.0.0.1:5060/127.0.0.1:{1024 + number % 60000}"
    device = f"token:{token}"
    binding = Binding(
        *(name, device, contact, contact, now + 36_000, f"r{number:06d}-0@sipblast", cseq, flow),
        user_agent="sipblast softphone 1.0",
        registered_epoch=now,
    )
    record = PushRecord(
        name,
        device,
        Platform.WEBHOOK,
        APP_ID,
        token,
        updated_epoch=now,
        expires_epoch=now + 600_000,
    )
    call_id = binding.call_id
    return Registration(name, call_id, cseq, now, 10, bind=(binding,), push=(record,))


def _token(n: int) -> str:
    words = (n * 2654435761, n ^ 0x9E3779B9, n * 40503, n + 77, n * 69069, ~n, n * 7919, n)
    return "".join(f"{word & 0xFFFFFFFF:08x}" for word in words)


def _used(redis: int | None) -> float:
    """CPU seconds of this process, and of Redis."""
    return time.process_time() + (cpu_seconds(redis) if redis else 0.0)
