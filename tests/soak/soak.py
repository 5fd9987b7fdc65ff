"""Minutes or hours of mixed load on a real daemon, Redis and push service that fail at times."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from sipush.demo.credentials import Credentials
from sipush.demo.push_service import PushService
from tests.e2e.daemon import APP, Daemon, ha1, in_time
from tests.servers.redis_server import RedisServer
from tests.soak.load import DOMAIN, HOLD, RECOVERY, Diary, PushBook, Worker
from tests.soak.report import Findings, State

SETTLED = 70.0
"Seconds after which every transaction (32 s) and tombstone (60 s) of the load is gone."
HELD_THROUGH_CRASH = 3
"Calls that wait for their phones while the daemon is killed, each of which must complete."


@dataclass
class Soak:
    """One run."""

    seconds: float
    workers: int
    fault_every: float
    settle: bool
    "Wait at the end until all has gone that has to go."
    directory: Path
    seed: int

    async def run(self) -> Findings:
        """All of it."""
        self.diary = Diary()
        self.findings = Findings(self.seconds, self.diary)
        self.random = random.Random(self.seed)
        self.pushes = PushBook()
        self.redis = RedisServer()
        credentials = Credentials.create(self.directory)
        try:
            with PushService(
                credentials, app_ids=(APP,), on_push=self.pushes.received
            ) as self.service:
                await self._with_daemon()
                self.findings.violations = len(self.service.violations)
        finally:
            self.redis.close()
        self.findings.second_pushes = self.pushes.second_pushes
        return self.findings

    async def _with_daemon(self) -> None:
        # One worker more than those that run, for the faults.
        users = [f"{side}-{n}" for n in range(self.workers + 1) for side in ("caller", "callee")]
        self.daemon = Daemon(
            self.directory,
            {
                "sip": {"domains": [DOMAIN]},
                "listen": [
                    {"transport": transport, "address": "127.0.0.1", "port": 0}
                    for transport in ("udp", "tcp")
                ],
                "wake": {"hold": HOLD, "probe": 0.5},
                "store": {"type": "redis", "redis": {"url": self.redis.url}},
                "apps": {APP: self.service.app_config().model_dump(mode="json", exclude_none=True)},
                "users": {f"{user}@{DOMAIN}": {"ha1_md5": ha1(user, DOMAIN)} for user in users},
                "log": {"format": "json", "level": "info"},
            },
        )
        await self.daemon.start()
        try:
            before = await self._state()
            self.diary.started_at = asyncio.get_running_loop().time()
            await self._load()
            if self.settle:
                await asyncio.sleep(SETTLED)
                after = await self._state()
                self.findings.left_over = _more(before, after)
                self.findings.server_states = after["server_states"]
            self._read_log()
        finally:
            await self.daemon.kill()

    async def _load(self) -> None:
        watching = asyncio.create_task(self._watch())
        breaking = asyncio.create_task(self._break())
        await asyncio.gather(
            *(self._worker(n).run(self.seconds) for n in range(self.workers)),
        )
        await breaking
        watching.cancel()

    def _worker(self, number: int) -> Worker:
        chance = random.Random(self.random.random())
        return Worker(number, self.daemon, self.service, self.pushes, self.diary, chance)

    # -- watching --

    @property
    def _pid(self) -> int:
        assert self.daemon.program is not None
        return self.daemon.program.process.pid

    async def _state(self) -> dict[str, Any]:
        """What the daemon counts."""
        start = len(self.daemon.log.all)
        os.kill(self._pid, signal.SIGUSR1)
        return await self.daemon.log_event("state", start=start)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(1)
            if self.daemon.running:
                self.findings.states.append(_seen(self._pid, self.diary.now))

    def _read_log(self) -> None:
        """Take note of what the daemon said, and forget it."""
        for line in self.daemon.log.all:
            self.findings.tracebacks += "Traceback" in line
            if "event_loop_blocked" in line:
                record = json.loads(line)
                self.findings.blocked.append(f"blocked {record['seconds']} s: {record['by'][-3:]}")
        self.daemon.log.all.clear()

    # -- breaking --

    async def _break(self) -> None:
        faults = (self._kill_daemon, self._restart_redis, self._stall_redis)
        number = 0
        while self.diary.now + self.fault_every + RECOVERY < self.seconds:
            await asyncio.sleep(self.fault_every)
            self._read_log()
            await faults[number % len(faults)]()
            number += 1

    @contextmanager
    def _fault(self, name: str) -> Iterator[None]:
        """It is on meanwhile."""
        begin = self.diary.now
        self.diary.faults.append((begin, 0.0, name))
        try:
            yield
        finally:
            self.diary.faults[-1] = (begin, self.diary.now, name)

    async def _kill_daemon(self) -> None:
        """kill -9, while calls are held, each of which must complete afterwards."""
        worker = self._worker(self.workers)
        async with _played(worker):
            await worker.asleep()
            calls = {}
            for _ in range(HELD_THROUGH_CRASH):
                call = await worker.pushed_call("UDP")
                calls[call.call_id] = call
            with self._fault("daemon killed"):
                await self.daemon.kill()
                self._read_log()
                await self.daemon.start()
            phone, _ = await worker.registered("UDP")
            while calls:
                incoming = await phone.incoming()
                call = calls.pop(incoming.invite["call-id"])
                answer, _ = await in_time(call.final(), incoming.answer())
                assert answer.status == 200, answer.start
                await in_time(call.hang_up(answer), incoming.hung_up())

    async def _restart_redis(self) -> None:
        """An orderly restart, which keeps what is stored."""
        with self._fault("Redis restarted"):
            client = Redis.from_url(self.redis.url)
            with suppress(RedisConnectionError):
                await client.shutdown(save=True)
            await client.aclose()
            self.redis.kill()
            await asyncio.to_thread(self.redis.start)

    async def _stall_redis(self) -> None:
        with self._fault("Redis stalled"):
            self.redis.pause()
            try:
                await asyncio.sleep(3)
            finally:
                self.redis.resume()


def _seen(pid: int, at: float) -> State:
    status = Path(f"/proc/{pid}/status").read_text()
    rss = int(status.partition("VmRSS:")[2].split()[0])
    return State(at, rss, len(os.listdir(f"/proc/{pid}/fd")))


def _more(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    """What there is more of."""
    return {
        name: after[name] - count
        for name, count in before.items()
        if isinstance(count, int) and after[name] > count
    }


@asynccontextmanager
async def _played(worker: Worker) -> AsyncIterator[None]:
    """What it fails at is written down, its phones are killed."""
    try:
        yield
    except (AssertionError, OSError, TimeoutError) as error:
        worker.failed("a call held through a crash", error, disturbed=False)
    finally:
        worker.kill_phones()
