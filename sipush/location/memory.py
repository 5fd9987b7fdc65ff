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
        self._held_calls: dict[tuple[str, str], bytes] = {}
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

    async def put_held_call(self, owner: str, held_id: str, held: bytes) -> None:
        """Store or replace a held call, as far as this store stores anything."""
        self._held_calls[owner, held_id] = held

    async def remove_held_call(self, owner: str, held_id: str) -> None:
        """The call is over."""
        self._held_calls.pop((owner, held_id), None)

    async def claim_held_calls(self, owner: str, lease: float, *, own: bool) -> list[bytes]:
        """Those of an earlier life, which can only have been in this process."""
        return [held for (who, _), held in self._held_calls.items() if own and who == owner]

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
