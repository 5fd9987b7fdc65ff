"""Values as rows of the SQLite tables.

SIP is bytes: text that is not UTF-8 (a User-Agent in Latin-1) comes with surrogate escapes, which
SQLite refuses. Such a text, and only such a one, is stored as a BLOB of the bytes that came.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
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


def storable(values: Iterable[Any]) -> Row:
    """``values`` with text that is not UTF-8 as bytes."""
    return tuple(map(_storable, values))


def _storable(value: Any) -> Any:
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-8", "surrogateescape")
    return value


def texts(row: Row) -> Row:
    """The inverse of ``storable``."""
    if bytes in map(type, row):
        return tuple(
            v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else v for v in row
        )
    return row


def binding_row(b: Binding) -> Row:
    """In the order of BINDING."""
    return storable(
        (
            b.aor,
            b.device,
            b.contact,
            b.contact_key,
            b.expires_epoch,
            b.call_id,
            b.cseq,
            b.flow,
            b.params,
            json.dumps(b.path, ensure_ascii=False) if b.path else "",
            b.user_agent,
            b.registered_epoch,
        )
    )


def binding_of(row: Row) -> Binding:
    """The Binding of a BINDING row."""
    row = texts(row)
    return Binding(*(*row[:9], tuple(json.loads(row[9] or "[]")), *row[10:]))


def push_record_row(r: PushRecord) -> Row:
    """In the order of PUSH_RECORD."""
    return storable(
        (
            r.aor,
            r.device,
            r.platform.value,
            r.app_id,
            r.call_token,
            r.message_token,
            r.allow_call,
            r.allow_message,
            r.dialect,
            json.dumps(r.extra, ensure_ascii=False) if r.extra else "",
            r.updated_epoch,
            r.expires_epoch,
        )
    )


def push_record_of(row: Row) -> PushRecord:
    """The PushRecord of a PUSH_RECORD row."""
    row = texts(row)
    return PushRecord(
        row[0],
        row[1],
        Platform(row[2]),
        row[3],
        row[4],
        row[5],
        bool(row[6]),
        bool(row[7]),
        row[8],
        json.loads(row[9] or "{}"),
        row[10],
        row[11],
    )


def message_row(m: StoredMessage) -> Row:
    """In the order of MESSAGE."""
    aor, key = storable((m.aor, m.key))
    return aor, key, m.content, m.stored_epoch, m.expires_epoch, m.id


def message_of(row: Row) -> StoredMessage:
    """The StoredMessage of a MESSAGE row."""
    return StoredMessage(*texts(row[:2]), *row[2:])


def subscriber_row(s: Subscriber) -> Row:
    """In the order of SUBSCRIBER."""
    return storable((s.aor, s.ha1_md5, s.ha1_sha256, s.hold, s.hold_seconds, s.fallback))


def subscriber_of(row: Row) -> Subscriber:
    """The Subscriber of a SUBSCRIBER row."""
    row = texts(row)
    return Subscriber(*(*row[:3], bool(row[3]), *row[4:]))
