"""Calls that were answered and wait for their ACK, which has no transaction of its own."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from time import monotonic

GIVE_UP = 32.0
"64*T1: for so long the callee repeats its 2xx (RFC 3261 §13.3.1.4)."


class Acknowledgements:
    """What a stop waits for: without its ACK an answered call dies."""

    def __init__(self) -> None:
        self._missing: dict[str, float] = {}
        "Until when each is waited for, by Call-ID; the first to be given up first."
        self._one_came = asyncio.Event()
        self._draining = False

    def expect(self, call_id: str) -> None:
        """A 2xx to an INVITE went upstream."""
        now = monotonic()
        self._give_up(now)
        self._missing.pop(call_id, None)
        self._missing[call_id] = now + GIVE_UP

    def came(self, call_id: str) -> None:
        """The ACK was forwarded."""
        self._missing.pop(call_id, None)
        if self._draining:
            self._one_came.set()

    def _give_up(self, now: float) -> None:
        """Wait no longer for those that will not come any more."""
        while self._missing:
            call_id, until = next(iter(self._missing.items()))
            if until > now:
                return
            del self._missing[call_id]

    async def drain(self) -> None:
        """Wait until none is missing."""
        self._draining = True
        while True:
            self._give_up(monotonic())
            if not self._missing:
                return
            self._one_came.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(next(iter(self._missing.values())) - monotonic()):
                    await self._one_came.wait()
