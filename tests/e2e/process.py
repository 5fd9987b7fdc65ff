"""Phones are processes: started, listened to, and killed as an OS kills them."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.e2e.wire import PATIENCE

LINE_LIMIT = 2**24
"Bytes; a configuration for all tests makes long lines."


class Lines:
    """Lines that a process says, waited for instead of polled."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self.ended = False
        self._news = asyncio.Event()

    async def collect(self, reader: asyncio.StreamReader) -> None:
        """Read to the end."""
        while line := await reader.readline():
            self.add(line.decode("utf-8", "replace").rstrip("\n"))
        self.ended = True
        self._news.set()

    def add(self, line: str) -> None:
        """One more line."""
        self.all.append(line)
        self._news.set()

    async def find(
        self, wanted: Callable[[str], bool], what: str, patience: float = PATIENCE, start: int = 0
    ) -> str:
        """The first line at or after ``start`` that is ``wanted``; fails with the last lines."""
        try:
            async with asyncio.timeout(patience):
                while True:
                    while start < len(self.all):
                        line = self.all[start]
                        start += 1
                        if wanted(line):
                            return line
                    if self.ended:
                        break
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass
        said = "\n".join(self.all[-25:]) or "nothing"
        raise AssertionError(f"{what} was not said{' before the end' * self.ended}; said:\n{said}")


DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")
"Nothing outlives a test run, however it ends."


class Program:
    """One process of its own session, and what it writes to stdout and stderr."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.output = Lines()
        assert process.stdout is not None
        self._reading = asyncio.create_task(self.output.collect(process.stdout))

    @classmethod
    async def start(
        cls,
        *command: str | Path,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
        typing: bool = False,
    ) -> Program:
        """Spawn; stderr goes with stdout. stdin is closed, unless it takes what is typed there."""
        process = await asyncio.create_subprocess_exec(
            *DIES_WITH_US,
            *map(str, command),
            cwd=directory,
            env={**os.environ, **(environment or {})},
            stdin=asyncio.subprocess.PIPE if typing else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=LINE_LIMIT,
        )
        return cls(process)

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.returncode is None

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    @contextlib.contextmanager
    def unread(self, size: int) -> Iterator[None]:
        """Meanwhile nobody reads what it writes, and a pipe of ``size`` bytes takes that."""
        pipe = self._output_pipe
        fcntl.fcntl(pipe.get_extra_info("pipe"), fcntl.F_SETPIPE_SZ, size)
        pipe.pause_reading()
        yield
        pipe.resume_reading()

    def close_output(self) -> None:
        """Nobody will read what it writes any more."""
        self._output_pipe.close()

    @property
    def _output_pipe(self) -> asyncio.ReadTransport:
        transport: asyncio.SubprocessTransport = self.process._transport  # type: ignore[attr-defined]
        pipe = transport.get_pipe_transport(1)
        assert isinstance(pipe, asyncio.ReadTransport)
        return pipe

    async def kill(self) -> None:
        """SIGKILL: no farewell, no un-REGISTER; returns when the kernel has closed its sockets."""
        self.signal(signal.SIGKILL)
        await self.ended()

    async def ended(self, patience: float = PATIENCE) -> int:
        """Wait for its end; the return code."""
        async with asyncio.timeout(patience):
            code = await self.process.wait()
            await self._reading
        return code


class Pipe:
    """A named pipe as a log file: lines come when they are written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = Lines()
        os.mkfifo(path)
        # Read-write, so that neither end waits for the other and a restart is not an end of file.
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._partial = b""
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            *whole, self._partial = (self._partial + os.read(self._fd, 65536)).split(b"\n")
            for line in whole:
                self.lines.add(line.decode("utf-8", "replace"))

    def close(self) -> None:
        """No more reading. May be called twice."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
