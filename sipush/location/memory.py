"""The location service in memory: for tests, and what the other stores must equal."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

from sipush.core.bindings import Aor, Location, PushRecord, Refusal, Registration, Subscriber
from sipush.core.location_update import apply, live, without_push_record
from sipush.location.store import WakeListener


class MemoryStore:
    """A LocationStore that forgets everything with its process."""

    def __init__(self) -> None:
        self._locations: dict[Aor, Location] = {}
        self._subscribers: dict[Aor, Subscriber] = {}
        self._secret = secrets.token_bytes(32)

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def lookup(self, aor: Aor, now_epoch: float) -> Location:
        """The live bindings and push records of ``aor``."""
        location = self._locations.get(aor, Location())
        return live(location.bindings, location.push_records, now_epoch)

    async def bind(self, registration: Registration) -> Location | Refusal:
        """Apply one REGISTER."""
        location = apply(self._locations.get(registration.aor, Location()), registration)
        if isinstance(location, Location):
            self._put(registration.aor, location)
        return location

    async def remove_push_record(self, record: PushRecord) -> bool:
        """Compare-and-delete."""
        before = self._locations.get(record.aor, Location())
        after = without_push_record(before, record)
        self._put(record.aor, after)
        return after != before

    def listen(self, listener: WakeListener) -> None:
        """There is no other process."""

    async def aors(self) -> AsyncIterator[Aor]:
        """Every AOR with a binding or push record."""
        for aor in list(self._locations):
            yield aor

    async def subscriber(self, aor: Aor) -> Subscriber | None:
        """The subscriber, or None."""
        return self._subscribers.get(aor)

    async def put_subscriber(self, subscriber: Subscriber) -> None:
        """Add or replace."""
        self._subscribers[subscriber.aor] = subscriber

    async def remove_subscriber(self, aor: Aor) -> bool:
        """Whether there was one."""
        return self._subscribers.pop(aor, None) is not None

    async def subscribers(self) -> AsyncIterator[Subscriber]:
        """Every subscriber."""
        for subscriber in list(self._subscribers.values()):
            yield subscriber

    async def secret(self) -> bytes:
        """32 random bytes."""
        return self._secret

    def _put(self, aor: Aor, location: Location) -> None:
        if location == Location():
            self._locations.pop(aor, None)
        else:
            self._locations[aor] = location
