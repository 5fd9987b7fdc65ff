"""Where users are, also while the store is silent (docs/faults.md)."""

from __future__ import annotations

import asyncio

import structlog

from sipush.core.bindings import Aor, Location
from sipush.core.location_update import live
from sipush.errors import LocationError
from sipush.location.store import LocationStore

log = structlog.get_logger()


class Locations:
    """Looks users up for calls, also while the store says nothing: then what it said last counts.

    A call to a phone that has moved meanwhile finds a dead contact, as after any crash of a phone:
    better than no call at all. What is stored is never decided by it.
    """

    def __init__(self, store: LocationStore) -> None:
        self._store = store

    async def lookup(self, aor: Aor, now_epoch: float) -> Location:
        """What the store says; while it says nothing, what it said last. Raises LocationError."""
        try:
            return await self._store.lookup(aor, now_epoch)
        except LocationError as error:
            return self._last_known(aor, now_epoch, error)

    async def lookup_soon(self, aor: Aor, now_epoch: float, seconds: float) -> Location:
        """The same, from a store that has so long to answer."""
        asked = asyncio.ensure_future(self.lookup(aor, now_epoch))
        answered, _ = await asyncio.wait([asked], timeout=seconds)
        if answered:
            return asked.result()
        asked.cancel()
        return self._last_known(aor, now_epoch, LocationError(f"no answer within {seconds:g} s"))

    def _last_known(self, aor: Aor, now_epoch: float, error: LocationError) -> Location:
        known = self._store.last_known(aor)
        if known is None:
            raise error
        log.warning("store_unavailable", reason=str(error), aor=aor, used="what was seen last")
        return live(known.bindings, known.push_records, now_epoch)

    def devices_on(self, aor: Aor, flow: str) -> list[str]:
        """Those known to have registered over a flow: by a proxy several may have."""
        known = self._store.last_known(aor) if aor else None
        bindings = known.bindings if known is not None else ()
        return [binding.device for binding in bindings if binding.flow == flow]
