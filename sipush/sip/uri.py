"""SIP and SIPS URIs (RFC 3261 §19.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from sipush.errors import MessageError
from sipush.sip.grammar import is_plain_host, number, unescape
from sipush.sip.memo import Memo

_SIP_URI: Final = re.compile(
    r"""
    ([Ss][Ii][Pp][Ss]?):
    (?:([^@:<>"\s]+)(?::([^@<>"\s]*))?@)?  # user, password
    (\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.\-]+)  # host
    (?::([0-9]{1,5}))?
    ((?:;[^;?<>"\s]+)*)
    (?:\?([^<>"\s]*))?
    """,
    re.VERBOSE,
).fullmatch


@dataclass(slots=True, init=False)
class SipUri:
    """A parsed sip: or sips: URI. To forward one, forward the text it came from instead."""

    scheme: str
    "``sip`` or ``sips``, lower-case."
    user: str | None
    "Still escaped, or None."
    password: str | None
    host: str
    "Lower-case; an IPv6 reference keeps its brackets."
    port: int | None
    params: dict[str, str | None]
    "Names lower-case, values still escaped; a flag has None."
    headers: str | None

    def __init__(  # noqa: PLR0917 - the fields in their order
        self,
        scheme: str,
        user: str | None,
        password: str | None,
        host: str,
        port: int | None,
        params: dict[str, str | None],
        headers: str | None,
    ) -> None:
        self.scheme = scheme
        self.user = user
        self.password = password
        self.host = host
        self.port = port
        self.params = params
        self.headers = headers

    @property
    def address(self) -> str:
        """The host as a socket call wants it: an IPv6 reference without its brackets."""
        return self.host.strip("[]")

    @property
    def aor(self) -> str:
        """``user@host`` with the user unescaped: how an address-of-record is kept (§10.3)."""
        return f"{unescape(self.user or '')}@{self.host}"

    @property
    def transport(self) -> str | None:
        """The ``transport`` parameter, lower-case, or None."""
        value = self.params.get("transport")
        return value.lower() if value else None

    def __str__(self) -> str:
        password = "" if self.password is None else ":" + self.password
        user = "" if self.user is None else f"{self.user}{password}@"
        port = "" if self.port is None else f":{self.port}"
        params = "".join(
            f";{name}" if value is None else f";{name}={value}"
            for name, value in self.params.items()
        )
        headers = "" if self.headers is None else f"?{self.headers}"
        return f"{self.scheme}:{user}{self.host}{port}{params}{headers}"


def parse_sip_uri(text: str) -> SipUri:
    """Parse a sip: or sips: URI, without angle brackets.

    Raises MessageError: 416 for another scheme, 400 for a URI that breaks the grammar. The result
    is shared: do not change its params.
    """
    return _uris.get(text)


def _parse_sip_uri(text: str) -> SipUri:
    usual = _plain_sip_uri(text)
    if usual is not None:
        return usual
    match = _SIP_URI(text)
    if match is None:
        scheme = text.partition(":")[0].lower()
        if scheme not in ("sip", "sips") and re.fullmatch(r"[a-z][a-z0-9+.\-]*", scheme):
            raise MessageError(f"Unsupported URI Scheme {scheme}", 416)
        raise MessageError("Malformed URI")
    scheme, user, password, host, port, rest, headers = match.groups()
    if port is not None and int(port) > 65535:
        raise MessageError("Port Out of Range in URI")
    params = _params(rest[1:]) if rest else {}
    return SipUri(
        scheme.lower(),
        user,
        password,
        host.lower(),
        None if port is None else int(port),
        params,
        headers,
    )


_uris: Final = Memo(_parse_sip_uri)


def usual_sip_uri(text: str) -> SipUri | None:
    """The parsed URI of most users and phones, ``sip:user@host[:port][;…]``; None for others."""
    if ";" in text:
        return _plain_sip_uri(text)
    if not text.startswith("sip:"):
        return None
    try:
        return _uris.get(text)
    except MessageError:
        return None


def _plain_sip_uri(text: str) -> SipUri | None:
    """That of plain characters, in a third of the time; None for others."""
    before, semicolon, after = text.partition(";")
    if semicolon and (_NOT_IN_PARAMS(after) or after[-1:] in {"", ";"} or ";;" in text):
        return None
    scheme, _, rest = before.partition(":")
    user, _, sent_by = rest.partition("@")
    host, colon, digits = sent_by.partition(":")
    if scheme != "sip" or not is_plain_host(host):
        return None
    if not user.isalnum() and not _PLAIN_USER(user):
        return None
    port = number(digits) if colon else None
    if colon and (port is None or port > 65535 or len(digits) > 5):
        return None
    params = _params(after) if semicolon else {}
    return SipUri("sip", user, None, host.lower(), port, params, None)


def _params(text: str) -> dict[str, str | None]:
    """``name=value;flag``: the first of two equal names counts."""
    params: dict[str, str | None] = {}
    for part in text.split(";"):
        name, equals, value = part.partition("=")
        params.setdefault(name.lower(), value if equals else None)
    return params


def with_user(server: str, user: str) -> str:
    """The URI of a user, not escaped, at a server, whose URI has none."""
    scheme, _, rest = server.partition(":")
    return f"{scheme}:{quote(user, safe=_UNESCAPED, errors='surrogateescape')}@{rest}"


def uri_of(aor: str) -> str:
    """The URI of an address-of-record, whose user is not escaped."""
    user, _, domain = aor.rpartition("@")
    return with_user(f"sip:{domain}", user)


_UNESCAPED: Final = "-_.!~*'()&=+$,;?/"
"What may stand in the user part as it is (§25.1)."


_NOT_IN_PARAMS: Final = re.compile(r'[?<>"\s]').search
_PLAIN_USER: Final = re.compile(r"[\w.+\-]+").fullmatch


@dataclass(frozen=True, slots=True)
class TelUri:
    """A parsed tel: URI (RFC 3966)."""

    number: str
    "Without visual separators; a global one begins with ``+``."
    context: str
    "Where a local number counts: a domain, lower-case, or the digits it continues; or empty."


def parse_tel_uri(text: str) -> TelUri | None:
    """Parse a tel: URI; None when it is none."""
    if text[:3].lower() != "tel":
        return None
    match = _TEL_URI.fullmatch(text)
    number = match["number"].translate(_VISUAL_SEPARATORS) if match else ""
    if match is None or not number:
        return None
    context = _PHONE_CONTEXT.search(match["params"])
    return TelUri(number, context["value"].lower() if context else "")


_TEL_URI: Final = re.compile(
    r"tel:(?P<number>\+?[0-9A-F*#.()\-]+)(?P<params>(?:;[^;<>\"\s]+)*)", re.IGNORECASE
)
_PHONE_CONTEXT: Final = re.compile(r";phone-context=(?P<value>[^;]+)", re.IGNORECASE)
_VISUAL_SEPARATORS: Final = str.maketrans("", "", "-.()")


def contact_key(uri: str) -> str:
    """A string that is equal for two Contact URIs that name the same contact (§19.1.4).

    Push parameters (RFC 8599) do not count: a phone whose token changed is still that contact.
    A URI that is not SIP is its own key.
    """
    try:
        return key_of(parse_sip_uri(uri))
    except MessageError:
        return uri


def key_of(parsed: SipUri) -> str:
    """``contact_key`` of a URI that has been parsed."""
    tail = ""
    if parsed.params:
        params = sorted(
            (name, unescape(value or "").lower())
            for name, value in parsed.params.items()
            if not name.startswith("pn-")
        )
        tail = "".join(f";{name}={value}" for name, value in params)
    port = "" if parsed.port is None else f":{parsed.port}"
    return f"{parsed.scheme}:{unescape(parsed.user or '')}@{parsed.host}{port}{tail}"


def stands_in_uri(aor: str) -> bool:
    """Whether a phone that writes ``user@domain`` down as a URI is understood as this user."""
    user, _, domain = aor.rpartition("@")
    written = user.replace("@", "%40")
    try:
        return aor.isprintable() and parse_sip_uri(f"sip:{written}@{domain}").aor == aor
    except MessageError:
        return False
