"""Values as Redis keeps them: JSON a person can read, in UTF-8.

SIP is bytes: what was not UTF-8 when it came (a User-Agent in Latin-1) is those bytes again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import orjson

from sipush.core.bindings import Aor, Binding, Platform, PushRecord, Registration, Subscriber
from sipush.core.stored_message import StoredMessage


def encode(text: str) -> bytes:
    """The bytes that ``text`` stands for."""
    return text.encode("utf-8", "surrogateescape")


def decode(data: bytes) -> str:
    """The inverse of ``encode``."""
    return data.decode("utf-8", "surrogateescape")


def binding_text(b: Binding) -> bytes:
    """A Binding as JSON; its AOR is in the key, its device in the field.

    Left out is what is empty, and a ``contact_key`` that is the contact. The BIND script knows how
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
    """The inverse of ``binding_text``."""
    row = _row(text)
    contact = row["contact"]
    return Binding(
        aor,
        device,
        contact,
        row.get("contact_key", contact),
        row["expires_epoch"],
        row["call_id"],
        row["cseq"],
        row["flow"],
        row.get("params", ""),
        tuple(row.get("path", ())),
        row.get("user_agent", ""),
        row["registered_epoch"],
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
        "platform": _PLATFORMS[r.platform],
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


_PLATFORMS = {platform: platform.value for platform in Platform}


def push_record_of(aor: Aor, device: str, text: bytes) -> PushRecord:
    """The inverse of ``push_record_text``."""
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
        row["updated_epoch"],
        row["expires_epoch"],
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
    """The messages in such a hash, by rising id."""
    messages = []
    for name, content in fields.items():
        if name != b"last":
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


_BETWEEN = b"\n\n"
"Between a binding and a push record: JSON has no empty line, though a person may have indented it."


def parts_of(row: bytes) -> tuple[bytes, bytes]:
    """The texts of the binding and of the push record, which may be empty."""
    binding, _, record = row.partition(_BETWEEN)
    return binding, record


class Row(NamedTuple):
    """What is kept of a device; its binding or its push record may be missing."""

    device: str
    binding: Binding | None
    record: PushRecord | None


def rows_of(registration: Registration) -> list[Row]:
    """What is bound and pushed."""
    rows, records = [], list(registration.push)
    for binding in registration.bind:
        has_record = records and records[0].device == binding.device
        rows.append(Row(binding.device, binding, records.pop(0) if has_record else None))
    rows += [Row(record.device, None, record) for record in records]
    return rows


def bind_arguments(registration: Registration) -> list[bytes]:
    """The own ARGV of the BIND script from the terms on."""
    now, bind, push = registration.now_epoch, registration.bind, registration.push
    limits = registration.max_contacts, registration.max_push_records
    arguments = [
        orjson.dumps((now, *limits)),
        encode(registration.call_id),
        b"%d" % registration.cseq,
    ]
    unbind, push_off, unpushed = registration.unbind, registration.push_off, registration.unpushed
    more = unbind or unpushed or push_off or registration.unbind_all or 0 in limits
    if len(bind) == 1 and len(push) <= 1 and not more:
        binding, record = bind[0], push[0] if push else None
        if record is None or record.device == binding.device:
            return arguments + _row_arguments(binding.device, binding, record, now)
    rows = rows_of(registration)
    arguments.append(b"%d" % len(rows))
    for row in rows:
        arguments += _row_arguments(*row, now)
    all_there_are = [("*",)] if registration.unbind_all else []
    for gone in (unbind, [(device,) for device in unpushed], push_off, all_there_are):
        arguments.append(b"%d" % len(gone))
        arguments += [encode(text) for texts in gone for text in texts]
    return arguments


def _row_arguments(
    device: str, binding: Binding | None, record: PushRecord | None, now: float
) -> list[bytes]:
    """Device, milliseconds left, row."""
    until, bound, pushed = 0.0, b"", b""
    if binding is not None:
        until, bound = binding.expires_epoch, binding_text(binding)
    if record is not None:
        until, pushed = max(until, record.expires_epoch), push_record_text(record)
    return [encode(device), b"%d" % math.ceil((until - now) * 1000), bound + _BETWEEN + pushed]
