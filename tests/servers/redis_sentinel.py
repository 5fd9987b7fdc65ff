"""A primary, a replica and a Sentinel that makes the replica primary when the first one is gone."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from tests.servers.ports import free_port
from tests.servers.redis_server import RedisServer

MASTER = "phones"
PATIENCE = 30.0


class RedisWithSentinel:
    """``primary`` may be killed or stalled; ``failed_over`` waits until the other one serves."""

    def __init__(self) -> None:
        self.primary = RedisServer("--repl-diskless-sync-delay", "0")
        where = ("127.0.0.1", str(self.primary.port))
        self.replica = RedisServer("--replicaof", *where)
        # First: a Sentinel asks for replicas when it starts, and then every ten seconds.
        self._await("the replica to be in step", self._in_step)
        self.port = free_port("127.0.0.1")
        self._directory = tempfile.mkdtemp(prefix="sipush-sentinel-")
        file = Path(self._directory, "sentinel.conf")
        file.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self._directory}\n"
            f"sentinel monitor {MASTER} {' '.join(where)} 1\n"
            f"sentinel down-after-milliseconds {MASTER} 500\n"
            f"sentinel failover-timeout {MASTER} 2000\n"
        )
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", "redis-server", file, "--sentinel"],
            stdout=subprocess.DEVNULL,
        )
        self._await("the Sentinel", self._replica_known)

    @property
    def address(self) -> str:
        """Of the Sentinel."""
        return f"127.0.0.1:{self.port}"

    def failed_over(self) -> None:
        """Wait until the Sentinel names the replica as primary."""
        self._await("a failover", lambda: self._master() == self.replica.port)

    def replicated(self) -> None:
        """Wait until the replica has all that the primary was told."""
        with _client(self.primary.port) as client:
            if client.execute_command("WAIT", 1, int(PATIENCE * 1000)) != 1:
                raise RuntimeError("the replica does not follow")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self.primary.close()
        self.replica.close()
        shutil.rmtree(self._directory)

    def _master(self) -> int:
        with _client(self.port) as client:
            return int(client.sentinel_master(MASTER)["port"])

    def _in_step(self) -> bool:
        with _client(self.primary.port) as client:
            return bool(client.info("replication").get("slave0", {}).get("state") == "online")

    def _replica_known(self) -> bool:
        with _client(self.port) as client:
            return bool(client.sentinel_master(MASTER)["num-slaves"] == 1)

    @staticmethod
    def _await(what: str, reached: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            with suppress(RedisError):  # it is starting
                if reached():
                    return
            time.sleep(0.02)
        raise RuntimeError(f"waited in vain for {what}")


def _client(port: int) -> Redis:
    return Redis(port=port, socket_timeout=PATIENCE)
