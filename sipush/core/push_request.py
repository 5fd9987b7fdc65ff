"""What a push service is asked to deliver, and what can come of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from sipush.core.bindings import PushRecord
from sipush.sip.uri import uri_of


class PushKind(Enum):
    """Why a device is pushed."""

    CALL = "call"
    MESSAGE = "message"
    CANCEL = "cancel"
    "The call of an earlier CALL push is over (never to APNs VoIP)."
    REFRESH = "refresh"
    "The binding is about to expire: register, do not ring (RFC 8599 §5.5; never to APNs)."
    DIALOG = "dialog"
    "A request inside a dialog waits: register now, do not ring (RFC 8599 §6.2.3; never to APNs)."
    TEST = "test"
    "An operator tries whether it arrives: register, do not ring. To APNs an alert, never VoIP."


@dataclass(slots=True)  # frozen takes five times as long to make
class PushRequest:
    """One push to one device. Times are UNIX seconds."""

    kind: PushKind
    push_id: str
    "Calls: UUID, one per call, equal to the INVITE's X-Push-Id. Messages: rising decimal number."
    record: PushRecord
    deadline_epoch: float
    "Useless afterwards: end of the hold, or the message's expiry."
    created_epoch: float
    "When the call began to ring here (``ringing_at``)."
    call_id: str
    "Call-ID of the request, for the logs and the webhook."
    from_user: str
    "User part of From, unescaped: ``102``."
    from_name: str
    "Display name of From, unquoted, may be empty."
    video: bool = False
    text: str = ""
    "Messages: the text, to be shown."
    mime_type: str = ""

    @property
    def to_user(self) -> str:
        """``105``."""
        return self.record.aor.rpartition("@")[0]

    @property
    def to_uri(self) -> str:
        """``sip:105@example.com``."""
        return uri_of(self.record.aor)


class PushResult(Enum):
    """What a service's answer means for us (docs/push-services.md has the table)."""

    ACCEPTED = "accepted"
    TOKEN_DEAD = "token-dead"
    "The service disowned the token: remove the record if it still holds that token."
    TOKEN_REFUSED = "token-refused"
    """The service calls it no token at all, and does not say that it has died. The record stays: by
    a fault of the service or of our settings, that is said of every device."""
    RETRYABLE = "retryable"
    THROTTLED = "throttled"
    CONFIG = "config"
    "Our credentials or app settings are wrong: an alarm, never a lost token."
    BAD_REQUEST = "bad-request"
    TIMED_OUT = "timed-out"
    "No answer before the deadline."
    WITHDRAWN = "withdrawn"
    "The call was over, or the device was back, before the service had taken the push."


NOTHING_TO_SEND = "NothingToSend"
"Reason: there is no token for it, or nothing that the app could show."


@dataclass(slots=True)
class PushOutcome:
    """How one push ended."""

    result: PushResult
    reason: str = ""
    "The service's own word (``Unregistered``), fit for a log: never a token."
    status: int = 0
    "HTTP status, or 0."
    retry_after: float = 0.0
    "Seconds the service asks to wait, or 0."
    has_left: bool = True
    "False: nothing was sent at all, so that another try repeats nothing."
