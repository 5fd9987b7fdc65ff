"""Logging: people read it on a terminal, machines read JSON, nobody reads a secret.

Modules take their logger with ``structlog.get_logger()``; events are short sentences, facts are
keyword arguments.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from sipush.config import LogConfig

REDACTED = "[redacted]"

_SECRET_KEY = re.compile(
    r"(^|_)(token|tokens|password|secret|authorization|jwt|credentials|ha1|prid)(_(md5|sha256))?$"
    r"|^(private_key|response|device_uid|pn_tok)$"
)
_SECRET_TEXT = re.compile(
    r"""
    (?P<label>
        (?:proxy-)?authorization["']?\s*[:=]\s*["']?(?:digest|bearer|basic)\s+
      | \b(?:bearer|basic)\s+
      | \b(?:response|device-uid|pn-prid|pn-tok|password|access_token|ha1_md5|ha1_sha256)
        ["']?\s*[:=]\s*["']?
      | [a-z]+://[^\s/@:]*:(?=[^\s/@]+@)
    )
    (?P<secret>(?<=digest\s)[^\r\n]+ | [^\s"',;>@]+)
  | \b[0-9a-f]{64,}\b                          # APNs tokens, SHA-256 digests
  | \b[\w-]{8,}:[\w-]{64,}                     # FCM registration tokens
  | \beyJ[\w-]+\.[\w-]+\.[\w-]+                # JSON web tokens
    """,
    re.VERBOSE | re.IGNORECASE,
)


def fingerprint(token: str) -> str:
    """Eight hex digits that stand for a token where people must tell tokens apart."""
    return sha256(token.encode()).hexdigest()[:8]


def redact_text(text: str) -> str:
    """The text without the tokens, passwords and digests in it."""
    return _SECRET_TEXT.sub(lambda match: (match["label"] or "") + REDACTED, text)


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Take tokens, passwords and digests out of an event, whatever key or text they hide in."""
    for key, value in event.items():
        event[key] = _redact(key, value)
    return event


def _redact(key: str, value: Any) -> Any:
    if value and _SECRET_KEY.search(key.lower().replace("-", "_")):
        return REDACTED
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        return redact_text(value) if len(value) > 8 else value
    if isinstance(value, Mapping):
        return {name: _redact(str(name), each) for name, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_redact("", each) for each in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return _redact("", str(value))


class _ToStructlog(logging.Handler):
    """Hands what libraries log to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger(library=record.name)
        level = min(record.levelno // 10 * 10, logging.CRITICAL)
        logger.log(level, record.getMessage(), exc_info=record.exc_info)


def configure(config: LogConfig, stream: TextIO | None = None) -> None:
    """Send the log to ``stream`` (stderr); calls below the level cost next to nothing."""
    stream = stream or sys.stderr
    level = logging.getLevelNamesMapping()[config.level.upper()]
    console = config.format == "console" or (config.format == "auto" and stream.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact,
            _renderer(console, stream),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_ToStructlog()], force=True)


def _renderer(console: bool, stream: TextIO) -> Processor:
    if console:
        return structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    return structlog.processors.JSONRenderer(ensure_ascii=False)
