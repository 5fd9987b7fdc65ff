"""Tells when the event loop was blocked, and by what."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback

import structlog

INTERVAL = 0.1
"Seconds between two signs of life of the loop, and two looks at them."

LIMIT = 0.25
"Seconds without a sign of life, beyond INTERVAL, that are worth a line."

_SHOWN_FRAMES = 12

log = structlog.get_logger()


class Watchdog:
    """Logs ``event_loop_blocked``, with the stack, once the loop runs again.

    The loop gives signs of life; a thread looks for them, and at the stack when there is none. The
    loop writes the line itself: when it stays blocked for ever, there is none.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._alive_at = self._loop.time()
        self._blocked_by: list[str] = []
        self._stopped = threading.Event()
        self._timer = self._loop.call_later(INTERVAL, self._alive)
        threading.Thread(target=self._watch, name="sipush-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Watch no longer."""
        self._timer.cancel()
        self._stopped.set()

    def _alive(self) -> None:
        now = self._loop.time()
        late = now - self._alive_at - INTERVAL
        if late > LIMIT:
            log.warning("event_loop_blocked", seconds=round(late, 3), by=self._blocked_by)
        self._blocked_by = []
        self._alive_at = now
        self._timer = self._loop.call_later(INTERVAL, self._alive)

    def _watch(self) -> None:
        while not self._stopped.wait(INTERVAL):
            late = self._loop.time() - self._alive_at - INTERVAL
            if late > LIMIT and not self._blocked_by:
                self._blocked_by = stack(self._loop_thread)


def stack(thread: int) -> list[str]:
    """Where a thread is, as ``file:line function``, innermost last."""
    frame = sys._current_frames().get(thread)
    frames = traceback.extract_stack(frame)[-_SHOWN_FRAMES:] if frame else []
    return [f"{each.filename}:{each.lineno} {each.name}" for each in frames]
