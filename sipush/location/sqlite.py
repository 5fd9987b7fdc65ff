"""The location service in one SQLite file: the embedded default (docs/storing.md)."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

from sipush.config import SqliteConfig
from sipush.core.bindings import (
    Aor,
    Location,
    PushRecord,
    Refusal,
    Registration,
    Subscriber,
)
from sipush.core.location_update import apply, live, without_push_record
from sipush.core.stored_message import REPEATED, Receipt, StoredMessage
from sipush.errors import LocationError, UnreadableError
from sipush.location import sqlite_rows as rows
from sipush.location.sqlite_file import connect, explain
from sipush.location.sqlite_worker import Job, SqliteReader, SqliteWorker, T
from sipush.location.store import (
    SECRET_SIZE,
    TOLD_LIFETIME,
    MissedListener,
    SubscriberListener,
    WakeListener,
    Written,
    secret_of,
)

Worker = TypeVar("Worker", SqliteWorker, SqliteReader)

_PAGE = 500
"Rows read at a time when everything is listed."

_PURGED_AT_ONCE = 50
"Expired messages of any AOR removed in one go: too few to be felt."

_LOOKED_AT_AT_ONCE = 100
"""Bindings of any AOR looked at in one go, to remove those that have expired.

An index by expiry would cost each REGISTER more: it changes with each, in two places.
"""
_START = ""
_END = b"\xff" * 16
"Before and after all AORs: a BLOB sorts after every text."

_PURGE_EVERY = 25
"REGISTERs; or a second, when they are few."

_JUMP = 3600.0
"Seconds by which the wall clock may be off the monotonic one."
_DOUBTED_FOR = 3600.0
"Seconds after a jump in which nothing is removed."

_SELECT_SUBSCRIBER = f"SELECT {rows.SUBSCRIBER} FROM subscribers WHERE aor = ?"


_PUT_SUBSCRIBER = f"INSERT OR REPLACE INTO subscribers ({rows.SUBSCRIBER}) VALUES (?,?,?,?,?,?)"
_PUT_REFRESH = "INSERT OR REPLACE INTO refreshes (aor, device, due_epoch) VALUES (?,?,?)"
_TAKE_REFRESHES = (
    "DELETE FROM refreshes WHERE (aor, device) IN"
    " (SELECT aor, device FROM refreshes WHERE due_epoch <= ? ORDER BY due_epoch LIMIT 200)"
    " RETURNING aor, device"
)
_PUT_HELD_CALL = "INSERT OR REPLACE INTO held_calls (id, owner, held) VALUES (?,?,?)"
_PUT_BAN = "INSERT OR REPLACE INTO bans (source, until_epoch) VALUES (?,?)"
_STRETCH_END = (
    f"SELECT aor FROM devices WHERE aor > ? ORDER BY aor LIMIT 1 OFFSET {_LOOKED_AT_AT_ONCE - 1}"
)
_PURGE = (
    "DELETE FROM devices WHERE aor > ?1 AND aor <= ?2"
    " AND ifnull(expires_epoch, 0) <= ?3 AND ifnull(push_expires_epoch, 0) <= ?3"
)
_SELECT_MESSAGES = (
    f"SELECT {rows.MESSAGE} FROM messages WHERE aor = ? AND expires_epoch > ? ORDER BY id"
)
_PUT_MESSAGE = f"INSERT INTO messages ({rows.MESSAGE}) VALUES (?,?,?,?,?,?)"
_PURGE_MESSAGES = (
    "DELETE FROM messages WHERE expires_epoch <= ?1 AND (aor = ?2 OR id IN"
    f" (SELECT id FROM messages WHERE expires_epoch <= ?1 LIMIT {_PURGED_AT_ONCE}))"
)
_PUT_GONE_MESSAGE = "INSERT OR REPLACE INTO gone_messages (aor, key, until_epoch) VALUES (?,?,?)"
_SELECT_GONE_MESSAGES = (
    "SELECT aor, key, until_epoch FROM gone_messages"
    " WHERE until_epoch > ? AND typeof(until_epoch) = 'real'"
)
_PURGE_GONE_MESSAGES = "DELETE FROM gone_messages WHERE until_epoch <= ?"
_TRY = "INSERT OR REPLACE INTO meta VALUES ('written', strftime('%s', 'now'))"
_NEXT_ID = (
    "INSERT INTO meta VALUES ('message_id', ?1) ON CONFLICT (key)"
    " DO UPDATE SET value = max(CAST(value AS INTEGER) + 1, CAST(?1 AS INTEGER))"
    " RETURNING CAST(value AS INTEGER)"
)
_AORS_AFTER = f"SELECT DISTINCT aor FROM devices WHERE aor > ? ORDER BY aor LIMIT {_PAGE}"
_SUBSCRIBERS_AFTER = (
    f"SELECT {rows.SUBSCRIBER} FROM subscribers WHERE aor > ? ORDER BY aor LIMIT {_PAGE}"
)


class _WallClock:
    """Whether what it says has expired may be removed for good: it may be ahead for a moment."""

    def __init__(self) -> None:
        self._seen: tuple[float, float] | None = None
        "UNIX and monotonic time, when both were last compared."
        self._trusted_at = 0.0

    def is_trusted(self, now_epoch: float) -> bool:
        """Whether it has not jumped of late."""
        now = time.monotonic()
        if self._seen is not None:
            seen_epoch, seen = self._seen
            if abs((now_epoch - seen_epoch) - (now - seen)) > _JUMP:
                self._trusted_at = now + _DOUBTED_FOR
        self._seen = now_epoch, now
        return now >= self._trusted_at


class SqliteStore:
    """A LocationStore in one file, which other processes may read and write at the same time.

    All that is asked during one turn of the event loop shares one transaction, which the loop runs
    itself; a thread syncs it (``SqliteWorker``), and docs/storing.md says who waits for that.
    Lookups go in between and never do.
    """

    outlives_us = True
    subscriber_lifetime = TOLD_LIFETIME

    def __init__(self, config: SqliteConfig) -> None:
        self._config = config
        self._writer: SqliteWorker | None = None
        self._reader: SqliteReader | None = None
        self._subscriber_listeners: list[SubscriberListener] = []
        self._version: rows.Version | None = None
        "What the file was when it was last looked at."
        self._has_noticed = False
        self._unpurged = 0
        "REGISTERs since expired rows were last removed."
        self._purged_epoch = 0.0
        self._purged_to: str | bytes = _START
        "The last AOR that was looked at."
        self._clock = _WallClock()

    async def open(self) -> None:
        """Create or migrate the file. Raises LocationError with what to do about it."""
        path = self._config.path
        opener = partial(connect, path)
        self._writer = SqliteWorker(opener, partial(explain, path), path)
        self._reader = SqliteReader(opener, partial(explain, path), self._writer)
        try:
            await self._write(lambda _: None)
            self._reader.open()
        except LocationError:
            await self.close()
            raise
        self.notice_changes()

    async def close(self) -> None:
        """Commit what was accepted, then let go."""
        if self._writer is not None:
            await self._writer.close()
        if self._reader is not None:
            self._reader.close()

    async def lookup(self, aor: Aor, now_epoch: float) -> Location:
        """The live bindings and push records of ``aor``."""

        def job(connection: sqlite3.Connection) -> Location:
            stored = rows.load(connection, aor, now_epoch)
            return live(stored.bindings, stored.push_records, now_epoch, stored.messages)

        return self._read(job)

    def last_known(self, aor: Aor) -> Location | None:
        """What the file says: nothing is kept beside it, as no file is silent for a while."""
        try:
            return self._read(lambda connection: rows.load(connection, aor, 0.0))
        except LocationError:
            return None

    async def bind(self, registration: Registration) -> Location | Refusal:
        """Apply one REGISTER; a Location returned outlives the process."""

        def job(connection: sqlite3.Connection) -> Location | Refusal:
            now = registration.now_epoch
            before = rows.load(connection, registration.aor, now)
            after = apply(before, registration, before.messages)
            if isinstance(after, Refusal):
                return after
            rows.save(connection, registration.aor, before, after)
            for device, due in registration.refreshes:
                rows.execute(connection, _PUT_REFRESH, (registration.aor, device, due))
            if self._is_purge_due(now):
                self._purge(connection, now)
            return after

        return await self._write_soon(job)

    def _is_purge_due(self, now_epoch: float) -> bool:
        """Once a second, and more often when many rows are added."""
        self._unpurged += 1
        if self._unpurged < _PURGE_EVERY and 0 <= now_epoch - self._purged_epoch < 1:
            return False
        self._unpurged, self._purged_epoch = 0, now_epoch
        return self._clock.is_trusted(now_epoch)

    def _purge(self, connection: sqlite3.Connection, now_epoch: float) -> None:
        """Go on through the devices where the last one stopped, and begin again at their end."""
        row = connection.execute(_STRETCH_END, (self._purged_to,)).fetchone()
        connection.execute(_PURGE, (self._purged_to, row[0] if row else _END, now_epoch))
        self._purged_to = row[0] if row else _START

    async def remove_push_record(self, record: PushRecord) -> bool:
        """Compare-and-delete."""

        def job(connection: sqlite3.Connection) -> bool:
            before = rows.load(connection, record.aor, 0.0)
            after = without_push_record(before, record)
            rows.save(connection, record.aor, before, after)
            return after != before

        return await self._write_soon(job)

    def listen(self, listener: WakeListener, missed: MissedListener | None = None) -> None:
        """Do nothing: a file tells nobody. One daemon uses it, and sees what the CLI writes."""

    async def aors(self, after: Aor = "") -> AsyncIterator[Aor]:
        """Every AOR with a binding or push record that comes after that one."""
        async for row in self._pages(_AORS_AFTER, (after,)):
            yield rows.texts(row)[0]

    async def put_message(self, message: StoredMessage, max_stored: int) -> Receipt | None:
        """Store a message; its Receipt means that it is on disk."""

        def job(connection: sqlite3.Connection) -> Receipt | None:
            now = message.stored_epoch
            if self._clock.is_trusted(now):
                rows.execute(connection, _PURGE_MESSAGES, (now, message.aor))
            waiting = _messages(connection, message.aor, now)
            for other in waiting:
                if other.key == message.key:
                    return Receipt(other.id, repeated=True)
            if sum(other.is_report == message.is_report for other in waiting) >= max_stored:
                return None
            number = connection.execute(_NEXT_ID, (str(int(now)),)).fetchone()[0]
            rows.execute(connection, _PUT_MESSAGE, rows.message_row(replace(message, id=number)))
            return Receipt(number)

        return await self._write(job)

    async def messages(self, aor: Aor, now_epoch: float) -> tuple[StoredMessage, ...]:
        """Those that have not expired, by rising id."""
        return self._read(lambda connection: _messages(connection, aor, now_epoch))

    async def remove_message(self, message: StoredMessage, now_epoch: float) -> bool:
        """Whether it was there."""

        def job(connection: sqlite3.Connection) -> bool:
            gone = (message.aor, message.key, now_epoch + REPEATED)
            rows.execute(connection, _PUT_GONE_MESSAGE, gone)
            connection.execute(_PURGE_GONE_MESSAGES, (now_epoch,))
            sql = "DELETE FROM messages WHERE id = ?"
            return connection.execute(sql, (message.id,)).rowcount > 0

        return await self._write(job)

    async def gone_messages(self, now_epoch: float) -> list[tuple[Aor, str, float]]:
        """Those removed a moment ago."""

        def job(connection: sqlite3.Connection) -> list[rows.Row]:
            return connection.execute(_SELECT_GONE_MESSAGES, (now_epoch,)).fetchall()

        return [(*rows.texts(row[:2]), row[2]) for row in self._read(job)]

    async def take_refreshes(self, now_epoch: float) -> list[tuple[Aor, str]]:
        """Taken out of their table."""

        def job(connection: sqlite3.Connection) -> list[tuple[Aor, str]]:
            due = connection.execute(_TAKE_REFRESHES, (now_epoch,)).fetchall()
            return [(aor, device) for aor, device in map(rows.texts, due)]

        return await self._write_soon(job)

    async def put_held_call(
        self, owner: str, held_id: str, held: bytes, written: Written | None = None
    ) -> None:
        """Store or replace a held call, for the next process: its callers outlive no power cut."""
        values = (held_id, owner, held.decode())
        await self._write_unsynced(_PUT_HELD_CALL, values, written)

    async def remove_held_call(self, owner: str, held_id: str) -> None:
        """The call is over."""
        sql = "DELETE FROM held_calls WHERE id = ? AND owner = ?"
        await self._write_unsynced(sql, (held_id, owner))

    async def claim_held_calls(self, owner: str, lease: float, *, own: bool) -> list[bytes]:
        """All there are, when we start: only one daemon uses a file, so their process is dead."""
        if not own:
            return []

        def job(connection: sqlite3.Connection) -> list[bytes]:
            connection.execute("UPDATE held_calls SET owner = ?", (owner,))
            return [
                str(row[0]).encode() for row in connection.execute("SELECT held FROM held_calls")
            ]

        return await self._write(job)

    async def subscriber(self, aor: Aor) -> Subscriber | None:
        """The subscriber, or None."""

        def job(connection: sqlite3.Connection) -> Subscriber | None:
            row = rows.execute(connection, _SELECT_SUBSCRIBER, (aor,)).fetchone()
            return rows.subscriber_of(row) if row else None

        return self._read(job)

    def listen_to_subscribers(self, listener: SubscriberListener) -> None:
        """Be told of our own changes, and of others by ``notice_changes``."""
        self._subscriber_listeners.append(listener)

    def notice_changes(self) -> None:
        """Whether another process has written: asked once in a turn of the event loop."""
        if self._has_noticed:
            return
        self._has_noticed = True
        asyncio.get_running_loop().call_soon(self._notice_again)
        try:
            version = self._read(rows.version)
        except LocationError:
            return  # what was kept counts until the file can be read again
        if version != self._version:
            self._version = version
            self._tell(None)

    def _notice_again(self) -> None:
        self._has_noticed = False

    def _tell(self, aor: Aor | None) -> None:
        for listener in self._subscriber_listeners:
            listener(aor)

    async def put_subscriber(self, subscriber: Subscriber) -> None:
        """Add or replace."""

        def job(connection: sqlite3.Connection) -> None:
            rows.execute(connection, _PUT_SUBSCRIBER, rows.subscriber_row(subscriber))

        await self._write(job, partial(self._tell, subscriber.aor))

    async def remove_subscriber(self, aor: Aor) -> bool:
        """Whether there was one."""

        def job(connection: sqlite3.Connection) -> bool:
            sql = "DELETE FROM subscribers WHERE aor = ?"
            return rows.execute(connection, sql, (aor,)).rowcount > 0

        return await self._write(job, partial(self._tell, aor))

    async def subscribers(self) -> AsyncIterator[Subscriber | UnreadableError]:
        """Every subscriber."""
        async for row in self._pages(_SUBSCRIBERS_AFTER):
            try:
                subscriber: Subscriber | UnreadableError = rows.subscriber_of(row)
            except UnreadableError as error:
                subscriber = error
            yield subscriber

    async def put_ban(self, source: str, until_epoch: float) -> None:
        """Ban a source."""
        row = (source, until_epoch)

        def job(connection: sqlite3.Connection) -> None:
            connection.execute(_PUT_BAN, row)

        await self._write_soon(job)

    async def bans(self, now_epoch: float) -> dict[str, float]:
        """Those whose time is not over; the others are deleted."""
        query = "SELECT source, until_epoch FROM bans WHERE typeof(until_epoch) = 'real'"
        stored = self._read(lambda connection: connection.execute(query).fetchall())
        if any(until <= now_epoch for _, until in stored):
            purge = "DELETE FROM bans WHERE until_epoch <= ?"
            await self._write(lambda connection: connection.execute(purge, (now_epoch,)).rowcount)
        return {source: until for source, until in stored if until > now_epoch}

    async def remove_ban(self, source: str) -> bool:
        """Whether there was one."""
        sql, key = "DELETE FROM bans WHERE source = ?", (source,)
        return await self._write(lambda connection: connection.execute(sql, key).rowcount > 0)

    async def try_to_write(self) -> None:
        """A row of ``meta``, as durable as a REGISTER."""
        await self._write_soon(lambda connection: connection.execute(_TRY).rowcount)

    async def secret(self) -> bytes:
        """32 random bytes, kept in ``meta``."""

        def job(connection: sqlite3.Connection) -> bytes:
            new = secrets.token_hex(SECRET_SIZE)
            connection.execute("INSERT OR IGNORE INTO meta VALUES ('secret', ?)", (new,))
            query = "SELECT value FROM meta WHERE key = 'secret'"
            return secret_of(connection.execute(query).fetchone()[0])

        return await self._write(job)

    async def _pages(self, query: str, after: rows.Row = ("",)) -> AsyncIterator[rows.Row]:
        """All rows of ``query``, which continues after the AOR it is given."""

        def job(connection: sqlite3.Connection) -> list[rows.Row]:
            return rows.execute(connection, query, after).fetchall()

        while page := self._read(job):
            for row in page:
                yield row
            after = page[-1][:1]

    def _write(self, job: Job[T], committed: Written | None = None) -> asyncio.Future[T]:
        return _running(self._writer).run(job, committed=committed)

    def _write_soon(self, job: Job[T]) -> asyncio.Future[T]:
        """Write what a power cut may take back for a second, if the operator lets it."""
        awaits_sync = self._config.synchronous == "full"
        return _running(self._writer).run(job, awaits_sync=awaits_sync)

    def _write_unsynced(
        self, sql: str, values: tuple[str, ...], committed: Written | None = None
    ) -> asyncio.Future[None]:
        def job(connection: sqlite3.Connection) -> None:
            connection.execute(sql, values)

        return _running(self._writer).run(job, awaits_sync=False, committed=committed)

    def _read(self, job: Job[T]) -> T:
        return _running(self._reader).run(job)


def _running(worker: Worker | None) -> Worker:
    if worker is None:
        raise LocationError("the store is not open")
    return worker


def _messages(
    connection: sqlite3.Connection, aor: Aor, now_epoch: float
) -> tuple[StoredMessage, ...]:
    """Those that can be read."""
    found = []
    for row in rows.execute(connection, _SELECT_MESSAGES, (aor, now_epoch)):
        with suppress(*rows.UNREADABLE):
            found.append(rows.message_of(row))
    return tuple(found)
