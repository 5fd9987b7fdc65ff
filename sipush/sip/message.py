"""SIP messages: lossless and lazy (RFC 3261 §7).

Text is UTF-8 decoded with ``surrogateescape``: whatever bytes came, the same bytes leave. Header
lines are kept whole and parsed only when somebody asks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from sipush.errors import MessageError
from sipush.sip.fields import (
    METHODS,
    CSeq,
    NameAddr,
    Via,
    parse_cseq,
    parse_name_addr,
    parse_via,
    usual_via,
)
from sipush.sip.grammar import is_token, number, split_outside
from sipush.sip.headers import CANONICAL, Headers, canonical_name, field_value
from sipush.sip.memo import Memo
from sipush.sip.status import PHRASES, Status
from sipush.sip.uri import SipUri, parse_sip_uri

VERSION: Final = "SIP/2.0"
BRANCH_COOKIE: Final = "z9hG4bK"
DEFAULT_MAX_FORWARDS: Final = 70
TRYING: Final = 100
"``Status.TRYING`` on busy paths: looking up the member of an enum takes longer than the rest."
MAX_HEADER_LINES: Final = 1000
"What is parsed at all; ``validation.MessageLimits`` is what is accepted."


class Message:
    """What requests and responses have in common.

    ``headers`` may be edited in place, but for From, To, Call-ID, CSeq and Max-Forwards once they
    were asked for: these are the same as long as a message lives, and are read once.
    """

    __slots__ = ("_call_id", "_cseq", "_from", "_to", "body", "headers")

    def __init__(self, headers: Headers, body: bytes = b"") -> None:
        self.headers = headers
        self.body = body
        self._from: NameAddr | None = None
        self._to: NameAddr | None = None
        self._call_id = ""
        self._cseq: CSeq | None = None

    @property
    def start_line(self) -> str:
        """Request-Line or Status-Line, without CRLF."""
        raise NotImplementedError

    def to_bytes(self) -> bytes:
        """The message as it goes on the wire; Content-Length is the headers' business."""
        lines = [self.start_line]
        lines += [line for _, line in self.headers.fields]
        lines.append("\r\n")
        data = "\r\n".join(lines).encode("utf-8", "surrogateescape")
        return data + self.body if self.body else data

    def set_body(self, body: bytes, content_type: str | None = None) -> None:
        """Replace the body, and Content-Length and Content-Type with it."""
        self.body = body
        if content_type is not None:
            self.headers.set("Content-Type", content_type)
        self.headers.set("Content-Length", str(len(body)))

    def add_length(self) -> None:
        """Say how long the body is, as a stream needs to be told (§18.3), unless it is said."""
        headers = self.headers
        if headers.fields[-1][0] != "content-length" and "content-length" not in headers:
            headers.append("Content-Length", str(len(self.body)))

    def _need(self, name: str, written: str) -> str:
        value = self.headers.get(name)
        if not value:
            raise MessageError(f"Missing {written}", message=self)
        return value

    def _address(self, name: str, written: str) -> NameAddr:
        line = self.headers.first.get(name, "")
        try:
            return _addresses.get(line)
        except MessageError as error:
            reason = f"{error.reason} in {written}" if field_value(line) else f"Missing {written}"
            raise MessageError(reason, message=self) from None

    @property
    def top_via(self) -> Via:
        """The first Via (§20.42). Raises MessageError when missing or malformed."""
        via = usual_via(self.headers.first.get("via", ""))
        if via is not None:
            return via
        value = self._need("via", "Via")
        return parse_via(split_outside(value, ",")[0] if "," in value else value)

    @property
    def from_(self) -> NameAddr:
        """From (§20.20). Raises MessageError when missing or malformed."""
        if self._from is None:
            self._from = self._address("from", "From")
        return self._from

    @property
    def to(self) -> NameAddr:
        """To (§20.39). Raises MessageError when missing or malformed."""
        if self._to is None:
            self._to = self._address("to", "To")
        return self._to

    @property
    def call_id(self) -> str:
        """Call-ID (§20.8). Raises MessageError when missing."""
        if not self._call_id:
            self._call_id = self._need("call-id", "Call-ID")
        return self._call_id

    @property
    def cseq(self) -> CSeq:
        """CSeq (§20.16). Raises MessageError when missing or malformed."""
        if self._cseq is None:
            line = self.headers.first.get("cseq", "")
            try:
                self._cseq = _cseqs.get(line)
            except MessageError as error:
                reason = error.reason if field_value(line) else "Missing CSeq"
                raise MessageError(reason, message=self) from None
        return self._cseq


# Nearly every message of a call has the same From and To, and the others are much the same for all
# calls. To know a line again takes a fifth of reading it.
_addresses: Final = Memo(lambda line: parse_name_addr(field_value(line)))
_cseqs: Final = Memo(lambda line: parse_cseq(field_value(line)))
_hops: Final = Memo(lambda line: number(field_value(line)), 256)


class Request(Message):
    """A request (§7.1)."""

    __slots__ = ("_max_forwards", "_sip_uri", "method", "uri")

    def __init__(self, method: str, uri: str, headers: Headers, body: bytes = b"") -> None:
        super().__init__(headers, body)
        self.method = method
        self.uri = uri
        "Request-URI, as written; only ``retarget`` changes it."
        self._sip_uri: SipUri | None = None
        self._max_forwards = -1

    @property
    def max_forwards(self) -> int:
        """Max-Forwards (§20.22), 70 when it is missing. Raises MessageError when malformed."""
        if self._max_forwards < 0:
            line = self.headers.first.get("max-forwards")
            hops = DEFAULT_MAX_FORWARDS if line is None else _hops.get(line)
            if hops is None or hops > 255:
                raise MessageError("Malformed Max-Forwards", message=self)
            self._max_forwards = hops
        return self._max_forwards

    @property
    def sip_uri(self) -> SipUri:
        """The parsed Request-URI. Raises MessageError as ``parse_sip_uri`` does."""
        if self._sip_uri is None:
            self._sip_uri = parse_sip_uri(self.uri)
        return self._sip_uri

    @property
    def start_line(self) -> str:
        return f"{self.method} {self.uri} {VERSION}"

    def retarget(self, uri: str) -> None:
        """Have another Request-URI."""
        self.uri, self._sip_uri = uri, None

    def like(self, uri: str, headers: Headers) -> Request:
        """The same to another URI: From, To, Call-ID and CSeq are not read again."""
        other = Request(self.method, uri, headers, self.body)
        other._from, other._to = self._from, self._to
        other._call_id, other._cseq = self._call_id, self._cseq
        return other

    def copy(self) -> Request:
        """A request of its own that shares the header lines and the body."""
        return Request(self.method, self.uri, self.headers.copy(), self.body)

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.uri}>"


class Response(Message):
    """A response (§7.2)."""

    __slots__ = ("reason", "status")

    def __init__(self, status: int, reason: str, headers: Headers, body: bytes = b"") -> None:
        """``status`` 0: it could not be read, and ``reason`` is what followed the version."""
        super().__init__(headers, body)
        self.status = status
        self.reason = reason

    @property
    def start_line(self) -> str:
        if not self.status:
            return f"{VERSION} {self.reason}"
        return f"{VERSION} {self.status} {self.reason}"

    def __repr__(self) -> str:
        return f"<Response {self.status} {self.reason}>"


def parse_head(head: bytes) -> Request | Response:
    """Parse start line and headers (everything before the empty line); the body stays empty.

    Raises MessageError: 505 for another SIP version, else 400; its ``message`` holds what could be
    read, so that a request can be answered and the end of either be found.
    """
    lines = head.decode("utf-8", "surrogateescape").split("\r\n", MAX_HEADER_LINES + 1)
    start_line = lines.pop(0)
    fields: list[tuple[str, str]] = []
    fault: MessageError | None = None
    if len(lines) > MAX_HEADER_LINES:
        fault = MessageError("Too Many Header Fields")
        del lines[-1]
    # A lone CR or LF may end a line for the next hop, and hide a header in it.
    text = "".join(lines)
    stray = "\r" in text or "\n" in text
    usual = CANONICAL
    for line in lines:
        colon = line.find(":")
        canonical = usual.get(line[:colon]) if colon > 0 else None
        if stray and ("\r" in line or "\n" in line):
            fault = fault or MessageError("Malformed Header")
        elif canonical is not None:
            fields.append((canonical, line))
        elif line[:1] in (" ", "\t") and fields:  # a folded line (§7.3.1) belongs to the one before
            canonical, folded = fields[-1]
            fields[-1] = (canonical, f"{folded}\r\n{line}")
        elif colon > 0 and is_token(name := line[:colon].rstrip(" \t")):
            fields.append((canonical_name(name), line))
        else:
            fault = fault or MessageError("Malformed Header")
    message, start_fault = _parse_start_line(start_line, Headers(fields))
    fault = start_fault or fault
    if fault:
        raise MessageError(fault.reason, fault.status, message)
    return message


def _parse_start_line(
    line: str, headers: Headers
) -> tuple[Request | Response, MessageError | None]:
    """The message it starts, and what is wrong with it if its headers can still be read."""
    usual = _usual_start_lines.get(line)
    if usual is not None and usual.status:
        return Response(usual.status, usual.text, headers), None
    if usual is not None:
        return Request(usual.method, usual.text, headers), None
    if line.startswith("SIP/2.0 "):
        return Response(0, line[8:], headers), MessageError("Malformed Status Line")
    method, _, rest = line.partition(" ")
    uri, _, version = rest.rstrip(" ").rpartition(" ")
    if not is_token(method) or not _VERSION(version):
        raise MessageError("Malformed Request Line")
    message = Request(method, uri, headers)
    if version.upper() != VERSION:
        return message, MessageError("Version Not Supported", Status.VERSION_NOT_SUPPORTED)
    if not uri or _SPACE(uri) or rest != f"{uri} {version}":
        return message, MessageError("Malformed Request Line")
    return message, None


class _StartLine:
    """A Request-Line (status 0), or a Status-Line (no method)."""

    __slots__ = ("method", "status", "text")

    def __init__(self, method: str, status: int, text: str) -> None:
        self.method = method
        self.status = status
        self.text = text
        "Request-URI or reason phrase."


def _usual_start_line(line: str) -> _StartLine | None:
    """As nearly all are; None for others."""
    if line.startswith("SIP/2.0 "):
        code, _, reason = line[8:].partition(" ")
        status = _STATUS_CODES.get(code)
        if status is None or "\r" in reason or "\n" in reason:
            return None
        return _StartLine("", status, reason)
    words = line.split()
    if len(words) == 3 and words[0] in METHODS and line == f"{words[0]} {words[1]} {VERSION}":
        return _StartLine(words[0], 0, words[1])
    return None


_usual_start_lines: Final = Memo(_usual_start_line)
"Responses and REGISTERs have much the same, and who is called once is called again."
_STATUS_CODES: Final = {str(code): code for code in range(100, 700)}
_VERSION: Final = re.compile(r"SIP/[0-9]+\.[0-9]+", re.IGNORECASE).fullmatch
_SPACE: Final = re.compile(r"\s").search


def content_length(message: Message) -> int | None:
    """The value of Content-Length (§20.14), or None when there is none. Raises MessageError."""
    headers = message.headers
    line = headers.first.get("content-length")
    if line is None:
        return None
    if "content-length" in headers.repeated and len(set(headers.get_all("content-length"))) > 1:
        raise MessageError("Conflicting Content-Length", message=message)
    length = _lengths.get(line)
    if length is None:
        raise MessageError("Malformed Content-Length", message=message)
    return length


def _read_length(line: str) -> int | None:
    value = field_value(line)
    return number(value) if len(value) <= 9 else None


_lengths: Final = Memo(_read_length)


def parse_datagram(data: bytes) -> Request | Response:
    """Parse one UDP datagram (§18.3): bytes beyond Content-Length are dropped, fewer are an error.

    Raises MessageError.
    """
    if data[:1] in (b"\r", b"\n"):
        data = data.lstrip(b"\r\n")
    head, separator, body = data.partition(b"\r\n\r\n")
    if not separator:
        head = head.removesuffix(b"\r\n")
    message = parse_head(head)
    length = content_length(message)
    if length is not None and length > len(body):
        raise MessageError("Body Shorter Than Content-Length", message=message)
    message.body = body if length is None else body[:length]
    if not separator:
        raise MessageError("Missing End of Headers", message=message)
    return message


def make_response(
    request: Request,
    status: int,
    reason: str | None = None,
    to_tag: str | None = None,
    more: Iterable[tuple[str, str]] = (),
) -> Response:
    """A response to ``request`` with the headers §8.2.6.2 asks for, copied line by line.

    ``to_tag`` is added to To unless the request has one; give it for every status but 100.
    ``more`` are header fields, as ``Headers`` keeps them, for its end.
    """
    if reason is None:
        reason = PHRASES[status]
    fields = [field for field in request.headers.fields if field[0] in _COPIED]
    if to_tag:
        for i, (name, line) in enumerate(fields):
            if name == "to":
                fields[i] = ("to", _tagged(line, to_tag))
    fields.append(("content-length", "Content-Length: 0"))
    fields += more
    return Response(status, reason, Headers(fields))


_TAG: Final = re.compile(r";\s*tag\s*=", re.IGNORECASE)


def _tagged(to_line: str, tag: str) -> str:
    params = to_line.rpartition(">")[2]
    return to_line if params and _TAG.search(params) else f"{to_line};tag={tag}"


_COPIED: Final = frozenset({"via", "from", "to", "call-id", "cseq", "timestamp"})
