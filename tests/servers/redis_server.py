"""A real redis-server for tests: own port, own directory, nothing kept."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import threading
from collections import deque

from tests.servers.ports import free_port


class RedisServer:
    """One redis-server process on 127.0.0.1; killed and started again it keeps its port."""

    def __init__(self, *options: str) -> None:
        """``options`` of redis-server besides those that keep it alone and empty."""
        if shutil.which("redis-server") is None:
            raise RuntimeError("redis-server is missing: apt-get install redis-server")
        self._directory = tempfile.mkdtemp(prefix="sipush-redis-")
        self.port = free_port("127.0.0.1")
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start, empty, and wait until it takes connections."""
        command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "--",
            "redis-server",
            "--bind",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        command += ["--save", "", "--appendonly", "no", "--dir", self._directory]
        command += self._options
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        log = []
        for line in self._process.stdout:
            log.append(line)
            if "Ready to accept connections" in line:
                break
        else:
            raise RuntimeError("redis-server did not start:\n" + "".join(log))
        # Read on, or the log would fill the pipe and stop the server.
        threading.Thread(target=deque, args=(self._process.stdout, 0), daemon=True).start()

    def kill(self) -> None:
        """kill -9: everything it knew is lost."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def pause(self) -> None:
        """It keeps its connections but answers nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._directory)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
