"""Values as rows of the SQLite tables.

SIP is bytes: text that is not UTF-8 (a User-Agent in Latin-1) comes with surrogate escapes, which
SQLite refuses. Such a text, and only such a one, is stored as a BLOB of the bytes that came.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from sipush.core.bindings import Binding, Platform, PushRecord, Subscriber
from sipush.core.stored_message import StoredMessage

Row = tuple[Any, ...]

BINDING = (
    "aor, device, contact, contact_key, expires_epoch, call_id, cseq, flow, params, path,"
    " user_agent, registered_epoch"
)
PUSH_RECORD = (
    "aor, device, platform, app_id, call_token, message_token, allow_call, allow_message,"
    " dialect, extra, updated_epoch, expires_epoch"
)
MESSAGE = "aor, key, content, stored_epoch, expires_epoch, id"
SUBSCRIBER = "aor, ha1_md5, ha1_sha256, hold, hold_seconds, fallback"


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


def binding_row(b: Binding) -> Row:
    """In the order of BINDING, which is that of the fields."""
    path = json.dumps(b.path, ensure_ascii=False) if b.path else ""
    return *b[:9], path, *b[10:]


def binding_of(row: Row) -> Binding:
    """The Binding of a BINDING row."""
    row = texts(row)
    path = tuple(json.loads(row[9])) if row[9] else ()
    return Binding(*(*row[:9], path, *row[10:12]))


def push_record_row(r: PushRecord) -> Row:
    """In the order of PUSH_RECORD, which is that of the fields."""
    extra = json.dumps(r.extra, ensure_ascii=False) if r.extra else ""
    return r.aor, r.device, r.platform.value, *r[3:9], extra, *r[10:]


def push_record_of(row: Row) -> PushRecord:
    """The PushRecord of a PUSH_RECORD row."""
    row = texts(row)
    extra = json.loads(row[9]) if row[9] else {}
    allow_call, allow_message = bool(row[6]), bool(row[7])
    platform = Platform(row[2])
    return PushRecord(
        *(*row[:2], platform, *row[3:6], allow_call, allow_message, row[8], extra, *row[10:12])
    )


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
