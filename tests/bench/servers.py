"""The servers under test, as processes on 127.0.0.1: sipush on each store, and Kamailio."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sipush.config import load
from sipush.core.bindings import Subscriber
from sipush.demo.credentials import Credentials
from sipush.location import make_store
from tests.bench.measure import Pids
from tests.servers.ports import free_port

DOMAIN = "push.bench"
PASSWORD = "secret"
APP_ID = "com.example.app"
RIG = Path(__file__).with_name("rig")

_SIPUSH = """
[sip]
domains = ["{domain}"]
aliases = ["127.0.0.1"]
[[listen]]
transport = "udp"
address = "127.0.0.1"
port = {port}
[[listen]]
transport = "tcp"
address = "127.0.0.1"
port = {port}
[[listen]]
transport = "tls"
address = "127.0.0.1"
port = {tls_port}
tls.certificate = "{certificate}"
tls.private_key = "{private_key}"
[[peers]]
name = "callers"
address = "127.0.0.1"
[wake]
probe = 1.5
hold = 120
[log]
level = "{log}"
format = "json"
[store]
type = "{store}"
[store.sqlite]
path = "{directory}/sipush.db"
[store.redis]
url = "{redis}"
{apps}
"""

_SHARED_MB = 6144
"""Kamailio's memory. It keeps each transaction for seconds, at 28 kB for a call: a gigabyte is used
up before a run is over, and what is left costs it twice as much to find."""

_ENDS_WITH_US = ("setpriv", "--pdeathsig", "TERM", "--")
"A bench that is killed leaves no server behind."


class Server:
    """A server and the processes that belong to it."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.port, self.tls_port = free_port(), free_port()
        self.ready_after = 0.0
        "Seconds from its start to its first answer."
        self._directory = directory
        self._processes: dict[str, subprocess.Popen[str]] = {}
        directory.mkdir(parents=True)
        (directory / "tls").mkdir()
        self._credentials = Credentials.create(directory / "tls")

    @property
    def pids(self) -> Pids:
        """What counts as the server's CPU; the push service does not."""
        return {label: process.pid for label, process in self._processes.items() if label != "push"}

    @property
    def target(self) -> str:
        """``host:port``."""
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        """End every process, the server first."""
        for process in reversed(self._processes.values()):
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._processes.clear()

    def _spawn(self, label: str, *command: object, **streams: int) -> subprocess.Popen[str]:
        with (self._directory / f"{label}.log").open("a") as log:
            process = subprocess.Popen(
                [*_ENDS_WITH_US, *map(str, command)],
                **{"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, **streams},  # type: ignore[arg-type]
                text=True,
                start_new_session=True,
            )
        self._processes[label] = process
        return process

    def _start_redis(self) -> int:
        """Its port. What was written is on disk within a second."""
        port = free_port()
        options = ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]
        # Rewritten is what was logged when there is twice as much: in the middle of some run.
        options += ["--auto-aof-rewrite-percentage", "0"]
        self._spawn(
            "redis",
            *("redis-server", "--bind", "127.0.0.1", "--port", port, "--dir", self._directory),
            *options,
        )
        _wait_for(lambda: _accepts(port), "redis-server")
        return port

    def _wait_until_up(self) -> None:
        started = time.monotonic()
        _wait_for(lambda: _answers_options(self.port), self.name)
        self.ready_after = time.monotonic() - started


class Sipush(Server):
    """Our own daemon. Callers are trusted peers, as they are in the Kamailio configuration."""

    def __init__(
        self, directory: Path, store: str, users: int, *, push: bool = False, log: str = "info"
    ) -> None:
        super().__init__(f"sipush {store}", directory)
        self._users = users
        redis = f"redis://127.0.0.1:{self._start_redis()}/0" if store == "redis" else ""
        config = _SIPUSH.format(
            domain=DOMAIN,
            port=self.port,
            tls_port=self.tls_port,
            certificate=self._credentials.certificate_file,
            private_key=self._credentials.private_key_file,
            log=log,
            store=store,
            directory=directory,
            redis=redis or "redis://127.0.0.1:6379/0",
            apps=self._start_push_service() if push else self._webhook(),
        )
        self.config = directory / "sipush.toml"
        self.config.write_text(config + (_user_sections(users) if store == "memory" else ""))
        if store != "memory":
            asyncio.run(self._import_users())
        self.start()

    def start(self) -> None:
        """Start the daemon and wait for its first answer."""
        command = (sys.executable, "-m", "sipush.cli", "run", "--config", self.config)
        self._spawn("server", *command)
        self._wait_until_up()

    def pushed(self) -> dict[str, Any]:
        """What the push service has received: see ``push_checker``."""
        service = self._processes["push"]
        assert service.stdin is not None
        assert service.stdout is not None
        service.stdin.write("\n")
        service.stdin.flush()
        received: dict[str, Any] = json.loads(service.stdout.readline())
        return received

    def end_daemon(self) -> None:
        """End the daemon alone; ``start`` brings it back to its store."""
        process = self._processes.pop("server")
        process.terminate()
        process.wait(60)

    def _start_push_service(self) -> str:
        credentials = self._directory / "push"
        credentials.mkdir()
        process = self._spawn(
            "push",
            *(sys.executable, "-m", "tests.bench.push_checker", credentials, APP_ID),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        return "".join(iter(process.stdout.readline, "\n"))

    def _webhook(self) -> str:
        """An app nobody is pushed by."""
        secret = self._directory / "webhook.secret"
        secret.write_text("0123456789abcdef\n")
        url = "http://127.0.0.1:9/"
        return f'[apps."{APP_ID}".webhook]\nurl = "{url}"\nsecret_file = "{secret}"'

    async def _import_users(self) -> None:
        """What ``sipush user import`` does, many at a time."""
        store = make_store(load(self.config).store)
        await store.open()
        try:
            users = range(self._users)
            for start in users[::1000]:
                numbers = users[start : start + 1000]
                await asyncio.gather(
                    *(store.put_subscriber(Subscriber(aor(n), ha1(n))) for n in numbers)
                )
        finally:
            await store.close()


class Kamailio(Server):
    """The peer. ``variant``: memory, redis (write-through) or hold; ``malloc``: fm or qm."""

    def __init__(self, directory: Path, variant: str, *, malloc: str, tls: bool) -> None:
        super().__init__(f"kamailio {variant} {malloc}", directory)
        defines: list[object] = []
        if variant == "redis":
            port = self._start_redis()
            server = f'REDIS_SRV="name=rp;addr=127.0.0.1;port={port};db=6"'
            url = f'REDIS_URL="redis://127.0.0.1:{port}/5"'
            defines = ["-A", "WITH_REDIS", "-A", url, "-A", server]
        elif variant == "hold":
            defines = ["-A", "WITH_HOLD"]
        if tls:
            config = directory / "tls.cfg"
            config.write_text(
                "[server:default]\nmethod = TLSv1.2+\n"
                f"certificate = {self._credentials.certificate_file}\n"
                f"private_key = {self._credentials.private_key_file}\n"
            )
            defines += ["-A", "WITH_TLS", "-A", f'TLS_CONFIG="{config}"']
            defines += ["-l", f"tls:127.0.0.1:{self.tls_port}"]
        self.push_port = free_port()
        self._spawn(
            "server",
            *("kamailio", "-DD", "-E", "-f", RIG / "kamailio.cfg"),
            *("-Y", directory, "-w", directory, "-m", str(_SHARED_MB), "-M", "32"),
            *("-l", f"udp:127.0.0.1:{self.port}", "-l", f"tcp:127.0.0.1:{self.port}"),
            *("-n", "1", "-N", "1", "-x", malloc, "-X", malloc),
            *("-A", f'PUSH_URI="sip:127.0.0.1:{self.push_port}"', *defines),
        )
        self._wait_until_up()

    @staticmethod
    def is_installed() -> bool:
        """Whether there is one to compare with."""
        return shutil.which("kamailio") is not None


def aor(number: int) -> str:
    """The user the load generators call by this number."""
    return f"u{number:06d}@{DOMAIN}"


def ha1(number: int) -> str:
    """H(A1) of that user."""
    return hashlib.md5(f"u{number:06d}:{DOMAIN}:{PASSWORD}".encode()).hexdigest()


def _user_sections(users: int) -> str:
    return "".join(f'[users."{aor(n)}"]\nha1_md5 = "{ha1(n)}"\n' for n in range(users))


def _wait_for(ready: Callable[[], bool], name: str, patience: float = 300) -> None:
    """A million users in a configuration take a minute or two to read."""
    end = time.monotonic() + patience
    while not ready():
        if time.monotonic() > end:
            raise RuntimeError(f"{name} did not start")
        time.sleep(0.02)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answers_options(port: int) -> bool:
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.settimeout(0.2)
        probe.bind(("127.0.0.1", 0))
        probe.connect(("127.0.0.1", port))
        me = probe.getsockname()[1]
        request = (
            f"OPTIONS sip:127.0.0.1:{port} SIP/2.0\r\n"
            f"Via: SIP/2.0/UDP 127.0.0.1:{me};branch=z9hG4bKup{time.monotonic_ns()};rport\r\n"
            f"Max-Forwards: 5\r\nFrom: <sip:up@127.0.0.1>;tag=up\r\nTo: <sip:127.0.0.1>\r\n"
            f"Call-ID: up{me}\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
        )
        try:
            probe.send(request.encode())
            return probe.recv(4096).startswith(b"SIP/2.0 ")
        except OSError:
            return False
