"""Typed header field values, parsed when asked for (RFC 3261 §20)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from sipush.errors import MessageError
from sipush.sip.grammar import (
    QUOTED_STRING,
    TOKEN,
    is_plain_host,
    number,
    parse_params,
    quote_string,
    unquote_string,
)
from sipush.sip.memo import Memo
from sipush.sip.uri import SipUri, parse_sip_uri, usual_sip_uri

Params = dict[str, str | None]


def format_params(params: Params) -> str:
    """``;name=value;flag`` in the order of the dict."""
    return "".join(f";{n}" if v is None else f";{n}={v}" for n, v in params.items())


@dataclass(slots=True, init=False)
class NameAddr:
    """A From, To, Contact, Route, Record-Route or Path element (§20.10)."""

    uri: str
    "As written, without angle brackets."
    display_name: str
    "Without quotes."
    params: Params
    "Header parameters: names lower-case, values as written (quotes kept); a flag has None."
    _sip_uri: SipUri | None = field(repr=False, compare=False)

    def __init__(
        self,
        uri: str,
        display_name: str,
        params: Params,
        sip_uri: SipUri | None = None,
    ) -> None:
        """``sip_uri``: ``uri``, if it has been parsed."""
        self.uri = uri
        self.display_name = display_name
        self.params = params
        self._sip_uri = sip_uri

    @property
    def is_read(self) -> bool:
        """Whether ``uri`` has been parsed, as a SIP URI."""
        return self._sip_uri is not None

    @property
    def sip_uri(self) -> SipUri:
        """The parsed ``uri``. Raises MessageError as ``parse_sip_uri`` does."""
        if self._sip_uri is None:
            self._sip_uri = parse_sip_uri(self.uri)
        return self._sip_uri

    @property
    def tag(self) -> str | None:
        """The ``tag`` parameter (§19.3)."""
        return self.params.get("tag")

    def __str__(self) -> str:
        display = quote_string(self.display_name) + " " if self.display_name else ""
        return f"{display}<{self.uri}>{format_params(self.params)}"


_TAG: Final = re.compile(r'[^\s;=<>"]+').fullmatch
_NAME_ADDR: Final = re.compile(
    rf"({QUOTED_STRING}[ \t]*|[^<>\"]*)<\s*([^<>\s:]*:[^<>\s]*)\s*>[ \t]*(;.*)?", re.DOTALL
).fullmatch
_ADDR_SPEC: Final = re.compile(r'\s*([^\s">;:]*:[^\s">;]*)\s*(;.*)?', re.DOTALL).fullmatch


def parse_name_addr(text: str) -> NameAddr:
    """Parse one name-addr or addr-spec with its parameters.

    Without angle brackets everything from the first ``;`` on is a header parameter (§20.10).
    Raises MessageError 400.
    """
    usual = _usual_name_addr(text)
    return _any_name_addr(text) if usual is None else usual


def _any_name_addr(text: str) -> NameAddr:
    if "<" not in text:
        bare = _ADDR_SPEC(text)
        if bare is None:
            raise MessageError("Malformed Address")
        return NameAddr(bare[1], "", parse_params(bare[2] or ""))
    match = _NAME_ADDR(text.strip(" \t\r\n"))
    if match is None:
        raise MessageError("Malformed Address")
    display, uri, params = match.groups()
    if display:
        display = unquote_string(display.strip())
    return NameAddr(uri, display, parse_params(params) if params else {})


def _usual_name_addr(text: str) -> NameAddr | None:
    """``"name" <sip:user@host>;tag=…``, as nearly all addresses are; None for others."""
    before, _, rest = text.partition("<")
    uri, closed, after = rest.partition(">")
    sip_uri = usual_sip_uri(uri)
    if sip_uri is None or not closed:
        return None
    display = ""
    if before:
        quoted = before.rstrip(" \t")
        display = quoted[1:-1]
        if quoted != f'"{display}"' or '"' in display or "\\" in display:
            return None
    if not after:
        return NameAddr(uri, display, {}, sip_uri)
    tag = after[5:]
    if after.startswith(";tag=") and (tag.isalnum() or _TAG(tag)):
        return NameAddr(uri, display, {"tag": tag}, sip_uri)
    return NameAddr(uri, display, parse_params(after), sip_uri) if after[0] == ";" else None


class _Hop:
    """A Via element without its parameters."""

    __slots__ = ("host", "port", "sent_by", "transport")

    def __init__(self, transport: str, host: str, port: int | None) -> None:
        self.transport = transport
        self.host = host
        self.port = port
        self.sent_by = host if port is None else f"{host}:{port}"


class Via:
    """One Via element (§20.42)."""

    __slots__ = ("_hop", "_params", "_rest")

    def __init__(self, hop: _Hop, rest: str) -> None:
        """``rest``: the parameters as written; most of them nobody asks for."""
        self._hop = hop
        self._rest = rest
        self._params: Params | None = None

    @property
    def transport(self) -> str:
        """Upper-case: UDP, TCP, TLS, WS, WSS, …"""
        return self._hop.transport

    @property
    def host(self) -> str:
        """sent-by host as written; an IPv6 reference keeps its brackets."""
        return self._hop.host

    @property
    def port(self) -> int | None:
        """sent-by port."""
        return self._hop.port

    @property
    def sent_by(self) -> str:
        """``host[:port]`` as written."""
        return self._hop.sent_by

    @property
    def params(self) -> Params:
        """The parameters: names lower-case, values as written; a flag has None."""
        if self._params is None:
            self._params = parse_params(self._rest)
        return self._params

    @property
    def is_plain(self) -> bool:
        """Whether each semicolon begins a parameter."""
        return '"' not in self._rest and "<" not in self._rest

    @property
    def branch(self) -> str:
        """The ``branch`` parameter, or an empty string (an RFC 2543 element left it out)."""
        rest = self._rest
        if rest.startswith("branch=") and self.is_plain:  # as most write it
            return rest.partition(";")[0][len("branch=") :].strip()
        return self.params.get("branch") or ""

    def __str__(self) -> str:
        return f"SIP/2.0/{self.transport} {self.sent_by}{format_params(self.params)}"


_VIA: Final = re.compile(
    rf"[Ss][Ii][Pp]\s*/\s*2\.0\s*/\s*({TOKEN})\s+"
    r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.\-]+)(?:\s*:\s*([0-9]{1,5}))?\s*(;.*)?",
    re.DOTALL,
).fullmatch


def parse_via(text: str) -> Via:
    """Parse one Via element. Raises MessageError 400."""
    usual = usual_via(f"Via: {text}")
    if usual is not None:
        return usual
    match = _VIA(text.strip())
    if match is None:
        raise MessageError("Malformed Via")
    transport, host, digits, params = match.groups()
    port = None if digits is None else int(digits)
    if port is not None and not 0 < port < 65536:
        raise MessageError("Malformed Via")
    return Via(_Hop(transport.upper(), host, port), params or "")


_PROTOCOLS: Final = {f"SIP/2.0/{name}": name for name in ("UDP", "TCP", "TLS", "WS", "WSS")}


def usual_via(line: str) -> Via | None:
    """That of a header line with one, a name or an IPv4 address, written as usual; else None."""
    if "," in line or "\n" in line:
        return None
    sent, _, params = line.partition(";")
    hop = _usual_hops.get(sent)
    return None if hop is None else Via(hop, params)


def _usual_hop(line: str) -> _Hop | None:
    """The same without parameters."""
    protocol, _, sent_by = line[line.find(":") + 1 :].strip(" \t").partition(" ")
    host, colon, digits = sent_by.partition(":")
    transport = _PROTOCOLS.get(protocol)
    if transport is None or not is_plain_host(host):
        return None
    port = None
    if colon:
        port = number(digits)
        if port is None or len(digits) > 5 or not 0 < port < 65536:
            return None
    return _Hop(transport, host, port)


_usual_hops: Final = Memo(_usual_hop)
"That of our own Via comes back with each response, that of a phone with each of its requests."


@dataclass(slots=True, init=False)
class CSeq:
    """Sequence number and method (§20.16)."""

    number: int
    method: str

    def __init__(
        self,
        number: int,
        method: str,
    ) -> None:
        self.number = number
        self.method = method


METHODS: Final = frozenset(
    {
        *("ACK", "BYE", "CANCEL", "INFO", "INVITE", "MESSAGE", "NOTIFY", "OPTIONS", "PRACK"),
        *("PUBLISH", "REFER", "REGISTER", "SUBSCRIBE", "UPDATE"),
    }
)
"The usual ones."

_CSEQ: Final = re.compile(rf"([0-9]+)[ \t]\s*({TOKEN})").fullmatch


def parse_cseq(text: str) -> CSeq:
    """Parse a CSeq value. Raises MessageError 400, also for a number that is not below 2**31."""
    digits, _, method = text.partition(" ")
    if method in METHODS and digits.isascii() and digits.isdigit() and len(digits) <= 9:
        return CSeq(int(digits), method)
    match = _CSEQ(text)
    sequence = number(match[1]) if match else None
    if match is None or sequence is None:
        raise MessageError("Malformed CSeq")
    if sequence >= 2**31:
        raise MessageError("CSeq Number Out of Range")
    return CSeq(sequence, match[2])
