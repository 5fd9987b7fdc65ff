"""Who waits for which user to register (the SIP Request Push Bucket of RFC 8599 §5.6.2)."""

from __future__ import annotations

from collections.abc import Callable, Collection

import structlog

from sipush.core.bindings import Aor, Location

log = structlog.get_logger()

Refreshed = Callable[[Aor, Location, Collection[str]], None]
"""(AOR, what the store now holds, device keys that have just registered)."""


class PushBucket:
    """Hands every accepted REGISTER to the requests that wait for that AOR.

    One of them that fails, which is our bug and logged, keeps nothing from the others.
    """

    def __init__(self) -> None:
        self._waiting: dict[Aor, list[Refreshed]] = {}
        self._waiting_on: dict[str, list[Callable[[str], None]]] = {}
        "By name of the flow."

    def watch(self, aor: Aor, refreshed: Refreshed) -> None:
        """Be told of registrations. Watch before looking up, and none is lost in between."""
        self._waiting.setdefault(aor, []).append(refreshed)

    def unwatch(self, aor: Aor, refreshed: Refreshed) -> None:
        """Stop; nothing happens when it was not watching."""
        waiting = self._waiting.get(aor, [])
        if refreshed in waiting:
            waiting.remove(refreshed)
        if not waiting:
            self._waiting.pop(aor, None)

    def is_watched(self, aor: Aor) -> bool:
        """Whether anybody waits for ``aor``."""
        return aor in self._waiting

    @property
    def watched(self) -> list[Aor]:
        """The AORs that somebody waits for."""
        return list(self._waiting)

    def refreshed(self, aor: Aor, location: Location, devices: Collection[str]) -> None:
        """A REGISTER of these devices was accepted and its 200 has been sent."""
        if aor in self._waiting:
            for refreshed in list(self._waiting[aor]):
                try:
                    refreshed(aor, location, devices)
                except Exception as error:
                    log.error("internal_error", exc_info=error)

    def watch_flow(self, name: str, active: Callable[[str], None]) -> None:
        """Be told of signs of life on a flow."""
        self._waiting_on.setdefault(name, []).append(active)

    def unwatch_flow(self, name: str, active: Callable[[str], None]) -> None:
        """Stop once; nothing happens when it was not watching."""
        waiting = self._waiting_on.get(name, [])
        if active in waiting:
            waiting.remove(active)
        if not waiting:
            self._waiting_on.pop(name, None)

    def flow_active(self, name: str) -> None:
        """Something came over a flow."""
        if name in self._waiting_on:
            for active in list(self._waiting_on[name]):
                try:
                    active(name)
                except Exception as error:
                    log.error("internal_error", exc_info=error)
