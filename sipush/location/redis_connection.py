"""The way to Redis: commands of one turn of the event loop travel as one pipeline."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hiredis
from redis.asyncio.connection import (
    AbstractConnection,
    ConnectionPool,
    SSLConnection,
    parse_url,
)
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError

from sipush.config import RedisConfig
from sipush.errors import ConfigError, LocationError
from sipush.location.redis_script import Script
from sipush.sip.uri import parse_sip_uri

# The stub knows only tuples of one.
_pack: Callable[[tuple[bytes, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]

MAX_PIPELINE = 256
"Commands sent before the replies of those before them are in: what a stalled Redis can hold."

MAX_QUEUED = 10_000
"Commands waiting for their turn; beyond it they are refused at once."

_PING_INTERVAL = 10.0
"Seconds of silence after which a subscription asks whether Redis is still there."

_RECONNECT_DELAY = 0.5
"Seconds between two tries to subscribe again."

_SENTINEL_PORT = 26379


@dataclass(eq=False, slots=True)
class _Queued:
    """A command, or a script's keys and arguments, and who waits for the reply."""

    script: Script | None
    args: tuple[bytes, ...]
    future: asyncio.Future[Any]

    def packed(self) -> bytes:
        if self.script is None:
            return _pack(self.args)
        return _pack((b"EVALSHA", self.script.sha, *self.args))


class RedisPipeline:
    """One connection, on which one pipeline at a time is under way; what comes meanwhile waits.

    Nobody waits longer than the timeout: when a pipeline fails, all that waits behind it fails
    too, and the next command connects anew.
    """

    def __init__(self, config: RedisConfig) -> None:
        self._pool = _pool(config)
        self._connection = _connection(self._pool)
        self._timeout = config.timeout
        self._queue: list[_Queued] = []
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def call(self, *args: bytes, script: Script | None = None) -> Any:
        """The reply to a command, or to ``script`` with its number of keys, keys and arguments.

        Raises LocationError. After one that is not Redis's own word the command may still have
        been carried out.
        """
        if self._closed:
            raise LocationError("the store is closed")
        if len(self._queue) >= MAX_QUEUED:
            raise LocationError(f"{_name(self._pool)}: too slow, {MAX_QUEUED} requests wait for it")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append(_Queued(script, args, future))
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return await future

    async def close(self) -> None:
        """Let what is queued finish, then disconnect."""
        self._closed = True
        if self._task is not None:
            await self._task
        await self._connection.disconnect()

    def subscription(self, channel: bytes) -> RedisSubscription:
        """A subscription to ``channel`` on a connection of its own."""
        return RedisSubscription(_connection(self._pool), channel, self._timeout)

    async def _work(self) -> None:
        while self._queue:
            batch, self._queue = self._queue[:MAX_PIPELINE], self._queue[MAX_PIPELINE:]
            try:
                async with asyncio.timeout(self._timeout):
                    replies = await self._exchange_or_reconnect(batch)
            except Exception as error:
                await self._connection.disconnect(nowait=True)
                batch, self._queue = batch + self._queue, []
                replies = [error] * len(batch)
            self._hand_out(batch, replies)
        self._task = None

    async def _exchange_or_reconnect(self, batch: list[_Queued]) -> list[Any]:
        """Every command may be repeated, so one lost connection (a restart) costs nothing."""
        if self._connection.is_connected:
            with contextlib.suppress(RedisConnectionError):
                return await self._exchange(batch)
        return await self._exchange(batch)

    async def _exchange(self, batch: list[_Queued]) -> list[Any]:
        await _connect(self._connection)
        replies = await self._pipeline([queued.packed() for queued in batch])
        again = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if again:
            scripts = {batch[n].script for n in again}
            loads = [_pack((b"SCRIPT", b"LOAD", script.text)) for script in scripts if script]
            repeated = await self._pipeline([*loads, *(batch[n].packed() for n in again)])
            for n, reply in zip(again, repeated[len(loads) :], strict=True):
                replies[n] = reply
        return replies

    async def _pipeline(self, commands: list[bytes]) -> list[Any]:
        await self._connection.send_packed_command(commands, check_health=False)
        return [await self._reply() for _ in commands]

    async def _reply(self) -> Any:
        try:
            return await self._connection.read_response()
        except ResponseError as error:
            return error

    def _hand_out(self, batch: list[_Queued], replies: list[Any]) -> None:
        for queued, reply in zip(batch, replies, strict=True):
            if queued.future.done():
                continue
            if isinstance(reply, Exception):
                queued.future.set_exception(LocationError(self._explain(reply)))
            else:
                queued.future.set_result(reply)

    def _explain(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"{_name(self._pool)}: no answer within {self._timeout:g} s"
        # An unknown command is quoted with its arguments, which nobody may read in a log.
        text = str(error).partition(", with args")[0]
        return f"{_name(self._pool)}: {text}"


class RedisSubscription:
    """A channel, heard on one connection that is made anew for ever when it breaks."""

    def __init__(self, connection: AbstractConnection, channel: bytes, timeout: float) -> None:
        self._connection = connection
        self._channel = channel
        self._timeout = timeout
        self.subscribed = asyncio.Event()
        "Set while Redis has the subscription."
        self._heard_epoch = 0.0
        "When Redis was heard last, or 0."

    async def run(self, receive: Callable[[bytes], None], missed: Callable[[float], None]) -> None:
        """Hand every payload to ``receive`` until cancelled.

        What is published while the connection is broken is lost: once it is back, ``missed`` is
        told since when (UNIX seconds).
        """
        try:
            while True:
                with contextlib.suppress(RedisError, OSError, TimeoutError):
                    await self._hear(receive, missed)
                self.subscribed.clear()
                await self._connection.disconnect(nowait=True)
                await asyncio.sleep(_RECONNECT_DELAY)
        finally:
            await self._connection.disconnect(nowait=True)

    async def _hear(
        self, receive: Callable[[bytes], None], missed: Callable[[float], None]
    ) -> None:
        async with asyncio.timeout(self._timeout):
            await _connect(self._connection)
            await self._connection.send_command("SUBSCRIBE", self._channel)
        asked = True
        while True:
            wait = self._timeout if asked else _PING_INTERVAL
            reply = await self._connection.read_response(timeout=wait)
            if reply is None:
                if asked:
                    raise TimeoutError
                await self._connection.send_command("PING")
            elif reply[0] == b"subscribe":
                self.subscribed.set()
                if self._heard_epoch:
                    missed(self._heard_epoch)
            elif reply[0] == b"message":
                receive(reply[2])
            asked = reply is None
            if reply is not None:
                self._heard_epoch = time.time()


def _pool(config: RedisConfig) -> ConnectionPool:
    try:
        to: dict[str, Any] = dict(parse_url(config.url))
    except ValueError as error:
        raise ConfigError([f"store.redis.url: {error}"]) from None
    try:
        if config.password_file:
            to["password"] = config.password_file.read_text().partition("\n")[0].strip()
    except OSError as error:
        raise ConfigError([f"store.redis.password_file: {error.strerror}"]) from None
    # RESP2: nothing but replies comes between the replies. The time limit is a pipeline's.
    to |= {"protocol": 2, "socket_timeout": None, "socket_connect_timeout": None}
    return _sentinel_pool(config, to) if config.sentinels else ConnectionPool(**to)


def _sentinel_pool(config: RedisConfig, to: dict[str, Any]) -> SentinelConnectionPool:
    """Whose connections ask for the master whenever they connect, and leave it once demoted."""
    tls = to.pop("connection_class", None) is SSLConnection
    to = {name: value for name, value in to.items() if name not in ("host", "port")}
    # So that all are asked within one command's time, however many of them are silent.
    patience = config.timeout / (len(config.sentinels) + 1)
    sentinels = [parse_sip_uri(f"sip:{each}") for each in config.sentinels]
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        [(uri.address, uri.port or _SENTINEL_PORT) for uri in sentinels],
        sentinel_kwargs={
            "ssl": tls,
            "socket_timeout": patience,
            "socket_connect_timeout": patience,
            "retry": Retry(NoBackoff(), 0),
        },
    )
    pool: SentinelConnectionPool
    pool = SentinelConnectionPool(  # type: ignore[no-untyped-call]
        config.master, sentinel, ssl=tls, **to
    )
    return pool


def _connection(pool: ConnectionPool) -> AbstractConnection:
    """A connection that connects when it is first written to."""
    connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
    return connection


async def _connect(connection: AbstractConnection) -> None:
    """Writing would connect too, but ask no Sentinel."""
    if not connection.is_connected:
        await connection.connect()  # type: ignore[no-untyped-call]


def _name(pool: ConnectionPool) -> str:
    """The server without user and password."""
    if isinstance(pool, SentinelConnectionPool):
        return f"Redis master {pool.service_name}"
    to = pool.connection_kwargs
    return f"Redis at {to.get('path') or to.get('host', 'localhost')}:{to.get('port', 6379)}"
