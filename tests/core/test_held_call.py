"""A held call written down and read again."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sipush.core.bindings import Platform, PushRecord
from sipush.core.held_call import HeldCall, freeze, storable, thaw
from sipush.core.response_context import (
    BranchState,
    Cancel,
    CancelCause,
    CancelPush,
    Forward,
    RequestPush,
    Respond,
    ResponseContext,
)
from sipush.core.target_set import Target, TargetSet, Turn
from sipush.sip.message import Request, parse_datagram

RECORD = PushRecord("bob@x", "d", Platform.FCM, "app", "t", "t", extra={"pn-param": "p"})
SLEEPING = Target("d", push=RECORD, hold=30)
AWAKE = Target("d", "sip:bob@h", "tcp/1", ("<sip:edge;lr>",), live=True, push=RECORD, hold=30)


def again(context: ResponseContext) -> ResponseContext:
    """On a machine whose monotonic clock started elsewhere, 5 s later."""
    return thaw(freeze(context, 100.0, 1_000_000.0), 7.0, 1_000_005.0)


def held(**changes: object) -> HeldCall:
    values = {
        "id": "1",
        "request": b"INVITE sip:b@h SIP/2.0\r\nSubject: \xe9\xff \xc3\xa9\r\n\r\n\x00body",
        "flow": "udp/1/2",
        "push_id": "1",
        "tag": "t",
        "context": {},
        "aors": ("bob@x",),
        "destinations": ("bob@x", "sip:vm@pbx"),
        "fallbacks": {"busy": "sip:busy@pbx"},
        "diversions": (("sip:bob@x", 480, "unreachable"),),
    }
    return HeldCall(**values | changes)


@pytest.mark.parametrize(
    "changes",
    [{}, {"diversions": ()}, {"merged": (("udp/1/3", ("Via: SIP/2.0/UDP a;branch=z9hG4bK2",)),)}],
)
def test_a_held_call_comes_back_as_it_was(changes: dict[str, object]) -> None:
    call = held(**changes)
    assert HeldCall.from_json(call.to_json()) == call
    assert call.to_json().isascii()


def test_no_credentials_are_stored_and_everything_else_is() -> None:
    head, body = b"INVITE sip:b@h SIP/2.0\r\nVia: SIP/2.0/UDP a;branch=z9hG4bK1\r\n", b"\r\nv=0"
    secret = b'Authorization: Digest response="s"\r\nproxy-authorization: Digest response="s"\r\n'
    kept = head + b"X: y\r\n" + body
    for text in (kept, head + secret + b"X: y\r\n" + body):
        request = parse_datagram(text)
        assert isinstance(request, Request)
        assert storable(request) == kept
        assert request.to_bytes() == text


def test_a_device_is_waited_for_until_the_same_moment_and_not_pushed_again() -> None:
    context = ResponseContext(probe=1.5, timer_c=180)
    assert RequestPush(0, 130.0) in context.start([SLEEPING], 100.0)
    resumed = again(context)
    assert resumed.branches[0].target == SLEEPING
    assert resumed.next_timer() == 7.0 + 25.0
    assert resumed.binding_refreshed(AWAKE, 8.0) == [Forward(0)]
    assert resumed.flow_failed(0, 9.0) == []
    assert resumed.branches[0].state is BranchState.WAKING


def test_servers_still_have_as_long_as_devices() -> None:
    context = ResponseContext(probe=1.5, timer_c=300)
    context.start([SLEEPING, Target("sip:vm@pbx", "sip:vm@pbx", live=True)], 100.0)
    resumed = again(context)
    resumed.response_received(1, 180, 50.0)
    resumed.timer_fired(7.0 + 25.0)
    assert resumed.next_timer() == 50.0 + 300


def test_the_hold_still_ends() -> None:
    context = ResponseContext(probe=1.5, timer_c=180)
    context.start([SLEEPING], 100.0)
    assert Respond(480, 0) in again(context).timer_fired(7.0 + 25.0)


def test_the_other_flows_of_a_device_come_back_too() -> None:
    context = ResponseContext(probe=1.5, timer_c=180)
    twin = replace(AWAKE, others=(replace(AWAKE, flow="tcp/2"),))
    context.start([twin], 100.0)
    frozen = json.loads(json.dumps(freeze(context, 100.0, 1_000_000.0)))
    assert thaw(frozen, 7.0, 1_000_000.0).branches[0].target == twin


def test_what_an_older_version_wrote_of_a_device_behind_an_edge_can_be_read() -> None:
    context = ResponseContext(probe=4, timer_c=180)
    device = replace(AWAKE, device="bob@x d", aor="bob@x", key="d", flow="")
    context.start(TargetSet.of(device), 100.0)
    frozen = freeze(context, 100.0, 1_000_000.0)
    target = frozen["branches"][0]["target"]
    target["edge"] = "udp/a/b"
    del target["aor"], target["key"]
    (branch,) = thaw(frozen, 7.0, 1_000_005.0).branches
    assert branch.target == context.branches[0].target


def test_an_older_version_can_read_a_call_that_does_not_expire() -> None:
    context = ResponseContext(1.5, 180.0)
    assert "expires_at" not in freeze(context, 100.0, 1_000_000.0)
    context.expires_at = 120.0
    assert again(context).expires_at == 22.0


def test_what_only_a_later_version_knows_is_left_out() -> None:
    context = ResponseContext(probe=1.5, timer_c=180)
    context.start(TargetSet((Turn((SLEEPING,)), Turn((AWAKE,))), 20.0), 100.0)
    before = freeze(context, 100.0, 1_000_000.0)
    later = json.loads(json.dumps(before))
    (branch,) = later["branches"]
    pending = later["search"]["pending"][0][1][0]
    places = (later, later["search"], branch, branch["target"], branch["target"]["push"], pending)
    for place in places:
        place["of_later"] = 1
    assert freeze(thaw(later, 7.0, 1_000_005.0), 12.0, 1_000_010.0) == before
    values = json.loads(held().to_json()) | {"of_later": 1}
    assert HeldCall.from_json(json.dumps(values).encode()) == held()


def test_a_ringing_device_can_still_answer() -> None:
    context = ResponseContext(probe=1.5, timer_c=180)
    context.start([SLEEPING], 100.0)
    context.binding_refreshed(AWAKE, 101.0)
    context.response_received(0, 180, 102.0)
    resumed = again(context)
    assert resumed.branches[0].target == AWAKE
    assert resumed.response_received(0, 200, 8.0) == [Respond(200, 0)]


def test_the_ringback_goes_on() -> None:
    context = ResponseContext(probe=1.5, timer_c=180, ringback=180)
    context.start([SLEEPING], 100.0)
    assert again(context).timer_fired(7.0) == [Respond(180)]


def test_a_tombstone_stands_for_the_rest_of_its_time() -> None:
    context = ResponseContext(probe=1.5, timer_c=180, tombstone=20)
    context.start([SLEEPING], 100.0)
    context.cancelled(100.0)
    resumed = again(context)
    assert resumed.next_timer() == 7.0 + 20 - 5
    assert resumed.tombstone == 20
    assert resumed.binding_refreshed(AWAKE, 8.0) == [Forward(1), Cancel(1, CancelCause.CALLER)]


def test_a_fallback_that_was_being_looked_up_is_looked_up_again() -> None:
    context = ResponseContext(probe=1.5, timer_c=180, fallback=True)
    context.start([SLEEPING], 100.0)
    context.timer_fired(130.0)
    assert context.falling_back
    resumed = again(context)
    assert type(resumed.timer_fired(8.0)[0]).__name__ == "FallBack"


def test_a_ring_group_goes_on_with_the_member_whose_turn_it_is() -> None:
    other = replace(RECORD, call_token="other")
    bob = Target("bob@x d", aor="bob@x", key="d", push=RECORD, hold=30)
    carol = Target("carol x@x d", aor="carol x@x", key="d", push=other, hold=30)
    context = ResponseContext(probe=1.5, timer_c=180)
    turns = TargetSet((Turn((bob,), "bob@x"), Turn((carol,), "carol x@x")), 20, members=True)
    context.start(turns, 100.0)
    resumed = again(context)
    context.search.turn_at = 7.0 + 15.0
    assert resumed.search == context.search
    assert resumed.timer_fired(22.0) == [RequestPush(1, 42.0)]


def test_a_push_that_was_not_begun_is_begun_and_one_that_was_is_not_repeated() -> None:
    context = ResponseContext(probe=1.5, timer_c=180)
    context.start([SLEEPING], 100.0)
    assert again(context).pushes_to_begin() == [RequestPush(0, 7.0 + 25.0)]
    context.branches[0].push_begun = True
    assert again(context).pushes_to_begin() == []


def test_a_device_that_was_pushed_and_fell_asleep_again_is_not_pushed_again() -> None:
    context = ResponseContext(probe=1.5, timer_c=180)
    context.start([AWAKE], 100.0)
    context.timer_fired(101.5)
    context.branches[0].push_begun = True
    context.binding_refreshed(replace(AWAKE, flow="tcp/2", uri="sip:bob@other"), 102.0)
    context.flow_failed(1, 103.0)
    assert context.branches[1].state is BranchState.WAKING
    assert again(context).pushes_to_begin() == []


def test_the_end_of_a_call_follows_a_push_that_was_on_its_way() -> None:
    context = ResponseContext(probe=1.5, timer_c=180)
    context.start([SLEEPING], 100.0)
    context.branches[0].push_begun = True
    assert context.cancelled(100.0) == [Respond(487, 0)]
    context = ResponseContext(probe=1.5, timer_c=180)
    context.start([SLEEPING], 100.0)
    context.branches[0].push_begun = True
    assert again(context).cancelled(8.0) == [CancelPush(0), Respond(487, 0)]
