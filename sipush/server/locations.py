"""Where users are, also while the store is silent (docs/faults.md)."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import structlog

from sipush.core.bindings import Aor, Location
from sipush.core.location_update import live
from sipush.errors import LocationError
from sipush.location.store import LocationStore

_SIZE = 20_000

log = structlog.get_logger()


class Locations:
    """Looks users up for calls; keeps what was seen of the last 20,000 for when the store fails.

    A call to a phone that has moved meanwhile finds a dead contact, as after any crash of a phone:
    better than no call at all. What is stored is never decided by it.
    """

    def __init__(self, store: LocationStore) -> None:
        self._store = store
        self._seen: OrderedDict[Aor, Location] = OrderedDict()
        """The longest unseen first. Finding the first of a dict takes the longer the more have been
        deleted before it: 25 us where several times as many users are active."""

    async def lookup(self, aor: Aor, now_epoch: float) -> Location:
        """What the store says; while it says nothing, what it said last. Raises LocationError."""
        try:
            location = await self._store.lookup(aor, now_epoch)
        except LocationError as error:
            return self._last_seen(aor, now_epoch, error)
        self.saw(aor, location)
        return location

    async def lookup_soon(self, aor: Aor, now_epoch: float, seconds: float) -> Location:
        """The same, from a store that has so long to answer."""
        asked = asyncio.ensure_future(self.lookup(aor, now_epoch))
        answered, _ = await asyncio.wait([asked], timeout=seconds)
        if answered:
            return asked.result()
        asked.cancel()
        return self._last_seen(aor, now_epoch, LocationError(f"no answer within {seconds:g} s"))

    def _last_seen(self, aor: Aor, now_epoch: float, error: LocationError) -> Location:
        seen = self._seen.get(aor)
        if seen is None:
            raise error
        log.warning("store_unavailable", reason=str(error), aor=aor, used="what was seen last")
        return live(seen.bindings, seen.push_records, now_epoch)

    def device_on(self, aor: Aor, flow: str) -> str:
        """The device that registered over a flow, if it was seen; else empty."""
        bindings = self._seen[aor].bindings if aor in self._seen else ()
        return next((binding.device for binding in bindings if binding.flow == flow), "")

    def saw(self, aor: Aor, location: Location) -> Location | None:
        """The store has told what it holds; what it told last, if among the last 20,000."""
        seen = self._seen
        before = seen.pop(aor, None)
        if len(seen) >= _SIZE:
            seen.popitem(last=False)
        seen[aor] = location
        return before
