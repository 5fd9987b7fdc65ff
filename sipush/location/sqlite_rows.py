"""Values as rows of the SQLite tables.

SIP is bytes: text that is not UTF-8 (a User-Agent in Latin-1) comes with surrogate escapes, which
SQLite refuses. Such a text, and only such a one, is stored as a BLOB of the bytes that came.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from sipush.core.bindings import Aor, Binding, Platform, PushRecord, Subscriber
from sipush.core.stored_message import StoredMessage

Row = tuple[Any, ...]

DEVICE = (
    "aor, device, contact, contact_key, expires_epoch, call_id, cseq, flow, params, path,"
    " user_agent, registered_epoch, platform, app_id, call_token, message_token, allow_call,"
    " allow_message, dialect, extra, push_updated_epoch, push_expires_epoch"
)
MESSAGE = "aor, key, content, stored_epoch, expires_epoch, id"
SUBSCRIBER = "aor, ha1_md5, ha1_sha256, hold, hold_seconds, fallback"

_NO_HALF = (None,) * 10


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


def _half_of_binding(b: Binding | None) -> Row:
    if b is None:
        return _NO_HALF
    path = json.dumps(b.path, ensure_ascii=False) if b.path else ""
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
    extra = json.dumps(r.extra, ensure_ascii=False) if r.extra else ""
    return (
        r.platform.value,
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
    """What a DEVICE row holds."""
    row = texts(row)
    binding = record = None
    if row[2] is not None:
        path = tuple(json.loads(row[9])) if row[9] else ()
        binding = Binding(*(*row[:9], path, *row[10:12]))
    if row[12] is not None:
        extra = json.loads(row[19]) if row[19] else {}
        allowed = bool(row[16]), bool(row[17])
        record = PushRecord(
            *(*row[:2], Platform(row[12]), *row[13:16], *allowed, row[18], extra, *row[20:22])
        )
    return binding, record


def message_row(m: StoredMessage) -> Row:
    """In the order of MESSAGE."""
    return m.aor, m.key, m.content, m.stored_epoch, m.expires_epoch, m.id


def message_of(row: Row) -> StoredMessage:
    """The StoredMessage of a MESSAGE row."""
    return StoredMessage(*texts(row[:2]), *row[2:])


def subscriber_row(s: Subscriber) -> Row:
    """In the order of SUBSCRIBER."""
    return s.aor, s.ha1_md5, s.ha1_sha256, s.hold, s.hold_seconds, s.fallback


def subscriber_of(row: Row) -> Subscriber:
    """The Subscriber of a SUBSCRIBER row."""
    row = texts(row)
    return Subscriber(*(*row[:3], bool(row[3]), *row[4:]))
