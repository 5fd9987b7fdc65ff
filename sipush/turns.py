"""Costly steps in turns: a thousand calls at once must not keep a REGISTER waiting for all."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial

SHARE = 0.008
"""Seconds of CPU in a turn of the event loop that allow one step in the next one. With what follows
it takes one to three milliseconds: while somebody waits for his turn, one is taken in each."""
MOST = 8
"Steps in a turn, however much was done in the one before, or while nobody waits …"
SLICE = 0.001
"… and after so many seconds none is begun."


class Turns:
    """Takes a few steps in each turn of the event loop, in the order in which they came.

    In between the loop reads its sockets, so that whatever is cheap goes ahead. Several steps are
    taken together, whose code is then in the processor's caches, unless somebody waits: how long
    that one takes when he goes on is not known.
    """

    def __init__(self) -> None:
        self._left = 1
        self._armed_at = 0.0
        self._waiting: deque[Callable[[], None]] = deque()
        self._armed = False
        self._waiters = 0
        "How many of those waiting are not steps, but somebody who will go on."

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
        self._waiters += 1
        self._wait_with(partial(self._go_on, turn))
        await turn

    def _go_on(self, turn: asyncio.Future[None]) -> None:
        self._waiters -= 1
        if not turn.done():  # cancelled meanwhile
            turn.set_result(None)

    def _wait_with(self, step: Callable[[], None]) -> None:
        self._waiting.append(step)
        self._arm()

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            self._armed_at = time.thread_time()  # while others have the processor nothing is done
            asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        clock, waiting = asyncio.get_running_loop().time, self._waiting
        self._armed = False
        self._left = max(1, min(int((time.thread_time() - self._armed_at) / SHARE), MOST))
        if waiting:
            self._arm()
        most = self._left if self._waiters else MOST
        end, taken = clock() + SLICE, 0
        while waiting and taken < most and clock() < end:
            taken += 1
            waiting.popleft()()
        self._left = max(0, self._left - taken)
