"""Values as Redis keeps them: JSON a person can read, in UTF-8.

SIP is bytes: what was not UTF-8 when it came (a User-Agent in Latin-1) is those bytes again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from sipush.core.bindings import Aor, Binding, Platform, PushRecord, Registration, Subscriber
from sipush.core.stored_message import StoredMessage

_json = json.JSONEncoder(ensure_ascii=False).encode
_quote = json.encoder.encode_basestring
_BOOLEAN = ("false", "true")


def encode(text: str) -> bytes:
    """The bytes that ``text`` stands for."""
    return text.encode("utf-8", "surrogateescape")


def decode(data: bytes) -> str:
    """The inverse of ``encode``."""
    return data.decode("utf-8", "surrogateescape")


def binding_text(b: Binding) -> bytes:
    """A Binding as JSON; its AOR is in the key. The BIND script knows the order of its members."""
    return encode(
        f'{{"device": {_quote(b.device)}, "contact": {_quote(b.contact)},'
        f' "contact_key": {_quote(b.contact_key)}, "params": {_quote(b.params)},'
        f' "path": {_json(b.path) if b.path else "[]"}, "flow": {_quote(b.flow)},'
        f' "user_agent": {_quote(b.user_agent)}, "call_id": {_quote(b.call_id)},'
        f' "cseq": {b.cseq}, "registered_epoch": {b.registered_epoch!r},'
        f' "expires_epoch": {b.expires_epoch!r}}}'
    )


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
    """An object as JSON."""
    row: dict[str, Any]
    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError:  # what is not UTF-8
        row = json.loads(decode(text))
    return row


def push_record_text(r: PushRecord) -> bytes:
    """A PushRecord as JSON; its AOR is in the key."""
    return encode(
        f'{{"device": {_quote(r.device)}, "platform": "{r.platform.value}",'
        f' "app_id": {_quote(r.app_id)}, "call_token": {_quote(r.call_token)},'
        f' "message_token": {_quote(r.message_token)},'
        f' "allow_call": {_BOOLEAN[r.allow_call]}, "allow_message": {_BOOLEAN[r.allow_message]},'
        f' "dialect": {_quote(r.dialect)}, "extra": {_json(r.extra) if r.extra else "{}"},'
        f' "updated_epoch": {r.updated_epoch!r}, "expires_epoch": {r.expires_epoch!r}}}'
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


def bind_arguments(registration: Registration) -> list[bytes]:
    """The ARGV of the BIND script from ``now`` on."""
    now = registration.now_epoch
    arguments = [
        repr(now).encode(),
        encode(registration.call_id),
        b"%d" % registration.cseq,
        b"%d" % registration.max_contacts,
        b"%d" % registration.max_push_records,
        b"%d" % len(registration.bind),
    ]
    for binding in registration.bind:
        left = b"%d" % math.ceil((binding.expires_epoch - now) * 1000)
        arguments += (encode(binding.device), left, binding_text(binding))
    arguments.append(b"%d" % len(registration.push))
    for record in registration.push:
        left = b"%d" % math.ceil((record.expires_epoch - now) * 1000)
        arguments += (encode(record.device), left, push_record_text(record))
    unbind, push_off, unpushed = registration.unbind, registration.push_off, registration.unpushed
    if unbind or unpushed or push_off or registration.unbind_all:
        all_there_are = [("*",)] if registration.unbind_all else []
        for rows in (unbind, [(device,) for device in unpushed], push_off, all_there_are):
            arguments.append(b"%d" % len(rows))
            arguments += [encode(text) for row in rows for text in row]
    return arguments
