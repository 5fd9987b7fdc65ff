"""Who uses SQLite connections: what writes, many jobs to a transaction, and what reads."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import structlog

from sipush.errors import LocationError
from sipush.location.sqlite_file import (
    BUSY_PAUSE,
    BUSY_TIMEOUT,
    FileMovedError,
    Files,
    check_in_place,
    is_busy,
    which,
)

log = structlog.get_logger()

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], T]
Explain = Callable[[sqlite3.Error | OSError], str]

MAX_QUEUED = 10_000
"Jobs waiting for the disk; beyond it they are refused at once."

AT_ONCE = 32
"Jobs to a transaction: what the event loop does in some milliseconds."

CHECKPOINT_EVERY = 400
"Jobs between two checkpoints: some megabytes of WAL."

SYNC_WITHIN = 1.0
"Seconds until a commit is synced that nobody waits for."


@dataclass(eq=False, slots=True)
class _Queued:
    """A job and who waits for it."""

    job: Job[Any]
    future: asyncio.Future[Any]
    awaits_sync: bool
    committed: Callable[[], None] | None
    result: Any = None
    error: Exception | None = None


class SqliteWorker:
    """Runs jobs in the order given; those of one turn of the event loop share a transaction.

    The loop runs them itself: they take microseconds, while a thread would wait for Python's lock
    after each statement. A thread does what takes long: it syncs what was committed, and only then
    are the results handed out to those who wait for that (all that is committed during one sync
    shares the next); and it makes checkpoints, during which jobs wait.

    After an error of the database the connection is opened anew for the next jobs, so that a disk
    that is well again is used again. So it is when the file turns out to be another by now.
    """

    def __init__(
        self, connect: Callable[[], sqlite3.Connection], explain: Explain, path: Path
    ) -> None:
        """``connect``: to the file, with synchronous = normal."""
        self._connect = connect
        self._explain = explain
        self._path = path
        self._wal = path.with_name(f"{path.name}-wal")
        "What is synced."
        self._wal_file = -1
        self._files: Files = {}
        "Those that the connection has open."
        self.moved: Callable[[], object] = _nothing
        "Called when the file is another by now: whoever reads it lets go."
        self._connection: sqlite3.Connection | None = None
        self._queue: list[_Queued] = []
        self._committed: list[_Queued] = []
        "Not synced yet, and waited for."
        self._unsynced = False
        "Whether anything was committed since the last sync began."
        self._sync_timer: asyncio.TimerHandle | None = None
        self._scheduled = False
        self._syncing = False
        self._checkpointing = False
        self._since_checkpoint = 0
        self._busy_since = 0.0
        self._closing = False
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._background = _Thread(self._loop)

    @property
    def connection(self) -> sqlite3.Connection | None:
        """What jobs are run on, between two transactions, or None where the last ones failed."""
        return self._connection

    def run(
        self,
        job: Job[T],
        *,
        awaits_sync: bool = True,
        committed: Callable[[], None] | None = None,
    ) -> asyncio.Future[T]:
        """What ``job`` returns, once that is stored. Raises LocationError, as the future does.

        Without ``awaits_sync`` it is committed, which kill -9 cannot undo, and is synced within
        SYNC_WITHIN: a power cut before that could undo it.
        ``committed`` is called at once when it is, and must not raise.
        """
        if self._closing:
            raise LocationError("the store is closed")
        if len(self._queue) + len(self._committed) >= MAX_QUEUED:
            raise LocationError(f"the disk is too slow: {MAX_QUEUED} requests wait for it")
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.append(_Queued(job, future, awaits_sync, committed))
        self._schedule()
        return future

    async def close(self) -> None:
        """Finish what is queued, close the connection and end the thread."""
        self._closing = True
        while self._queue or self._syncing or self._checkpointing or self._unsynced:
            self._sync_late()
            self._changed.clear()
            await self._changed.wait()
        self._disconnect()
        await asyncio.to_thread(self._background.end)

    # -- jobs --

    def _schedule(self) -> None:
        if self._queue and not self._scheduled and not self._checkpointing:
            self._scheduled = True
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        self._scheduled = False
        batch = self._queue[:AT_ONCE]
        try:
            done = self._transact(batch)
        except (sqlite3.Error, OSError, LocationError) as error:
            if self._may_wait(error):
                self._scheduled = True
                self._loop.call_later(BUSY_PAUSE, self._work)
                return
            self._fail(batch, error)
            done = batch
        self._busy_since = 0.0
        del self._queue[: len(done)]
        if self._wal_file == -1:  # all have failed
            _hand_out(done)
        else:
            _hand_out([queued for queued in done if not queued.awaits_sync])
            self._committed += [queued for queued in done if queued.awaits_sync]
            self._unsynced = True
            self._sync_in_time()
        self._since_checkpoint += len(done)
        if self._since_checkpoint >= CHECKPOINT_EVERY:
            self._checkpoint()
        self._schedule()
        self._changed.set()

    def _transact(self, batch: list[_Queued]) -> list[_Queued]:
        """Those of the first jobs that are done: all, or none but one that cannot be."""
        if self._connection is None:
            self._connection = self._open()
        self._connection.execute("BEGIN IMMEDIATE")
        for number, queued in enumerate(batch):
            try:
                queued.result = queued.job(self._connection)
            except (sqlite3.Error, OSError):
                raise
            except Exception as error:  # the others must not suffer for it
                self._connection.rollback()
                queued.error = error
                self._queue.insert(0, self._queue.pop(number))
                return [queued]
        self._connection.execute("COMMIT")
        for queued in batch:
            if queued.committed is not None:
                queued.committed()
        return batch

    def _open(self) -> sqlite3.Connection:
        connection = self._connect()
        connection.execute("PRAGMA busy_timeout = 0")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        self._wal_file = _open_to_sync(self._wal)
        self._files = {self._path: which(self._path), self._wal: which(self._wal_file)}
        return connection

    def _may_wait(self, error: Exception) -> bool:
        """Whether another process writes just now, and has not kept us waiting for too long."""
        if not is_busy(error):
            return False
        now = self._loop.time()
        self._busy_since = self._busy_since or now
        return now < self._busy_since + BUSY_TIMEOUT

    def _fail(self, batch: list[_Queued], error: Exception) -> None:
        if isinstance(error, sqlite3.Error | OSError):
            error = LocationError(self._explain(error))
        if isinstance(error, FileMovedError):
            log.error("store_file_moved", reason=str(error))
            self.moved()
            self._leave_nothing_behind()
        elif not batch:  # nobody hears of it
            log.error("store_not_synced", reason=str(error))
        for queued in batch:
            queued.error = error
        self._disconnect()

    def _leave_nothing_behind(self) -> None:
        """Empty the WAL into the file that it is of: another file of that name would get it."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _disconnect(self) -> None:
        """Close, which rolls an open transaction back."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._wal_file != -1:  # perhaps it is being synced
            self._background.run(partial(os.close, self._wal_file), lambda error: None)
            self._wal_file = -1
            self._unsynced = False  # the next sync is one of the whole file

    # -- what takes long --

    def _sync_in_time(self) -> None:
        """At once for those who wait."""
        if self._committed:
            self._sync()
        elif self._unsynced and self._sync_timer is None:
            self._sync_timer = self._loop.call_later(SYNC_WITHIN, self._sync_late)

    def _sync_late(self) -> None:
        if self._sync_timer is not None:
            self._sync_timer.cancel()
            self._sync_timer = None
        if self._unsynced:
            self._sync()

    def _sync(self) -> None:
        if not self._syncing:
            self._syncing = True
            self._unsynced = False
            batch, self._committed = self._committed, []
            sync = partial(_sync_in_place, self._wal_file, self._files)
            self._background.run(sync, partial(self._synced, batch))

    def _synced(self, batch: list[_Queued], error: Exception | None) -> None:
        self._syncing = False
        if error is not None:
            self._fail(batch, error)
        _hand_out(batch)
        self._sync_in_time()
        self._changed.set()

    def _checkpoint(self) -> None:
        if not self._checkpointing:
            self._checkpointing = True
            self._since_checkpoint = 0
            self._background.run(self._make_checkpoint, self._checkpointed)

    def _make_checkpoint(self) -> None:
        check_in_place(self._files)  # by its name another would be opened beside it
        connection = self._connect()
        try:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        finally:
            connection.close()

    def _checkpointed(self, error: Exception | None) -> None:
        """An error is one of the disk, and the next jobs will meet it too."""
        self._checkpointing = False
        self._schedule()
        self._changed.set()


def _open_to_sync(file: Path) -> int:
    """A descriptor of the WAL, whose entry in its directory is on disk."""
    directory = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return os.open(file, os.O_RDONLY)


def _sync_in_place(wal_file: int, files: Files) -> None:
    os.fdatasync(wal_file)
    check_in_place(files)


def _nothing() -> None:
    pass


class _Thread:
    """Does one thing after the other, and tells the event loop of each."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: SimpleQueue[tuple[Callable[[], object], Callable[[Exception | None], None]]]
        self._queue = SimpleQueue()
        self._ended = False
        self._running = threading.Thread(target=self._work, name="sipush-sqlite", daemon=True)
        self._running.start()

    def run(self, work: Callable[[], object], done: Callable[[Exception | None], None]) -> None:
        """Do ``work``, then call ``done`` on the loop with what it raised."""
        self._queue.put((work, done))

    def end(self) -> None:
        """Finish all there is. May be called twice."""
        self._queue.put((self._end, lambda error: None))
        self._running.join()

    def _end(self) -> None:
        self._ended = True

    def _work(self) -> None:
        while not self._ended:
            work, done = self._queue.get()
            error = None
            try:
                work()
            except Exception as caught:
                error = caught
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(done, error)


def _hand_out(batch: list[_Queued]) -> None:
    for queued in batch:
        if queued.future.done():
            continue
        if queued.error is None:
            queued.future.set_result(queued.result)
        else:
            queued.future.set_exception(queued.error)


class SqliteReader:
    """Runs jobs that only read, on the event loop: a look-up by key takes microseconds.

    They use the connection that writes while there is one, for SQLite empties the page cache of
    any other with each commit. The own one keeps the file readable where nothing can be written:
    its log of writes could not be opened anew on a disk that is full. After an error it connects
    anew. In WAL mode neither waits for another writer.
    """

    def __init__(
        self, connect: Callable[[], sqlite3.Connection], explain: Explain, writer: SqliteWorker
    ) -> None:
        self._connect = connect
        self._explain = explain
        self._writer = writer
        writer.moved = self._disconnect
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    def open(self) -> None:
        """Connect. Raises LocationError."""
        self._run(lambda connection: connection.execute("PRAGMA user_version").fetchone())

    def run(self, job: Job[T]) -> T:
        """What ``job`` returns, which is one query: what it finds is of one moment.

        Raises LocationError.
        """
        if self._closed:
            raise LocationError("the store is closed")
        connection = self._writer.connection
        if connection is None:
            return self._run(job)
        try:
            return job(connection)
        except sqlite3.Error:
            return self._run(job)

    def _run(self, job: Job[T]) -> T:
        try:
            if self._connection is None:
                self._connection = self._connect()
            return job(self._connection)
        except (sqlite3.Error, OSError) as error:
            self._disconnect()
            raise LocationError(self._explain(error)) from error

    def close(self) -> None:
        """Let go of the file."""
        self._closed = True
        self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
