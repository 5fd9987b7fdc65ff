"""Daemons that tests share: a start costs more than most tests.

Every test has a domain of its own, so that it meets neither users nor pushes of another.
"""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.daemon import APP, OTHER_APP, PBX, Daemon, ha1, merged
from tests.e2e.pushes import PushLog
from tests.servers.redis_server import RedisServer

USERS: dict[str, dict[str, Any]] = {
    "alice": {},
    "bob": {},
    "carol": {},
    "never-held": {"hold": False},
    "hardly-held": {"hold_seconds": 0.4},
}
"The users of every domain, and what is special about them."


@dataclass(frozen=True, slots=True)
class Stores:
    """Where daemons store."""

    redis: RedisServer
    directory: Path

    def empty(self, store_type: str) -> dict[str, Any]:
        """``[store]`` of a daemon: an empty SQLite file or an empty corner of a real Redis."""
        name = f"test-{secrets.token_hex(4)}"
        if store_type == "redis":
            return {"type": "redis", "redis": {"url": self.redis.url, "prefix": name}}
        return {"type": "sqlite", "sqlite": {"path": str(self.directory / f"{name}.db")}}


class SharedDaemons:
    """One daemon for each store and settings, started when the first test wants it."""

    def __init__(self, directory: Path, stores: Stores, push_log: PushLog, tests: int) -> None:
        self.stores = stores
        self.push_log = push_log
        self._directory = directory
        self._domains = [f"test-{number}.example.com" for number in range(tests)]
        self._next_domain = itertools.count()
        self._running: dict[str, Daemon] = {}

    def new_domain(self) -> str:
        """The domain of a test."""
        return self._domains[next(self._next_domain)]

    async def get(self, store_type: str, changes: dict[str, Any]) -> Daemon:
        """A running daemon for users of all tests."""
        key = json.dumps([store_type, changes], sort_keys=True)
        daemon = self._running.get(key)
        if daemon is None or not daemon.running:
            directory = self._directory / f"daemon-{len(self._running)}"
            directory.mkdir(exist_ok=True)
            usual = settings(self.stores.empty(store_type), self.push_log, self._domains)
            daemon = self._running[key] = Daemon(directory, merged(usual, changes))
            await daemon.start()
        return daemon

    async def close(self) -> None:
        """End them all. What no daemon may ever log fails the run here."""
        for daemon in self._running.values():
            await daemon.kill()
        for daemon in self._running.values():
            daemon.assert_no_traceback()


def settings(store: dict[str, Any], push_log: PushLog, domains: Sequence[str]) -> dict[str, Any]:
    """The usual configuration."""
    service = push_log.service
    app = service.app_config().model_dump(mode="json", exclude_none=True)
    webhook = service.webhook_config().model_dump(mode="json", exclude_none=True)
    return {
        "sip": {"domains": list(domains)},
        "listen": [
            {"transport": transport, "address": address, "port": 0}
            for address in ("127.0.0.1", "::1")
            for transport in ("udp", "tcp")
        ],
        "wake": {"hold": 8.0, "probe": 0.25},
        "store": store,
        "apps": {APP: app, OTHER_APP: {"webhook": webhook}},
        "users": {
            f"{user}@{domain}": {"ha1_md5": ha1(user, domain), **special}
            for domain in domains
            for user, special in USERS.items()
        },
        "peers": [{"name": "pbx", "address": f"{PBX}/32"}],
        "log": {"format": "json", "level": "debug"},
    }
