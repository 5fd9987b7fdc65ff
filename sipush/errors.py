"""Everything sipush raises on purpose descends from SipushError."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sipush.sip.message import Message


class SipushError(Exception):
    """Base of all errors that sipush raises on purpose."""


class ConfigError(SipushError):
    """The configuration cannot be used.

    ``problems`` lists every fault found, one line each: dotted key, what is wrong, what is allowed.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class MessageError(SipushError):
    """The peer sent something that is not valid SIP.

    ``status`` and ``reason`` are what to answer (reason becomes the reason phrase and names the
    fault); ``message`` is as much of it as could be read, or None when no answer can be addressed.
    """

    def __init__(self, reason: str, status: int = 400, message: Message | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.message = message


class ProtocolError(SipushError):
    """We were about to break a protocol: a bug of ours, never the peer's fault."""


class TransportError(SipushError):
    """Bytes could not be sent: the flow is closed, unreachable or full."""


class LocationError(SipushError):
    """The store could not do what was asked; nothing was stored."""


class UnreadableError(LocationError):
    """What is stored of one user cannot be read; the others can."""
