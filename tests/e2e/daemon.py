"""The daemon under test: the real process, its configuration and its log."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sipush.config import load
from sipush.location import make_store
from sipush.location.store import LocationStore
from tests.e2e.process import Lines, Program
from tests.e2e.wire import PATIENCE, Account
from tests.servers.ports import free_port

APP = "com.example.softphone"
"Pushed by APNs and FCM."
OTHER_APP = "com.example.other"
"Pushed by webhook."
START_PATIENCE = 60.0
"Seconds: with much else on the machine, reading so many modules takes its time."
PBX = "127.0.0.2"
"The trusted peer."


def account(user: str, domain: str) -> Account:
    """A user of the daemons under test."""
    return Account(user, f"secret-of-{user}", domain)


def ha1(user: str, domain: str) -> str:
    """MD5(user:realm:password)."""
    return hashlib.md5(f"{user}:{domain}:{account(user, domain).password}".encode()).hexdigest()


def toml(value: Any) -> str:
    """A TOML inline value; a JSON string is one."""
    match value:
        case bool():
            return str(value).lower()
        case dict():
            return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case int() | float():
            return repr(value)
        case _:
            return json.dumps(str(value))


@dataclass
class Daemon:
    """One ``sipush run``. ``settings`` is the whole configuration file as a dict."""

    directory: Path
    settings: dict[str, Any]
    program: Program | None = None
    addresses: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)
    "Where it listens, by transport (``UDP``, ``TCP``) and IP address."

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.directory / "sipush.toml"

    def write_config(self) -> None:
        """Write ``settings``, with the ports once they are known."""
        lines = [f"{key} = {toml(value)}\n" for key, value in self.settings.items()]
        self.config.write_text("".join(lines))

    async def start(self) -> None:
        """Spawn it and wait until it says that it is ready."""
        for door in self.settings["listen"]:
            door["port"] = door["port"] or free_port(door["address"])
        self.write_config()
        self.program = await Program.start(
            *(sys.executable, "-m", "sipush.cli", "run", "--config", self.config),
            # So many starts are worth compiling for, whatever is set for the tests.
            environment={"PYTHONDONTWRITEBYTECODE": ""},
        )
        ready = await self.log_event("ready", patience=START_PATIENCE)
        for name in ready["listen"]:
            transport, _, address = name.partition("/")
            host, _, port = address.rpartition(":")
            host = host.strip("[]")
            self.addresses[transport.upper(), host] = (host, int(port))

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self.program is not None and self.program.running

    @property
    def log(self) -> Lines:
        """Every line of this run, as written."""
        assert self.program is not None
        return self.program.output

    @property
    def records(self) -> list[dict[str, Any]]:
        """Every line of this run, parsed."""
        return [json.loads(line) for line in self.log.all]

    async def log_event(
        self, event: str, patience: float = PATIENCE, start: int = 0, **match: Any
    ) -> dict[str, Any]:
        """The first record of ``event`` whose fields ``match``, waited for."""

        def wanted(line: str) -> bool:
            record = _parsed(line)
            return record.get("event") == event and all(
                record.get(name) == value for name, value in match.items()
            )

        line = await self.log.find(wanted, f"log event {event} {match or ''}", patience, start)
        return _parsed(line)

    async def has_no_requests(self) -> None:
        """Wait until no request is under way any more."""
        assert self.program is not None
        state = {"requests": 1}
        for _ in range(150):  # a BYE waits for its phone for up to 10 s
            if not state["requests"]:
                break
            await asyncio.sleep(0.1)
            said = len(self.log.all)
            self.program.signal(signal.SIGUSR1)
            state = await self.log_event("state", start=said)
        assert state["requests"] == 0, state

    def terminate(self) -> None:
        """SIGTERM."""
        assert self.program is not None
        self.program.signal(signal.SIGTERM)

    async def ended(self, patience: float = PATIENCE) -> int:
        """Wait for its end; the exit code."""
        assert self.program is not None
        return await self.program.ended(patience)

    async def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.terminate()
        return await self.ended()

    def reload(self) -> None:
        """SIGHUP after ``settings`` were changed."""
        assert self.program is not None
        self.write_config()
        self.program.signal(signal.SIGHUP)

    async def kill(self) -> None:
        """kill -9."""
        assert self.program is not None
        await self.program.kill()

    async def restart_after_kill(self) -> None:
        """kill -9, then the same daemon on the same ports and the same store."""
        await self.kill()
        await self.start()

    @asynccontextmanager
    async def opened_store(self) -> AsyncIterator[LocationStore]:
        """Its store, while it does not run."""
        store = make_store(load(self.config).store)
        await store.open()
        yield store
        await store.close()

    def at(self, transport: str, ip: str = "127.0.0.1") -> tuple[str, int]:
        """Where a phone with that address finds it."""
        return self.addresses[transport, "::1" if ":" in ip else "127.0.0.1"]

    def assert_no_traceback(self, start: int = 0) -> None:
        """What it must never do, at or after line ``start`` of its log."""
        lines = self.log.all[start:]
        fault = next((n for n, line in enumerate(lines) if "Traceback" in line), len(lines))
        assert fault == len(lines), "\n".join(lines[fault : fault + 30])


def _parsed(line: str) -> dict[str, Any]:
    """A log record; a line that is none (a traceback, say) as its event."""
    try:
        record = json.loads(line)
    except ValueError:
        return {"event": line}
    return record if isinstance(record, dict) else {"event": line}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``, table by table; None takes a key out."""
    result = dict(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


async def in_time(*awaitables: Any, patience: float = PATIENCE) -> list[Any]:
    """Await all at once, within the patience of a test."""
    async with asyncio.timeout(patience):
        return await asyncio.gather(*awaitables)
