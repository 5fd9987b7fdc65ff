"""REGISTERs stored in Redis: what ``core.location_update`` makes of the rows that were read."""

from __future__ import annotations

import asyncio
import math
import re
from typing import Any

from hiredis import ReplyError

from sipush.core.bindings import Binding, Location, PushRecord, Refusal, Registration
from sipush.core.location_update import apply
from sipush.core.packed import Packed
from sipush.errors import UnreadableError
from sipush.location import redis_rows as rows
from sipush.location.redis_commands import Transaction, pack

SPARE = 86_400_000
"""Milliseconds that a key may outlive its rows: they carry their own times, so its time only clears
up. Most REGISTERs then find that it lives long enough."""

_Rows = dict[bytes, bytes]
"By device."


class Binds(Transaction):
    """REGISTERs that are stored together.

    Each is told its Location or Refusal. Its ``messages`` are whether anybody here may have some.
    """

    __slots__ = (
        *("_channel", "_message_keys", "_node", "_outcomes", "_prefix", "_registrations"),
        *("_seen", "_stored"),
    )

    def __init__(self, prefix: bytes, channel: bytes, node: bytes, seen: Packed) -> None:
        """``channel``: where the other nodes hear of them, and that they are of this ``node``.

        ``seen``: gets the rows of each AOR.
        """
        super().__init__()
        self._seen = seen
        self._stored: list[Any] = []
        "The rows of each, after it."
        self._prefix, self._channel, self._node = prefix, channel, node
        self._registrations: list[Registration] = []
        self._message_keys: list[bytes] = []
        self._outcomes: list[Any] = []

    def join(self, future: asyncio.Future[Any], registration: Registration) -> None:
        """One more."""
        tag = self._prefix + b":{" + rows.encode(registration.aor) + b"}:"
        self.watch(future, tag + b"devices")
        self._message_keys.append(tag + b"messages")
        self._registrations.append(registration)

    def writes(self, stored: list[Any], left: list[Any]) -> tuple[list[bytes], list[bytes]]:
        """All that changes and whether there are messages; then the wake event of all.

        We hear that ourselves, and if it were part of the transaction, Redis 7.0 would tell us in
        the middle of its reply. One that comes of nothing makes the others look up in vain.
        """
        commands: list[bytes] = []
        events: list[bytes] = []
        self._outcomes = []
        self._stored = []
        seen: dict[bytes, Any] = {}
        for n, registration in enumerate(self._registrations):
            key, found = self.keys[n], stored[n]
            before = seen.setdefault(key, found)  # two devices of one user may come together
            outcome = before
            if not isinstance(before, ReplyError):
                try:
                    outcome = _apply(registration, key, before, left[n], commands)
                except UnreadableError as error:
                    outcome = ReplyError(str(error))
                except rows.UNREADABLE as error:
                    outcome = ReplyError(f"a row that cannot be read: {error!r}")
                if isinstance(outcome, Location):
                    events.append(self._node + b" " + rows.encode(registration.aor))
            self._outcomes.append(outcome)
            self._stored.append(before)
        commands.append(pack([b"EXISTS", *self._message_keys]))
        told = [pack([b"PUBLISH", self._channel, b"\n".join(events)])] if events else []
        return commands, told

    def done(self, replies: list[Any]) -> list[Any]:
        """As it was decided."""
        if replies[-1]:
            for outcome in self._outcomes:
                if isinstance(outcome, Location):
                    outcome.messages = True
        for registration, outcome, stored in zip(
            self._registrations, self._outcomes, self._stored, strict=True
        ):
            if isinstance(outcome, Location):
                self._seen.put(registration.aor, rows.kept(stored))
        return self._outcomes


def _apply(
    registration: Registration, key: bytes, stored: _Rows, left: int, commands: list[bytes]
) -> Location | Refusal:
    """What comes of a REGISTER; changes what is ``stored`` and appends the commands for it."""
    bind, push = registration.bind, registration.push
    if len(stored) < 2 and _is_plain(registration):
        # Most REGISTERs by far: a user's only device refreshes itself. ``_apply_any`` would come to
        # the same, with everything read and compared.
        binding, record = bind[0], push[0] if push else None
        device, has_come = rows.encode(binding.device), not stored
        if has_come or _is_next(registration, stored.get(device)):
            row = rows.row(binding, record)
            stored[device] = row
            commands.append(pack([b"HSET", key, device, row]))
            until = binding.expires_epoch
            if record is not None and record.expires_epoch > until:
                until = record.expires_epoch
            _keep(key, until - registration.now_epoch, left, commands)
            return Location(bind, push, False, has_come)
    return _apply_any(registration, key, stored, left, commands)


def _is_plain(registration: Registration) -> bool:
    """Whether one device registers, and nothing else is asked."""
    bind, push = registration.bind, registration.push
    return (
        len(bind) == 1
        and (not push or (len(push) == 1 and push[0].device == bind[0].device))
        and not registration.unbind
        and not registration.unpushed
        and not registration.push_off
        and not registration.unbind_all
        and registration.max_contacts > 0
        and registration.max_push_records > 0
    )


_order = re.compile(rb'{"call_id":"([^"\\]*)","cseq":(\d+),').match
"As we write a row. A Call-ID with a quote or backslash, and rows of others, are read as a whole."


def _is_next(registration: Registration, row: bytes | None) -> bool:
    """Whether it plainly replaces all of ``row``, the only one there is."""
    if row is None or not (registration.push or not row.endswith(b"}")):
        return False
    order = _order(row)
    if order is None:
        return False
    call_id, cseq = order.groups()
    return int(cseq) < registration.cseq or call_id != rows.encode(registration.call_id)


def _apply_any(
    registration: Registration, key: bytes, stored: _Rows, left: int, commands: list[bytes]
) -> Location | Refusal:
    """The same, whatever is asked and stored."""
    before = rows.location_of(registration.aor, stored, registration.now_epoch)
    after = apply(before, registration)
    if isinstance(after, Refusal):
        return after
    was, kept = _by_device(before), _by_device(after)
    put: list[bytes] = []
    for device, (binding, record) in kept.items():
        field = rows.encode(device)
        old = stored.get(field, b"")
        bound, pushed = map(bytes.strip, rows.parts_of(old))
        old_binding, old_record = was.get(device, (None, None))
        if binding is None or binding is not old_binding:  # what has not changed stays as it is
            bound = b"" if binding is None else rows.binding_text(binding)
        if record is None or record is not old_record:
            pushed = b"" if record is None else rows.push_record_text(record)
        row = bound + rows.BETWEEN + pushed
        if row != old:
            stored[field] = row
            put += (field, row)
    dead = stored.keys() - {rows.encode(device) for device in kept}
    for field in dead:
        del stored[field]
    if put:
        commands.append(pack([b"HSET", key, *put]))
    if dead:
        commands.append(pack([b"HDEL", key, *dead]))
    if stored:
        ends = [binding.expires_epoch for binding in after.bindings]
        ends += [record.expires_epoch for record in after.push_records]
        _keep(key, max(ends) - registration.now_epoch, left, commands)
    return after


def _by_device(location: Location) -> dict[str, tuple[Binding | None, PushRecord | None]]:
    """What is kept of each; one of both may be missing."""
    bound = {binding.device: binding for binding in location.bindings}
    has = {record.device: record for record in location.push_records}
    return {device: (bound.get(device), has.get(device)) for device in bound | has}


def _keep(key: bytes, seconds: float, left: int, commands: list[bytes]) -> None:
    """See that the key lives so long; ``left``: the milliseconds that it has, if not negative."""
    needed = math.ceil(seconds * 1000)
    if left < needed:
        commands.append(pack([b"PEXPIRE", key, b"%d" % (needed + SPARE)]))
