"""Work that cannot vanish: kept while it runs, loud when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any

import structlog

from sipush.server.steps import STEP

log = structlog.get_logger()

_Work = Coroutine[Any, Any, None]


class Tasks:
    """The background work of one part of the server."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()
        self._waiting: dict[_Work, asyncio.Future[Any]] = {}
        "What was started, and what it waits for."

    def spawn(self, work: _Work) -> asyncio.Task[None]:
        """Make ``work`` a task; an exception that escapes it is our bug, logged with its trace."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def start(self, work: _Work) -> None:
        """Run ``work`` now, as far as it gets without waiting; it goes on when it need not wait.

        It is no task, which would cost as much as answering a request: there is no current task,
        which ``asyncio.timeout`` needs. ``asyncio.wait``, ``gather`` and ``sleep`` need none.
        """
        while self._takes_a_step(work):
            pass

    def start_together(self, works: list[_Work]) -> None:
        """``start`` all of them, each step of all before the next one."""
        if len(works) == 1:  # as nearly always while there is little to do
            self.start(works[0])
            return
        while works:
            works = [work for work in works if self._takes_a_step(work)]

    def _takes_a_step(self, work: _Work) -> bool:
        """Whether it could take another one now."""
        try:
            waits_for = work.send(None)
        except (StopIteration, asyncio.CancelledError):
            return False
        except Exception as error:
            log.error("internal_error", exc_info=error)
            return False
        if waits_for is STEP:
            return True
        if waits_for is None:  # ``sleep(0)``
            waits_for = asyncio.ensure_future(asyncio.sleep(0))
        waits_for._asyncio_future_blocking = False  # as a task tells that it has taken it
        self._waiting[work] = waits_for
        waits_for.add_done_callback(partial(self._go_on, work))
        return False

    def _go_on(self, work: _Work, _: asyncio.Future[Any]) -> None:
        del self._waiting[work]
        self.start(work)

    @property
    def running(self) -> int:
        """How many have not ended."""
        return len(self._running) + len(self._waiting)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("internal_error", exc_info=error)

    async def finish(self) -> None:
        """Wait for what still runs."""
        await asyncio.gather(*self._running, return_exceptions=True)
        while self._waiting:
            await asyncio.wait(self._waiting.values())

    async def close(self) -> None:
        """Cancel what still runs and wait for it."""
        for task in self._running:
            task.cancel()
        while self._waiting:  # what was just to go on may wait anew
            for waits_for in self._waiting.values():
                waits_for.cancel()
            await asyncio.wait(self._waiting.values())
        await self.finish()
