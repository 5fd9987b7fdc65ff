"""Costly steps in turns: a thousand calls at once must not keep a REGISTER waiting for all."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial

SHARE = 0.008
"""Seconds of CPU in a turn of the event loop that allow one step in the next one. With what follows
it takes one to three milliseconds: while there is nothing else, one step is taken in each turn."""
MOST = 8
"Steps in a turn, however much was done in the one before …"
SLICE = 0.002
"… and after so many seconds none is begun."


class Turns:
    """Runs a few steps in each turn of the event loop, in the order in which they came.

    In between the loop reads its sockets, so that whatever is cheap goes ahead.
    """

    def __init__(self) -> None:
        self._left = 1
        self._armed_at = 0.0
        self._waiting: deque[Callable[[], None]] = deque()
        self._armed = False

    @property
    def waiting(self) -> int:
        """How many steps wait for their turn."""
        return len(self._waiting)

    def run(self, step: Callable[[], None]) -> None:
        """Take ``step`` now, or when those before it have been taken; it must not raise."""
        if self._left and not self._waiting:
            self._left -= 1
            self._arm()
            step()
        else:
            self._wait_with(step)

    async def wait(self) -> None:
        """Return when it is the caller's turn."""
        if self._left and not self._waiting:
            self._left -= 1
            self._arm()
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wait_with(partial(_end, turn))
        await turn

    def _wait_with(self, step: Callable[[], None]) -> None:
        self._waiting.append(step)
        self._arm()

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            self._armed_at = time.thread_time()  # while others have the processor nothing is done
            asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        clock = asyncio.get_running_loop().time
        self._armed = False
        self._left = max(1, min(int((time.thread_time() - self._armed_at) / SHARE), MOST))
        if self._waiting:
            self._arm()
        end = clock() + SLICE
        while self._waiting and self._left and clock() < end:
            self._left -= 1
            self._waiting.popleft()()


def _end(turn: asyncio.Future[None]) -> None:
    if not turn.done():  # cancelled meanwhile
        turn.set_result(None)
