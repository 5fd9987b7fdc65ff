"""Calls that were answered and wait for their ACK, which has no transaction of its own."""

from __future__ import annotations

import asyncio

GIVE_UP = 32.0
"64*T1: for so long the callee repeats its 2xx (RFC 3261 §13.3.1.4)."


class Acknowledgements:
    """What a stop waits for: without its ACK an answered call dies."""

    def __init__(self) -> None:
        self._missing: dict[str, asyncio.TimerHandle] = {}
        self._none_missing = asyncio.Event()
        self._none_missing.set()

    def expect(self, call_id: str) -> None:
        """A 2xx to an INVITE went upstream."""
        self.came(call_id)
        loop = asyncio.get_running_loop()
        self._missing[call_id] = loop.call_later(GIVE_UP, self.came, call_id)
        self._none_missing.clear()

    def came(self, call_id: str) -> None:
        """The ACK was forwarded, or will not come any more."""
        timer = self._missing.pop(call_id, None)
        if timer is not None:
            timer.cancel()
        if not self._missing:
            self._none_missing.set()

    async def drain(self) -> None:
        """Wait until none is missing."""
        await self._none_missing.wait()
