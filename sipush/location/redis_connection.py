"""The way to Redis: commands of one turn of the event loop travel as one pipeline."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
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
from redis.exceptions import RedisError

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


class _Command:
    """A command, or a script's keys and arguments, and who waits for the reply."""

    __slots__ = ("args", "future", "script")

    def __init__(
        self, args: tuple[bytes, ...], script: Script | None, future: asyncio.Future[Any]
    ) -> None:
        self.args = args
        self.script = script
        self.future = future

    def packed(self) -> bytes:
        """As it is sent, a script by its digest."""
        if self.script is None:
            return _pack(self.args)
        return _pack((b"EVALSHA", self.script.sha, *self.args))


def _loading(script: Script) -> _Command:
    """Nobody waits for it: if it fails, so does what needs the script."""
    nobody = asyncio.get_running_loop().create_future()
    nobody.cancel()
    return _Command((b"SCRIPT", b"LOAD", script.text), None, nobody)


class _Link(asyncio.Protocol):
    """A connection that redis-py makes, with TLS, password and Sentinel, and that we read.

    Read by redis-py each reply would take some dozen calls, and each pipeline a task.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        received: Callable[[Any], None],
        lost: Callable[[Exception], None],
    ) -> None:
        self._connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
        self._received = received
        self._lost = lost
        self._reader = hiredis.Reader()
        self._stream: asyncio.BaseProtocol | None = None
        "What redis-py reads with."

    async def connect(self) -> None:
        """Raises RedisError, OSError or TimeoutError."""
        try:
            await self._connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await self._connection.disconnect(nowait=True)
            raise
        transport = self._connection._writer.transport  # type: ignore[union-attr]
        self._stream = transport.get_protocol()
        transport.set_protocol(self)
        self.write: Callable[[bytes], None] = transport.write

    def data_received(self, data: bytes) -> None:
        """Hand on each reply; errors are replies too."""
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                self._received(reply)
        except hiredis.ProtocolError as error:
            self._lost(error)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell, unless it was we who closed it."""
        if isinstance(self._stream, asyncio.Protocol):
            self._stream.connection_lost(error)
        self._lost(error or RedisConnectionError("the connection was closed"))

    async def close(self) -> None:
        """Close, whatever is under way; nothing more is told."""
        self._received = self._lost = _ignore
        await self._connection.disconnect()

    def drop(self) -> None:
        """The same at once."""
        self._received = self._lost = _ignore
        self._connection._close()  # type: ignore[no-untyped-call]


def _ignore(_: object) -> None:
    pass


class RedisPipeline:
    """One connection, on which one pipeline at a time is under way; what comes meanwhile waits.

    Nobody waits longer than the timeout: when a pipeline fails, all that waits behind it fails
    too, and the next command connects anew.
    """

    def __init__(self, config: RedisConfig) -> None:
        self._pool = _pool(config)
        self._timeout = config.timeout
        self._link: _Link | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._may_reconnect = False
        self._may_load = False
        self._waiting: deque[_Command] = deque()
        self._sent: deque[_Command] = deque()
        "The pipeline under way, as far as it was not answered."
        self._forgotten: list[_Command] = []
        "Commands of it whose scripts Redis did not know."
        self._busy = False
        "Whether a pipeline is under way, or will be when this turn of the event loop is over."
        self._deadline = 0.0
        "Of the pipeline under way."
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def call(self, *args: bytes, script: Script | None = None) -> asyncio.Future[Any]:
        """The reply to a command, or to ``script`` with its number of keys, keys and arguments.

        Raises LocationError, as the future does. After one that is not Redis's own word the
        command may still have been carried out.
        """
        if self._closed:
            raise LocationError("the store is closed")
        if len(self._waiting) >= MAX_QUEUED:
            raise LocationError(f"{_name(self._pool)}: too slow, {MAX_QUEUED} requests wait for it")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append(_Command(args, script, future))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._begin)
        return future

    async def close(self) -> None:
        """Let what is queued finish, then disconnect."""
        self._closed = True
        if futures := [command.future for command in self._unanswered()]:
            await asyncio.wait(futures)
        if self._link is not None:
            await self._link.close()
            self._link = None
        if self._timer is not None:
            self._timer.cancel()

    def subscription(self, channel: bytes) -> RedisSubscription:
        """A subscription to ``channel`` on a connection of its own."""
        return RedisSubscription(self._pool, channel, self._timeout)

    def _begin(self) -> None:
        """Send what waits."""
        loop = asyncio.get_running_loop()
        self._deadline = loop.time() + self._timeout
        if self._timer is None:
            self._timer = loop.call_at(self._deadline, self._check_deadline)
        for _ in range(min(len(self._waiting), MAX_PIPELINE)):
            self._sent.append(self._waiting.popleft())
        self._may_reconnect = self._link is not None
        self._may_load = True
        self._send()

    def _send(self) -> None:
        if self._link is None:
            self._connecting = asyncio.create_task(self._connect())
        else:
            self._link.write(b"".join([command.packed() for command in self._sent]))

    async def _connect(self) -> None:
        link = _Link(self._pool, self._receive, self._lose)
        try:
            await link.connect()
        except Exception as error:
            self._connecting = None
            self._fail(error)
        else:
            self._connecting = None
            self._link = link
            self._send()

    def _receive(self, reply: Any) -> None:
        command = self._sent[0]
        if isinstance(reply, hiredis.ReplyError):
            if str(reply).startswith("READONLY"):  # a primary no more
                self._lose(reply)
                return
            if str(reply).startswith("NOSCRIPT") and self._may_load:
                self._forgotten.append(command)
            elif not command.future.done():
                command.future.set_exception(LocationError(self._explain(reply)))
        elif not command.future.done():
            command.future.set_result(reply)
        self._sent.popleft()
        if not self._sent:
            self._go_on()

    def _go_on(self) -> None:
        """A pipeline has been answered."""
        if self._forgotten:
            self._may_load = False
            scripts = {command.script for command in self._forgotten if command.script}
            self._sent.extend(_loading(script) for script in scripts)
            self._sent.extend(self._forgotten)
            self._forgotten.clear()
            self._send()
        elif self._waiting:
            self._begin()
        else:
            self._busy = False

    def _lose(self, error: Exception) -> None:
        """Every command may be repeated, so one lost connection (a restart) costs nothing."""
        if self._link is not None:
            self._link.drop()
            self._link = None
        if self._sent and self._may_reconnect:
            self._may_reconnect = False
            self._send()
        elif self._sent:
            self._fail(error)

    def _check_deadline(self) -> None:
        self._timer = None
        if not self._sent:
            return
        loop = asyncio.get_running_loop()
        if loop.time() < self._deadline:
            self._timer = loop.call_at(self._deadline, self._check_deadline)
        else:
            self._fail(TimeoutError())

    def _fail(self, error: Exception) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        if self._link is not None:
            self._link.drop()
            self._link = None
        failed = self._unanswered()
        self._sent.clear()
        self._forgotten.clear()
        self._waiting.clear()
        self._busy = False
        reason = self._explain(error)
        for command in failed:
            if not command.future.done():
                command.future.set_exception(LocationError(reason))

    def _unanswered(self) -> list[_Command]:
        return [*self._sent, *self._forgotten, *self._waiting]

    def _explain(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"{_name(self._pool)}: no answer within {self._timeout:g} s"
        # An unknown command is quoted with its arguments, which nobody may read in a log.
        text = str(error).partition(", with args")[0]
        return f"{_name(self._pool)}: {text}"


class RedisSubscription:
    """A channel, heard on one connection that is made anew for ever when it breaks."""

    def __init__(self, pool: ConnectionPool, channel: bytes, timeout: float) -> None:
        self._pool = pool
        self._channel = channel
        self._timeout = timeout
        self.subscribed = asyncio.Event()
        "Set while Redis has the subscription."
        self._heard_at: float | None = None
        "When Redis was heard last."

    async def run(self, receive: Callable[[bytes], None], missed: Callable[[float], None]) -> None:
        """Hand every payload to ``receive`` until cancelled.

        What is published while the connection is broken is lost: once it is back, ``missed`` is
        told since when (UNIX seconds).
        """
        loop = asyncio.get_running_loop()
        broken = asyncio.Event()

        def received(reply: Any) -> None:
            heard_at, self._heard_at = self._heard_at, loop.time()
            if isinstance(reply, hiredis.ReplyError):
                broken.set()
            elif reply[0] == b"message":
                receive(reply[2])
            elif reply[0] == b"subscribe":
                self.subscribed.set()
                if heard_at is not None:
                    missed(time.time() - (loop.time() - heard_at))

        while True:
            broken.clear()
            link = _Link(self._pool, received, lambda error: broken.set())
            try:
                with contextlib.suppress(RedisError, OSError, TimeoutError):
                    await self._hear(link, broken)
            finally:
                self.subscribed.clear()
                link.drop()
            await asyncio.sleep(_RECONNECT_DELAY)

    async def _hear(self, link: _Link, broken: asyncio.Event) -> None:
        """Ask, and ask again after some silence, for as long as Redis answers."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._timeout):
            await link.connect()
        link.write(_pack((b"SUBSCRIBE", self._channel)))
        while True:
            asked_at = loop.time()
            if await _is_set_by(broken, asked_at + self._timeout):
                return
            if self._heard_at is None or self._heard_at < asked_at:
                raise TimeoutError
            while loop.time() < self._heard_at + _PING_INTERVAL:
                if await _is_set_by(broken, self._heard_at + _PING_INTERVAL):
                    return
            link.write(_pack((b"PING",)))


async def _is_set_by(event: asyncio.Event, deadline: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            await event.wait()
    return event.is_set()


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


def _name(pool: ConnectionPool) -> str:
    """The server without user and password."""
    if isinstance(pool, SentinelConnectionPool):
        return f"Redis master {pool.service_name}"
    to = pool.connection_kwargs
    return f"Redis at {to.get('path') or to.get('host', 'localhost')}:{to.get('port', 6379)}"
