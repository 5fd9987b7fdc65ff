"""How each wake-up of a call went: one record per pushed device, for the log and for bills."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sipush.core.bindings import PushRecord
from sipush.core.branch import (
    Branch,
    CancelCause,
)
from sipush.core.push_request import PushOutcome, PushResult


class WakeUpOutcome(Enum):
    """What came of pushing one device for one call."""

    ANSWERED = "answered"
    REFUSED = "refused"
    "It woke, and answered busy, declined or with another failure."
    NO_ANSWER = "no-answer"
    "It woke and rang; nobody answered, or the caller gave up, or somebody else answered."
    TOO_LATE = "too-late"
    "It woke when the call was over, and saw it begin and end."
    NOT_NEEDED = "not-needed"
    "The call was over before it woke, and it never registered."
    TOKEN_DEAD = "token-dead"
    PUSH_FAILED = "push-failed"
    NEVER_CAME = "never-came"
    "The push was accepted, the device did not register in time."
    NO_APP = "no-app"
    "Its app is not configured (any more): nothing was pushed."


@dataclass(slots=True)
class WakeUp:
    """One pushed device, while it is being watched. Times are seconds, monotonic."""

    record: PushRecord
    pushed_at: float
    push: PushOutcome | None = None
    push_ended_at: float | None = None
    registered_at: float | None = None


def freeze(wake_up: WakeUp, shift: float) -> dict[str, Any]:
    """In JSON types, without the record; ``shift``: from its times to UNIX seconds."""
    values: dict[str, Any] = {
        name: None if at is None else at + shift
        for name, at in (
            ("pushed_at", wake_up.pushed_at),
            ("push_ended_at", wake_up.push_ended_at),
            ("registered_at", wake_up.registered_at),
        )
    }
    push = wake_up.push
    return values | {"push": None if push is None else (push.result.value, push.reason)}


def thaw(values: dict[str, Any], record: PushRecord, shift: float) -> WakeUp:
    """The inverse of ``freeze``; ``shift``: from UNIX seconds to its times."""
    times: dict[str, Any] = {
        name: None if at is None else at + shift for name, at in values.items() if name != "push"
    }
    push = values["push"] and PushOutcome(PushResult(values["push"][0]), values["push"][1])
    return WakeUp(record, push=push or None, **times)


def outcome(wake_up: WakeUp, branches: Sequence[Branch]) -> WakeUpOutcome:
    """The outcome once the call is over; ``branches`` are those of the device, in order."""
    result = wake_up.push.result if wake_up.push else PushResult.ACCEPTED
    statuses = [branch.status for branch in branches]
    if any(200 <= status < 300 for status in statuses):
        return WakeUpOutcome.ANSWERED
    if any(branch.late for branch in branches):
        return WakeUpOutcome.TOO_LATE
    if result is PushResult.TOKEN_DEAD:
        return WakeUpOutcome.TOKEN_DEAD
    if wake_up.registered_at is None:
        if result not in (PushResult.ACCEPTED, PushResult.TIMED_OUT, PushResult.WITHDRAWN):
            return WakeUpOutcome.PUSH_FAILED
        over = branches[-1].cause is not CancelCause.NO_ANSWER
        return WakeUpOutcome.NOT_NEEDED if over else WakeUpOutcome.NEVER_CAME
    refused = branches[-1].heard and statuses[-1] not in (408, 480, 487)
    return WakeUpOutcome.REFUSED if refused else WakeUpOutcome.NO_ANSWER


def seconds(start: float, end: float | None) -> float | None:
    """How long something took, to the millisecond; None when it has not ended."""
    return None if end is None else round(1000 * (end - start)) / 1000
