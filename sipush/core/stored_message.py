"""A MESSAGE that waits for its recipient (RFC 3428): what is stored, shown and delivered."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import formatdate
from hashlib import sha256

from sipush.core.bindings import Aor, PushRecord
from sipush.core.push_request import PushKind, PushRequest
from sipush.core.routing import caller, forward_request, hide_identity, strip_push_params
from sipush.core.target_set import Target
from sipush.errors import ProtocolError
from sipush.sip.grammar import number
from sipush.sip.message import Request, parse_datagram

COMPOSING = "application/im-iscomposing+xml"
"RFC 3994: worth nothing a moment later."

REPEATED = 32.0
"64*T1: seconds in which a sender repeats a MESSAGE that it has no answer to."

_CPIM = "message/cpim"
_REPORT = "message/imdn+xml"
"Nobody is called to the phone for these, and they leave the room of those that are read alone."

_REPORT_KEY = "silent-"

_PUSH_IDS = ("x-push-id", "portsip-push-id")
"Apps drop messages by these numbers: only we may write them."

_OF_THE_WAY = ("via", "route", "record-route", "proxy-authorization", "authorization")
"""Headers of the way from the sender, which ends with our 202; credentials for the recipient too,
whom nobody hears asking for others."""


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """One MESSAGE of an AOR. Times are UNIX seconds."""

    aor: Aor
    key: str
    "``message_key``: what a repeated request has in common with the first."
    content: bytes
    "The request, without the headers of the way it came."
    stored_epoch: float
    expires_epoch: float
    id: int = 0
    "Given by the store: rising, never given twice. Push id of the push and of the MESSAGE."

    @property
    def is_report(self) -> bool:
        """Whether it is a delivery report: not worth a push, and counted apart."""
        return self.key.startswith(_REPORT_KEY)


@dataclass(frozen=True, slots=True)
class Receipt:
    """The store holds the message."""

    id: int
    repeated: bool = False
    "It held it before."


def message_key(request: Request) -> str:
    """Call-ID, CSeq and From tag in one word: equal for the same MESSAGE sent again (§8.2.2.2).

    It begins with what shows a store whether the message is a delivery report.
    """
    identity = (request.call_id, str(request.cseq.number), request.from_.tag or "")
    digest = sha256("\n".join(identity).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return _REPORT_KEY + digest if _content(request)[0] == _REPORT else digest


def without_content(m: StoredMessage) -> StoredMessage:
    """What names it in the store, to be kept in memory."""
    return StoredMessage(m.aor, m.key, b"", m.stored_epoch, m.expires_epoch, m.id)


def lifetime(request: Request, longest: float) -> float:
    """Seconds for which the MESSAGE may wait: its Expires (RFC 3428 §4), at most ``longest``."""
    seconds = number(request.headers.get("expires") or "")
    return longest if seconds is None else min(float(seconds), longest)  # §20.19


def from_sender(request: Request) -> Request:
    """The MESSAGE without push ids that its sender made up, and fit to be sent on."""
    clean = request.like(request.uri, request.headers.copy())
    for name in _PUSH_IDS:
        clean.headers.remove(name)
    strip_push_params(clean)
    hide_identity(clean)
    return clean


def to_store(request: Request, aor: Aor, now_epoch: float, seconds: float) -> StoredMessage:
    """The MESSAGE, as ``from_sender`` gave it, to be stored for ``seconds``."""
    stored = request.copy()
    for name in _OF_THE_WAY:
        stored.headers.remove(name)
    if "date" not in stored.headers:  # the only way to learn when it was sent
        stored.headers.append("Date", formatdate(now_epoch, usegmt=True))
    stored.set_body(request.body)
    return StoredMessage(
        aor, message_key(request), stored.to_bytes(), now_epoch, now_epoch + seconds
    )


def to_deliver(message: StoredMessage, target: Target) -> Request:
    """The stored MESSAGE as ``target`` gets it, but for our Via."""
    request = _request(message)
    push_id = str(message.id)
    forwarded = forward_request(request, target, (), push_id)
    forwarded.headers.set("portsip-push-id", push_id)
    return forwarded


def to_push(message: StoredMessage, record: PushRecord) -> PushRequest:
    """The push that tells a device of the stored MESSAGE."""
    request = _request(message)
    user, name = caller(request)
    mime_type, text = shown(request)
    return PushRequest(
        kind=PushKind.MESSAGE,
        push_id=str(message.id),
        record=record,
        deadline_epoch=message.expires_epoch,
        created_epoch=message.stored_epoch,
        call_id=request.call_id,
        from_user=user,
        from_name=name,
        text=text,
        mime_type=mime_type,
    )


def _request(message: StoredMessage) -> Request:
    request = parse_datagram(message.content)
    if not isinstance(request, Request):
        raise ProtocolError("a response was stored as a message")
    return request


def shown(request: Request) -> tuple[str, str]:
    """Type and, where it is plain, text of a MESSAGE; of what a CPIM wrapper holds (RFC 3862)."""
    mime_type, body = _content(request)
    is_plain = mime_type == "text/plain"
    return mime_type, body.decode("utf-8", "replace") if is_plain else "New message"


def _content(request: Request) -> tuple[str, bytes]:
    """Type and body, of what a CPIM wrapper holds."""
    mime_type = _mime_type(request.headers.get("content-type"))
    return _unwrapped(request.body) if mime_type == _CPIM else (mime_type, request.body)


def _unwrapped(body: bytes) -> tuple[str, bytes]:
    """Message headers, an empty line, the headers of the content, an empty line, the content."""
    parts = re.split(rb"\r?\n\r?\n", body.lstrip(b"\r\n"), maxsplit=2)
    if len(parts) < 3:
        return _CPIM, b""
    found = re.search(rb"^content-type[ \t]*:(.*)$", parts[1], re.IGNORECASE | re.MULTILINE)
    return _mime_type(found[1].decode("ascii", "replace") if found else None), parts[2]


def _mime_type(value: str | None) -> str:
    return (value or "text/plain").partition(";")[0].strip().lower()


def is_composing(request: Request) -> bool:
    """Whether it says only that somebody is typing."""
    return _content(request)[0] == COMPOSING
