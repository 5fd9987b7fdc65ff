"""Who may register and call: users of the configuration, then those of the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sipush.core.bindings import Aor, Subscriber
from sipush.errors import LocationError
from sipush.location.store import LocationStore

_LIFETIME = 10.0
_SIZE = 50_000


class Subscribers:
    """Looks subscribers up; those the store has are kept for ten seconds.

    So a user changed or removed by the CLI counts at most ten seconds later, a new one at once.
    While the store is silent, those that were kept are users still.
    """

    def __init__(
        self,
        configured: Mapping[Aor, Subscriber],
        store: LocationStore,
        clock: Callable[[], float],
    ) -> None:
        self._configured = dict(configured)
        self._store = store
        self._clock = clock
        self._cache: dict[Aor, tuple[float, Subscriber]] = {}

    def replace(self, configured: Mapping[Aor, Subscriber]) -> None:
        """Take over the users of a reloaded configuration and forget what was cached."""
        self._configured = dict(configured)
        self._cache.clear()

    async def get(self, aor: Aor) -> Subscriber | None:
        """The subscriber, or None. Raises LocationError."""
        if (subscriber := self._configured.get(aor)) is not None:
            return subscriber
        now = self._clock()
        cached = self._cache.get(aor)
        if cached is not None and cached[0] > now:
            return cached[1]
        try:
            found = await self._store.subscriber(aor)
        except LocationError:
            if cached is None:
                raise
            return cached[1]
        if found is not None:
            if len(self._cache) >= _SIZE:
                self._cache.clear()
            self._cache[aor] = (now + _LIFETIME, found)
        return found
