"""Values as Redis keeps them: JSON a person can read, in UTF-8.

SIP is bytes: what was not UTF-8 when it came (a User-Agent in Latin-1) is those bytes again.
"""

from __future__ import annotations

import json
import marshal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import orjson

from sipush.core.bindings import (
    PLATFORM_NAMES,
    Aor,
    Binding,
    Location,
    Platform,
    PushRecord,
    Registration,
    Subscriber,
)
from sipush.core.location_update import live
from sipush.core.stored_message import StoredMessage
from sipush.errors import UnreadableError
from sipush.log_lines import device_name

UNREADABLE = (AttributeError, LookupError, TypeError, ValueError)
"What reading a value raises that was not written here."


def encode(text: str) -> bytes:
    """The bytes that ``text`` stands for."""
    return text.encode("utf-8", "surrogateescape")


def decode(data: bytes) -> str:
    """The inverse of ``encode``."""
    return data.decode("utf-8", "surrogateescape")


def binding_text(b: Binding) -> bytes:
    """A Binding as JSON; its AOR is in the key, its device in the field.

    Left out is what is empty, and a ``contact_key`` that is the contact. ``redis_bind`` knows how
    it begins.
    """
    row: dict[str, Any] = {
        "call_id": b.call_id,
        "cseq": b.cseq,
        "contact": b.contact,
        "flow": b.flow,
        "registered_epoch": b.registered_epoch,
        "expires_epoch": b.expires_epoch,
    }
    if b.contact_key != b.contact:
        row["contact_key"] = b.contact_key
    if b.params:
        row["params"] = b.params
    if b.path:
        row["path"] = b.path
    if b.user_agent:
        row["user_agent"] = b.user_agent
    return _text(row)


def _text(row: dict[str, Any]) -> bytes:
    """An object as JSON."""
    try:
        return orjson.dumps(row)
    except orjson.JSONEncodeError:  # what is not UTF-8
        return encode(json.dumps(row, ensure_ascii=False, separators=(",", ":")))


def binding_of(aor: Aor, device: str, text: bytes) -> Binding:
    """The inverse of ``binding_text``. Raises UNREADABLE.

    Adding to what is a number tells when it is none, before anybody counts on it.
    """
    row = _row(text)
    contact = row["contact"]
    return Binding(
        aor,
        device,
        contact,
        row.get("contact_key", contact),
        row["expires_epoch"] + 0,
        row["call_id"],
        row["cseq"] + 0,
        row["flow"],
        row.get("params", ""),
        tuple(row.get("path", ())),
        row.get("user_agent", ""),
        row["registered_epoch"] + 0,
    )


def _row(text: bytes) -> dict[str, Any]:
    """The inverse of ``_text``."""
    row: dict[str, Any]
    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError:  # what is not UTF-8
        row = json.loads(decode(text))
    return row


def push_record_text(r: PushRecord) -> bytes:
    """A PushRecord as JSON; its AOR is in the key, its device in the field.

    Left out is what is allowed, no ``extra``, and a ``message_token`` that is the ``call_token``.
    """
    row: dict[str, Any] = {
        "platform": PLATFORM_NAMES[r.platform],
        "app_id": r.app_id,
        "call_token": r.call_token,
        "dialect": r.dialect,
        "updated_epoch": r.updated_epoch,
        "expires_epoch": r.expires_epoch,
    }
    if r.message_token != r.call_token:
        row["message_token"] = r.message_token
    if not r.allow_call:
        row["allow_call"] = False
    if not r.allow_message:
        row["allow_message"] = False
    if r.extra:
        row["extra"] = r.extra
    return _text(row)


def push_record_of(aor: Aor, device: str, text: bytes) -> PushRecord:
    """The inverse of ``push_record_text``. Raises UNREADABLE."""
    row = _row(text)
    call_token = row["call_token"]
    return PushRecord(
        aor,
        device,
        Platform(row["platform"]),
        row["app_id"],
        call_token,
        row.get("message_token", call_token),
        row.get("allow_call", True),
        row.get("allow_message", True),
        row["dialect"],
        row.get("extra", {}),
        row["updated_epoch"] + 0,
        row["expires_epoch"] + 0,
    )


def message_field(m: StoredMessage) -> bytes:
    """The field of the AOR's hash under which the content is kept."""
    return f"{m.id} {m.stored_epoch!r} {m.expires_epoch!r} {m.key}".encode()


def gone_message(m: StoredMessage) -> bytes:
    """``<key> <AOR>``"""
    return f"{m.key} ".encode() + encode(m.aor)


def gone_message_of(member: bytes) -> tuple[Aor, str]:
    """AOR and key."""
    key, _, aor = member.partition(b" ")
    return decode(aor), key.decode()


def messages_of(aor: Aor, fields: Mapping[bytes, bytes]) -> list[StoredMessage]:
    """The messages in such a hash that can be read, by rising id."""
    messages = []
    for name, content in fields.items():
        if name == b"last":
            continue
        with suppress(*UNREADABLE):
            number, stored, expires, key = name.decode().split(" ")
            times = float(stored), float(expires)
            messages.append(StoredMessage(aor, key, content, *times, int(number)))
    return sorted(messages, key=lambda message: message.id)


def subscriber_fields(s: Subscriber) -> Iterator[bytes]:
    """Field, value, field, value …"""
    values = {
        "ha1_md5": s.ha1_md5,
        "ha1_sha256": s.ha1_sha256,
        "hold": "1" if s.hold else "0",
        "hold_seconds": "" if s.hold_seconds is None else repr(s.hold_seconds),
        "fallback": s.fallback,
    }
    for name, value in values.items():
        yield name.encode()
        yield encode(value)


def subscriber_of(aor: Aor, fields: Mapping[bytes, bytes]) -> Subscriber:
    """The inverse of ``subscriber_fields``; a field that is missing has its default."""
    seconds = fields.get(b"hold_seconds")
    return Subscriber(
        aor,
        decode(fields.get(b"ha1_md5", b"")),
        decode(fields.get(b"ha1_sha256", b"")),
        fields.get(b"hold") != b"0",
        float(seconds) if seconds else None,
        decode(fields.get(b"fallback", b"")),
    )


def refresh_arguments(registration: Registration) -> Iterator[bytes]:
    """Scores and members for ZADD: when due, and the AOR and device as JSON."""
    for device, due in registration.refreshes:
        yield repr(due).encode()
        yield json.dumps([registration.aor, device]).encode()


def refresh_of(member: bytes) -> tuple[Aor, str]:
    """The AOR and device of a member."""
    aor, device = json.loads(member)
    return aor, device


BETWEEN = b"\n\n"
"Between a binding and a push record: JSON has no empty line, though a person may have indented it."


def row(binding: Binding, record: PushRecord | None) -> bytes:
    """What is kept of a device that is bound."""
    return binding_text(binding) + BETWEEN + (push_record_text(record) if record else b"")


def parts_of(row: bytes) -> tuple[bytes, bytes]:
    """The texts of the binding and of the push record, which may be empty."""
    binding, _, record = row.partition(BETWEEN)
    return binding, record


def kept(stored: dict[bytes, bytes]) -> bytes:
    """The rows of an AOR by device in one piece, for this process alone."""
    return marshal.dumps(stored)


def kept_location_of(aor: Aor, kept: bytes) -> Location:
    """The inverse of ``kept``, with those that have expired."""
    return location_of(aor, marshal.loads(kept), 0.0)


def location_of(
    aor: Aor, stored: Mapping[bytes, bytes], now_epoch: float, messages: bool = False
) -> Location:
    """The live rows among those of an AOR, by device. Raises UnreadableError."""
    bindings, records = [], []
    for field, row in stored.items():
        device = decode(field)
        binding, record = parts_of(row)
        try:
            if binding:
                bindings.append(binding_of(aor, device, binding))
            if record:
                records.append(push_record_of(aor, device, record))
        except UNREADABLE as error:
            what = f"{aor} has a row that cannot be read"
            raise UnreadableError(f"{what} ({device_name(device)}): {error!r}") from error
    return live(bindings, records, now_epoch, messages)
