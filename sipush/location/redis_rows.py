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
    """A Binding as JSON; its AOR is in the key. The BIND script knows the order of its members."""
    return _text(
        {
            "device": b.device,
            "contact": b.contact,
            "contact_key": b.contact_key,
            "params": b.params,
            "path": b.path,
            "flow": b.flow,
            "user_agent": b.user_agent,
            "call_id": b.call_id,
            "cseq": b.cseq,
            "registered_epoch": b.registered_epoch,
            "expires_epoch": b.expires_epoch,
        }
    )


def _text(row: dict[str, Any]) -> bytes:
    """An object as JSON."""
    try:
        return orjson.dumps(row)
    except orjson.JSONEncodeError:  # what is not UTF-8
        return encode(json.dumps(row, ensure_ascii=False, separators=(",", ":")))


def binding_of(aor: Aor, text: bytes) -> Binding:
    """The inverse of ``binding_text``."""
    row = _row(text)
    return Binding(
        aor,
        row["device"],
        row["contact"],
        row["contact_key"],
        row["expires_epoch"],
        row["call_id"],
        row["cseq"],
        row["flow"],
        row["params"],
        tuple(row["path"]),
        row["user_agent"],
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
    """A PushRecord as JSON; its AOR is in the key."""
    return _text(
        {
            "device": r.device,
            "platform": r.platform.value,
            "app_id": r.app_id,
            "call_token": r.call_token,
            "message_token": r.message_token,
            "allow_call": r.allow_call,
            "allow_message": r.allow_message,
            "dialect": r.dialect,
            "extra": r.extra,
            "updated_epoch": r.updated_epoch,
            "expires_epoch": r.expires_epoch,
        }
    )


def push_record_of(aor: Aor, text: bytes) -> PushRecord:
    """The inverse of ``push_record_text``."""
    row = _row(text)
    return PushRecord(
        aor,
        row["device"],
        Platform(row["platform"]),
        row["app_id"],
        row["call_token"],
        row["message_token"],
        row["allow_call"],
        row["allow_message"],
        row["dialect"],
        row["extra"],
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
    now = registration.now_epoch
    limits = registration.max_contacts, registration.max_push_records
    arguments = [
        orjson.dumps((now, *limits)),
        encode(registration.call_id),
        b"%d" % registration.cseq,
    ]
    rows = rows_of(registration)
    unbind, push_off, unpushed = registration.unbind, registration.push_off, registration.unpushed
    more = unbind or unpushed or push_off or registration.unbind_all
    is_plain = len(rows) == 1 and len(registration.bind) == 1 and not more and min(limits) > 0
    if not is_plain:
        arguments.append(b"%d" % len(rows))
    for device, binding, record in rows:
        until = max(
            binding.expires_epoch if binding else 0.0, record.expires_epoch if record else 0.0
        )
        arguments.append(encode(device))
        arguments.append(b"%d" % math.ceil((until - now) * 1000))
        arguments.append(
            (binding_text(binding) if binding else b"")
            + _BETWEEN
            + (push_record_text(record) if record else b"")
        )
    if not is_plain:
        all_there_are = [("*",)] if registration.unbind_all else []
        for gone in (unbind, [(device,) for device in unpushed], push_off, all_there_are):
            arguments.append(b"%d" % len(gone))
            arguments += [encode(text) for texts in gone for text in texts]
    return arguments
