"""What is said of each wake-up."""

from __future__ import annotations

import json

import pytest

from sipush.core.bindings import Platform, PushRecord
from sipush.core.push_request import PushOutcome, PushResult
from sipush.core.response_context import ResponseContext
from sipush.core.target_set import Target, TargetSet
from sipush.core.wake_up import WakeUp, WakeUpOutcome, freeze, outcome, thaw

RECORD = PushRecord("bob@x", "d", Platform.FCM, "app", "t")
SLEEPING = Target("d", push=RECORD, hold=30)
AWAKE = Target("d", "sip:bob@h", "tcp/1", live=True, push=RECORD, hold=30)
ACCEPTED = PushOutcome(PushResult.ACCEPTED)


def played(*inputs: tuple[str, int]) -> ResponseContext:
    """A call to one sleeping device, and what happened then, a second apart."""
    context = ResponseContext(probe=1.5, timer_c=180)
    context.start(TargetSet.of(SLEEPING), 0.0)
    for now, (event, value) in enumerate(inputs, 1):
        match event:
            case "registers":
                context.binding_refreshed(AWAKE, now)
            case "answers":
                context.response_received(len(context.branches) - 1, value, now)
            case "caller cancels":
                context.cancelled(now)
            case "hold ends":
                context.timer_fired(30.0)
    return context


@pytest.mark.parametrize(
    ("inputs", "push", "expected"),
    [
        ([("registers", 0), ("answers", 200)], ACCEPTED, WakeUpOutcome.ANSWERED),
        ([("registers", 0), ("answers", 486)], ACCEPTED, WakeUpOutcome.REFUSED),
        ([("registers", 0), ("answers", 603)], ACCEPTED, WakeUpOutcome.REFUSED),
        (
            [("registers", 0), ("answers", 180), ("caller cancels", 0), ("answers", 487)],
            ACCEPTED,
            WakeUpOutcome.NO_ANSWER,
        ),
        ([("caller cancels", 0), ("registers", 0)], ACCEPTED, WakeUpOutcome.TOO_LATE),
        ([("hold ends", 0), ("registers", 0)], ACCEPTED, WakeUpOutcome.TOO_LATE),
        ([("caller cancels", 0)], ACCEPTED, WakeUpOutcome.NOT_NEEDED),
        ([("hold ends", 0)], ACCEPTED, WakeUpOutcome.NEVER_CAME),
        ([("hold ends", 0)], PushOutcome(PushResult.TIMED_OUT), WakeUpOutcome.NEVER_CAME),
        ([("caller cancels", 0)], None, WakeUpOutcome.NOT_NEEDED),
        ([("caller cancels", 0)], PushOutcome(PushResult.WITHDRAWN), WakeUpOutcome.NOT_NEEDED),
        ([], PushOutcome(PushResult.TOKEN_DEAD), WakeUpOutcome.TOKEN_DEAD),
        ([], PushOutcome(PushResult.CONFIG), WakeUpOutcome.PUSH_FAILED),
    ],
)
def test_each_outcome(
    inputs: list[tuple[str, int]], push: PushOutcome | None, expected: WakeUpOutcome
) -> None:
    context = played(*inputs)
    woke = any(event == "registers" for event, _ in inputs)
    wake_up = WakeUp(RECORD, 0.0, push, registered_at=1.0 if woke else None)
    assert outcome(wake_up, context.branches) is expected


@pytest.mark.parametrize("push", [None, PushOutcome(PushResult.TOKEN_DEAD, "Unregistered")])
def test_a_wake_up_goes_on_in_another_process(push: PushOutcome | None) -> None:
    wake_up = WakeUp(RECORD, 1.0, push, registered_at=3.0)
    frozen = json.loads(json.dumps(freeze(wake_up, 1000.0)))
    again = thaw(frozen, RECORD, -996.0)
    assert again == WakeUp(RECORD, 5.0, push, registered_at=7.0)
