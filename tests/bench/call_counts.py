"""Counts the function calls of each operation; prints them as JSON.

A process of its own: counting needs the server's own logging, and nobody else's garbage.
"""

import asyncio
import gc
import io
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType

from sipush import logs
from sipush.location.memory import MemoryStore
from tests.bench.in_process import Server, configuration
from tests.server.stores import LastingStore

OPERATIONS = ("register", "refresh", "call", "message", "wake")


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
        await asyncio.sleep(0)  # the next one is not of the same turn of the loop
    gc.enable()
    return min(counts)


async def count_all(directory: Path) -> dict[str, int]:
    """The calls of every operation, each on a server of its own."""
    config = configuration(directory)
    logs.configure(config.log, io.StringIO())
    counts = {}
    for name in OPERATIONS:
        # What is said once more is known again where nothing outlives us.
        server = Server(config, MemoryStore() if name == "refresh" else LastingStore())
        await server.register()
        counts[name] = await calls_of(getattr(server, name))
    return counts


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(asyncio.run(count_all(Path(directory)))))
