"""Does a REGISTER cost the same with a million bindings? The stores themselves, and the start."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sipush.config import load
from sipush.core.bindings import Binding, Location, Platform, PushRecord, Registration
from sipush.location import make_store
from sipush.location.store import LocationStore
from tests.bench.measure import cpu_seconds
from tests.bench.servers import APP_ID, Sipush, aor

SAMPLES = 3000
TOGETHER = 500


def run(store: str, sizes: list[int]) -> list[dict[str, Any]]:
    """One row for each size; the same store grows from one to the next."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="sipush-growth-") as directory:
        server = Sipush(Path(directory) / "server", store, 1000)
        try:
            filled = 0
            for size in sizes:
                server.end_daemon()
                redis = server.pids.get("redis")
                row = asyncio.run(_grow(server, filled, size, redis))
                server.start()
                rows.append({"store": store, "ready_after_s": round(server.ready_after, 2), **row})
                filled = size
        finally:
            server.stop()
    return rows


async def _grow(server: Sipush, filled: int, size: int, redis: int | None) -> dict[str, Any]:
    async with _opened(server) as store:
        for start in range(filled, size, TOGETHER):
            await _bind(store, range(start, min(start + TOGETHER, size)), 1)
        step = max(1, size // SAMPLES)
        sample = [*range(0, size, step)][:SAMPLES]
        before = _used(redis)
        for start in range(0, len(sample), TOGETHER):
            await _bind(store, sample[start : start + TOGETHER], 2)
        bound = _used(redis)
        now = time.time()
        for number in sample:
            location = await store.lookup(aor(number), now)
            assert location.bindings
        looked_up = _used(redis)
    return {
        "bindings": size,
        "bind_us": round((bound - before) / len(sample) * 1e6, 1),
        "lookup_us": round((looked_up - bound) / len(sample) * 1e6, 1),
    }


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
    now = time.time()
    name, token = aor(number), f"{number:064x}"
    contact = f"sip:u{number:06d}@192.0.2.1:5060"
    flow = f"udp/198.51.100.1:5060/192.0.2.1:{1024 + number % 60000}"
    device = f"token:{token}"
    binding = Binding(
        *(name, device, contact, contact, now + 36_000, f"call-{number}", cseq, flow),
        registered_epoch=now,
    )
    record = PushRecord(
        name,
        device,
        Platform.APNS,
        APP_ID,
        token,
        updated_epoch=now,
        expires_epoch=now + 600_000,
    )
    return Registration(name, f"call-{number}", cseq, now, 10, bind=(binding,), push=(record,))


def _used(redis: int | None) -> float:
    """CPU seconds of this process, and of Redis."""
    own = os.times()
    return own.user + own.system + (cpu_seconds(redis) if redis else 0.0)
