"""Tasks that cannot vanish: kept while they run, loud when they fail."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any

import structlog

log = structlog.get_logger()


class Tasks:
    """The background work of one part of the server."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start ``work``; an exception that escapes it is our bug and is logged with its trace."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` now as far as it gets without waiting; only what is left becomes a task.

        Most requests wait for nothing, and a task costs as much as answering them. As long as it
        has not waited there is no current task, which ``asyncio.timeout`` needs.
        """
        try:
            waits_for = work.send(None)
        except StopIteration:
            return
        except Exception as error:
            log.error("internal_error", exc_info=error)
            return
        self.spawn(_go_on(work, waits_for))

    @property
    def running(self) -> int:
        """How many have not ended."""
        return len(self._running)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("internal_error", exc_info=error)

    async def finish(self) -> None:
        """Wait for what still runs."""
        await asyncio.gather(*self._running, return_exceptions=True)

    async def close(self) -> None:
        """Cancel what still runs and wait for it."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


async def _go_on(work: Coroutine[Any, Any, None], waits_for: Any) -> None:
    await _rest(work, waits_for)


@types.coroutine
def _rest(work: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """The rest of a coroutine that has been started and ``waits_for`` something."""
    try:
        while True:
            try:
                received = yield waits_for
            except BaseException as error:
                waits_for = work.throw(error)
            else:
                waits_for = work.send(received)
    except StopIteration:
        return
