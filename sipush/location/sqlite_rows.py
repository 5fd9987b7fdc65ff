"""Values as rows of the SQLite tables, and where a user is: the rows that each REGISTER meets.

SIP is bytes: text that is not UTF-8 (a User-Agent in Latin-1) comes with surrogate escapes, which
SQLite refuses. Such a text, and only such a one, is stored as a BLOB of the bytes that came.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import orjson

from sipush.core.bindings import PLATFORM_NAMES, Aor, Binding, Location, PushRecord, Subscriber
from sipush.core.stored_message import StoredMessage
from sipush.errors import UnreadableError
from sipush.log_lines import device_name

Row = tuple[Any, ...]
Version = tuple[sqlite3.Connection, int]
"What the file is, as seen over a connection: another one as soon as another process has written."

DEVICE = (
    "aor, device, contact, contact_key, expires_epoch, call_id, cseq, flow, params, path,"
    " user_agent, registered_epoch, platform, app_id, call_token, message_token, allow_call,"
    " allow_message, dialect, extra, push_updated_epoch, push_expires_epoch"
)
MESSAGE = "aor, key, content, stored_epoch, expires_epoch, id"
SUBSCRIBER = "aor, ha1_md5, ha1_sha256, hold, hold_seconds, fallback"

_SELECT_LOCATION = (
    f"SELECT {DEVICE} FROM devices WHERE aor = ?1"
    f" UNION ALL SELECT NULL{', NULL' * DEVICE.count(',')} FROM messages"
    " WHERE aor = ?1 AND expires_epoch > ?2"
)
"A row without an AOR means a message."


def _put_device() -> str:
    """Write over the row there is, which costs less than REPLACE: that would delete it first."""
    columns = DEVICE.split(", ")
    changes = ", ".join(f"{column} = excluded.{column}" for column in columns[2:])
    marks = ", ".join("?" * len(columns))
    return f"INSERT INTO devices ({DEVICE}) VALUES ({marks}) ON CONFLICT DO UPDATE SET {changes}"


_PUT_DEVICE = _put_device()
_DELETE_DEVICE = "DELETE FROM devices WHERE aor = ? AND device = ?"

UNREADABLE = (LookupError, TypeError, ValueError)
"What reading a row raises that was not written here."

_NO_HALF = (None,) * 10
_PLATFORMS = {name: platform for platform, name in PLATFORM_NAMES.items()}


def execute(connection: sqlite3.Connection, sql: str, values: Row) -> sqlite3.Cursor:
    """Run a statement whose values may be text that is not UTF-8."""
    try:
        return connection.execute(sql, values)
    except UnicodeEncodeError:
        return connection.execute(sql, tuple(map(_storable, values)))


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-8", "surrogateescape")
    return value


def texts(row: Row) -> Row:
    """``row`` with all text as it was given to ``execute``."""
    if bytes in map(type, row):
        return tuple(
            v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else v for v in row
        )
    return row


def device_row(aor: Aor, device: str, binding: Binding | None, record: PushRecord | None) -> Row:
    """In the order of DEVICE, which is that of the fields of both."""
    return aor, device, *_half_of_binding(binding), *_half_of_record(record)


def _json(value: object) -> str:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # what is not UTF-8
        return json.dumps(value, ensure_ascii=False)


def _from_json(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:  # likewise
        return json.loads(text)


def _half_of_binding(b: Binding | None) -> Row:
    if b is None:
        return _NO_HALF
    path = _json(b.path) if b.path else ""
    return (
        b.contact,
        b.contact_key,
        b.expires_epoch,
        b.call_id,
        b.cseq,
        b.flow,
        b.params,
        path,
        b.user_agent,
        b.registered_epoch,
    )


def _half_of_record(r: PushRecord | None) -> Row:
    if r is None:
        return _NO_HALF
    extra = _json(r.extra) if r.extra else ""
    return (
        PLATFORM_NAMES[r.platform],
        r.app_id,
        r.call_token,
        r.message_token,
        r.allow_call,
        r.allow_message,
        r.dialect,
        extra,
        r.updated_epoch,
        r.expires_epoch,
    )


def device_of(row: Row) -> tuple[Binding | None, PushRecord | None]:
    """What a DEVICE row holds. Raises UNREADABLE.

    SQLite takes text in a column of numbers: adding to it tells here, before anybody counts on it.
    """
    row = texts(row)
    binding = record = None
    if row[2] is not None:
        binding = Binding(
            row[0],
            row[1],
            row[2],
            row[3],
            row[4] + 0,
            row[5],
            row[6] + 0,
            row[7],
            row[8],
            tuple(_from_json(row[9])) if row[9] else (),
            row[10],
            row[11] + 0,
        )
    if row[12] is not None:
        record = PushRecord(
            row[0],
            row[1],
            _PLATFORMS[row[12]],
            row[13],
            row[14],
            row[15],
            bool(row[16]),
            bool(row[17]),
            row[18],
            _from_json(row[19]) if row[19] else {},
            row[20] + 0,
            row[21] + 0,
        )
    return binding, record


def load(connection: sqlite3.Connection, aor: Aor, now_epoch: float) -> Location:
    """All rows of ``aor``, expired ones too. Raises UnreadableError."""
    bindings, records, messages = [], [], False
    for row in execute(connection, _SELECT_LOCATION, (aor, now_epoch)):
        if row[0] is None:
            messages = True
            continue
        try:
            binding, record = device_of(row)
        except UNREADABLE as error:
            what = f"a row of {aor} that cannot be read"
            raise UnreadableError(f"{what} ({device_name(texts(row)[1])}): {error!r}") from error
        if binding is not None:
            bindings.append(binding)
        if record is not None:
            records.append(record)
    return Location(tuple(bindings), tuple(records), messages)


def save(connection: sqlite3.Connection, aor: Aor, before: Location, after: Location) -> None:
    """Write the difference."""
    old, new = _by_device(before), _by_device(after)
    for device in old.keys() - new.keys():
        execute(connection, _DELETE_DEVICE, (aor, device))
    for device, held in new.items():
        if held != old.get(device):
            execute(connection, _PUT_DEVICE, device_row(aor, device, *held))


def _by_device(location: Location) -> dict[str, tuple[Binding | None, PushRecord | None]]:
    records = {record.device: record for record in location.push_records}
    held: dict[str, tuple[Binding | None, PushRecord | None]] = {
        binding.device: (binding, records.pop(binding.device, None))
        for binding in location.bindings
    }
    return held | {device: (None, record) for device, record in records.items()}


def version(connection: sqlite3.Connection) -> Version:
    """What the file is now. Commits of the connection itself do not change it."""
    return connection, connection.execute("PRAGMA data_version").fetchone()[0]


def message_row(m: StoredMessage) -> Row:
    """In the order of MESSAGE."""
    return m.aor, m.key, m.content, m.stored_epoch, m.expires_epoch, m.id


def message_of(row: Row) -> StoredMessage:
    """The StoredMessage of a MESSAGE row. Raises UNREADABLE."""
    aor, key = texts(row[:2])
    return StoredMessage(aor, key, b"" + row[2], row[3] + 0, row[4] + 0, row[5])


def subscriber_row(s: Subscriber) -> Row:
    """In the order of SUBSCRIBER."""
    return s.aor, s.ha1_md5, s.ha1_sha256, s.hold, s.hold_seconds, s.fallback


def subscriber_of(row: Row) -> Subscriber:
    """The Subscriber of a SUBSCRIBER row. Raises UnreadableError."""
    row = texts(row)
    seconds = row[4]
    if isinstance(seconds, str):
        raise UnreadableError(f"user {row[0]} cannot be read: hold_seconds is no number")
    return Subscriber(row[0], row[1], row[2], bool(row[3]), seconds, row[5])
