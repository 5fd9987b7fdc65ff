"""Where the log goes: who reads it slowly, or no longer, must not hold up what it tells of."""

from __future__ import annotations

import asyncio
import os
import select
import stat
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

MOST_KEPT: Final = 1 << 20
"Bytes that wait for a slow reader."

_TRY_AGAIN: Final = 0.05
"Seconds."

_LAST_PATIENCE: Final = 1.0
"Seconds a reader gets for the last lines of the process."

_TERMINAL_PIECE: Final = 128
"Bytes: a terminal that takes any has room for 256, and an end of line may need two."


class LogOutput:
    """Writes what the descriptor takes at once, keeps the rest for later, counts what is lost.

    Other processes may have the descriptor too, so it stays a blocking one: poll() says whether it
    takes a small piece. A regular file takes everything.
    """

    def __init__(self, descriptor: int, lost_line: Callable[[int], str]) -> None:
        """``lost_line`` makes the line that says how many are missing before it."""
        self._descriptor = descriptor
        self._lost_line = lost_line
        self._poll: select.poll | None = None
        self._piece = sys.maxsize
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            self._poll = select.poll()
            self._poll.register(descriptor, select.POLLOUT)
            self._piece = _TERMINAL_PIECE if os.isatty(descriptor) else select.PIPE_BUF
        self._kept = b""
        self._lost = 0
        self._is_cut = False
        "Whether what was written last is not a whole line."
        self._timer: asyncio.TimerHandle | None = None
        self._lock = threading.Lock()

    def write(self, text: str) -> None:
        """Write whole lines, now or later. Never raises OSError: where would that be logged?"""
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            if self._lost or not self._has_room(data):
                self._flush()
            if self._lost or not self._has_room(data):  # nothing overtakes the line that says so
                self._lost += data.count(b"\n")
            else:
                self._kept += data
                self._flush()
            self._come_back()

    def finish(self) -> None:
        """Write what is left, when no loop will."""
        deadline = time.monotonic() + _LAST_PATIENCE
        with self._lock:
            while self._kept and self._poll is not None:
                left = deadline - time.monotonic()
                if left <= 0 or not self._poll.poll(left * 1000):
                    return
                self._flush()

    def _has_room(self, data: bytes) -> bool:
        return not self._kept or len(self._kept) + len(data) <= MOST_KEPT

    def _come_back(self) -> None:
        if self._kept and self._timer is None:
            with suppress(RuntimeError):  # without a loop the next line comes back
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(_TRY_AGAIN, self._try_again)

    def _try_again(self) -> None:
        with self._lock:
            self._timer = None
            self._flush()
            self._come_back()

    def _flush(self) -> None:
        if self._kept:
            self._kept = self._rest_of(self._kept)
        if self._lost and not self._kept:
            lost, self._lost = self._lost, 0
            line = "\n" * self._is_cut + self._lost_line(lost) + "\n"
            self._kept = self._rest_of(line.encode("utf-8", "backslashreplace"))
            if self._lost:  # this line too
                self._lost = lost

    def _rest_of(self, data: bytes) -> bytes:
        """Write what is taken; what has to wait. What fails is lost."""
        sent = 0
        try:
            while sent < len(data) and (self._poll is None or self._poll.poll(0)):
                sent += os.write(self._descriptor, data[sent : sent + self._piece])
        except BlockingIOError:  # somebody else has made it a non-blocking one
            pass
        except OSError:
            self._lost += data.count(b"\n", sent)
            return b""
        finally:
            if sent:
                self._is_cut = data[sent - 1 : sent] != b"\n"
        return data[sent:]
