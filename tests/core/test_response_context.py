"""The response context against its table, then the situations that take several branches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sipush.core.bindings import Platform, PushRecord
from sipush.core.branch import (
    Abandon,
    Action,
    BranchState,
    Cancel,
    CancelCause,
    CancelPush,
    FallBack,
    Follow,
    Forward,
    HangUp,
    RemovePushRecord,
    RequestPush,
    Respond,
    Retransmit,
)
from sipush.core.fallback import Cause
from sipush.core.push_request import PushResult
from sipush.core.response_context import (
    SERVER_TIMER_C,
    STILL_ENDING,
    T1,
    TIMES_ENDING,
    ResponseContext,
)
from sipush.core.target_set import Target

TABLE = Path(__file__).parents[2] / "docs" / "response-context.md"
RECORD = PushRecord("bob@x", "d", Platform.APNS, "app", "token")
DEVICE = "bob@x d"
NOW, PROBE, HOLD, TIMER_C = 100.0, 1.5, 30.0, 180.0
TOMBSTONE = 20.0
EXPIRES = 5.0


def target(kind: str, device: str = DEVICE, flow: str = "tcp/1") -> Target:
    """``device``: AOR and device key, or something else without a space."""
    aor, _, key = device.partition(" ")
    named = {"aor": aor, "key": key}
    contact = named | {"uri": "sip:bob@1.2.3.4", "flow": flow, "live": True}
    wakeable = {"push": RECORD, "hold": HOLD}
    match kind:
        case "desk":
            return Target(device, **contact)
        case "mobile":
            return Target(device, **contact, **wakeable)
        case "always":
            return Target(device, **contact, **wakeable, push_always=True)
        case "twin":
            other = Target(device, "sip:bob@5.6.7.8", "tcp/2", live=True, **named, **wakeable)
            return Target(device, **contact, **wakeable, others=(other,))
        case "sleeping":
            return Target(device, **named, **wakeable)
        case "moving":
            return Target(device, **contact, hold=10.0)
        case "lost":
            return Target(device, hold=10.0, **named)
        case "gone":
            return Target(device, **named)
        case "server":
            return Target("sip:vm@pbx", "sip:vm@pbx", live=True)
    raise ValueError(kind)


def make(**options: object) -> ResponseContext:
    return ResponseContext(probe=PROBE, timer_c=TIMER_C, ringback=180, **options)


def rows() -> list[tuple[str, ...]]:
    text = TABLE.read_text().partition("## One branch")[2].partition("\n## ")[0]
    lines = [line.strip("| \n") for line in text.splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.split("|")) for line in lines[2:]]


def bring_to(state: str, kind: str, **options: object) -> ResponseContext:
    """Branch 0 is under test; branch 1, a ringing desk phone, keeps the context open."""
    context = make(**options)
    context.start([target(kind), target("desk", "other", "tcp/9")], NOW)
    context.response_received(1, 180, NOW)
    if state == "proceeding":
        context.response_received(0, 180, NOW)
    elif state == "completed" and kind != "gone":
        context.response_received(0, 486, NOW)
    assert context.branches[0].state.value == state
    return context


def feed(context: ResponseContext, text: str) -> list[Action]:
    """What the last of the inputs causes."""
    *before, text = text.split(", then ")
    for each in before:
        feed(context, each)
    branch = context.branches[0]
    if text.startswith("registered"):
        flow = "tcp/1" if text.endswith("same flow") else "tcp/2"
        kind = "desk" if branch.target.push is None else "mobile"
        return context.binding_refreshed(target(kind, flow=flow), NOW)
    if text.startswith("push "):
        return context.push_finished(0, PushResult(text.removeprefix("push ")), NOW)
    if text.isdigit():
        return context.response_received(0, int(text), NOW)
    match text:
        case "flow failed":
            return context.flow_failed(0, NOW)
        case "cannot be sent":
            return context.not_sent(0, 500, NOW)
        case "probe timer":
            return context.timer_fired(NOW + PROBE)
        case "Bucket Timer":
            return context.timer_fired(NOW + HOLD)
        case "Expires":
            return context.timer_fired(NOW + EXPIRES)
        case "Timer C":
            context.branches[1].timer_c_at = None  # only branch 0 is under test
            return context.timer_fired(NOW + TIMER_C)
        case "Timer C of a server":
            context.branches[1].timer_c_at = None
            return context.timer_fired(NOW + SERVER_TIMER_C)
        case "T1":
            return context.timer_fired(NOW + T1)
        case "caller cancels":
            return context.cancelled(NOW)
        case "traffic on the flow":
            return context.flow_active("tcp/1")
        case "declined elsewhere":
            return context.response_received(1, 603, NOW)
        case "answered elsewhere":
            return context.response_received(1, 200, NOW)
    raise ValueError(text)


def shown(actions: list[Action], context: ResponseContext) -> str:
    """The actions on the device under test, as the table writes them."""
    words = []
    for action in actions:
        if isinstance(action, Respond):
            if action.branch != 1:
                words.append(f"Respond {action.status}")
        elif isinstance(action, FallBack):
            words.append("FallBack")
        elif context.branches[action.branch].target.device != "other":
            words.append(type(action).__name__)
    return ", ".join(words) or "-"


@pytest.mark.parametrize(
    ("kind", "state", "event", "becomes", "actions"),
    rows(),
    ids=["-".join(row[:3]) for row in rows()],
)
def test_each_row_of_the_table(
    kind: str, state: str, event: str, becomes: str, actions: str
) -> None:
    if event == "start":
        context = make()
        # A ringing phone beside it, so that nothing is settled yet.
        context.start([target("desk", "other", "tcp/9")], NOW)
        context.response_received(0, 180, NOW)
        done = context.start([target(kind)], NOW)
        branch = context.branches[1]
        got = shown_start(done)
    else:
        brief = {"expires_at": NOW + EXPIRES} if "Expires" in event else {}
        context = bring_to(state, kind, **brief)
        done = feed(context, event)
        branch = context.branches[0]
        got = shown(done, context)
    status = f" {branch.status}" if branch.state is BranchState.COMPLETED else ""
    assert (branch.state.value + status, got) == (becomes, actions)


def shown_start(actions: list[Action]) -> str:
    names = [
        f"Respond {action.status}" if isinstance(action, Respond) else type(action).__name__
        for action in actions
    ]
    return ", ".join(names) or "-"


def test_every_state_and_every_action_is_in_the_table() -> None:
    text = TABLE.read_text()
    states = {row[3].partition(" ")[0] for row in rows()}
    assert states == {state.value for state in BranchState}
    assert all(action.__name__ in text for action in Action.__args__)


def test_the_caller_gets_480_when_the_hold_ends() -> None:
    context = make()
    assert context.start([target("sleeping")], NOW) == [RequestPush(0, NOW + HOLD), Respond(180)]
    assert context.next_timer() == NOW + HOLD
    assert context.timer_fired(NOW + HOLD) == [Respond(480, 0)]
    assert context.push_finished(0, PushResult.TIMED_OUT, NOW + HOLD) == [CancelPush(0)]


def test_a_push_ends_with_the_invitation_and_so_does_the_hold() -> None:
    context = make(expires_at=NOW + EXPIRES, fallback=True)
    context.start([target("mobile")], NOW)
    assert context.flow_failed(0, NOW + 1) == [RequestPush(0, NOW + EXPIRES), Respond(180)]
    assert context.timer_fired(NOW + EXPIRES) == [Respond(487, 0)]
    assert context.push_finished(0, PushResult.ACCEPTED, NOW + EXPIRES) == [CancelPush(0)]


def test_an_invitation_that_expires_late_leaves_the_hold_as_it_is() -> None:
    context = make(expires_at=NOW + HOLD + 1)
    assert context.start([target("sleeping")], NOW) == [RequestPush(0, NOW + HOLD), Respond(180)]
    assert context.timer_fired(NOW + HOLD) == [Respond(480, 0)]


def test_nobody_is_pushed_for_an_invitation_that_has_expired() -> None:
    context = make(expires_at=NOW)
    assert context.start([target("sleeping")], NOW) == [Respond(487, 0)]


def test_nobody_to_call_is_480() -> None:
    assert make().start([], NOW) == [Respond(480)]


def test_a_woken_device_gets_the_call_and_is_not_pushed_again_when_it_dies_again() -> None:
    context = make()
    context.start([target("sleeping")], NOW)
    assert context.binding_refreshed(target("mobile"), NOW + 5) == [Forward(0)]
    assert context.flow_failed(0, NOW + 6) == []
    assert context.branches[0].state is BranchState.WAKING
    assert context.binding_refreshed(target("mobile", flow="tcp/2"), NOW + 7) == [Forward(0)]
    assert context.timer_fired(NOW + 6 + HOLD) == []


def test_a_device_whose_contact_is_superseded_is_not_pushed_again() -> None:
    context = make()
    context.start([target("mobile")], NOW)
    context.timer_fired(NOW + PROBE)
    assert context.binding_refreshed(target("mobile", flow="tcp/2"), NOW + 3) == [
        Abandon(0, moved=True),
        Forward(1),
    ]
    assert context.timer_fired(NOW + 3 + PROBE) == []
    assert context.response_received(1, 480, NOW + 5) == []
    assert context.branches[1].state is BranchState.WAKING


def test_a_late_answer_on_an_abandoned_branch_still_goes_back() -> None:
    context = make()
    context.start([target("mobile")], NOW)
    context.binding_refreshed(target("mobile", flow="tcp/2"), NOW)
    assert context.response_received(0, 200, NOW) == [
        Respond(200, 0),
        Cancel(1, CancelCause.ANSWERED_ELSEWHERE),
    ]


def test_two_answers_both_go_back_and_the_third_device_is_cancelled_once() -> None:
    context = make()
    context.start([target("desk", str(i), f"tcp/{i}") for i in range(3)], NOW)
    first = context.response_received(0, 200, NOW)
    assert first == [
        Respond(200, 0),
        Cancel(1, CancelCause.ANSWERED_ELSEWHERE),
        Cancel(2, CancelCause.ANSWERED_ELSEWHERE),
    ]
    assert context.response_received(1, 200, NOW) == [Respond(200, 1)]
    assert context.response_received(2, 487, NOW) == []
    assert context.done


def test_a_device_that_appears_during_the_hold_joins() -> None:
    context = make()
    context.start([target("sleeping")], NOW)
    assert context.binding_refreshed(target("desk", "new"), NOW) == [Forward(1)]
    assert context.response_received(1, 486, NOW) == []
    assert context.binding_refreshed(target("mobile"), NOW) == [Forward(0)]


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        ("caller cancels", CancelCause.CALLER),
        ("answered elsewhere", CancelCause.ANSWERED_ELSEWHERE),
        ("declined elsewhere", CancelCause.DECLINED_ELSEWHERE),
    ],
)
def test_a_device_that_wakes_too_late_sees_the_call_begin_and_end(
    end: str, cause: CancelCause
) -> None:
    context = bring_to("waking", "sleeping")
    feed(context, end)
    assert context.binding_refreshed(target("mobile"), NOW + 59) == [Forward(2), Cancel(2, cause)]
    assert context.binding_refreshed(target("mobile"), NOW + 59) == []
    assert context.response_received(2, 180, NOW + 59) == []
    assert context.response_received(2, 487, NOW + 59) == []


@pytest.mark.parametrize("final", [200, 480, 487])
def test_a_device_that_wakes_after_the_hold_sees_the_call_begin_and_end(final: int) -> None:
    context = make()
    context.start([target("sleeping")], NOW)
    context.timer_fired(NOW + HOLD)
    assert context.binding_refreshed(target("mobile"), NOW + HOLD + 1) == [
        Forward(1),
        Cancel(1, CancelCause.NO_ANSWER),
    ]
    context.response_received(1, 408, NOW + HOLD + 1)
    assert not context.done
    context.response_received(1, final, NOW + HOLD + 1)
    assert context.done


def test_a_device_that_wakes_too_late_and_moves_sees_the_end_in_the_same_request() -> None:
    context = make()
    context.start([target("sleeping")], NOW)
    context.cancelled(NOW)
    context.binding_refreshed(target("mobile", flow="tcp/1"), NOW)
    context.response_received(1, 180, NOW)
    assert context.flow_failed(1, NOW) == []
    again = context.binding_refreshed(target("mobile", flow="tcp/2"), NOW)
    assert again == [Abandon(1), Forward(2), Cancel(2, CancelCause.CALLER)]
    assert [branch.number for branch in context.branches] == [0, 1, 1]
    context.response_received(2, 487, NOW)
    assert context.binding_refreshed(target("mobile", flow="tcp/3"), NOW) == []


@pytest.mark.parametrize("result", [PushResult.ACCEPTED, PushResult.WITHDRAWN])
def test_what_becomes_of_its_push_is_nothing_to_a_device_that_woke_too_late(
    result: PushResult,
) -> None:
    context = make()
    context.start([target("sleeping")], NOW)
    context.cancelled(NOW)
    context.binding_refreshed(target("mobile", flow="tcp/1"), NOW)
    assert context.push_finished(0, result, NOW) == []
    assert not context.done


def test_a_silent_device_that_answers_when_the_call_is_over_is_not_called_again() -> None:
    context = make()
    context.start([target("desk"), target("always", "silent", "udp/2")], NOW)
    context.response_received(0, 200, NOW)
    context.response_received(1, 180, NOW)
    context.response_received(1, 487, NOW)
    assert context.done
    assert context.binding_refreshed(target("always", "silent", "udp/3"), NOW) == []


def test_an_answer_under_a_tombstone_is_hung_up() -> None:
    context = make()
    context.start([target("sleeping")], NOW)
    context.cancelled(NOW)
    context.binding_refreshed(target("mobile"), NOW + 1)
    assert context.response_received(1, 200, NOW + 1) == [HangUp(1)]


def test_an_answer_after_487_went_upstream_is_hung_up() -> None:
    context = make()
    context.start([target("mobile")], NOW)
    assert context.cancelled(NOW) == [Cancel(0, CancelCause.CALLER), Respond(487, 0)]
    assert context.response_received(0, 200, NOW) == [HangUp(0)]


def test_of_users_with_one_app_each_push_and_its_end_go_out_once() -> None:
    context = make()
    both = [target("sleeping", "bob@x d"), target("sleeping", "sales@x d")]
    assert context.start(both, NOW) == [RequestPush(0, NOW + HOLD), Respond(180)]
    context.push_finished(0, PushResult.ACCEPTED, NOW)
    assert context.cancelled(NOW) == [CancelPush(0), Respond(487, 0)]


def test_a_push_is_wanted_as_long_as_any_user_of_the_app_waits() -> None:
    context = make()
    context.start([target("sleeping", "bob@x d"), target("sleeping", "sales@x d")], NOW)
    context.binding_refreshed(target("mobile", "bob@x d"), NOW)
    assert context.push_wanted(0)
    context.cancelled(NOW)
    assert not context.push_wanted(0)


def test_a_tombstone_crumbles() -> None:
    context = make(tombstone=TOMBSTONE)
    context.start([target("sleeping")], NOW)
    context.cancelled(NOW)
    assert not context.done
    assert context.next_timer() == NOW + TOMBSTONE
    assert context.timer_fired(NOW + TOMBSTONE) == []
    assert context.binding_refreshed(target("mobile"), NOW + TOMBSTONE) == []
    assert context.done
    assert context.next_timer() is None


@pytest.mark.parametrize("result", [PushResult.TOKEN_DEAD, PushResult.CONFIG])
def test_a_device_whose_push_failed_leaves_no_tombstone(result: PushResult) -> None:
    context = make()
    context.start([target("sleeping")], NOW)
    context.push_finished(0, result, NOW)
    assert context.binding_refreshed(target("mobile"), NOW) == []
    assert context.done


def test_nothing_joins_after_the_call_is_over() -> None:
    context = make()
    context.start([target("sleeping")], NOW)
    context.cancelled(NOW)
    assert context.binding_refreshed(target("desk", "new"), NOW) == []


def test_a_caller_who_gives_up_on_sleeping_devices_gets_487_at_once() -> None:
    context = make()
    context.start([target("sleeping", "a"), target("sleeping", "b")], NOW)
    assert context.cancelled(NOW) == [Respond(487, 0)]


def test_a_caller_who_gives_up_before_anything_was_looked_up_gets_487() -> None:
    context = make()
    assert context.cancelled(NOW) == [Respond(487)]
    assert context.start([target("sleeping")], NOW) == []


def test_a_caller_who_gives_up_on_a_ringing_device_gets_its_487() -> None:
    context = make()
    context.start([target("mobile")], NOW)
    context.response_received(0, 180, NOW)
    assert context.cancelled(NOW) == [Cancel(0, CancelCause.CALLER)]
    assert context.response_received(0, 487, NOW) == [Respond(487, 0)]


def test_an_answer_that_crosses_the_cancel_wins() -> None:
    context = make()
    context.start([target("mobile")], NOW)
    context.response_received(0, 180, NOW)
    context.cancelled(NOW)
    assert context.response_received(0, 200, NOW) == [Respond(200, 0)]


def test_a_6xx_ends_the_search_and_wins() -> None:
    context = make()
    context.start([target("desk", "a", "tcp/1"), target("sleeping", "b")], NOW)
    context.push_finished(1, PushResult.ACCEPTED, NOW)
    assert context.response_received(0, 603, NOW) == [CancelPush(1), Respond(603, 0)]


def test_a_6xx_waits_for_the_finals_of_the_others() -> None:
    context = make()
    context.start([target("desk", "a", "tcp/1"), target("desk", "b", "tcp/2")], NOW)
    context.response_received(1, 180, NOW)
    assert context.response_received(0, 600, NOW) == [Cancel(1, CancelCause.DECLINED_ELSEWHERE)]
    assert context.response_received(1, 487, NOW) == [Respond(600, 0)]


EDGE = Target("d", "sip:bob@1.2.3.4", route=("<sip:edge;lr>",), live=True, push=RECORD, hold=HOLD)


def test_the_100_of_a_proxy_at_our_edge_says_nothing_of_the_device_behind_it() -> None:
    context = make()
    context.start([EDGE], NOW)
    context.response_received(0, 100, NOW)
    pushed = context.timer_fired(NOW + PROBE)
    assert pushed == [RequestPush(0, NOW + PROBE + HOLD), Respond(180)]
    near = make()
    near.start([target("mobile")], NOW)
    near.response_received(0, 100, NOW)
    assert near.timer_fired(NOW + PROBE) == []


def test_a_device_behind_an_edge_that_registers_as_before_is_not_called_twice() -> None:
    context = make()
    context.start([EDGE], NOW)
    assert context.binding_refreshed(EDGE, NOW) == [Retransmit(0)]
    moved = replace(EDGE, uri="sip:bob@1.2.3.4:9")
    assert context.binding_refreshed(moved, NOW) == [Abandon(0, moved=True), Forward(1)]


def test_a_ringing_device_is_not_cancelled_past_the_proxy_that_it_rings_by() -> None:
    flow = replace(EDGE, flow="tcp/1")
    for rings, registers, actions in (
        (EDGE, target("mobile", flow="tcp/2"), []),
        (flow, target("mobile", flow="tcp/2"), []),
        (target("mobile"), flow, []),
        (flow, replace(flow, flow="tcp/2"), [Follow(0, "tcp/2")]),
    ):
        context = make()
        context.start([replace(rings, device="d")], NOW)
        context.response_received(0, 180, NOW)
        assert context.binding_refreshed(replace(registers, device="d"), NOW) == actions


def test_a_device_that_perhaps_rings_when_the_call_ends_sees_the_end_in_the_same_request() -> None:
    context = make()
    context.start([target("always")], NOW)
    context.cancelled(NOW)
    late = context.binding_refreshed(target("mobile", flow="tcp/2"), NOW + 1)
    assert late == [Abandon(0), Forward(1), Cancel(1, CancelCause.CALLER)]
    assert context.branches[1].number == context.branches[0].number


def test_a_device_that_was_silent_until_the_hold_ended_sees_the_end_in_the_same_request() -> None:
    context = make()
    context.start([target("always")], NOW)
    assert context.timer_fired(NOW + HOLD) == [Abandon(0), Respond(480, 0)]
    late = context.binding_refreshed(target("mobile"), NOW + HOLD)
    assert late == [Abandon(0), Forward(1), Cancel(1, CancelCause.NO_ANSWER)]
    assert context.branches[1].number == context.branches[0].number


def test_a_device_that_was_given_up_and_comes_back_gets_another_request() -> None:
    context = make()
    context.start([target("always"), target("desk", "other", "tcp/9")], NOW)
    context.timer_fired(NOW + HOLD)
    assert context.binding_refreshed(target("mobile"), NOW + HOLD) == [Forward(2)]
    assert [branch.number for branch in context.branches] == [1, 1, 2]
    assert context.branches[0].cancelling is None


def test_a_device_that_rings_on_while_its_flows_break_gets_the_same_request_on_each() -> None:
    context = make(fallback=True)
    context.start([target("twin")], NOW)
    context.response_received(0, 180, NOW)
    assert context.flow_failed(0, NOW) == [Forward(1)]
    assert context.flow_failed(1, NOW) == [RequestPush(1, NOW + HOLD), Respond(180)]
    assert context.binding_refreshed(target("mobile", flow="tcp/3"), NOW) == [Forward(1)]
    assert [branch.number for branch in context.branches] == [1, 1]
    # It has rung: nobody answered, although it is unreachable now.
    assert context.timer_fired(NOW + TIMER_C)[-1] == FallBack(408, Cause.NO_ANSWER)


def test_a_flow_that_was_silent_is_left_for_a_new_request() -> None:
    context = make()
    context.start([target("twin")], NOW)
    assert context.response_received(0, 408, NOW) == [Forward(1)]
    assert [branch.number for branch in context.branches] == [1, 2]


def test_a_device_that_moved_and_has_the_call_already_gets_it_as_it_was() -> None:
    context = make()
    context.start([target("mobile")], NOW)
    context.binding_refreshed(target("mobile", flow="tcp/2"), NOW)
    assert context.response_received(1, 482, NOW) == [Forward(1)]
    assert (context.branches[1].number, context.branches[1].target.flow) == (1, "tcp/2")
    assert context.response_received(1, 180, NOW) == [Respond(180, 1)]


def test_a_device_that_rings_where_it_moved_away_from_goes_on_ringing() -> None:
    context = make()
    context.start([target("mobile")], NOW)
    context.binding_refreshed(target("mobile", flow="tcp/2"), NOW)
    assert context.response_received(0, 180, NOW) == []
    assert context.response_received(1, 482, NOW) == [Forward(1)]
    assert context.branches[1].number == 1
    assert context.timer_fired(NOW + T1) == []  # no CANCEL: it rings there


def test_a_device_that_rings_anew_ends_what_rang_where_it_moved_away_from() -> None:
    context = make()
    context.start([target("mobile")], NOW)
    context.binding_refreshed(target("mobile", flow="tcp/2"), NOW)
    context.response_received(1, 180, NOW)
    assert context.response_received(0, 180, NOW) == [Cancel(0, CancelCause.NO_ANSWER)]
    assert context.response_received(0, 180, NOW) == []


def test_a_device_that_moved_and_was_cancelled_is_called_when_it_has_ended_that() -> None:
    context = make()
    context.start([target("mobile")], NOW)
    context.binding_refreshed(target("mobile", flow="tcp/2"), NOW)
    context.response_received(0, 180, NOW)
    assert context.timer_fired(NOW + T1) == [Cancel(0, CancelCause.NO_ANSWER)]
    assert context.response_received(1, 482, NOW + T1) == []
    assert context.timer_fired(NOW + T1 + STILL_ENDING) == [Forward(1)]
    assert context.branches[1].number == 3


def falls_back_to_the_same_phone(device: str = "bob@x d") -> ResponseContext:
    context = make(fallback=True)
    context.start([target("mobile", "bob@x d")], NOW)
    assert context.response_received(0, 486, NOW) == [FallBack(486, Cause.BUSY)]
    assert context.fall_back([target("mobile", device)], NOW) == [Forward(1)]
    return context


@pytest.mark.parametrize("device", ["bob@x d", "sales@x d"])
def test_a_device_that_still_ends_the_call_is_called_again_until_it_has(device: str) -> None:
    context = falls_back_to_the_same_phone(device)
    now, tries = NOW, 0
    while context.response_received(1, 482, now) == []:
        now, tries = now + STILL_ENDING, tries + 1
        assert context.timer_fired(now) == [Forward(1)]
    assert tries == TIMES_ENDING
    assert (context.answered, context.branches[1].status) == (True, 480)


def test_a_device_that_has_ended_the_call_takes_it_anew() -> None:
    context = falls_back_to_the_same_phone()
    context.response_received(1, 482, NOW)
    context.timer_fired(NOW + STILL_ENDING)
    assert context.response_received(1, 180, NOW + STILL_ENDING) == [Respond(180, 1)]
    assert context.response_received(1, 200, NOW + STILL_ENDING) == [Respond(200, 1)]


def test_a_caller_who_gives_up_while_a_device_still_ends_the_call_gets_487() -> None:
    context = falls_back_to_the_same_phone()
    context.response_received(1, 482, NOW)
    assert context.cancelled(NOW) == [Respond(487, 0)]
    assert context.next_timer() is None


def test_of_two_accounts_on_one_phone_the_one_that_took_the_call_speaks_for_the_user() -> None:
    context = make(fallback=True)
    context.start([target("desk", "sales@x d"), target("desk", "bob@x d", "tcp/2")], NOW)
    assert context.response_received(0, 482, NOW) == [Forward(0)]
    context.response_received(0, 482, NOW)
    context.response_received(1, 180, NOW)
    assert context.response_received(1, 480, NOW) == [FallBack(480, Cause.NO_ANSWER)]


def test_a_call_that_comes_back_from_another_server_is_no_call_of_ours() -> None:
    context = make()
    context.start([Target("sip:vm@pbx", "sip:vm@pbx", live=True)], NOW)
    assert context.response_received(0, 482, NOW) == [Respond(482, 0)]


def test_a_device_whose_flow_broke_while_it_rang_gets_the_same_request_and_hears_the_end() -> None:
    context = make()
    context.start([target("mobile", flow="tcp/1")], NOW)
    context.response_received(0, 180, NOW)
    context.flow_failed(0, NOW)
    context.push_finished(0, PushResult.ACCEPTED, NOW)
    assert context.cancelled(NOW) == [CancelPush(0), Respond(487, 0)]
    late = context.binding_refreshed(target("mobile", flow="tcp/2"), NOW)
    assert late == [Forward(1), Cancel(1, CancelCause.CALLER)]
    assert [branch.number for branch in context.branches] == [1, 1]


def test_a_device_gets_another_request_after_it_refused_the_first() -> None:
    context = make()
    context.start([target("mobile", flow="tcp/1")], NOW)
    context.response_received(0, 480, NOW)
    assert context.binding_refreshed(target("mobile", flow="tcp/2"), NOW) == [Forward(0)]
    assert context.branches[0].number == 2


def test_a_push_that_was_asked_for_and_never_begun_is_asked_for_again_after_a_crash() -> None:
    context = make()
    context.start([target("sleeping"), target("mobile", "awake", "tcp/2")], NOW)
    assert context.pushes_to_begin() == [RequestPush(0, NOW + HOLD)]
    context.branches[0].push_begun = True
    assert context.pushes_to_begin() == []


def test_a_device_that_a_dead_process_may_have_forwarded_to_hears_of_the_end() -> None:
    context = make()
    context.start([target("sleeping")], 0.0)
    context.perhaps_forwarded(DEVICE, 0.5, 0.5)
    context.cancelled(1.0)
    context.push_finished(0, PushResult.WITHDRAWN, 1.0)
    actions = context.binding_refreshed(target("mobile"), 2.0)
    assert actions == [Forward(1), Cancel(1, CancelCause.CALLER)]
    assert context.branches[1].number == 1  # a retransmission, to a phone that rings


PATIENCE = 32.0


def test_the_end_of_a_hold_that_nobody_saw_is_told_without_a_ringback() -> None:
    context = make(tombstone=TOMBSTONE)
    context.start([target("sleeping")], NOW)
    context.resume_ringback(NOW + HOLD + 5)
    assert context.catch_up(NOW + HOLD + 5, PATIENCE) == [Respond(480, 0)]
    assert context.pushes_to_begin() == []
    assert context.next_timer() == NOW + HOLD + TOMBSTONE


def test_the_ringback_of_a_call_that_still_waits_goes_on() -> None:
    context = make()
    context.start([target("sleeping")], NOW)
    context.resume_ringback(NOW + 5)
    assert context.catch_up(NOW + 5, PATIENCE) == [Respond(180)]
    assert context.next_timer() == NOW + HOLD


def test_a_device_that_fell_silent_while_nobody_looked_is_pushed_for_what_is_left() -> None:
    context = make()
    context.start([target("mobile")], NOW)
    assert context.catch_up(NOW + PROBE + 5, PATIENCE) == [Respond(180)]
    assert context.branches[0].state is BranchState.PROBING
    assert context.pushes_to_begin() == [RequestPush(0, NOW + PROBE + HOLD)]


@pytest.mark.parametrize("late", [5.0, PATIENCE + 5])
def test_a_silent_device_does_not_ring_for_a_call_whose_time_nobody_saw_end(late: float) -> None:
    context = make(tombstone=TOMBSTONE)
    context.start([target("mobile")], NOW)
    context.timer_fired(NOW + PROBE)
    context.branches[0].pushing = False
    over = NOW + PROBE + HOLD
    actions = context.catch_up(over + late, PATIENCE)
    assert [each for each in actions if isinstance(each, Respond)] == [Respond(480, 0)]
    assert context.branches[0].cancelling is None
    late_actions = context.binding_refreshed(target("mobile"), over + late)
    if late > TOMBSTONE:
        assert late_actions == []
    else:
        assert late_actions == [Forward(1), Cancel(1, CancelCause.NO_ANSWER)]
        assert context.branches[1].number == context.branches[0].number


@pytest.mark.parametrize("late", [5.0, PATIENCE + 5])
def test_a_device_that_rang_until_nobody_looked_hears_of_the_end_unless_it_is_long_past(
    late: float,
) -> None:
    context = make(tombstone=TOMBSTONE)
    context.start([target("desk")], NOW)
    context.response_received(0, 180, NOW)
    over = NOW + TIMER_C
    assert context.catch_up(over + late, PATIENCE) == [Respond(408, 0)]
    is_past = late > PATIENCE
    assert context.branches[0].cancelling is (None if is_past else CancelCause.NO_ANSWER)
    late_actions = context.binding_refreshed(target("desk", flow="tcp/2"), over + late)
    assert (Forward(1) in late_actions) is not is_past


def test_a_device_that_the_caller_left_ringing_hears_why_though_nobody_saw_it() -> None:
    context = make()
    context.start([target("desk")], NOW)
    context.response_received(0, 180, NOW)
    context.cancelled(NOW + 1)
    assert context.catch_up(NOW + 5, PATIENCE) == [Respond(487, 0)]
    assert context.branches[0].cancelling is CancelCause.CALLER


@pytest.mark.parametrize("late", [5.0, PATIENCE + 5])
def test_a_call_falls_back_when_its_hold_has_ended_unless_that_is_long_past(late: float) -> None:
    context = make(fallback=True)
    context.start([target("sleeping")], NOW)
    actions = context.catch_up(NOW + HOLD + late, PATIENCE)
    if late > PATIENCE:
        assert actions == [Respond(480, 0)]
    else:
        assert actions == [FallBack(480, Cause.UNREACHABLE)]


def test_a_call_that_was_falling_back_still_does() -> None:
    context = make(fallback=True)
    context.start([target("gone")], NOW)
    context.fallback, context.falling_back = True, False  # as it is stored
    assert context.catch_up(NOW + 5, PATIENCE) == [FallBack(480, Cause.UNREACHABLE)]


@pytest.mark.parametrize(
    ("at", "now", "goes_on"),
    [
        (HOLD - 1, HOLD + 5, True),
        (HOLD - 1, HOLD - 1 + TIMER_C, False),
        (HOLD + 1, HOLD + 5, False),
    ],
)
def test_a_device_that_registered_in_time_has_the_time_of_timer_c(
    at: float, now: float, goes_on: bool
) -> None:
    context = make()
    context.start([target("sleeping")], NOW)
    context.perhaps_forwarded(DEVICE, NOW + at, NOW + now)
    actions = context.catch_up(NOW + now, PATIENCE)
    assert (Respond(480, 0) in actions) is not goes_on
    if goes_on:
        assert context.binding_refreshed(target("mobile"), NOW + now) == [Forward(0)]


def test_a_device_that_registered_and_is_gone_again_is_waited_for_no_longer() -> None:
    context = make()
    context.start([target("sleeping")], NOW)
    context.perhaps_forwarded(DEVICE, NOW + 1, NOW + 5)
    context.catch_up(NOW + 5, PATIENCE)
    assert context.next_timer() == NOW + HOLD


def test_a_device_that_is_being_woken_does_not_ring_yet() -> None:
    context = ResponseContext(probe=PROBE, timer_c=HOLD / 2)
    context.start([target("always")], NOW)
    assert context.timer_fired(NOW + HOLD / 2) == []
    context.response_received(0, 100, NOW + HOLD / 2)
    assert context.next_timer() == NOW + HOLD


def test_a_server_has_no_less_time_than_a_device() -> None:
    context = ResponseContext(probe=PROBE, timer_c=2 * SERVER_TIMER_C)
    context.start([target("server")], NOW)
    assert context.timer_fired(NOW + SERVER_TIMER_C) == []
    assert context.next_timer() == NOW + 2 * SERVER_TIMER_C


def test_a_silent_device_does_not_keep_the_caller_of_a_declined_call_waiting() -> None:
    context = make()
    context.start([target("desk"), target("desk", "silent", "udp/2")], NOW)
    assert context.response_received(0, 603, NOW) == [Cancel(1, CancelCause.DECLINED_ELSEWHERE)]
    assert context.timer_fired(NOW + PROBE) == [Respond(603, 0)]


def test_a_silent_device_with_a_tombstone_hears_of_the_call_once() -> None:
    context = make()
    context.start([target("desk"), target("always", "silent", "udp/2")], NOW)
    context.response_received(0, 603, NOW)
    again = target("always", "silent", "udp/2")
    assert context.binding_refreshed(again, NOW) == [
        Abandon(1),
        Forward(2),
        Cancel(2, CancelCause.DECLINED_ELSEWHERE),
    ]


@pytest.mark.parametrize(
    ("finals", "best"),
    [
        ([486, 404], 486),
        ([503, 486], 486),
        ([480, 401], 401),
        ([302, 486], 302),
        ([603, 200], 200),
    ],
)
def test_the_best_response_goes_back(finals: list[int], best: int) -> None:
    context = make()
    context.start([target("desk", str(i), f"tcp/{i}") for i in range(len(finals))], NOW)
    actions = [a for i, s in enumerate(finals) for a in context.response_received(i, s, NOW)]
    assert [a.status for a in actions if isinstance(a, Respond)] == [best]


@pytest.mark.parametrize(("status", "upstream"), [(503, 500), (430, 480)])
def test_a_response_meant_for_this_proxy_is_not_passed_on(status: int, upstream: int) -> None:
    context = make()
    context.start([target("desk")], NOW)
    assert context.response_received(0, status, NOW) == [Respond(upstream, 0)]


def test_the_ringback_is_repeated_every_minute_until_the_answer() -> None:
    context = make()
    context.start([Target("d", push=RECORD, hold=300)], NOW)
    assert context.next_timer() == NOW + 60
    assert context.timer_fired(NOW + 60) == [Respond(180)]
    assert context.next_timer() == NOW + 120
    context.binding_refreshed(target("mobile"), NOW + 61)
    context.response_received(0, 200, NOW + 62)
    assert context.timer_fired(NOW + 120) == []


def test_no_ringback_when_none_is_configured() -> None:
    context = ResponseContext(probe=PROBE, timer_c=TIMER_C, ringback=None)
    assert context.start([target("sleeping")], NOW) == [RequestPush(0, NOW + HOLD)]


@pytest.mark.parametrize(
    ("final", "cause"),
    [
        (408, Cause.UNREACHABLE),
        (480, Cause.UNREACHABLE),
        (486, Cause.BUSY),
        (603, Cause.DECLINED),
    ],
)
def test_a_failed_call_falls_back_once(final: int, cause: Cause) -> None:
    context = make(fallback=True)
    context.start([target("desk")], NOW)
    assert context.response_received(0, final, NOW) == [FallBack(final, cause)]
    voicemail = Target("vm", uri="sip:vm@pbx", live=True)
    assert context.fall_back([voicemail], NOW) == [Forward(1)]
    assert context.response_received(1, 200, NOW) == [Respond(200, 1)]


def test_a_failed_fallback_is_the_end() -> None:
    context = make(fallback=True)
    context.start([target("sleeping")], NOW)
    context.push_finished(0, PushResult.ACCEPTED, NOW)
    assert context.timer_fired(NOW + HOLD) == [FallBack(480, Cause.UNREACHABLE)]
    assert context.fall_back([], NOW) == [Respond(480, 0), CancelPush(0)]


def test_a_fallback_to_a_sleeping_user_waits_again() -> None:
    context = make(fallback=True)
    context.start([target("gone")], NOW)
    assert context.fall_back([target("sleeping", "other")], NOW) == [
        RequestPush(1, NOW + HOLD),
        Respond(180),
    ]


def test_a_caller_who_gave_up_is_not_sent_to_the_fallback() -> None:
    context = make(fallback=True)
    context.start([target("sleeping")], NOW)
    context.push_finished(0, PushResult.ACCEPTED, NOW)
    assert context.cancelled(NOW) == [CancelPush(0), Respond(487, 0)]
    assert context.fall_back([target("desk", "vm")], NOW) == []


def test_a_cancel_while_the_fallback_is_looked_up_counts() -> None:
    context = make(fallback=True)
    context.start([target("gone")], NOW)
    assert context.cancelled(NOW) == [Respond(487, 0)]
    assert context.fall_back([target("desk", "vm")], NOW) == []


def test_a_call_nobody_can_take_for_another_reason_does_not_fall_back() -> None:
    context = make(fallback=True)
    context.start([target("desk")], NOW)
    assert context.response_received(0, 488, NOW) == [Respond(488, 0)]


def test_a_request_that_is_no_invite_has_no_timer_c_and_no_ringback() -> None:
    context = make(invite=False)
    context.start([target("desk")], NOW)
    assert context.next_timer() is None
    assert Retransmit(0) not in context.response_received(0, 200, NOW)


def test_the_push_record_of_a_dead_token_is_removed_and_the_call_goes_on_elsewhere() -> None:
    context = make()
    context.start([target("sleeping", "a"), target("desk", "b")], NOW)
    assert context.push_finished(0, PushResult.TOKEN_DEAD, NOW) == [RemovePushRecord(0)]
    assert context.response_received(1, 200, NOW) == [Respond(200, 1)]


def test_the_flows_of_a_device_are_tried_one_after_the_other_and_then_it_is_woken() -> None:
    context = make()
    context.start([target("twin")], NOW)
    assert context.flow_failed(0, NOW) == [Forward(1)]
    assert (context.branches[1].target.flow, context.branches[1].target.others) == ("tcp/2", ())
    assert RequestPush(1, NOW + HOLD) in context.flow_failed(1, NOW)


def test_a_device_is_pushed_once_whatever_its_flows_do() -> None:
    context = make()
    context.start([target("twin")], NOW)
    assert RequestPush(0, NOW + PROBE + HOLD) in context.timer_fired(NOW + PROBE)
    assert context.flow_failed(0, NOW + PROBE) == [Forward(1)]
    assert context.flow_failed(1, NOW + PROBE) == []
    assert context.branches[1].state is BranchState.WAKING


def test_no_device_is_pushed_while_another_rings_where_the_policy_says_so() -> None:
    context = make(push_while_ringing=False)
    context.start([target("desk", "a", "tcp/1"), target("mobile", "b", "tcp/2")], NOW)
    context.response_received(0, 180, NOW)
    assert context.timer_fired(NOW + PROBE) == []
    assert context.flow_failed(1, NOW + 2) == []
    assert (context.branches[1].state, context.branches[1].status) == (BranchState.COMPLETED, 430)


def test_a_device_is_pushed_before_another_rings_whatever_the_policy() -> None:
    context = make(push_while_ringing=False)
    actions = context.start([target("desk", "a", "tcp/1"), target("sleeping", "b")], NOW)
    assert RequestPush(1, NOW + HOLD) in actions
    context.response_received(0, 180, NOW)
    assert context.binding_refreshed(target("mobile", "b"), NOW + 1) == [Forward(1)]


def test_a_user_who_takes_no_calls_is_busy() -> None:
    assert make().refuse(Target("bob@x"), 486, NOW) == [Respond(486, 0)]


def test_a_user_who_takes_no_calls_has_a_fallback_for_busy() -> None:
    (fall_back,) = make(fallback=True).refuse(Target("bob@x"), 486, NOW)
    assert isinstance(fall_back, FallBack)
    assert fall_back.cause is Cause.BUSY


@pytest.mark.parametrize("goes_on", [False, True])
def test_one_whom_a_call_falls_back_to_and_who_takes_no_calls_is_busy(goes_on: bool) -> None:
    context = make(fallback=True)
    assert context.start([target("gone")], NOW) == [FallBack(480, Cause.UNREACHABLE)]
    context.fallback = goes_on
    end = FallBack(486, Cause.BUSY) if goes_on else Respond(486, 1)
    assert context.refuse(Target("carol@x"), 486, NOW) == [end]


def test_a_caller_who_gave_up_is_refused_no_more() -> None:
    context = make(fallback=True)
    context.start([target("gone")], NOW)
    assert context.cancelled(NOW) == [Respond(487, 0)]
    assert context.refuse(Target("carol@x"), 486, NOW) == []


def test_an_app_registered_for_two_members_of_a_group_is_pushed_once() -> None:
    context = make()
    actions = context.start([target("sleeping", "a@x d"), target("sleeping", "b@x d")], NOW)
    assert actions == [RequestPush(0, NOW + HOLD), Respond(180)]
    assert context.binding_refreshed(target("mobile", "b@x d"), NOW) == [Forward(1)]
    assert context.branches[0].state is BranchState.WAKING


def test_a_push_that_fails_fails_for_every_user_of_that_app() -> None:
    context = make()
    context.start([target("sleeping", "a@x d"), target("sleeping", "b@x d")], NOW)
    assert context.push_finished(0, PushResult.TOKEN_DEAD, NOW) == [
        RemovePushRecord(0),
        RemovePushRecord(1),
        Respond(480, 0),
    ]
