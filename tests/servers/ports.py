"""Ports for servers that are told theirs."""

from __future__ import annotations

import itertools
import os
import random
import socket
from collections.abc import Iterator


def free_port(address: str = "") -> int:
    """An even port, free for UDP and TCP, that is handed out once.

    It is below those that the kernel gives to sockets that ask for any, so that nobody takes it
    while its server restarts.
    """
    return next(port for port in _PORTS if _is_free(address, port))


def _is_free(address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            with socket.socket(family, kind) as sock:
                sock.bind((address, port))
    except OSError:
        return False
    return True


def _own_ports() -> Iterator[int]:
    """Those that no other worker of pytest-xdist hands out."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = range(10_000 + 2 * worker, 32_000, 2 * workers)
    start = random.randrange(len(ports))
    return itertools.cycle((*ports[start:], *ports[:start]))


_PORTS = _own_ports()
