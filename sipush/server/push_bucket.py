"""Who waits for which user to register (the SIP Request Push Bucket of RFC 8599 §5.6.2)."""

from __future__ import annotations

from collections.abc import Callable, Collection

from sipush.core.bindings import Aor, Location

Refreshed = Callable[[Aor, Location, Collection[str]], None]
"""(AOR, what the store now holds, device keys that have just registered)."""


class PushBucket:
    """Hands every accepted REGISTER to the requests that wait for that AOR."""

    def __init__(self) -> None:
        self._waiting: dict[Aor, list[Refreshed]] = {}

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

    def refreshed(self, aor: Aor, location: Location, devices: Collection[str]) -> None:
        """A REGISTER of these devices was accepted and its 200 has been sent."""
        for refreshed in list(self._waiting.get(aor, ())):
            refreshed(aor, location, devices)
