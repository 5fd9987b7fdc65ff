"""A capture server: sngrep, which takes HEP packets and writes what is in them as pcap (Debian)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.process import Program
from tests.e2e.wire import PATIENCE, Msg
from tests.servers.ports import free_port

_COUNTER = itertools.count(1)
_FILE_HEADER = 24
_RECORD = struct.Struct("=IIII")
_UDP_HEADERS = struct.Struct("!14x 12x 4s4s HH4x")
"Ethernet, IPv4 without options, UDP: whatever carried the message, sngrep writes these."


@dataclass(frozen=True, slots=True)
class Captured:
    """One message as the capture server knows it."""

    source: tuple[str, int]
    destination: tuple[str, int]
    epoch: float
    message: Msg


@dataclass
class Sngrep:
    """One sngrep process."""

    program: Program
    port: int
    seen: list[Captured] = field(default_factory=list)
    _pipe: int = -1
    _unread: bytes = b""
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    async def start(cls, directory: Path, key: str, port: int = 0) -> Sngrep:
        """It takes no packet with another key; returns when it takes packets."""
        work = directory / f"sngrep-{next(_COUNTER)}"
        work.mkdir()
        pcap, settings, port = work / "pcap", work / "sngreprc", port or free_port("127.0.0.1")
        os.mkfifo(pcap)
        settings.write_text(f"set eep.listen.pass {key}\n")
        program = await Program.start(
            *("sngrep", "--no-interface", "--quiet", "--no-config", "--config", settings),
            *("--eep-listen", f"udp:127.0.0.1:{port}", "--output", pcap),
        )
        sngrep = cls(program, port)
        # Read-write, so that neither end waits for the other to open it.
        sngrep._pipe = os.open(pcap, os.O_RDWR | os.O_NONBLOCK)
        asyncio.get_running_loop().add_reader(sngrep._pipe, sngrep._read)
        await sngrep._listens()
        return sngrep

    @property
    def address(self) -> str:
        """``host:port`` that packets are sent to."""
        return f"127.0.0.1:{self.port}"

    async def find(self, wanted: Callable[[Captured], bool], what: str) -> Captured:
        """The first message that is ``wanted``, waited for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while True:
                    self._news.clear()
                    for captured in self.seen:
                        if wanted(captured):
                            return captured
                    await self._news.wait()
        raise AssertionError(f"{what} was not captured; captured: {self.seen[-25:]}")

    async def kill(self) -> None:
        """SIGKILL. May be called twice."""
        await self.program.kill()
        if self._pipe >= 0:
            asyncio.get_running_loop().remove_reader(self._pipe)
            os.close(self._pipe)
            self._pipe = -1

    async def _listens(self) -> None:
        """Wait until the kernel no longer says that nobody does."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("127.0.0.1", self.port))
            async with asyncio.timeout(PATIENCE):
                while self.program.running:
                    try:
                        probe.send(b"?")
                        probe.send(b"?")
                    except ConnectionRefusedError:
                        await asyncio.sleep(0.01)
                    else:
                        return
        raise AssertionError(f"sngrep has ended:\n{self.program.output.all}")

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._unread += os.read(self._pipe, 1 << 20)
        start = 0 if self.seen else _FILE_HEADER
        while len(self._unread) >= start + _RECORD.size:
            seconds, microseconds, size, _ = _RECORD.unpack_from(self._unread, start)
            end = start + _RECORD.size + size
            if len(self._unread) < end:
                break
            packet = self._unread[start + _RECORD.size : end]
            self.seen.append(_captured(packet, seconds + microseconds / 1e6))
            start, self._unread = 0, self._unread[end:]
        self._news.set()


def _captured(packet: bytes, epoch: float) -> Captured:
    source, destination, source_port, destination_port = _UDP_HEADERS.unpack_from(packet)
    return Captured(
        (socket.inet_ntoa(source), source_port),
        (socket.inet_ntoa(destination), destination_port),
        epoch,
        Msg(packet[_UDP_HEADERS.size :].decode("utf-8", "surrogateescape")),
    )
