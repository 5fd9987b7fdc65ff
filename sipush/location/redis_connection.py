"""The way to Redis: commands of one turn of the event loop travel as one pipeline."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

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
from redis.exceptions import ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from sipush.config import RedisConfig
from sipush.errors import ConfigError, LocationError
from sipush.location.redis_commands import Command, Transaction, Waiting, pack
from sipush.location.redis_script import Script
from sipush.sip.uri import parse_sip_uri

MAX_PIPELINE = 256
"Commands sent before the replies of those before them are in: what a stalled Redis can hold."

MAX_TOGETHER = 24
"Who share a script or transaction: one may keep Redis from all others for half a millisecond."

MAX_QUEUED = 10_000
"Who wait for the turn of their commands; beyond it they are refused at once."

READ_AT_ONCE = 16384
"""Bytes that Redis reads before it replies. If we are killed it carries those out; what comes after
them it may drop, as it cannot reply any more."""

_PING_INTERVAL = 10.0
"Seconds after which one who listens asks whether Redis is still there."

_RECONNECT_DELAY = 0.5
"Seconds between two tries to hear again."

_TRACK_NEXT = (b"CLIENT", b"CACHING", b"YES")

_SENTINEL_PORT = 26379

_SILENT_SENTINEL = re.compile(r"<.*?\bhost=([^,]*),port=(\d+).*?> - (?:\w+:)?")
"How redis-py names one, with all its settings: a thousand characters before what was wrong."


_Joined = TypeVar("_Joined", bound=Transaction)


def _unawaited(args: tuple[bytes, ...]) -> Command:
    """Nobody waits for its reply."""
    nobody = asyncio.get_running_loop().create_future()
    nobody.cancel()
    return Command(args, None, nobody)


def _tracks_next(command: Waiting) -> bool:
    """Whether nothing may come between it and the next."""
    return isinstance(command, Command) and command.args[0] is _TRACK_NEXT


class Hearing(Protocol):
    """What is told besides replies, always between what was written before and after it."""

    channel: bytes

    def connected(self, since_epoch: float | None) -> None:
        """Anew, if it is not None: what happened since then may have been missed."""

    def heard(self, message: bytes) -> None:
        """A message on the channel."""

    def changed(self, keys: list[bytes] | None) -> None:
        """Keys that were read ``tracked`` are not what they were; None: any may be."""


class _Link(asyncio.Protocol):
    """A connection that redis-py makes, with TLS, password and Sentinel, and that we read.

    Read by redis-py each reply would take some dozen calls, and each pipeline a task.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        received: Callable[[list[Any]], None],
        lost: Callable[[Exception], None],
        hearing: Hearing | None,
    ) -> None:
        self._connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
        self._received = received
        self._lost = lost
        self._hearing = hearing
        self._asked = hearing is not None
        "Whether the answer to SUBSCRIBE is still to come."
        self.tracks = False
        "Whether Redis tells of changes to what is read ``tracked``."
        self.hears = False
        "Whether Redis has our subscription."
        self._reader = hiredis.Reader()
        self._replies: list[Any] = []
        "Those that complete nothing yet."
        self._stream: asyncio.BaseProtocol | None = None
        "What redis-py reads with."

    async def connect(self) -> None:
        """Raises RedisError, OSError or TimeoutError."""
        try:
            await self._connection.connect()  # type: ignore[no-untyped-call]
            if self._hearing is not None:
                self.tracks = await self._track()
        except BaseException:
            await self._connection.disconnect(nowait=True)
            raise
        transport = self._connection._writer.transport  # type: ignore[union-attr]
        self._stream = transport.get_protocol()
        transport.set_protocol(self)
        self.write: Callable[[bytes], None] = transport.write
        self.unsent: Callable[[], int] = transport.get_write_buffer_size
        if self._hearing is not None:
            self.write(pack([b"SUBSCRIBE", self._hearing.channel]))

    async def _track(self) -> bool:
        """Whether Redis lets us; nothing is tracked yet, so nothing but the reply can come."""
        await self._connection.send_command("CLIENT", "TRACKING", "ON", "OPTIN")
        try:
            await self._connection.read_response()
        except ResponseError:
            return False
        return True

    def data_received(self, data: bytes) -> None:
        """Hand on the replies; errors are replies too."""
        self._reader.feed(data)
        gets, replies = self._reader.gets, self._replies
        try:
            while (reply := gets()) is not False:
                if isinstance(reply, hiredis.PushNotification):
                    self._received(replies)
                    self._pushed(reply)
                elif self._asked:
                    self._asked = False  # and refused
                else:
                    replies.append(reply)
        except hiredis.ProtocolError as error:
            self._lost(error)
        else:
            self._received(replies)

    def _pushed(self, push: list[Any]) -> None:
        assert self._hearing is not None
        kind = push[0]
        if kind == b"message":
            self._hearing.heard(push[2])
        elif kind == b"invalidate":
            self._hearing.changed(push[1])
        elif kind == b"subscribe":
            self._asked, self.hears = False, True

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
        self._waiting: deque[Waiting] = deque()
        self._queued = 0
        "Who waits for those."
        self._sent: deque[Waiting] = deque()
        "The pipeline under way, as far as it was not answered."
        self._forgotten: list[Waiting] = []
        "Commands of it whose scripts Redis did not know."
        self._tells = False
        "Whether somebody waits to hear that a command is out of our hands."
        self._busy = False
        "Whether a pipeline is under way, or will be when this turn of the event loop is over."
        self._deadline = 0.0
        "Of the pipeline under way."
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._hearing: Hearing | None = None
        self._broken = asyncio.Event()
        "Set while there is no connection."
        self._heard_epoch: float | None = None
        "When we were connected for certain (UNIX seconds)."

    def call(
        self,
        *args: bytes,
        script: Script | None = None,
        tracked: bool = False,
        written: Callable[[], None] | None = None,
    ) -> asyncio.Future[Any]:
        """The reply to a command, or to ``script`` with its keys and arguments.

        With ``tracked``, and if it ``tracks``, Redis tells when what was read is changed.
        ``written`` is called, at the latest when a reply comes that is true, as soon as a Redis
        that works will carry the command out though we be killed; it must not raise.
        Raises LocationError, as the future does. After one that is not Redis's own word the
        command may still have been carried out.
        """
        future = self._future()
        if tracked and self.tracks:
            self._waiting.append(_unawaited(_TRACK_NEXT))
            self._queued += 1
        if script is not None and (command := self._that_takes(script)) is not None:
            command.args.append(args)
            command.futures.append(future)
            return future
        self._tells = self._tells or written is not None
        self._wait(Command(args, script, future, written))
        return future

    def transaction(
        self, kind: type[_Joined], begin: Callable[[], _Joined]
    ) -> tuple[_Joined, asyncio.Future[Any]]:
        """One to be joined at once, which waits already or which ``begin`` makes, and its outcome.

        Raises LocationError, as the future does.
        """
        future = self._future()
        joined: _Joined | None = self._that_takes(kind)
        if joined is None:
            joined = begin()
            self._wait(joined)
        return joined, future

    def _future(self) -> asyncio.Future[Any]:
        """For one more who waits. Raises LocationError."""
        if self._closed:
            raise LocationError("the store is closed")
        if self._queued >= MAX_QUEUED:
            raise LocationError(f"{_name(self._pool)}: too slow, {MAX_QUEUED} requests wait for it")
        self._queued += 1
        return asyncio.get_running_loop().create_future()

    def _wait(self, command: Waiting) -> None:
        self._waiting.append(command)
        if not self._busy:
            self._busy = True
            asyncio.get_running_loop().call_soon(self._begin)

    async def close(self) -> None:
        """Let what is queued finish, then disconnect."""
        self._closed = True
        if futures := [future for command in self._unanswered() for future in command.futures]:
            await asyncio.wait(futures)
        if self._link is not None:
            await self._link.close()
            self._link = None
        if self._timer is not None:
            self._timer.cancel()

    def hear(self, hearing: Hearing) -> None:
        """Tell it everything, from the next connection on."""
        self._hearing = hearing

    @property
    def hears(self) -> bool:
        """Whether Redis has our subscription."""
        return self._link is not None and self._link.hears

    @property
    def tracks(self) -> bool:
        """Whether Redis tells of changes to what is read ``tracked``."""
        return self._link is not None and self._link.tracks

    async def stay_connected(self) -> None:
        """For one who listens: connect anew whenever the connection breaks, until cancelled."""
        while True:
            asked_epoch = time.time()
            with contextlib.suppress(LocationError, TimeoutError):
                await self.call(b"PING")
                self._heard_epoch = asked_epoch
                async with asyncio.timeout(_PING_INTERVAL):
                    await self._broken.wait()
            await asyncio.sleep(_RECONNECT_DELAY)

    def _that_takes(self, kind: object) -> Any:
        """What waits and may take one more of its ``kind``, unless something else waits behind it.

        Look-ups and REGISTERs may overtake each other: none has been answered yet.
        """
        for command in reversed(self._waiting):
            if not command.many:
                return None
            if command.kind is kind:
                return command if len(command.futures) < MAX_TOGETHER else None
        return None

    def _begin(self) -> None:
        """Send what waits."""
        loop = asyncio.get_running_loop()
        self._deadline = loop.time() + self._timeout
        if self._timer is None:
            self._timer = loop.call_at(self._deadline, self._check_deadline)
        size, watches = 0, False
        for _ in range(min(len(self._waiting), MAX_PIPELINE)):
            command = self._waiting[0]
            if isinstance(command, Transaction):
                if watches:
                    break  # one at a time
                watches = True
            if self._tells:
                size += len(command.packed())
                if command.written is not None and self._sent and size > READ_AT_ONCE:
                    break  # the next pipeline begins with it
            self._take_next()
        if self._waiting and _tracks_next(self._sent[-1]):
            self._take_next()  # nothing may come between the two
        self._may_reconnect = self._link is not None
        self._may_load = True
        self._send()

    def _take_next(self) -> None:
        command = self._waiting.popleft()
        self._queued -= len(command.futures)
        self._sent.append(command)

    def _send(self) -> None:
        if self._link is None:
            self._connecting = asyncio.create_task(self._connect())
        else:
            packed = [command.packed() for command in self._sent]
            self._link.write(b"".join(packed))
            if self._tells and not self._link.unsent():
                self._written(packed)

    def _written(self, packed: list[bytes]) -> None:
        """These have just been handed to the kernel."""
        self._tells = any(command.written is not None for command in self._waiting)
        size = 0
        for command, text in zip(self._sent, packed, strict=True):
            size += len(text)
            if size > READ_AT_ONCE:
                break
            command.tell_written()

    async def _connect(self) -> None:
        began_epoch = time.time()
        link = _Link(self._pool, self._receive, self._lose, self._hearing)
        try:
            await link.connect()
        except Exception as error:
            self._connecting = None
            self._fail(error)
        else:
            self._connecting = None
            self._link = link
            self._broken.clear()
            if self._hearing is not None:
                self._hearing.connected(self._heard_epoch)
                self._heard_epoch = began_epoch
            self._send()

    def _receive(self, replies: list[Any]) -> None:
        """Take from the front those that complete an answer."""
        if not self._sent:
            return  # we have heard something
        while self._sent:
            command = self._sent[0]
            answer = replies[: command.replies]
            if len(answer) < command.replies:
                return
            del replies[: command.replies]
            if (error := command.error(answer)) is not None:
                if str(error).startswith("READONLY"):  # a primary no more
                    self._lose(error)
                    return
                if str(error).startswith("NOSCRIPT") and self._may_load:
                    self._forgotten.append(command)
                else:
                    self._refuse(command, self._explain(error))
            elif (told := command.answered(answer)) is None:
                self._waiting.appendleft(command)
                self._queued += len(command.futures)
            else:
                for future, part in zip(command.futures, told, strict=True):
                    self._settle(future, part)
            self._sent.popleft()
        self._go_on()

    def _settle(self, future: asyncio.Future[Any], reply: Any) -> None:
        if future.done():
            return
        if isinstance(reply, hiredis.ReplyError):
            future.set_exception(LocationError(self._explain(reply)))
        else:
            future.set_result(reply)

    def _refuse(self, command: Waiting, reason: str) -> None:
        for future in command.futures:
            if not future.done():
                future.set_exception(LocationError(reason))

    def _go_on(self) -> None:
        """A pipeline has been answered."""
        if self._forgotten:
            self._may_load = False
            kinds = {command.kind for command in self._forgotten}
            scripts = [kind for kind in kinds if isinstance(kind, Script)]
            self._sent.extend(_unawaited((b"SCRIPT", b"LOAD", script.text)) for script in scripts)
            self._sent.extend(self._forgotten)
            self._forgotten.clear()
            self._send()
        elif self._waiting:
            self._begin()
        else:
            self._busy = False

    def _lose(self, error: Exception) -> None:
        """Every command may be repeated, so one lost connection (a restart) costs nothing."""
        self._drop_link()
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
        self._drop_link()
        failed = self._unanswered()
        self._sent.clear()
        self._forgotten.clear()
        self._waiting.clear()
        self._queued = 0
        self._busy = False
        reason = self._explain(error)
        for command in failed:
            self._refuse(command, reason)

    def _drop_link(self) -> None:
        for command in self._unanswered():
            command.restart()
        if self._link is not None:
            self._link.drop()
            self._link = None
        self._broken.set()

    def _unanswered(self) -> list[Waiting]:
        return [*self._sent, *self._forgotten, *self._waiting]

    def _explain(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"{_name(self._pool)}: no answer within {self._timeout:g} s"
        # An unknown command is quoted with its arguments, which nobody may read in a log.
        text = str(error).partition(", with args")[0]
        text = _SILENT_SENTINEL.sub(r"\1:\2 ", text)
        return f"{_name(self._pool)}: {text}"


def _pool(config: RedisConfig) -> ConnectionPool:
    try:
        to: dict[str, Any] = dict(parse_url(config.url))
    except ValueError as error:
        raise ConfigError([f"store.redis.url: {error}"]) from None
    try:
        if config.password_file:
            text = config.password_file.read_text(encoding="utf-8")
            to["password"] = text.partition("\n")[0].strip()
    except OSError as error:
        raise ConfigError([f"store.redis.password_file: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise ConfigError(["store.redis.password_file: is not UTF-8"]) from None
    # RESP3: what is not a reply says so. The time limit is a pipeline's.
    to |= {
        "protocol": 3,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        "socket_timeout": None,
        "socket_connect_timeout": None,
    }
    pool = _sentinel_pool(config, to) if config.sentinels else ConnectionPool(**to)
    try:
        pool.make_connection()  # type: ignore[no-untyped-call] # it connects to nobody yet
    except (TypeError, ValueError) as error:  # a setting behind the ? that redis-py does not know
        raise ConfigError([f"store.redis.url: {error}"]) from None
    return pool


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
