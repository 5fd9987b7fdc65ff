"""What a push says: payload profiles, own templates, and the limits of the services."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from string import Formatter
from typing import Any

from sipush.core.push_request import PushKind, PushRequest

Profile = str | Mapping[str, str]
"""``portsip``, ``dialstack``, or an own template: payload key -> text with ``{field}`` places."""

FIELDS = (
    "from_user",
    "from_name",
    "to_user",
    "to_uri",
    "push_id",
    "call_id",
    "type",
    "text",
    "mime_type",
)
"What a template may name. ``type`` is ``audio``, ``video``, ``im``, ``cancel`` or ``refresh``."

VOIP_LIMIT = 5120
ALERT_LIMIT = 4096
FCM_LIMIT = 4096
WEB_PUSH_LIMIT = 2820
"More never gets to Firefox on Android, though a service must take 3,993 (RFC 8291 §4)."
NAME_LIMIT = 128
"Characters of a display name; longer ones are nobody's name."

WAKE_UP = "call.mobile_push_wakeup"
CANCELLED = "call.mobile_push_cancelled"
MESSAGE = "message.mobile_push_wakeup"
REGISTER = "registration.mobile_push_wakeup"
EVENT_TYPES = {
    PushKind.CALL: WAKE_UP,
    PushKind.CANCEL: CANCELLED,
    PushKind.MESSAGE: MESSAGE,
    PushKind.REFRESH: REGISTER,
    PushKind.DIALOG: REGISTER,
    PushKind.TEST: REGISTER,
}
_SILENT = (PushKind.REFRESH, PushKind.DIALOG)
"Only the app takes notice of these."

_PORTSIP = {
    "msg_type": "{type}",
    "msg_title": "{caller}",
    "msg_content": "{body}",
    "send_from": "{from_user}",
    "send_to": "{to_uri}",
    "x-push-id": "{push_id}",
}
_PORTSIP_MESSAGE = _PORTSIP | {
    "message_id": "{push_id}",
    "mime_type": "{mime_type}",
}
_DIALSTACK = {
    "call_id": "{push_id}",
    "from_number": "{from_user}",
    "from_name": "{from_name}",
    "to_number": "{to_user}",
}
_RESERVED_KEYS = ("aps", "from", "message_type", "notification")
_RESERVED_PREFIXES = ("google", "gcm")
_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"Bidirectional controls: they let a caller's name display as something else."


class PayloadTooLargeError(ValueError):
    """Even without its text the payload is over the service's limit."""


@dataclass(frozen=True, slots=True)
class ApnsPush:
    """One notification as APNs takes it."""

    token: str
    voip: bool
    "True: push type ``voip`` on the app's VoIP topic; False: ``alert`` on its plain topic."
    payload: bytes


def template_problems(template: Mapping[str, str]) -> list[str]:
    """Everything that makes an own template unusable: ``key: what and what is allowed``."""
    problems = []
    for key, text in template.items():
        if key in _RESERVED_KEYS or key.startswith(_RESERVED_PREFIXES):
            problems.append(f"{key}: the push services keep this key for themselves")
        try:
            places = list(Formatter().parse(text))
        except ValueError as error:
            problems.append(f"{key}: {error}")
            continue
        for _, field, spec, conversion in places:
            if field is not None and (field not in FIELDS or spec or conversion):
                allowed = ", ".join(f"{{{name}}}" for name in FIELDS)
                problems.append(f"{key}: unknown place {{{field}}}; allowed are {allowed}")
    return problems


def apns_push(profile: Profile, request: PushRequest) -> ApnsPush | None:
    """The APNs notification for a request, or None where none may be sent.

    A call goes to the VoIP token, or as an alert to the message token where the app has no VoIP
    token; a message and a test are alerts. None: the token is missing, or there is nothing to show
    (an app must report every VoIP push as a call). Raises PayloadTooLargeError.
    """
    record = request.record
    if request.kind is PushKind.CANCEL or request.kind in _SILENT:
        return None
    if request.kind is PushKind.CALL and record.call_token:
        payload = _fitted(lambda text: _data(profile, request, text), request.text, VOIP_LIMIT)
        return ApnsPush(record.call_token, voip=True, payload=payload)
    if not record.message_token:
        return None

    def alert(text: str) -> dict[str, Any]:
        return {"aps": _aps(request, text), **_data(profile, request, text)}

    payload = _fitted(alert, request.text, ALERT_LIMIT)
    return ApnsPush(record.message_token, voip=False, payload=payload)


def fcm_data(profile: Profile, request: PushRequest) -> dict[str, str]:
    """The ``data`` of an FCM message: strings only. Raises PayloadTooLargeError."""
    payload: dict[str, str] = json.loads(_typed(profile, request, FCM_LIMIT))
    return payload


def web_push_message(profile: Profile, request: PushRequest) -> bytes:
    """What a service worker is given: a JSON object of strings. Raises PayloadTooLargeError."""
    return _typed(profile, request, WEB_PUSH_LIMIT)


def webhook_event(request: PushRequest, event_id: str, account_id: str) -> bytes:
    """The webhook's body: ``call.mobile_push_wakeup`` and its kin, times in ISO 8601 UTC."""
    ringing_at = _iso(request.created_epoch)
    data = {
        "call_id": clean(request.push_id),
        "sip_call_id": clean(request.call_id),
        "user_id": clean(request.record.aor),
        "from_number": clean(request.from_user),
        "from_name": clean(request.from_name)[:NAME_LIMIT],
        "to_number": clean(request.to_user),
        "ringing_at": ringing_at,
    }
    if request.kind is PushKind.MESSAGE:
        data |= {"text": clean(request.text, "\n\t"), "mime_type": clean(request.mime_type)}
    return encode(
        {
            "id": event_id,
            "type": EVENT_TYPES[request.kind],
            "created_at": ringing_at,
            "account_id": account_id,
            "data": data,
        }
    )


def encode(payload: Mapping[str, Any]) -> bytes:
    """JSON as it goes on the wire: UTF-8, no spaces."""
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


def clean(text: str, keep: str = "") -> str:
    """Text a peer chose, without what could act instead of being shown.

    Control characters (but those in ``keep``), line separators, lone surrogates and
    bidirectional overrides go.
    """
    if text.isprintable():
        return text
    return "".join(
        c
        for c in text
        if c in keep
        or (c not in _OVERRIDES and unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp"))
    )


def _typed(profile: Profile, request: PushRequest, limit: int) -> bytes:
    """The data for an app that has nothing else to tell a call from a message."""

    def build(text: str) -> dict[str, str]:
        data = _data(profile, request, text)
        return data | {"type": EVENT_TYPES[request.kind]} if profile == "dialstack" else data

    return _fitted(build, request.text, limit)


def _data(profile: Profile, request: PushRequest, text: str) -> dict[str, str]:
    template = _template(profile, request.kind)
    fields = _fields(request, text)
    return {key: value.format_map(fields) for key, value in template.items()}


def _template(profile: Profile, kind: PushKind) -> Mapping[str, str]:
    if profile == "portsip":
        return _PORTSIP_MESSAGE if kind is PushKind.MESSAGE else _PORTSIP
    if profile == "dialstack":
        return _DIALSTACK | {"text": "{text}"} if kind is PushKind.MESSAGE else _DIALSTACK
    assert not isinstance(profile, str)
    return profile


def _fields(request: PushRequest, text: str) -> dict[str, str]:
    caller = _caller(request)
    return {
        "from_user": clean(request.from_user),
        "from_name": clean(request.from_name)[:NAME_LIMIT],
        "to_user": clean(request.to_user),
        "to_uri": clean(request.to_uri),
        "push_id": clean(request.push_id),
        "call_id": clean(request.call_id),
        "type": _type(request),
        "text": text,
        "mime_type": clean(request.mime_type),
        "caller": caller,
        "body": _body(request, text, caller),
    }


def _body(request: PushRequest, text: str, caller: str) -> str:
    if request.kind is PushKind.MESSAGE:
        return text
    if request.kind is PushKind.TEST:
        return f"{clean(request.to_user)} can be reached"
    return "" if request.kind in _SILENT else f"{_title(request)}: {caller}"


def _type(request: PushRequest) -> str:
    match request.kind:
        case PushKind.CALL:
            return "video" if request.video else "audio"
        case PushKind.MESSAGE:
            return "im"
        case PushKind.CANCEL:
            return "cancel"
        case PushKind.REFRESH | PushKind.DIALOG | PushKind.TEST:
            return "refresh"


def _title(request: PushRequest) -> str:
    if request.kind is PushKind.CANCEL:
        return "Call ended"
    return "Incoming video call" if request.video else "Incoming call"


def _caller(request: PushRequest) -> str:
    if request.kind is PushKind.TEST:
        return "Push test"
    return (clean(request.from_name)[:NAME_LIMIT] or clean(request.from_user)).strip()


def _aps(request: PushRequest, text: str) -> dict[str, Any]:
    caller = _caller(request)
    says_more = request.kind in (PushKind.MESSAGE, PushKind.TEST)
    body = _body(request, text, caller) if says_more else _title(request)
    return {"alert": {"title": caller, "body": body}, "sound": "default"}


def _fitted(build: Callable[[str], Mapping[str, Any]], text: str, limit: int) -> bytes:
    """The encoded payload with as much of the text, cleaned, as the limit allows."""
    text = clean(text[:limit], "\n\t")
    payload = encode(build(text))
    if len(payload) <= limit:
        return payload
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if len(encode(build(text[:middle]))) <= limit:
            low = middle
        else:
            high = middle - 1
    payload = encode(build(text[:low]))
    if len(payload) > limit:
        raise PayloadTooLargeError(f"payload of {len(payload)} bytes; {limit} are allowed")
    return payload


def _iso(epoch: float) -> str:
    return (
        datetime.fromtimestamp(epoch, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )
