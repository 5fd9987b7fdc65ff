"""What a line of the log says, what it never does (tokens, passwords, digests), and its writing."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, TextIO

import orjson
import structlog

from sipush.log_output import LogOutput

REDACTED: Final = "[redacted]"

_SECRET_KEY: Final = re.compile(
    r"(^|_)(token|tokens|password|secret|authorization|jwt|credentials|ha1|prid|auth)(_(md5|sha256))?$"
    r"|^(private_key|response|device_uid|pn_tok)$"
)
# Strangers choose what is searched: each run of characters is gone through once. No group repeats
# possessively: Python 3.11.2, which is Debian's, takes a character less then.
SECRET_TEXT: Final = re.compile(
    r"""
    (?P<label>
        (?:proxy-)?authorization["']?\s*[:=]\s*["']?(?:digest|bearer|basic)\s++
      | \b(?:bearer|basic)\s++
      | \b(?:response|device-uid|pn(?:-|%2d)(?:prid|tok)|auth|password|access_token
            |ha1_md5|ha1_sha256)
        ["']?\s*[:=]\s*+["']?+
      | (?P<url>
            (?<![a-z])[a-z]++://[^\s/@:]*+:(?=[^\s/@]++@)
          | \bsips?:[^\s:@<>"]*+:(?=[^\s:@<>"]++@)
        )
    )
    (?P<secret>
        (?<=digest\s)[^\r\n]+
      | (?<=")[^"\r\n]++
      | (?(url) [^\s:@<>"]++(?=@) | (?!) )
      | (?: [^\s"',;>@]++ | (?(url)(?!)|@) | \s++(?=\|) | (?<=\|)\s++ )+  # ``a | b`` are two tokens
    )
  | \b[0-9a-f]{64,}\b                          # APNs tokens, SHA-256 digests
  | (?<![\w-])[\w-]{8,}+:[\w-]{64,}           # FCM registration tokens
  | (?<![\w-])eyJ[\w-]++\.[\w-]++\.[\w-]+      # JSON web tokens
    """,
    re.VERBOSE | re.IGNORECASE,
)


@lru_cache(maxsize=4096)  # a wake-up tells of its device in three lines
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


def _may_lead_to_secret(lower: str) -> bool:
    """Whether a text that is shorter than every token may hold anything to redact.

    As a loop or a pattern it takes twice as long, and is done for most texts of the log.
    """
    if "bearer" in lower or "basic" in lower or "eyj" in lower:
        return True
    if ":" not in lower and "=" not in lower:  # behind whatever else leads to one
        return False
    if "@" in lower and ":" in lower[4 : lower.rfind("@")]:  # sip:user:password@host
        return True
    return (
        "auth" in lower
        or "response" in lower
        or "device-uid" in lower
        or "pn-prid" in lower
        or "pn-tok" in lower
        or "pn%2d" in lower
        or "password" in lower
        or "access_token" in lower
        or "ha1_" in lower
        or "://" in lower
    )


def redact_text(text: str) -> str:
    """The text without the tokens, passwords and digests in it."""
    if len(text) < _SHORTEST_TOKEN and text.isascii() and not _may_lead_to_secret(text.lower()):
        return text
    return SECRET_TEXT.sub(_redacted_match, text)


def _redacted_match(match: re.Match[str]) -> str:
    return (match["label"] or "") + REDACTED


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
    return REDACTED if value and _is_secret(key) else _redacted_value(key, value)


def _redacted_value(key: str, value: Any) -> Any:
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


_PLAIN: Final[set[str]] = set()
"Keys of lines that name no secret. They are ours, and few."


def complete(line: dict[str, Any], level: str, now: float) -> dict[str, Any]:
    """The line without secrets, whatever key or text they hide in, and with when it was written."""
    for key, value in line.items():
        if key in _PLAIN:
            fit = _redacted_value(key, value)
        else:
            fit = redacted(key, value)
            if not _is_secret(key):
                _PLAIN.add(key)
        if fit is not value:
            line[key] = fit
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
        text = orjson.dumps(line).decode()
    except orjson.JSONEncodeError:  # what is not UTF-8, or a key that is no text
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
    # In ASCII what JSON does not escape can be printed, but for DEL.
    return text if text.isascii() and "\x7f" not in text else printable(text)


Render = Callable[[dict[str, Any]], str]


class Sink:
    """Where the lines go, how they look, and from which level on they are written."""

    def __init__(self, level: int, render: Render, stream: TextIO) -> None:
        self.level = level
        self._render = render
        self._stream = stream
        self._output: LogOutput | None = None
        "None: the stream has no descriptor."
        with suppress(OSError):
            self._output = LogOutput(stream.fileno(), self._lost_line)
        self._lines: list[tuple[dict[str, Any], str, float]] = []
        """What is made, and written at once, when this turn of the event loop is over: by then the
        datagrams that a line tells of have left."""

    def write(self, level: str, event: str, context: dict[str, Any], facts: dict[str, Any]) -> None:
        """Write soon, or now where no loop runs (at start, at the end, in other threads)."""
        line = {**context, **facts} if context else facts
        line["event"] = event
        if "exc_info" in line:
            line = dict(structlog.processors.format_exc_info(self, level, line))
        self._lines.append((line, level, time.time()))
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._flush()
            return
        if len(self._lines) == 1:
            loop.call_soon(self._flush)

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        render = self._render
        texts = [render(complete(line, level, now)) for line, level, now in lines]
        text = "\n".join([*texts, ""])
        if self._output is not None:
            self._output.write(text)
        else:
            self._stream.write(text)
            self._stream.flush()

    def _lost_line(self, count: int) -> str:
        line = {"event": "log_lines_lost", "count": count}
        return self._render(complete(line, "warning", time.time()))

    def finish(self) -> None:
        """Write the last lines, which a loop that has ended has left."""
        if self._lines:
            self._flush()
        if self._output is not None:
            self._output.finish()


class Shown:
    """What is written, for busy paths to ask: a call below the level costs several microseconds."""

    def __init__(self) -> None:
        self.debug = False


shown: Final = Shown()
