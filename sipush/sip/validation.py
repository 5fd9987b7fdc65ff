"""What every request and response must satisfy before anybody acts on it (RFC 3261 §8.1.1, §16.3).

Only checks that need no configuration.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from sipush.errors import MessageError
from sipush.sip.fields import NameAddr, Via
from sipush.sip.grammar import is_token, split_outside
from sipush.sip.headers import Headers
from sipush.sip.message import Message, Request
from sipush.sip.status import Status

#: Header fields that may appear once (§7.3.1), as far as anybody here acts on them.
_SINGLE: Final = {
    "to": "To",
    "from": "From",
    "call-id": "Call-ID",
    "cseq": "CSeq",
    "max-forwards": "Max-Forwards",
    "content-length": "Content-Length",
    "content-type": "Content-Type",
    "expires": "Expires",
}

_EMPTY_ELEMENT: Final = re.compile(r"[;,](?:[ \t\r\n]*[;,]|(?<=,)[ \t\r\n]*$)").search

#: Schemes a Request-URI may have; what to do with each is routing's business.
_REQUEST_URI_SCHEMES: Final = frozenset({"sip", "sips", "tel", "urn"})


@dataclass(frozen=True, slots=True)
class MessageLimits:
    """What one message may cost; its size is the transports' business."""

    header_lines: int = 200
    via_hops: int = 70
    record_routes: int = 30
    body_size: int = 32_768
    "Bytes."


NO_LIMITS: Final = MessageLimits(1 << 30, 1 << 30, 1 << 30, 1 << 30)


def check(message: Message, limits: MessageLimits = NO_LIMITS) -> Via:
    """Make sure of what registrar and proxy rely on; returns the top Via.

    Afterwards ``top_via``, ``from_``, ``to``, ``call_id`` and ``cseq`` do not raise, and a
    Request-URI is well-formed. Raises MessageError with ``message`` attached, its reason naming
    the fault.
    """
    try:
        _check_header_lines(message, limits)
        if len(message.body) > limits.body_size:
            raise MessageError("Request Entity Too Large", Status.REQUEST_ENTITY_TOO_LARGE)
        via = message.top_via
        _check_address(message.from_, "From")
        _check_address(message.to, "To")
        _ = message.call_id
        cseq = message.cseq
        if isinstance(message, Request):
            if cseq.method != message.method:
                raise MessageError("CSeq Method Does Not Match Request")
            _check_request_uri(message)
            _ = message.max_forwards
    except MessageError as error:
        raise MessageError(error.reason, error.status, message) from None
    return via


def _check_header_lines(message: Message, limits: MessageLimits) -> None:
    headers = message.headers
    if len(headers.fields) > limits.header_lines:
        raise MessageError("Too Many Header Fields")
    for name in headers.repeated:
        if name in _SINGLE:
            _check_repeated(headers)
            break
    vias = headers.lines("via")
    for _, line in vias:
        if _may_have_empty_element(line) and _EMPTY_ELEMENT(line):
            raise MessageError("Malformed Via")
    if _elements(vias) > limits.via_hops:
        raise MessageError("Too Many Hops", Status.TOO_MANY_HOPS)
    if "record-route" in headers.first and (
        _elements(headers.lines("record-route")) > limits.record_routes
    ):
        raise MessageError("Too Many Record-Routes")


def _elements(lines: list[tuple[str, str]]) -> int:
    """How many there are, at most; to look for a comma is ten times as fast as to count them."""
    count = len(lines)
    for _, line in lines:
        if "," in line:
            count += line.count(",")
    return count


def _may_have_empty_element(line: str) -> bool:
    """Asked before the regular expression, which takes ten times as long; seldom true."""
    return "," in line or "\t" in line or ";;" in line or " ;" in line


def _check_repeated(headers: Headers) -> None:
    for name, written in _SINGLE.items():
        if len(set(headers.get_all(name))) > 1:
            raise MessageError(f"Conflicting {written}")


def _check_address(address: NameAddr, where: str) -> None:
    if address.is_read or address.uri[:3].lower() != "sip":
        return
    try:
        _ = address.sip_uri
    except MessageError as error:
        raise MessageError(f"{error.reason} in {where}", error.status) from None


def _check_request_uri(request: Request) -> None:
    uri = request.uri
    scheme = "sip" if uri.startswith("sip:") else uri.partition(":")[0].lower()
    if scheme not in _REQUEST_URI_SCHEMES and is_token(scheme):
        raise MessageError("Unsupported URI Scheme", Status.UNSUPPORTED_URI_SCHEME)
    if scheme.startswith("sip"):
        if request.sip_uri.headers is not None:
            raise MessageError("Headers Not Allowed in Request-URI")
    elif not re.fullmatch(r'[A-Za-z]+:[^\s<>"]+', uri):
        raise MessageError("Malformed Request-URI")


def stamp_received(request: Request, remote: tuple[str, int], via: Via | None = None) -> None:
    """Note in the top Via where the request really came from (§18.2.1, RFC 3581 §4).

    ``received`` is set when sent-by names another host or ``rport`` is asked for, ``rport`` when it
    is asked for; all other bytes of the line stay, but for a semicolon with nothing behind it.
    ``via`` is the top Via, if it has been parsed. Raises MessageError when the Via is missing or
    malformed.
    """
    via = via or request.top_via
    host, port = remote
    line = request.headers.first["via"]
    if _asks_for_rport_last(line, via):
        request.headers.replace_first_line("via", f"{line}={port};received={host}")
        return
    wants_rport = "rport" in via.params
    if not wants_rport and via.host.strip("[]").lower() == host and "received" not in via.params:
        return
    if not via.is_plain:  # what is put behind an open quote would be part of it: the first counts
        sent_by, semicolon, params = line.partition(";")
        noted = f";rport={port};received={host}" if wants_rport else f";received={host}"
        request.headers.replace_first_line("via", f"{sent_by.rstrip()}{noted}{semicolon}{params}")
        return
    end = len(line)
    if "," in line:
        colon = line.index(":") + 1
        first = split_outside(line[colon:], ",")[0]
        end = line.index(first, colon) + len(first)
    stamped = line[:end].rstrip("; \t\r\n")
    if "received" in via.params:
        stamped = _RECEIVED.sub("", stamped)
    if wants_rport:
        stamped = _RPORT.sub(f";rport={port}", stamped)
    request.headers.replace_first_line("via", f"{stamped};received={host}{line[end:]}")


def _asks_for_rport_last(line: str, via: Via) -> bool:
    """Whether it does as nearly every phone does: then no parameters need to be read."""
    if not line.endswith(";rport") or "," in line:
        return False
    return via.is_plain and "received" not in line.lower()


_RECEIVED: Final = re.compile(r";\s*received\s*=[^;]*", re.IGNORECASE)
_RPORT: Final = re.compile(r";\s*rport\s*(?:=[^;]*)?(?=;|$)", re.IGNORECASE)
