"""What a capture server may see of a message: no token, no password, no digest, no private body.

What is hidden is overwritten with asterisks. The message stays as long as it was, and its
Content-Length true.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sipush.log_lines import SECRET_TEXT

# Strangers choose what is searched: each run of characters is gone through once.
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n").search
_GUARDED = re.compile(
    rb"""
    (?<![^\r\n])
    (?: ( (?:proxy-)?auth(?:orization|entication-info) )
      | x-push | x-p-push | portsip-push ) [ \t]*:
    ( [^\r\n]* (?: \r?\n [ \t] [^\r\n]* )* )
    """,
    re.VERBOSE,
).finditer
"Header fields of which only what is known to be harmless is shown."
_OF_GUARDED = (b"authorization", b"push", b"authentication-info")
"One of them is in each of their names."
_HARMLESS = re.compile(
    rb"""
    (?: digest\s+ )?
    (?: username | realm | (?:next)?nonce | uri | algorithm | opaque | qop | nc
      | device-os | app-id | allow-call-push | allow-message-push )
    \s*=\s* (?: "[^"\\]*" | [^\s"=]* )
    """,
    re.VERBOSE,
).fullmatch
_PARAMS = {
    separator: re.compile(
        rb'(?:"(?:[^"\\]|\\.)*(?:"|$)|[^"' + separator + rb"])+", re.DOTALL
    ).finditer
    for separator in (b",", b";")
}
_NAME_OF_SECRET = re.compile(rb"(?:digest\s+)?(?:response|cnonce|device-uid|p256dh|auth)\s*=").match

_URI_SECRET = re.compile(
    rb"""
    pn(?:-|%2d)
    (?! (?: provider | param | purr | type | silent | timeout | (?:call|msg)-(?:str|snd) ) \s*= )
    [\w-]{1,32} \s*=\s* ( "[^"\r\n]* | [^;?<>\s]+ )
    """,
    re.VERBOSE,
).finditer
"What RFC 8599, liblinphone and we have in a URI, but for what is known to be harmless."
_URI_PASSWORD = re.compile(rb'sips?:[^@:<>"\s]+:([^@:<>"\s]+)@').finditer
_SDP_SECRET = re.compile(
    rb"(?<![^\r\n])(?:a=crypto:[^\r\n]*?inline:|a=key-mgmt:|a=ice-pwd:|k=)([^\r\n]+)"
).finditer
"Keys of media streams (RFC 4568, RFC 4567, RFC 8839, RFC 8866 §5.12)."
_SDP = re.compile(rb"\n(?:content-type|c)[ \t]*:[ \t]*application/sdp[ \t]*(?![^;\r\n])").search
_ENCODED = re.compile(rb"(?<![^\r\n])(?:content-encoding|e)[ \t]*:").search

_KNOWN_SECRET = re.compile(SECRET_TEXT.pattern.encode(), re.VERBOSE | re.IGNORECASE).finditer
"What the log hides, wherever it stands. Seldom worth its 200 µs:"
_LABELS = (
    *(b"authorization", b"bearer", b"basic", b"response", b"device-uid", b"password"),
    *(b"access_token", b"ha1_", b"://", b"eyj"),
)
_AUTH = re.compile(rb"auth[\"']?\s*[:=]").search
_LONG_RUN = b"x" * 64
_RUNS = bytes(ord("x" if bytes([n]).isalnum() or n in b"_-" else " ") for n in range(256))


def blanked(message: bytes, *, bodies: bool) -> bytes:
    """The message for others to see; ``bodies``: with those that are not SDP too."""
    lower = message.lower()
    size = lower.find(b"\r\n\r\n") + 4
    if size < 4:
        end = _END_OF_HEAD(lower)
        size = end.end() if end else len(lower)
    head = lower[:size]
    shows_body = bodies or (b"application/sdp" in head and _SDP(head) and not _ENCODED(head))
    shown, searched = bytearray(message), bytearray(lower if shows_body else head)
    for match in (*_URI_SECRET(searched), *_URI_PASSWORD(searched), *_SDP_SECRET(searched, size)):
        _hide(shown, *match.span(1))
        _hide(searched, *match.span(1))
    if any(name in searched for name in _OF_GUARDED):
        for line in list(_GUARDED(searched)):
            for span in _guarded_spans(line):
                _hide(shown, *span)
            _hide(searched, *line.span())
    if _may_hold_secret(searched):
        for match in _KNOWN_SECRET(searched):
            _hide(shown, max(match.start(), match.end("label")), match.end())
    _hide(shown, len(searched), len(shown))
    return bytes(shown)


def _may_hold_secret(text: bytearray) -> bool:
    if any(label in text for label in _LABELS) or _AUTH(text):
        return True
    return _LONG_RUN in text.translate(_RUNS)


def _hide(text: bytearray, start: int, stop: int) -> None:
    text[start:stop] = b"*" * (stop - start)


def _guarded_spans(line: re.Match[bytes]) -> Iterator[tuple[int, int]]:
    """Where parameters stand that may be secret; those that surely are keep their names."""
    for param in _PARAMS[b"," if line[1] else b";"](line[2]):
        text = param[0].strip()
        if text and not _HARMLESS(text):
            name = _NAME_OF_SECRET(text)
            start = param.start() + param[0].index(text) + (name.end() if name else 0)
            yield line.start(2) + start, line.start(2) + param.end()
