"""Why a call was not taken, and where it goes for that reason."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from sipush.sip.status import Status


class Cause(Enum):
    """Why nobody took a call (docs/response-context.md has the table)."""

    UNREACHABLE = "unreachable"
    "No device was reached: none registered, none woke in time, none answered anything."
    NO_ANSWER = "no_answer"
    "A device rang, and nobody took the call."
    BUSY = "busy"
    DECLINED = "declined"


Fallbacks = Mapping[Cause, str]
"""The SIP URI that gets the call for each cause; a cause without one ends it."""

_SENDING_FAILED: Final = 477
"Kamailio's own word for a connection that is gone."

#: What a dead contact looks like when a proxy in between answers for it. Of a 503 that it got, or a
#: connection that is gone, it makes a 500 (§16.7 step 6, §16.9).
UNREACHABLE: frozenset[int] = frozenset(
    {
        _SENDING_FAILED,
        Status.REQUEST_TIMEOUT,
        Status.FLOW_FAILED,
        Status.TEMPORARILY_UNAVAILABLE,
        Status.SERVER_INTERNAL_ERROR,
        Status.SERVICE_UNAVAILABLE,
    }
)

_BUSY: Final = frozenset({Status.BUSY_HERE, Status.BUSY_EVERYWHERE})


def cause_of(status: int, *, rang: bool) -> Cause | None:
    """The cause of a final response; None: the request itself is at fault, nobody else helps.

    ``rang``: a device sent a 101-199 before, or Timer C ran out.
    """
    if status in _BUSY:
        return Cause.BUSY
    if status == Status.DECLINE:
        return Cause.DECLINED
    if status in UNREACHABLE or status == Status.SERVER_TIMEOUT:
        return Cause.NO_ANSWER if rang else Cause.UNREACHABLE
    return None


def for_every_cause(uri: str) -> Fallbacks:
    """One URI whatever the cause; none when it is empty."""
    return dict.fromkeys(Cause, uri) if uri else {}
