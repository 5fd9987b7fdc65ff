"""Who may register and call: users of the configuration, then those of the store."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

from sipush.core.bindings import Aor, Subscriber
from sipush.errors import LocationError
from sipush.location.store import LocationStore

_SIZE = 50_000


class _Cached:
    """What the store said of a subscriber, and when."""

    __slots__ = ("asked_at", "subscriber")

    def __init__(self, subscriber: Subscriber, asked_at: float) -> None:
        self.subscriber = subscriber
        self.asked_at = asked_at


class Subscribers:
    """Looks subscribers up; those the store has are kept for its ``subscriber_lifetime``.

    A store that tells of changes is asked again after each, any other after ten seconds: so late
    does a user changed or removed by the CLI count there, a new one at once. While the store is
    silent, those that were kept are users still.
    """

    def __init__(
        self,
        configured: Mapping[Aor, Subscriber],
        store: LocationStore,
        clock: Callable[[], float],
        elsewhere: Collection[str] = (),
    ) -> None:
        """``elsewhere``: domains whose users another registrar knows. Who registers is one."""
        self._configured = dict(configured)
        self._elsewhere = elsewhere
        self._store = store
        self._clock = clock
        self._cache: dict[Aor, _Cached] = {}
        self._changes = 0
        self._all_changed_at = -math.inf
        store.listen_to_subscribers(self._changed)

    def replace(
        self, configured: Mapping[Aor, Subscriber], elsewhere: Collection[str] = ()
    ) -> None:
        """Take over the users of a reloaded configuration and forget what was cached."""
        self._configured = dict(configured)
        self._elsewhere = elsewhere
        self._cache.clear()

    async def get(self, aor: Aor) -> Subscriber | None:
        """The subscriber, or None. Raises LocationError."""
        if (subscriber := self._configured.get(aor)) is not None:
            return subscriber
        if self._elsewhere and aor.rpartition("@")[2] in self._elsewhere:
            return Subscriber(aor)
        now = self._clock()
        cached = self._cache.get(aor)
        if cached is not None:
            asked_at, oldest = cached.asked_at, now - self._store.subscriber_lifetime
            if asked_at > self._all_changed_at and asked_at > oldest:
                return cached.subscriber
        changes = self._changes
        try:
            found = await self._store.subscriber(aor)
        except LocationError:
            if cached is None:
                raise
            return cached.subscriber
        if found is None:
            self._cache.pop(aor, None)
        elif changes == self._changes:  # or what we read may be what it was before
            self._cache.pop(aor, None)  # so that no text is kept twice
            if len(self._cache) >= _SIZE:
                self._cache.clear()
            self._cache[found.aor] = _Cached(found, now)
        return found

    def _changed(self, aor: Aor | None) -> None:
        """Keep them, but ask again."""
        self._changes += 1
        if aor is None:
            self._all_changed_at = self._clock()
        elif aor in self._cache:
            self._cache[aor].asked_at = -math.inf
