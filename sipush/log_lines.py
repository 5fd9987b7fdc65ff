"""What a line of the log says, and what never does: tokens, passwords and digests."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

import orjson

REDACTED: Final = "[redacted]"

_SECRET_KEY: Final = re.compile(
    r"(^|_)(token|tokens|password|secret|authorization|jwt|credentials|ha1|prid|auth)(_(md5|sha256))?$"
    r"|^(private_key|response|device_uid|pn_tok)$"
)
# Strangers choose what is searched: each run of characters is gone through once.
SECRET_TEXT: Final = re.compile(
    r"""
    (?P<label>
        (?:proxy-)?authorization["']?\s*[:=]\s*["']?(?:digest|bearer|basic)\s+
      | \b(?:bearer|basic)\s+
      | \b(?:response|device-uid|pn-prid|pn-tok|auth|password|access_token|ha1_md5|ha1_sha256)
        ["']?\s*[:=]\s*+["']?+
      | (?<![a-z])[a-z]++://[^\s/@:]*+:(?=[^\s/@]++@)
    )
    (?P<secret>
        (?<=digest\s)[^\r\n]+
      | (?<=")[^"\r\n]++
      | (?: [^\s"',;>@]++ | \s++(?=\|) | (?<=\|)\s++ )++  # ``a | b`` are two tokens
    )
  | \b[0-9a-f]{64,}\b                          # APNs tokens, SHA-256 digests
  | (?<![\w-])[\w-]{8,}+:[\w-]{64,}           # FCM registration tokens
  | (?<![\w-])eyJ[\w-]++\.[\w-]++\.[\w-]+      # JSON web tokens
    """,
    re.VERBOSE | re.IGNORECASE,
)


def fingerprint(token: str) -> str:
    """Eight hex digits that stand for a token where people must tell tokens apart."""
    return sha256(token.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def device_name(device: str) -> str:
    """A device key as people may see it."""
    kind, _, value = device.partition(":")
    return f"token {fingerprint(value)}" if kind == "token" else value


_SHORTEST_TOKEN: Final = 64

_LONGEST: Final = 2000
"Characters of a text that are logged: strangers write names and Call-IDs of 60,000."

#: Without any of these a text that is shorter than every token holds nothing to redact.
_MAY_LEAD_TO_SECRET: Final = re.compile(
    "auth|bearer|basic|response|device-uid|pn-prid|pn-tok|password|access_token|ha1_|://|eyj"
).search


def redact_text(text: str) -> str:
    """The text without the tokens, passwords and digests in it."""
    if len(text) < _SHORTEST_TOKEN and text.isascii() and not _MAY_LEAD_TO_SECRET(text.lower()):
        return text
    return SECRET_TEXT.sub(lambda match: (match["label"] or "") + REDACTED, text)


def printable(text: str) -> str:
    """The text with what would steer a terminal, or hide from its reader, as ``\\uXXXX``.

    Contacts and names are what strangers and users write.
    """
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[n : n + 4]}" for n in range(0, len(units), 4))


@lru_cache(maxsize=1024)
def _is_secret(key: str) -> bool:
    return _SECRET_KEY.search(key.lower().replace("-", "_")) is not None


def redacted(key: str, value: Any) -> Any:
    """The value without secrets, whatever key or text they hide in."""
    if value and _is_secret(key):
        return REDACTED
    if isinstance(value, str):
        return value if len(value) <= 8 else _redact_text(key, value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, bytes):
        return _redact_text(key, value.decode("utf-8", "replace"))
    if isinstance(value, Mapping):
        return {name: redacted(str(name), each) for name, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redacted("", each) for each in value]
    return redacted("", str(value))


def _redact_text(key: str, text: str) -> str:
    if len(text) <= _LONGEST or key == "exception":
        return redact_text(text)
    redacted = redact_text(text[: 2 * _LONGEST])
    # The end of what was looked at may be the beginning of a secret.
    return redacted[: min(_LONGEST, len(redacted) - _LONGEST // 2)] + "…"


def complete(line: dict[str, Any], level: str, now: float) -> dict[str, Any]:
    """The line without secrets, whatever key or text they hide in, and with when it was written."""
    for key, value in line.items():
        line[key] = redacted(key, value)
    line["level"] = level
    line["timestamp"] = _timestamp(now)
    return line


_second = 0
_until_second = ""


def _timestamp(now: float) -> str:
    """ISO 8601, UTC; what all lines of a second have in common is written once."""
    global _second, _until_second
    second = int(now)
    if second != _second:
        _second, _until_second = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
    microseconds = str(1_000_000 + int((now - second) * 1e6))
    return f"{_until_second}.{microseconds[1:]}Z"


def json_line(line: dict[str, Any]) -> str:
    """As machines read it."""
    try:
        text = orjson.dumps(line, option=orjson.OPT_NON_STR_KEYS).decode()
    except orjson.JSONEncodeError:  # what is not UTF-8
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
    # In ASCII what JSON does not escape can be printed, but for DEL.
    return text if text.isascii() and "\x7f" not in text else printable(text)
