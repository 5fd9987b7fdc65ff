"""Pieces of the hot path in one process: microseconds of CPU each."""

from __future__ import annotations

import asyncio
import io
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sipush import logs
from sipush.core.response_context import ResponseContext
from sipush.core.target_set import Target, TargetSet
from sipush.sip.digest import find_credentials, response_matches
from sipush.sip.message import make_response, parse_datagram
from sipush.sip.server_transaction import ServerTransaction
from sipush.sip.transaction import Event
from sipush.sip.validation import check
from tests.bench.in_process import Server, authorization, configuration, invite
from tests.bench.servers import DOMAIN, ha1

RUNS, REPEAT = 2000, 5


def measure() -> dict[str, float]:
    """By name, the best of some runs."""
    data = invite(1)
    message = parse_datagram(data)
    assert not hasattr(message, "status")
    line = authorization("5be92e-2-e7875bd429bbc7fcbfab4c677b825f03", 1).partition(": ")[2].strip()
    target = Target("u000001 device", "sip:u000001@192.0.2.1", "udp/a/b", live=True)

    def digest() -> None:
        credentials = find_credentials([line], DOMAIN)
        assert credentials is not None
        assert response_matches(credentials, ha1_of_1, "REGISTER")

    def transaction() -> None:
        ServerTransaction("REGISTER", False).advance(Event.SUCCESS)

    def response_context() -> None:
        context = ResponseContext(probe=1.5, timer_c=180, ringback=None, invite=True)
        context.start(TargetSet.of(target), 0)
        context.response_received(0, 180, 1)
        context.response_received(0, 200, 2)

    ha1_of_1 = ha1(1)
    pieces: dict[str, Callable[[], object]] = {
        "parse an INVITE": lambda: parse_datagram(data),
        "parse and check": lambda: check(parse_datagram(data)),
        "serialise": message.to_bytes,
        "make a response": lambda: make_response(message, 200, to_tag="t").to_bytes(),  # type: ignore[arg-type]
        "digest": digest,
        "server transaction": transaction,
        "response context": response_context,
    }
    results = {name: _cost(piece) for name, piece in pieces.items()}
    return results | asyncio.run(_operations())


async def _operations() -> dict[str, float]:
    """Whole operations without sockets; the phones' share is in it."""
    names = ("register", "refresh", "call", "message", "wake")
    with tempfile.TemporaryDirectory() as directory:
        config = configuration(Path(directory))
        logs.configure(config.log, io.StringIO())
        server = Server(config)
        await server.register()
        return {f"{name} in process": await _cost_of(getattr(server, name)) for name in names}


def _cost(piece: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(REPEAT):
        started = time.process_time()
        for _ in range(RUNS):
            piece()
        best = min(best, time.process_time() - started)
    return round(best / RUNS * 1e6, 2)


async def _cost_of(operation: Callable[[], Awaitable[Any]], runs: int = 200) -> float:
    best = float("inf")
    for _ in range(REPEAT):
        started = time.process_time()
        for _ in range(runs):
            await operation()
        best = min(best, time.process_time() - started)
    return round(best / runs * 1e6, 1)
