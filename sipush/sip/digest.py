"""Digest access authentication: challenges and credentials (RFC 3261 §22, RFC 7616, RFC 8760)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from hmac import compare_digest
from typing import Final

from sipush.errors import MessageError
from sipush.sip.grammar import (
    QUOTED_TEXT,
    TOKEN,
    TOKEN_CHAR,
    quote_string,
    unescape,
    unquote_string,
)
from sipush.sip.uri import parse_sip_uri


class Algorithm(Enum):
    """The hash algorithms of RFC 8760 that are offered, strongest first."""

    __hash__ = object.__hash__  # as in Timer

    SHA256 = "SHA-256"
    MD5 = "MD5"

    def hexdigest(self, text: str) -> str:
        """H(text) in lower-case hex."""
        data = text.encode("utf-8", "surrogateescape")
        if self is Algorithm.MD5:
            return hashlib.md5(data, usedforsecurity=False).hexdigest()
        return hashlib.sha256(data).hexdigest()


_ALGORITHMS: Final = {algorithm.value: algorithm for algorithm in Algorithm}


@dataclass(slots=True, init=False)
class Credentials:
    """One Authorization or Proxy-Authorization value (RFC 7616 §3.4)."""

    username: str
    realm: str
    nonce: str
    uri: str
    response: str
    algorithm: Algorithm
    qop: str
    "``auth`` as written, or empty: a client of RFC 2069 that knows no qop."
    nc: str
    "As written, without quotes: clients hash what they wrote (``1`` as well as ``00000001``)."
    cnonce: str

    def __init__(  # noqa: PLR0917 - the fields in their order
        self,
        username: str,
        realm: str,
        nonce: str,
        uri: str,
        response: str,
        algorithm: Algorithm = Algorithm.MD5,
        qop: str = "",
        nc: str = "",
        cnonce: str = "",
    ) -> None:
        self.username = username
        self.realm = realm
        self.nonce = nonce
        self.uri = uri
        self.response = response
        self.algorithm = algorithm
        self.qop = qop
        self.nc = nc
        self.cnonce = cnonce

    def __repr__(self) -> str:
        """Nothing secret."""
        return f"<Credentials of {self.username}>"

    @property
    def nonce_count(self) -> int | None:
        """The nonce count, or None without qop."""
        return int(self.nc, 16) if self.qop else None


# Tried where a token begins only: from each of its letters, a long one would take its square.
_PARAM: Final = re.compile(
    rf'(?<!{TOKEN_CHAR})({TOKEN})\s*=\s*(?:"({QUOTED_TEXT})"|([^\s,"]+))', re.DOTALL
)
_HEX: Final = "0123456789abcdefABCDEF"
_MOSTLY_FIRST: Final = (
    ["username=", ", realm=", ", nonce=", ", uri=", ", response="],
    ["username=", ",realm=", ",nonce=", ",uri=", ",response="],
)
"What stands before the first values, as most phones write it."


def parse_credentials(value: str) -> Credentials | None:
    """Parse one Authorization value; None for what nobody could verify.

    That is another scheme, an algorithm or qop that was not offered, or a missing part. Anything
    may be quoted or not, whatever the grammar says: phones differ.
    """
    scheme, _, rest = value.partition(" ")
    if scheme != "Digest" and scheme.lower() != "digest":
        return None
    return _usual_credentials(rest) or _any_credentials(rest)


def _usual_credentials(text: str) -> Credentials | None:
    """What ``_any_credentials`` finds, in a third of its time; None when it has to be asked."""
    if "\\" in text:
        return None
    username = realm = nonce = uri = response = algorithm = qop = nc = cnonce = ""
    pieces = text.split('"', 10)  # ``username=``, ``alice``, ``, realm=``, ``example.com``, …
    if len(pieces) == 11 and pieces[:10:2] in _MOSTLY_FIRST:
        username, realm, nonce = pieces[1], pieces[3], pieces[5]
        uri, response, text = pieces[7], pieces[9], pieces[10]
    for param in text.split(","):
        if not param:
            continue
        name, _, value = param.partition("=")
        name = name.lstrip()
        if value[:1] == '"':
            if value.find('"', 1) != len(value) - 1:
                return None
            value = value[1:-1]
        elif not value.isalnum() and value not in _ALGORITHMS:
            return None
        if name == "opaque":
            continue
        if not value:  # of two equal names the first counts
            return None
        if name == "nc" and not nc:
            nc = value
        elif name == "cnonce" and not cnonce:
            cnonce = value
        elif name == "qop" and not qop:
            qop = value
        elif name == "algorithm" and not algorithm:
            algorithm = value
        elif name == "username" and not username:
            username = value
        elif name == "realm" and not realm:
            realm = value
        elif name == "nonce" and not nonce:
            nonce = value
        elif name == "uri" and not uri:
            uri = value
        elif name == "response" and not response:
            response = value
        else:
            return None
    used = _ALGORITHMS.get(algorithm or "MD5")
    is_counted = qop == "auth" and cnonce and _is_nonce_count(nc)
    if used is None or (qop and not is_counted):
        return None
    if not (username and realm and nonce and uri and response):
        return None
    return Credentials(username, realm, nonce, uri, response.lower(), used, qop, nc, cnonce)


def _any_credentials(text: str) -> Credentials | None:
    params = _params(text)
    username, realm, nonce = params.get("username"), params.get("realm"), params.get("nonce")
    uri, response = params.get("uri"), params.get("response")
    if not (username and realm and nonce and uri and response):
        return None
    algorithm = _ALGORITHMS.get(params.get("algorithm", "MD5").upper())
    qop, nc, cnonce = params.get("qop", ""), params.get("nc", ""), params.get("cnonce", "")
    if algorithm is None:
        return None
    if qop and not (cnonce and qop.lower() == "auth" and _is_nonce_count(nc)):
        return None
    if "\\" in text:
        username, realm = unquote_string(f'"{username}"'), unquote_string(f'"{realm}"')
    return Credentials(username, realm, nonce, uri, response.lower(), algorithm, qop, nc, cnonce)


def _params(text: str) -> dict[str, str]:
    """The parameters by lower-case name, without quotes; the first of two equal names wins."""
    found: list[tuple[str, str, str]] = _PARAM.findall(text)
    return {name.lower(): quoted or plain for name, quoted, plain in found[::-1]}


def _is_nonce_count(text: str) -> bool:
    if text.isdigit() and text.isascii():
        return len(text) <= 8
    return 0 < len(text) <= 8 and not text.strip(_HEX)


def find_credentials(values: Iterable[str], realm: str) -> Credentials | None:
    """The credentials for ``realm`` among all Authorization values, the strongest if several."""
    found = [c for value in values if (c := parse_credentials(value)) and c.realm == realm]
    if len(found) < 2:
        return found[0] if found else None
    return min(found, key=lambda credentials: credentials.algorithm is Algorithm.MD5)


_REALM: Final = re.compile(r'[\s,]realm\s*=\s*"((?:[^"\\]|\\.)*)"', re.IGNORECASE).search


def for_other_realms(values: Iterable[str], realms: Collection[str]) -> list[str]:
    """Those of all Authorization values that name a realm which is none of ``realms``."""
    named = [(value, _REALM(value)) for value in values]
    return [value for value, found in named if found and found[1].lower() not in realms]


def format_challenge(realm: str, nonce: str, algorithm: Algorithm, stale: bool = False) -> str:
    """One WWW-Authenticate or Proxy-Authenticate value (RFC 7616 §3.3)."""
    before, after = _around_nonce(realm, algorithm, stale)
    return f"{before}{nonce}{after}"


@lru_cache(maxsize=128)
def _around_nonce(realm: str, algorithm: Algorithm, stale: bool) -> tuple[str, str]:
    more = ", stale=true" if stale else ""
    return (
        f'Digest realm={quote_string(realm)}, nonce="',
        f'", algorithm={algorithm.value}{more}, qop="auth"',
    )


def compute_ha1(algorithm: Algorithm, username: str, realm: str, password: str) -> str:
    """H(A1) of RFC 7616 §3.4.2, what is stored instead of a password."""
    return algorithm.hexdigest(f"{username}:{realm}:{password}")


def compute_response(credentials: Credentials, ha1: str, method: str) -> str:
    """The request-digest that ``credentials`` should carry (RFC 7616 §3.4.1)."""
    c = credentials
    ha2 = _compute_ha2(c.algorithm, method, c.uri)
    if not c.qop:
        return c.algorithm.hexdigest(f"{ha1}:{c.nonce}:{ha2}")
    return c.algorithm.hexdigest(f"{ha1}:{c.nonce}:{c.nc}:{c.cnonce}:{c.qop}:{ha2}")


@lru_cache(maxsize=128)
def _compute_ha2(algorithm: Algorithm, method: str, uri: str) -> str:
    """H(A2) of RFC 7616 §3.4.3: all phones of a domain register with the same."""
    return algorithm.hexdigest(f"{method}:{uri}")


def response_matches(credentials: Credentials, ha1: str, method: str) -> bool:
    """Whether the credentials prove knowledge of ``ha1``, compared in constant time."""
    response = credentials.response
    return response.isascii() and compare_digest(
        compute_response(credentials, ha1, method), response
    )


def uri_matches(digest_uri: str, request_uri: str) -> bool:
    """Whether the digest-uri names the resource of the Request-URI (RFC 7616 §3.4.6).

    Only the user parts are compared, and only when the digest-uri has one: phones write our
    domain, our address, or the outbound proxy there, with parameters or without (SIPp always
    ``sip:<address>:<port>``).
    """
    if digest_uri == request_uri:
        return True
    try:
        ours, theirs = parse_sip_uri(request_uri), parse_sip_uri(digest_uri)
    except MessageError:
        return False
    return theirs.user is None or unescape(theirs.user) == unescape(ours.user or "")
