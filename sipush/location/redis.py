"""The location service in Redis, for one node or many (docs/storing.md)."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

from sipush.config import RedisConfig
from sipush.core.bindings import Aor, Location, PushRecord, Refusal, Registration, Subscriber
from sipush.core.packed import Packed
from sipush.core.stored_message import REPEATED, Receipt, StoredMessage
from sipush.errors import LocationError, UnreadableError
from sipush.location import redis_rows as rows
from sipush.location.redis_bind import Binds
from sipush.location.redis_connection import RedisPipeline
from sipush.location.redis_script import (
    CLAIM_HELD_CALLS,
    LOOKUP,
    MAKE_DUE,
    NEXT_ID,
    PUT_HELD_CALL,
    PUT_MESSAGE,
    REMOVE_PUSH_RECORD,
    TAKE_REFRESHES,
)
from sipush.location.store import (
    SECRET_SIZE,
    TOLD_LIFETIME,
    UNTOLD_LIFETIME,
    MissedListener,
    SubscriberListener,
    WakeListener,
    Written,
    secret_of,
)

_SCAN_COUNT = b"500"
"Keys looked at in one SCAN: well under a millisecond of Redis's time."

_SEEN = (1 << 16, 12 << 20)
"""Places, and bytes of rows that are kept for when Redis is silent (docs/faults.md): 13 MiB in all
for some 20,000 users with one device."""


class RedisStore:
    """A LocationStore that many nodes may share.

    All keys of one AOR carry it as their hash tag, so that a Cluster can run the scripts.
    """

    outlives_us = True

    def __init__(self, config: RedisConfig) -> None:
        self._redis = RedisPipeline(config)
        self._timeout = config.timeout
        self._clock_ahead = 0.0
        "Seconds that Redis's clock (UNIX) is ahead of ours (the event loop's)."
        self._prefix = config.prefix.encode()
        self._node = secrets.token_hex(8).encode()
        self.channel = self._prefix + b":wakes"
        self._refreshes = self._prefix + b":refreshes"
        self._bans = self._prefix + b":bans"
        self._gone_messages = self._prefix + b":gone-messages"
        self._seen = Packed(*_SEEN)
        "Rows by AOR."
        self._new_binds = partial(Binds, self._prefix, self.channel, self._node, self._seen)
        self._listeners: list[WakeListener] = []
        self._missed: list[MissedListener] = []
        self._subscriber_listeners: list[SubscriberListener] = []
        self._staying: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect. Raises LocationError with a usable reason."""
        await self._read_clock()
        if self._listeners:
            if not self._redis.hears:
                raise LocationError("Redis: cannot subscribe; may this user use channels?")
            self._staying = asyncio.create_task(self._redis.stay_connected())

    async def close(self) -> None:
        """Finish what was accepted, then disconnect."""
        if self._staying is not None:
            self._staying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._staying
        await self._redis.close()

    async def lookup(self, aor: Aor, now_epoch: float) -> Location:
        """The live bindings and push records of ``aor``."""
        keys = self._key(aor, b"devices"), self._key(aor, b"messages")
        stored, messages = await self._redis.call(*keys, script=LOOKUP)
        devices = dict(zip(stored[::2], stored[1::2], strict=True))
        location = rows.location_of(aor, devices, now_epoch, messages > 1)
        self._seen.put(aor, rows.kept(devices))
        return location

    def last_known(self, aor: Aor) -> Location | None:
        """What Redis said last to this process, if that is not long ago."""
        kept = self._seen.get(aor)
        return None if kept is None else rows.kept_location_of(aor, kept)

    async def bind(self, registration: Registration) -> Location | Refusal:
        """Apply one REGISTER, and tell the other nodes."""
        binds, bound = self._redis.transaction(Binds, self._new_binds)
        binds.join(bound, registration)
        outcome: Location | Refusal = await bound
        if isinstance(outcome, Refusal):
            return outcome
        if registration.refreshes:
            due = rows.refresh_arguments(registration)
            await self._redis.call(self._refreshes, *due, script=MAKE_DUE)
        if outcome.messages:
            held = await self._redis.call(b"HLEN", self._key(registration.aor, b"messages"))
            outcome.messages = held > 1
        return outcome

    async def remove_push_record(self, record: PushRecord) -> bool:
        """Compare-and-delete."""
        key = self._key(record.aor, b"devices")
        text = rows.push_record_text(record)
        device = rows.encode(record.device)
        removed = await self._redis.call(key, device, text, script=REMOVE_PUSH_RECORD)
        return bool(removed)

    def listen(self, listener: WakeListener, missed: MissedListener | None = None) -> None:
        """Be told of Registrations stored by other nodes."""
        self._listeners.append(listener)
        if missed is not None:
            self._missed.append(missed)
        self._redis.hear(self)

    async def aors(self, after: Aor = "") -> AsyncIterator[Aor]:
        """Every AOR with a binding or push record that comes after that one; looks at all keys."""
        found = {self._aor(key) async for key in self._scan(b"devices")}
        for aor in sorted(aor for aor in found if aor > after):
            yield aor

    async def put_message(self, message: StoredMessage, max_stored: int) -> Receipt | None:
        """Store a message. Its id comes from a counter in another slot, so it is drawn before."""
        floor = int(message.stored_epoch)
        while True:
            counter = self._prefix + b":message-id"
            number = await self._redis.call(counter, b"%d" % floor, script=NEXT_ID)
            outcome, held = await self._redis.call(
                self._key(message.aor, b"messages"),
                repr(message.stored_epoch).encode(),
                rows.message_field(replace(message, id=number)),
                message.content,
                b"%d" % max_stored,
                script=PUT_MESSAGE,
            )
            if outcome == b"full":
                return None
            if outcome != b"overtaken":
                return Receipt(int(held), repeated=outcome == b"repeated")
            floor = int(held) + 1

    async def messages(self, aor: Aor, now_epoch: float) -> tuple[StoredMessage, ...]:
        """Those that have not expired, by rising id."""
        stored = rows.messages_of(
            aor, await self._redis.call(b"HGETALL", self._key(aor, b"messages"))
        )
        return tuple(message for message in stored if message.expires_epoch > now_epoch)

    async def remove_message(self, message: StoredMessage, now_epoch: float) -> bool:
        """Whether it was there."""
        now, until = repr(now_epoch).encode(), repr(now_epoch + REPEATED).encode()
        key, field = self._key(message.aor, b"messages"), rows.message_field(message)
        _, _, removed = await asyncio.gather(
            self._redis.call(b"ZREMRANGEBYSCORE", self._gone_messages, b"-inf", now),
            self._redis.call(b"ZADD", self._gone_messages, until, rows.gone_message(message)),
            self._redis.call(b"HDEL", key, field),
        )
        if not removed:  # perhaps it was repeated, and what is stored has the times of the first
            for name in await self._redis.call(b"HKEYS", key):
                if name.startswith(b"%d " % message.id):
                    removed = await self._redis.call(b"HDEL", key, name)
        return bool(removed)

    async def gone_messages(self, now_epoch: float) -> list[tuple[Aor, str, float]]:
        """Those removed a moment ago."""
        after = b"(" + repr(now_epoch).encode()
        gone = await self._redis.call(
            b"ZRANGEBYSCORE", self._gone_messages, after, b"+inf", b"WITHSCORES"
        )
        found = []
        for member, until in gone:
            with contextlib.suppress(*rows.UNREADABLE):
                found.append((*rows.gone_message_of(member), until))
        return found

    async def take_refreshes(self, now_epoch: float) -> list[tuple[Aor, str]]:
        """Taken out of their sorted set."""
        now = repr(now_epoch).encode()
        due = await self._redis.call(self._refreshes, now, script=TAKE_REFRESHES)
        found = []
        for member in due:
            with contextlib.suppress(*rows.UNREADABLE):
                found.append(rows.refresh_of(member))
        return found

    async def put_held_call(
        self, owner: str, held_id: str, held: bytes, written: Written | None = None
    ) -> None:
        """Store or replace a held call; one that was given up is not stored later."""
        key, field = self._held_calls(owner), rows.encode(held_id)
        if not await self._put_in_time(key, field, held, written):
            await self._read_clock()  # it was set since
            if not await self._put_in_time(key, field, held, written):
                raise LocationError("Redis: stored too late")

    async def _put_in_time(
        self, key: bytes, field: bytes, held: bytes, written: Written | None
    ) -> bool:
        until = asyncio.get_running_loop().time() + self._clock_ahead + self._timeout
        args = (key, repr(until).encode(), field, held)
        return bool(await self._redis.call(*args, script=PUT_HELD_CALL, written=written))

    async def _read_clock(self) -> None:
        """Raises LocationError."""
        seconds, microseconds = await self._redis.call(b"TIME")
        redis_time = int(seconds) + int(microseconds) / 1e6
        self._clock_ahead = redis_time - asyncio.get_running_loop().time()

    async def remove_held_call(self, owner: str, held_id: str) -> None:
        """The call is over."""
        await self._redis.call(b"HDEL", self._held_calls(owner), rows.encode(held_id))

    async def claim_held_calls(self, owner: str, lease: float, *, own: bool) -> list[bytes]:
        """Take over the calls of owners whose lease has run out by Redis's clock."""
        calls: list[bytes] = await self._redis.call(
            self._prefix + b":{held}:leases",
            self._held_calls(""),
            rows.encode(owner),
            repr(lease).encode(),
            b"1" if own else b"0",
            script=CLAIM_HELD_CALLS,
        )
        return calls

    def _held_calls(self, owner: str) -> bytes:
        return self._prefix + b":{held}:calls:" + rows.encode(owner)

    async def subscriber(self, aor: Aor) -> Subscriber | None:
        """The subscriber, or None."""
        key = self._key(aor, b"subscriber")
        fields = await self._redis.call(b"HGETALL", key, tracked=True)
        try:
            return rows.subscriber_of(aor, fields) if fields else None
        except rows.UNREADABLE as error:
            raise UnreadableError(f"Redis: user {aor} cannot be read: {error!r}") from error

    @property
    def subscriber_lifetime(self) -> float:
        """Longer while Redis tells of changes."""
        return TOLD_LIFETIME if self._redis.tracks else UNTOLD_LIFETIME

    def listen_to_subscribers(self, listener: SubscriberListener) -> None:
        """Redis remembers whom we have read, and says when they change."""
        self._subscriber_listeners.append(listener)

    def notice_changes(self) -> None:
        """Redis need not be asked."""

    async def put_subscriber(self, subscriber: Subscriber) -> None:
        """Add or replace."""
        key = self._key(subscriber.aor, b"subscriber")
        await self._redis.call(b"HSET", key, *rows.subscriber_fields(subscriber))

    async def remove_subscriber(self, aor: Aor) -> bool:
        """Whether there was one."""
        return bool(await self._redis.call(b"DEL", self._key(aor, b"subscriber")))

    async def subscribers(self) -> AsyncIterator[Subscriber | UnreadableError]:
        """Every subscriber."""
        seen = set()
        async for key in self._scan(b"subscriber"):
            aor = self._aor(key)
            if aor not in seen:
                seen.add(aor)
                try:
                    subscriber: Subscriber | UnreadableError | None = await self.subscriber(aor)
                except UnreadableError as error:
                    subscriber = error
                if subscriber is not None:
                    yield subscriber

    async def put_ban(self, source: str, until_epoch: float) -> None:
        """Ban a source."""
        await self._redis.call(b"ZADD", self._bans, repr(until_epoch).encode(), source.encode())

    async def bans(self, now_epoch: float) -> dict[str, float]:
        """Those whose time is not over; the others are removed."""
        now = repr(now_epoch).encode()
        await self._redis.call(b"ZREMRANGEBYSCORE", self._bans, b"-inf", now)
        banned = await self._redis.call(b"ZRANGE", self._bans, b"0", b"-1", b"WITHSCORES")
        found = {}
        for name, until in banned:
            with contextlib.suppress(*rows.UNREADABLE):
                found[name.decode()] = until
        return found

    async def remove_ban(self, source: str) -> bool:
        """Whether there was one."""
        return bool(await self._redis.call(b"ZREM", self._bans, source.encode()))

    async def try_to_write(self) -> None:
        """By a command that is refused whenever a REGISTER is."""
        await self._redis.call(b"SET", self._prefix + b":written", b"1")

    async def secret(self) -> bytes:
        """32 random bytes."""
        key = self._prefix + b":secret"
        await self._redis.call(b"SET", key, secrets.token_hex(SECRET_SIZE).encode(), b"NX")
        return secret_of(rows.decode(await self._redis.call(b"GET", key)))

    def _key(self, aor: Aor, kind: bytes) -> bytes:
        return b"%b:{%b}:%b" % (self._prefix, rows.encode(aor), kind)

    def _aor(self, key: bytes) -> Aor:
        return rows.decode(key[len(self._prefix) + 2 : key.rindex(b"}:")])

    async def _scan(self, kind: bytes) -> AsyncIterator[bytes]:
        """Keys of that kind; one may come twice."""
        pattern = re.sub(rb"([*?\[\\])", rb"\\\1", self._prefix) + b":{*}:" + kind
        cursor = b"0"
        while True:
            scan = (b"SCAN", cursor, b"MATCH", pattern, b"COUNT", _SCAN_COUNT)
            cursor, keys = await self._redis.call(*scan)
            for key in keys:
                yield key
            if cursor == b"0":
                return

    # -- Hearing --

    def connected(self, since_epoch: float | None) -> None:
        """Redis tells of nothing that happened before."""
        self.changed(None)
        if since_epoch is not None:
            for missed in self._missed:
                asyncio.get_running_loop().call_soon(missed, since_epoch)

    def heard(self, message: bytes) -> None:
        """A node has stored Registrations."""
        node, _, aors = message.partition(b" ")
        if node == self._node:
            return
        for aor in aors.split(b"\n%b " % node):  # an AOR may have a line break in it
            for listener in self._listeners:
                asyncio.get_running_loop().call_soon(listener, rows.decode(aor))

    def changed(self, keys: list[bytes] | None) -> None:
        """Subscribers that somebody changed."""
        for aor in [None] if keys is None else map(self._aor, keys):
            for listener in self._subscriber_listeners:
                listener(aor)
