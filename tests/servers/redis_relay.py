"""A network between the server under test and its Redis that can fall silent at a given command."""

from __future__ import annotations

import asyncio
from types import TracebackType


class RedisRelay:
    """What it has taken it delivers in the end, as a kernel does, though the client be gone."""

    def __init__(self, port: int) -> None:
        """``port``: that of Redis on 127.0.0.1."""
        self._redis_port = port
        self._server: asyncio.Server | None = None
        self._passes: set[asyncio.Task[None]] = set()
        self._clear = asyncio.Event()
        self._clear.set()
        self._trigger: bytes | None = None
        self.stalled = asyncio.Event()
        "The command has come, and nothing goes to Redis any more."

    @property
    def url(self) -> str:
        """For ``store.redis.url``."""
        assert self._server is not None
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    def stall_at(self, text: bytes) -> None:
        """Keep what comes, from the next commands on that contain this."""
        self._trigger = text
        self.stalled.clear()

    def go_on(self) -> None:
        """Deliver what was kept, in order on each connection."""
        self._trigger = None
        self._clear.set()

    async def __aenter__(self) -> RedisRelay:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for each in self._passes:
            each.cancel()
        await asyncio.gather(*self._passes, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_redis, to_redis = await asyncio.open_connection("127.0.0.1", self._redis_port)
        for work in (self._commands(reader, to_redis), self._replies(from_redis, writer)):
            task = asyncio.create_task(work)
            self._passes.add(task)
            task.add_done_callback(self._passes.discard)

    async def _commands(self, reader: asyncio.StreamReader, redis: asyncio.StreamWriter) -> None:
        try:
            while data := await self._read(reader):
                if self._trigger is not None and self._trigger in data:
                    self._clear.clear()
                    self.stalled.set()
                await self._clear.wait()
                redis.write(data)
        finally:
            redis.close()

    async def _replies(self, redis: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await self._read(redis):
                writer.write(data)
        finally:
            writer.close()

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.read(65536)
        except ConnectionError:
            return b""
