"""A thread that owns one SQLite connection and runs queued jobs, many to a transaction."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from sipush.errors import LocationError

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], T]

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
        begin: Literal["BEGIN", "BEGIN IMMEDIATE"],
        connect: Callable[[], sqlite3.Connection],
        explain: Callable[[sqlite3.Error | OSError], str],
    ) -> None:
        self._begin = begin
        self._connect = connect
        self._explain = explain
        self._connection: sqlite3.Connection | None = None
        self._queue: deque[_Queued] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="sipush-sqlite", daemon=True)
        self._thread.start()

    async def run(self, job: Job[T]) -> T:
        """What ``job`` returns, once that is committed. Raises LocationError."""
        future: asyncio.Future[T] = self._loop.create_future()
        with self._wake:
            if self._closing:
                raise LocationError("the store is closed")
            if len(self._queue) >= MAX_QUEUED:
                raise LocationError(f"the disk is too slow: {MAX_QUEUED} requests wait for it")
            self._queue.append(_Queued(job, future))
            self._wake.notify()
        return await future

    async def close(self) -> None:
        """Finish what is queued, close the connection and end the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while batch := self._next_batch():
            self._run(batch)
            self._loop.call_soon_threadsafe(_hand_out, batch)
        self._disconnect()

    def _next_batch(self) -> list[_Queued]:
        """All that is queued, waiting for some; nothing when closing."""
        with self._wake:
            self._wake.wait_for(lambda: self._queue or self._closing)
            batch = list(self._queue)
            self._queue.clear()
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
        self._connection.execute(self._begin)
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
