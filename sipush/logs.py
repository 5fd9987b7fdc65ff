"""Logging: people read it on a terminal, machines read JSON, nobody reads a secret.

Modules take their logger with ``structlog.get_logger()``; events are short sentences, facts are
keyword arguments.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from sipush.config import LogConfig

REDACTED = "[redacted]"

_SECRET_KEY = re.compile(
    r"(^|_)(token|tokens|password|secret|authorization|jwt|credentials|ha1|prid)(_(md5|sha256))?$"
    r"|^(private_key|response|device_uid|pn_tok)$"
)
# Strangers choose what is searched: each run of characters is gone through once.
_SECRET_TEXT = re.compile(
    r"""
    (?P<label>
        (?:proxy-)?authorization["']?\s*[:=]\s*["']?(?:digest|bearer|basic)\s+
      | \b(?:bearer|basic)\s+
      | \b(?:response|device-uid|pn-prid|pn-tok|password|access_token|ha1_md5|ha1_sha256)
        ["']?\s*[:=]\s*["']?
      | (?<![a-z])[a-z]++://[^\s/@:]*+:(?=[^\s/@]++@)
    )
    (?P<secret>(?<=digest\s)[^\r\n]+ | [^\s"',;>@]+)
  | \b[0-9a-f]{64,}\b                          # APNs tokens, SHA-256 digests
  | (?<![\w-])[\w-]{8,}+:[\w-]{64,}           # FCM registration tokens
  | (?<![\w-])eyJ[\w-]++\.[\w-]++\.[\w-]+      # JSON web tokens
    """,
    re.VERBOSE | re.IGNORECASE,
)


class _Shown:
    """What is written, for busy paths to ask: a call below the level costs several microseconds."""

    debug = False


shown = _Shown()


def fingerprint(token: str) -> str:
    """Eight hex digits that stand for a token where people must tell tokens apart."""
    return sha256(token.encode()).hexdigest()[:8]


_SHORTEST_TOKEN = 64

_LONGEST = 2000
"Characters of a text that are logged: strangers write names and Call-IDs of 60,000."

#: Without any of these a text that is shorter than every token holds nothing to redact.
_MAY_LEAD_TO_SECRET = re.compile(
    "authorization|bearer|basic|response|device-uid|pn-prid|pn-tok|password|access_token|ha1_"
    "|://|eyj"
).search


def redact_text(text: str) -> str:
    """The text without the tokens, passwords and digests in it."""
    if len(text) < _SHORTEST_TOKEN and text.isascii() and not _MAY_LEAD_TO_SECRET(text.lower()):
        return text
    return _SECRET_TEXT.sub(lambda match: (match["label"] or "") + REDACTED, text)


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


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Take tokens, passwords and digests out of an event, whatever key or text they hide in."""
    for key, value in event.items():
        event[key] = _redact(key, value)
    return event


@lru_cache(maxsize=1024)
def _is_secret(key: str) -> bool:
    return _SECRET_KEY.search(key.lower().replace("-", "_")) is not None


def _redact(key: str, value: Any) -> Any:
    if value and _is_secret(key):
        return REDACTED
    if isinstance(value, str):
        return value if len(value) <= 8 else _redact_text(key, value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, bytes):
        return _redact_text(key, value.decode("utf-8", "replace"))
    if isinstance(value, Mapping):
        return {name: _redact(str(name), each) for name, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_redact("", each) for each in value]
    return _redact("", str(value))


def _redact_text(key: str, text: str) -> str:
    if len(text) <= _LONGEST or key == "exception":
        return redact_text(text)
    redacted = redact_text(text[: 2 * _LONGEST])
    # The end of what was looked at may be the beginning of a secret.
    return redacted[: min(_LONGEST, len(redacted) - _LONGEST // 2)] + "…"


class _ToStructlog(logging.Handler):
    """Hands what libraries log to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger(library=record.name)
        level = min(record.levelno // 10 * 10, logging.CRITICAL)
        logger.log(level, record.getMessage(), exc_info=record.exc_info)


def _format_exception(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    has_one = "exc_info" in event
    return structlog.processors.format_exc_info(logger, method, event) if has_one else event


class _PerTurn:
    """A stream that gets all lines of one turn of the event loop in one write, at its end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._ordered = False

    def write(self, line: str) -> None:
        self._lines.append(line)

    def flush(self) -> None:
        """Write soon, or now where no loop runs (at start, at the end, in other threads)."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._write()
            return
        if not self._ordered:
            self._ordered = True
            loop.call_soon(self._write)

    def _write(self) -> None:
        lines, self._lines, self._ordered = self._lines, [], False
        self._stream.write("".join(lines))
        self._stream.flush()


def configure(config: LogConfig, stream: TextIO | None = None) -> None:
    """Send the log to ``stream`` (stderr); calls below the level cost next to nothing."""
    stream = stream or sys.stderr
    level = logging.getLevelNamesMapping()[config.level.upper()]
    shown.debug = level <= logging.DEBUG
    console = config.format == "console" or (config.format == "auto" and stream.isatty())
    structlog.configure(
        processors=[
            _format_exception,
            redact,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _renderer(console, stream),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _PerTurn(stream))),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_ToStructlog()], force=True)


def _renderer(console: bool, stream: TextIO) -> Processor:
    if not console:
        return _render_json
    renderer = structlog.dev.ConsoleRenderer(
        colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
    )

    def render(logger: WrappedLogger, method: str, event: EventDict) -> str:
        for key, value in event.items():
            if isinstance(value, str):
                event[key] = "\n".join(map(printable, value.split("\n")))
        return renderer(logger, method, event)

    return render


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    return printable(_encode(event))


_encode = json.JSONEncoder(ensure_ascii=False).encode
