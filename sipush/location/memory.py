"""The location service in memory: for tests, and what the other stores must equal."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from heapq import heappop, heappush
from typing import Generic, TypeVar

from sipush.core.bindings import Aor, Location, PushRecord, Refusal, Registration, Subscriber
from sipush.core.location_update import apply, live, without_push_record
from sipush.core.stored_message import REPEATED, Receipt, StoredMessage
from sipush.errors import UnreadableError
from sipush.location.store import (
    UNTOLD_LIFETIME,
    MissedListener,
    SubscriberListener,
    WakeListener,
    Written,
)

Item = TypeVar("Item")


class _Each(AsyncIterator[Item], Generic[Item]):
    """One after the other: mypyc compiles no asynchronous generator."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)

    async def __anext__(self) -> Item:
        for item in self._items:
            return item
        raise StopAsyncIteration


class MemoryStore:
    """A LocationStore that forgets everything with its process."""

    outlives_us = False
    subscriber_lifetime = UNTOLD_LIFETIME

    def __init__(self) -> None:
        self._locations: dict[Aor, Location] = {}
        self._subscribers: dict[Aor, Subscriber] = {}
        self._messages: dict[Aor, list[StoredMessage]] = {}
        self._message_id = 0
        self._gone_messages: dict[tuple[Aor, str], float] = {}
        self._refreshes: dict[tuple[Aor, str], float] = {}
        self._due: list[tuple[float, tuple[Aor, str]]] = []
        "A heap of the same, and of what has been put off since."
        self._held_calls: dict[tuple[str, str], bytes] = {}
        self._bans: dict[str, float] = {}
        self._secret = secrets.token_bytes(32)

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def lookup(self, aor: Aor, now_epoch: float) -> Location:
        """The live bindings and push records of ``aor``."""
        location = self._locations.get(aor, _NOTHING)
        waiting = aor in self._messages and bool(self._live_messages(aor, now_epoch))
        return live(location.bindings, location.push_records, now_epoch, waiting)

    def last_known(self, aor: Aor) -> Location | None:
        """All there is."""
        return self._locations.get(aor, _NOTHING)

    async def bind(self, registration: Registration) -> Location | Refusal:
        """Apply one REGISTER."""
        aor = registration.aor
        waiting = aor in self._messages and bool(self._live_messages(aor, registration.now_epoch))
        location = apply(self._locations.get(aor, _NOTHING), registration, waiting)
        if isinstance(location, Refusal):
            return location
        self._put(aor, location)
        for device, due in registration.refreshes:
            self._refreshes[aor, device] = due
            heappush(self._due, (due, (aor, device)))
        return location

    async def remove_push_record(self, record: PushRecord) -> bool:
        """Compare-and-delete."""
        before = self._locations.get(record.aor, Location())
        after = without_push_record(before, record)
        self._put(record.aor, after)
        return after != before

    def listen(self, listener: WakeListener, missed: MissedListener | None = None) -> None:
        """There is no other process."""

    def aors(self, after: Aor = "") -> AsyncIterator[Aor]:
        """Every AOR with a binding or push record that comes after that one."""
        return _Each(sorted(aor for aor in self._locations if aor > after))

    async def put_message(self, message: StoredMessage, max_stored: int) -> Receipt | None:
        """Store a message, as far as this store stores anything."""
        waiting = self._live_messages(message.aor, message.stored_epoch)
        for other in waiting:
            if other.key == message.key:
                return Receipt(other.id, repeated=True)
        if sum(other.is_report == message.is_report for other in waiting) >= max_stored:
            return None
        self._message_id = max(self._message_id + 1, int(message.stored_epoch))
        self._messages[message.aor] = [*waiting, replace(message, id=self._message_id)]
        return Receipt(self._message_id)

    async def messages(self, aor: Aor, now_epoch: float) -> tuple[StoredMessage, ...]:
        """Those that have not expired, by rising id."""
        return tuple(self._live_messages(aor, now_epoch))

    async def remove_message(self, message: StoredMessage, now_epoch: float) -> bool:
        """Whether it was there."""
        gone = self._gone_messages.items()
        self._gone_messages = {which: until for which, until in gone if until > now_epoch}
        self._gone_messages[message.aor, message.key] = now_epoch + REPEATED
        before = self._messages.pop(message.aor, [])
        after = [other for other in before if other.id != message.id]
        if after:
            self._messages[message.aor] = after
        return after != before

    async def gone_messages(self, now_epoch: float) -> list[tuple[Aor, str, float]]:
        """Those removed a moment ago."""
        gone = self._gone_messages.items()
        return [(aor, key, until) for (aor, key), until in gone if until > now_epoch]

    def _live_messages(self, aor: Aor, now_epoch: float) -> list[StoredMessage]:
        return [m for m in self._messages.get(aor, ()) if m.expires_epoch > now_epoch]

    async def take_refreshes(self, now_epoch: float) -> list[tuple[Aor, str]]:
        """All that are due."""
        taken = []
        while self._due and self._due[0][0] <= now_epoch:
            epoch, key = heappop(self._due)
            if self._refreshes.get(key) == epoch:
                del self._refreshes[key]
                taken.append(key)
        return taken

    async def put_held_call(
        self, owner: str, held_id: str, held: bytes, written: Written | None = None
    ) -> None:
        """Store or replace a held call, as far as this store stores anything."""
        # What orjson returns occupies several times its length.
        self._held_calls[owner, held_id] = bytes(memoryview(held))
        if written is not None:
            written()

    async def remove_held_call(self, owner: str, held_id: str) -> None:
        """The call is over."""
        self._held_calls.pop((owner, held_id), None)

    async def claim_held_calls(self, owner: str, lease: float, *, own: bool) -> list[bytes]:
        """Those of an earlier life, which can only have been in this process."""
        return [held for (who, _), held in self._held_calls.items() if own and who == owner]

    async def subscriber(self, aor: Aor) -> Subscriber | None:
        """The subscriber, or None."""
        return self._subscribers.get(aor)

    def listen_to_subscribers(self, listener: SubscriberListener) -> None:
        """There is nothing to hear."""

    def notice_changes(self) -> None:
        """There are none to hear of."""

    async def put_subscriber(self, subscriber: Subscriber) -> None:
        """Add or replace."""
        self._subscribers[subscriber.aor] = subscriber

    async def remove_subscriber(self, aor: Aor) -> bool:
        """Whether there was one."""
        return self._subscribers.pop(aor, None) is not None

    def subscribers(self) -> AsyncIterator[Subscriber | UnreadableError]:
        """Every subscriber."""
        return _Each(list(self._subscribers.values()))

    async def put_ban(self, source: str, until_epoch: float) -> None:
        """Ban a source."""
        self._bans[source] = until_epoch

    async def bans(self, now_epoch: float) -> dict[str, float]:
        """Those whose time is not over."""
        self._bans = {source: until for source, until in self._bans.items() if until > now_epoch}
        return dict(self._bans)

    async def remove_ban(self, source: str) -> bool:
        """Whether there was one."""
        return self._bans.pop(source, None) is not None

    async def try_to_write(self) -> None:
        """Memory can always be written."""

    async def secret(self) -> bytes:
        """32 random bytes."""
        return self._secret

    def _put(self, aor: Aor, location: Location) -> None:
        if location.bindings or location.push_records:
            self._locations[aor] = location
        else:
            self._locations.pop(aor, None)


_NOTHING = Location()
