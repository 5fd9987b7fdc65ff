"""Who may register and call: users of the configuration, then those of the store."""

from __future__ import annotations

import marshal
import math
from collections.abc import Callable, Collection, Mapping

from sipush.core.bindings import Aor, Subscriber
from sipush.core.packed import Packed
from sipush.errors import LocationError
from sipush.location.store import LocationStore

_KEPT = (1 << 17, 4 << 20)
"Places, and bytes of what is kept: 6 MiB in all for some 50,000 subscribers with one HA1."


class Subscribers:
    """Looks subscribers up; those the store has are kept for its ``subscriber_lifetime``.

    A store that tells of changes is asked again after each, any other after ten seconds. While the
    store is silent, those that were kept are users still.
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
        self._kept = Packed(*_KEPT)
        "When the store was asked, and what it said."
        self._changes = 0
        self._all_changed_at = -math.inf
        store.listen_to_subscribers(self._changed)

    def replace(
        self, configured: Mapping[Aor, Subscriber], elsewhere: Collection[str] = ()
    ) -> None:
        """Take over the users of a reloaded configuration and forget what was cached."""
        self._configured = dict(configured)
        self._elsewhere = elsewhere
        self._kept.clear()

    async def get(self, aor: Aor) -> Subscriber | None:
        """The subscriber, or None. Raises LocationError."""
        if (subscriber := self._configured.get(aor)) is not None:
            return subscriber
        if self._elsewhere and aor.rpartition("@")[2] in self._elsewhere:
            return Subscriber(aor)
        now = self._clock()
        known = None
        if (kept := self._kept.get(aor)) is not None:
            self._store.notice_changes()
            asked_at, known = _unpacked(aor, kept)
            oldest = now - self._store.subscriber_lifetime
            if asked_at > self._all_changed_at and asked_at > oldest:
                return known
        changes = self._changes
        try:
            found = await self._store.subscriber(aor)
        except LocationError:
            if known is None:
                raise
            return known
        if found is None:
            self._kept.remove(aor)
        elif changes == self._changes:  # or what we read may be what it was before
            self._kept.put(aor, _packed(now, found))
        return found

    def _changed(self, aor: Aor | None) -> None:
        """Keep them, but ask again."""
        self._changes += 1
        if aor is None:
            self._all_changed_at = self._clock()
        elif (kept := self._kept.get(aor)) is not None:
            _, known = _unpacked(aor, kept)
            self._kept.put(aor, _packed(-math.inf, known))


def _packed(asked_at: float, s: Subscriber) -> bytes:
    values = (asked_at, s.ha1_md5, s.ha1_sha256, s.hold, s.hold_seconds, s.fallback)
    return marshal.dumps(values)


def _unpacked(aor: Aor, kept: bytes) -> tuple[float, Subscriber]:
    asked_at, ha1_md5, ha1_sha256, hold, hold_seconds, fallback = marshal.loads(kept)
    return asked_at, Subscriber(aor, ha1_md5, ha1_sha256, hold, hold_seconds, fallback)
