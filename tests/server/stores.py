"""Stores of the tests."""

from __future__ import annotations

from typing import Any

from sipush.core.bindings import Aor, Location, Subscriber
from sipush.errors import LocationError
from sipush.location.memory import MemoryStore


class ChangedStore:
    """A store in memory of which a test changes something: compiled, it has no subclasses."""

    def __init__(self) -> None:
        self.unchanged = MemoryStore()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unchanged, name)


class LastingStore(ChangedStore):
    """A store that could be another process's: what has to outlive us is written down."""

    outlives_us = True


class FallibleStore(LastingStore):
    """A store that can be switched off for whoever looks somebody up."""

    down = False

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[Aor, Location] = {}

    async def lookup(self, aor: Aor, now_epoch: float) -> Location:
        if self.down:
            raise LocationError("switched off")
        self._told[aor] = await self.unchanged.lookup(aor, now_epoch)
        return self._told[aor]

    def last_known(self, aor: Aor) -> Location | None:
        return self._told.get(aor)

    async def subscriber(self, aor: Aor) -> Subscriber | None:
        if self.down:
            raise LocationError("switched off")
        return await self.unchanged.subscriber(aor)
