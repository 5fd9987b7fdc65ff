"""Logging: people read it on a terminal, machines read JSON, nobody reads a secret.

Modules take their logger with ``structlog.get_logger()``; events are short sentences, facts are
keyword arguments.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import structlog

from sipush.config import LogConfig
from sipush.log_lines import complete, json_line, printable

Render = Callable[[dict[str, Any]], str]


class _Shown:
    """What is written, for busy paths to ask: a call below the level costs several microseconds."""

    debug = False


shown = _Shown()


class _ToStructlog(logging.Handler):
    """Hands what libraries log to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger(library=record.name)
        level = min(record.levelno // 10 * 10, logging.CRITICAL)
        logger.log(level, record.getMessage(), exc_info=record.exc_info)


class _PerTurn:
    """A stream that gets all lines of one turn of the event loop in one write, at its end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._ordered = False

    def write(self, line: str) -> None:
        """Write soon, or now where no loop runs (at start, at the end, in other threads)."""
        self._lines.append(line)
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


class _Sink:
    """Where the lines go, how they look, and from which level on they are written."""

    def __init__(self, level: int, render: Render, stream: TextIO) -> None:
        self.level = level
        self.render = render
        self.stream = _PerTurn(stream)


class _Logger(structlog.BoundLoggerBase):
    """A logger of structlog's that goes from the facts to the line in one step.

    A chain of processors takes twice as long, and two lines a tenth of a call.
    """

    _logger: _Sink

    def is_enabled_for(self, level: int) -> bool:
        return self._logger.level <= level

    def debug(self, event: str, **facts: object) -> None:
        if self._logger.level <= logging.DEBUG:
            self._write("debug", event, facts)

    def info(self, event: str, **facts: object) -> None:
        if self._logger.level <= logging.INFO:
            self._write("info", event, facts)

    def warning(self, event: str, **facts: object) -> None:
        if self._logger.level <= logging.WARNING:
            self._write("warning", event, facts)

    def error(self, event: str, **facts: object) -> None:
        self._write("error", event, facts)

    def exception(self, event: str, **facts: object) -> None:
        self._write("error", event, {"exc_info": True} | facts)

    def log(self, level: int, event: str, **facts: object) -> None:
        if self._logger.level <= level:
            self._write(logging.getLevelName(level).lower(), event, facts)

    def _write(self, level: str, event: str, facts: dict[str, Any]) -> None:
        sink = self._logger
        line = facts if not self._context else {**self._context, **facts}
        line["event"] = event
        if "exc_info" in line:
            line = dict(structlog.processors.format_exc_info(sink, level, line))
        sink.stream.write(sink.render(complete(line, level, time.time())) + "\n")


def configure(config: LogConfig, stream: TextIO | None = None) -> None:
    """Send the log to ``stream`` (stderr); calls below the level cost next to nothing."""
    stream = stream or sys.stderr
    level = logging.getLevelNamesMapping()[config.level.upper()]
    shown.debug = level <= logging.DEBUG
    console = config.format == "console" or (config.format == "auto" and stream.isatty())
    sink = _Sink(level, _for_people(stream) if console else json_line, stream)
    structlog.configure(
        wrapper_class=_Logger,
        logger_factory=lambda: sink,
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, handlers=[_ToStructlog()], force=True)


def _for_people(stream: TextIO) -> Render:
    renderer = structlog.dev.ConsoleRenderer(
        colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
    )

    def render(line: dict[str, Any]) -> str:
        for key, value in line.items():
            if isinstance(value, str):
                line[key] = "\n".join(map(printable, value.split("\n")))
        return renderer(None, line["level"], line)

    return render
