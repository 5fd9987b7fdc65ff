"""Target sets that are tried turn by turn, against their table."""

from __future__ import annotations

import pytest

from sipush.core.branch import (
    Abandon,
    Action,
    BranchState,
    Cancel,
    CancelCause,
    CancelPush,
    FallBack,
    Forward,
    HangUp,
    RequestPush,
    Respond,
)
from sipush.core.fallback import Cause
from sipush.core.groups import Group
from sipush.core.push_request import PushResult
from sipush.core.response_context import ResponseContext
from sipush.core.target_set import Target, TargetSet, Turn
from tests.core.test_response_context import HOLD, NOW, TABLE, make, target

TIME = 20.0
BOB, NEXT = "bob@x", "next@x"
ON_DESK = target("desk", f"{NEXT} d", "tcp/9")


def rows() -> list[tuple[str, ...]]:
    text = TABLE.read_text().partition("## In turn")[2].partition("\n## ")[0]
    lines = [line.strip("| \n") for line in text.splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.split("|")) for line in lines[2:]]


def in_turn(*members: tuple[str, Target], time: float = TIME) -> TargetSet:
    turns = [Turn((each,), aor) for aor, each in members]
    return Group(tuple(aor for aor, _ in members), time).target_set(turns)


def of_bob(kind: str, flow: str = "tcp/1") -> Target:
    return target(kind, f"{BOB} d", flow)


def feed(context: ResponseContext, text: str) -> list[Action]:
    """What the last of the inputs causes."""
    *before, text = text.split(", then ")
    for each in before:
        feed(context, each)
    match text:
        case "push accepted":
            return context.push_finished(0, PushResult.ACCEPTED, NOW)
        case "registered":
            return context.binding_refreshed(of_bob("mobile", "tcp/2"), NOW)
        case "next registers":
            return context.binding_refreshed(ON_DESK, NOW)
        case "turn over":
            return context.timer_fired(NOW + TIME)
        case "push token-dead":
            return context.push_finished(0, PushResult.TOKEN_DEAD, NOW)
        case "caller cancels":
            return context.cancelled(NOW)
        case "2xx of next":
            return context.response_received(1, 200, NOW)
    return context.response_received(0, int(text), NOW)


def shown(actions: list[Action], context: ResponseContext) -> str:
    words = []
    for action in actions:
        match action:
            case Respond(status):
                words.append(f"Respond {status}")
            case FallBack():
                words.append("FallBack")
            case _:
                of_next = context.branches[action.branch].target.aor == NEXT
                words.append(type(action).__name__ + " next" * of_next)
    return ", ".join(words) or "-"


@pytest.mark.parametrize(
    ("kind", "state", "event", "becomes", "actions"),
    rows(),
    ids=["-".join(row[:3]) for row in rows()],
)
def test_each_row_of_the_table(
    kind: str, state: str, event: str, becomes: str, actions: str
) -> None:
    context = make()
    done = context.start(in_turn((BOB, of_bob(kind)), (NEXT, ON_DESK)), NOW)
    if state == "proceeding":
        context.response_received(0, 180, NOW)
    elif state == "over":
        context.timer_fired(NOW + TIME)
    elif state != "-":
        assert context.branches[0].state.value == state
    if event != "start":
        done = feed(context, event)
    branch = context.branches[0]
    status = f" {branch.status}" if branch.state is BranchState.COMPLETED else ""
    assert (branch.state.value + status, shown(done, context)) == (becomes, actions)


def test_a_push_is_useless_after_the_turn() -> None:
    context = make()
    actions = context.start(in_turn((BOB, of_bob("sleeping")), (NEXT, ON_DESK), time=5), NOW)
    assert actions[0] == RequestPush(0, NOW + 5)
    assert context.next_timer() == NOW + 5


def test_a_silent_member_whose_turn_is_over_sees_the_end_in_the_same_request() -> None:
    context = make()
    context.start(in_turn((BOB, of_bob("always")), (NEXT, ON_DESK)), NOW)
    context.timer_fired(NOW + TIME)
    late = context.binding_refreshed(of_bob("mobile"), NOW + TIME)
    assert late == [Abandon(0), Forward(2), Cancel(2, CancelCause.NO_ANSWER)]
    assert context.branches[2].number == context.branches[0].number


def test_the_answer_of_a_member_whose_turn_is_over_is_hung_up_and_answers_nobody() -> None:
    context = make()
    context.start(in_turn((BOB, of_bob("sleeping")), (NEXT, ON_DESK)), NOW)
    context.push_finished(0, PushResult.ACCEPTED, NOW)
    context.timer_fired(NOW + TIME)
    context.binding_refreshed(of_bob("mobile"), NOW + TIME)
    assert context.response_received(2, 200, NOW + TIME) == [HangUp(2)]
    assert context.response_received(1, 486, NOW + TIME) == [Respond(486, 1)]


def test_a_hold_that_is_shorter_than_the_turn_ends_it() -> None:
    context = make()
    context.start(in_turn((BOB, of_bob("sleeping")), (NEXT, ON_DESK), time=2 * HOLD), NOW)
    context.push_finished(0, PushResult.ACCEPTED, NOW)
    assert context.timer_fired(NOW + HOLD) == [CancelPush(0), Forward(1)]


def test_a_device_that_registered_before_its_turn_is_called_where_it_is_now() -> None:
    context = make()
    context.start(in_turn((NEXT, ON_DESK), (BOB, of_bob("sleeping"))), NOW)
    assert context.binding_refreshed(of_bob("mobile", "tcp/7"), NOW) == []
    assert context.response_received(0, 486, NOW) == [Forward(1)]
    assert context.branches[1].target.flow == "tcp/7"


def test_a_new_device_of_a_member_without_any_waits_for_the_turn() -> None:
    context = make()
    turns = [Turn((ON_DESK,), NEXT), Turn((), BOB)]
    context.start(Group((NEXT, BOB), TIME).target_set(turns), NOW)
    assert context.binding_refreshed(of_bob("desk"), NOW) == []
    assert context.timer_fired(NOW + TIME) == [Abandon(0), Forward(1)]


def test_a_second_device_of_the_member_joins_while_the_turn_lasts() -> None:
    context = make()
    context.start(in_turn((BOB, of_bob("sleeping")), (NEXT, ON_DESK)), NOW)
    context.push_finished(0, PushResult.ACCEPTED, NOW)
    second = target("desk", f"{BOB} second", "tcp/5")
    assert context.binding_refreshed(second, NOW + 1) == [Forward(1)]
    assert context.timer_fired(NOW + TIME) == [Abandon(1), CancelPush(0), Forward(2)]


def test_the_group_falls_back_once_when_the_last_turn_is_over() -> None:
    context = make(fallback=True)
    context.start(in_turn((BOB, of_bob("desk")), (NEXT, ON_DESK)), NOW)
    context.response_received(0, 180, NOW)
    assert context.timer_fired(NOW + TIME) == [Cancel(0, CancelCause.NO_ANSWER), Forward(1)]
    assert context.response_received(1, 486, NOW + 21) == [FallBack(480, Cause.NO_ANSWER)]
    assert context.fall_back([Target("vm", "sip:vm@pbx", live=True)], NOW + 22) == [Forward(2)]
    assert context.response_received(2, 200, NOW + 23) == [Respond(200, 2)]


def test_a_member_who_is_the_fallback_too_is_not_pushed_twice() -> None:
    context = make(fallback=True)
    context.start(in_turn((BOB, of_bob("sleeping"))), NOW)
    assert context.timer_fired(NOW + TIME)[-1] == FallBack(480, Cause.UNREACHABLE)
    assert context.fall_back([of_bob("sleeping")], NOW + TIME) == []
    assert context.binding_refreshed(of_bob("mobile"), NOW + TIME + 1) == [Forward(1)]


def test_a_member_who_is_the_fallback_too_is_told_once_that_the_call_is_over() -> None:
    context = make(fallback=True)
    context.start(in_turn((BOB, of_bob("sleeping"))), NOW)
    context.push_finished(0, PushResult.ACCEPTED, NOW)
    assert context.timer_fired(NOW + TIME)[0] == CancelPush(0)
    context.fall_back([of_bob("sleeping")], NOW + TIME)
    assert context.timer_fired(NOW + TIME + HOLD) == [Respond(480, 0)]


def test_in_a_group_that_rings_at_once_who_declines_speaks_for_himself() -> None:
    context = make(fallback=True)
    own = [of_bob("desk"), target("sleeping", f"{BOB} asleep")]
    turns = [Turn(tuple(own), BOB), Turn((ON_DESK,), NEXT)]
    context.start(Group((BOB, NEXT)).target_set(turns), NOW)
    context.push_finished(1, PushResult.ACCEPTED, NOW)
    assert context.response_received(0, 603, NOW) == [CancelPush(1)]
    assert context.response_received(2, 603, NOW) == [FallBack(603, Cause.DECLINED)]


def test_who_declines_has_the_reason_told_to_a_device_of_his_that_has_not_rung_yet() -> None:
    context = make()
    own = [of_bob("desk"), target("desk", f"{BOB} other", "tcp/8")]
    turns = [Turn(tuple(own), BOB), Turn((ON_DESK,), NEXT)]
    context.start(Group((BOB, NEXT)).target_set(turns), NOW)
    assert context.response_received(0, 603, NOW) == [
        Cancel(1, CancelCause.DECLINED_ELSEWHERE),
        Abandon(1),
    ]


def test_a_group_without_any_device_falls_back_at_once() -> None:
    context = make(fallback=True)
    assert context.start(Group((BOB,), TIME).target_set([]), NOW) == [
        FallBack(480, Cause.UNREACHABLE)
    ]


def test_the_cause_is_that_of_those_called_last() -> None:
    context = make(fallback=True)
    context.start([target("desk")], NOW)
    assert context.response_received(0, 603, NOW) == [FallBack(603, Cause.DECLINED)]
    context.fallback = True
    context.fall_back([target("gone", "other")], NOW)
    assert context.falling_back
    assert context.fall_back([], NOW) == [Respond(603, 0)]


def test_busy_tells_more_than_unavailable_whichever_came_first() -> None:
    for finals in ([480, 486], [486, 480]):
        context = make()
        context.start([target("desk", str(i), f"tcp/{i}") for i in range(2)], NOW)
        actions = [a for i, s in enumerate(finals) for a in context.response_received(i, s, NOW)]
        assert [action.status for action in actions if isinstance(action, Respond)] == [486]


def test_turns_that_nobody_saw_pass_have_passed_and_the_one_that_runs_is_called() -> None:
    context = make()
    own = of_bob("desk")
    context.start(in_turn((BOB, own), (NEXT, ON_DESK)), NOW)
    assert context.catch_up(NOW + TIME + 5, 32.0) == []
    states = [branch.state for branch in context.branches]
    assert states == [BranchState.COMPLETED, BranchState.CALLING]
    assert context.branches[0].cancelling is None
    assert context.next_timer() == NOW + 2 * TIME
    assert context.catch_up(NOW + 2 * TIME + 5, 32.0) == [Respond(480, 0)]
