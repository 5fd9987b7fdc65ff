"""Who uses SQLite connections: a thread that writes, many jobs to a transaction, and a reader."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from sipush.errors import LocationError

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], T]
Explain = Callable[[sqlite3.Error | OSError], str]

MAX_QUEUED = 10_000
"Jobs waiting for the disk; beyond it they are refused at once."


@dataclass(eq=False, slots=True)
class _Queued:
    """A job and who waits for it."""

    job: Job[Any]
    future: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None


class SqliteWorker:
    """Runs jobs in the order given; all that are queued when it looks share one transaction.

    Results are handed out after the commit. After an error of the database the connection is
    opened anew for the next jobs, so that a disk that is well again is used again.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        explain: Explain,
    ) -> None:
        self._connect = connect
        self._explain = explain
        self._connection: sqlite3.Connection | None = None
        self._queue: SimpleQueue[_Queued | None] = SimpleQueue()
        "None ends the thread."
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="sipush-sqlite", daemon=True)
        self._thread.start()

    async def run(self, job: Job[T]) -> T:
        """What ``job`` returns, once that is committed. Raises LocationError."""
        if self._closing:
            raise LocationError("the store is closed")
        if self._queue.qsize() >= MAX_QUEUED:
            raise LocationError(f"the disk is too slow: {MAX_QUEUED} requests wait for it")
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(_Queued(job, future))
        return await future

    async def close(self) -> None:
        """Finish what is queued, close the connection and end the thread."""
        self._closing = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while batch := self._next_batch():
            self._run(batch)
            self._loop.call_soon_threadsafe(_hand_out, batch)
        self._disconnect()

    def _next_batch(self) -> list[_Queued]:
        """All that is queued, waiting for some; nothing when closing."""
        batch = []
        queued = self._queue.get()
        while queued is not None:
            batch.append(queued)
            try:
                queued = self._queue.get_nowait()
            except Empty:
                return batch
        if batch:
            self._queue.put(None)  # once more, for the next time
        return batch

    def _run(self, batch: list[_Queued]) -> None:
        try:
            self._transact(batch)
        except (sqlite3.Error, OSError) as error:
            self._disconnect()
            for queued in batch:
                queued.error = LocationError(self._explain(error))
        except Exception as error:
            self._disconnect()
            if len(batch) == 1:
                batch[0].error = error
                return
            # One job is at fault: the others must not suffer for it.
            for queued in batch:
                self._run([queued])

    def _transact(self, batch: list[_Queued]) -> None:
        if self._connection is None:
            self._connection = self._connect()
        self._connection.execute("BEGIN IMMEDIATE")
        for queued in batch:
            queued.result = queued.job(self._connection)
        self._connection.execute("COMMIT")

    def _disconnect(self) -> None:
        """Close, which rolls an open transaction back."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


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

    In WAL mode it never waits for the writer. After an error it connects anew.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], explain: Explain) -> None:
        self._connect = connect
        self._explain = explain
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    def run(self, job: Job[T]) -> T:
        """What ``job`` returns: all that it reads is of one moment. Raises LocationError."""
        if self._closed:
            raise LocationError("the store is closed")
        try:
            if self._connection is None:
                self._connection = self._connect()
            self._connection.execute("BEGIN")
            result = job(self._connection)
            self._connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            self._disconnect()
            raise LocationError(self._explain(error)) from error
        except BaseException:
            self._disconnect()
            raise
        return result

    def close(self) -> None:
        """Let go of the file."""
        self._closed = True
        self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
