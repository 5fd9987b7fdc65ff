import asyncio

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from sipush.core.rejection import Rejection
from sipush.errors import MessageError
from sipush.server.answers import reject
from sipush.server.transactions import ClientTransactionHandle, Failure
from sipush.sip.message import Request, Response, make_response, parse_datagram
from sipush.sip.status import Status
from sipush.transport.flow import Flow
from tests.server.wire import Wire, WireFlow
from tests.sip.messages import TOP_VIA, request, request_bytes

INVITE = request_bytes("INVITE")
TRYING = "SIP/2.0 100 Trying"


def call(transport: str = "UDP") -> Wire:
    """A wire on which an INVITE has just arrived and been answered 100."""
    wire = Wire(transport)
    wire.receive(INVITE)
    assert wire.flow.take_lines() == [TRYING]
    return wire


def answer(wire: Wire, status: int) -> None:
    wire.handles[0].respond(make_response(wire.handles[0].request, status, to_tag="b1"))


def send(wire: Wire, method: str = "INVITE") -> ClientTransactionHandle:
    return wire.layer.send_request(
        request(method), wire.flow, "z9hG4bKout", wire.responses.append, wire.failures.append
    )


def reply(wire: Wire, handle: ClientTransactionHandle, status: int) -> None:
    wire.receive(make_response(handle.request, status, to_tag="b1").to_bytes())


def statuses(wire: Wire) -> list[int]:
    return [response.status for response in wire.responses]


# What leaves over a stream


@pytest.mark.parametrize(("transport", "length"), [("UDP", None), ("TCP", "5"), ("WS", "5")])
def test_a_stream_is_told_how_long_a_body_is_and_nothing_else_changes(
    transport: str, length: str | None
) -> None:
    wire = call(transport)
    without = request_bytes("INVITE", without="Content-Length", extra=("l-ater: x",), body=b"12345")
    invite = parse_datagram(without)
    assert isinstance(invite, Request)
    wire.layer.send_request(invite, wire.flow, "z9hG4bKout", _ignore, _ignore)
    wire.layer.send_stateless(parse_datagram(without), wire.flow)
    ok = make_response(wire.handles[0].request, 200, to_tag="b1")
    ok.headers.remove("content-length")
    ok.body = b"12345"
    wire.handles[0].respond(ok)
    line = f"\r\nContent-Length: {length}".encode() if length else b""
    sent = [data for _, data in wire.flow.sent]
    assert [message.headers.get("content-length") for message in wire.flow.take()] == [length] * 3
    assert sent[1] == without.replace(b"\r\n\r\n", line + b"\r\n\r\n")


def _ignore(_: object) -> None:
    pass


# Server transactions


def test_an_invite_is_answered_100_at_once_and_handed_up_stamped() -> None:
    wire = call()
    assert wire.events == ["request INVITE"]
    assert wire.handles[0].request.top_via.params["rport"] == "5060"


def test_a_repeated_invite_gets_the_last_response_again_and_is_not_handed_up() -> None:
    wire = call()
    answer(wire, 180)
    wire.receive(INVITE)
    assert wire.flow.take_lines() == ["SIP/2.0 180 Ringing"] * 2
    assert wire.events == ["request INVITE"]


@pytest.mark.parametrize(
    ("method", "remote", "is_followed"),
    [
        ("INVITE", ("192.0.2.1", 7), True),
        ("CANCEL", ("192.0.2.1", 7), True),
        ("INVITE", ("192.0.2.9", 7), False),
    ],
)
def test_a_caller_that_is_back_over_another_connection_hears_the_end_there(
    method: str, remote: tuple[str, int], is_followed: bool
) -> None:
    wire = call("TCP")
    again = WireFlow("TCP", remote)
    wire.flow.closed = True
    wire.layer.messages_received([(again, parse_datagram(request_bytes(method)))])
    again.take()
    answer(wire, 487)
    assert again.take_lines() == ["SIP/2.0 487 Request Terminated"] * is_followed


def test_requests_that_came_together_are_handed_up_together() -> None:
    wire = Wire()
    wire.receive(request_bytes("OPTIONS"), request_bytes("BYE"), request_bytes("OPTIONS"))
    assert wire.events == ["request OPTIONS", "request BYE"]
    assert wire.together == [2]


def test_a_cancel_that_came_together_with_its_invite_is_handed_up_after_it() -> None:
    wire = Wire()
    wire.receive(INVITE, request_bytes("CANCEL"), request_bytes("BYE"))
    assert wire.events == ["request INVITE", "cancelled", "request BYE"]
    assert wire.together == [1, 1]


def test_what_fails_on_a_request_takes_nothing_from_those_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wire, heard = Wire(), list[str]()

    def fail(flow: Flow, request: Request) -> None:
        heard.append(request.method)
        raise RuntimeError("a bug")

    monkeypatch.setattr(wire, "stateless_answer", fail)
    with structlog.testing.capture_logs() as logs:
        wire.receive(request_bytes("OPTIONS"), request_bytes("BYE"))
    assert heard == ["OPTIONS", "BYE"]
    assert [line["event"] for line in logs] == ["internal_error"] * 2


def test_a_connection_that_is_open_is_not_left_for_another() -> None:
    wire = call("TCP")
    wire.layer.messages_received([(WireFlow("TCP", ("192.0.2.1", 7)), parse_datagram(INVITE))])
    assert wire.flow.take_lines() == [TRYING]


def test_a_response_whose_connection_has_closed_goes_where_the_caller_listens() -> None:
    wire = call("TCP")
    wire.flow.closed = True
    wire.back = WireFlow("TCP")
    answer(wire, 180)
    answer(wire, 200)
    assert wire.back.take_lines() == ["SIP/2.0 180 Ringing", "SIP/2.0 200 OK"]


def test_a_refusal_whose_connection_has_closed_goes_nowhere() -> None:
    wire = call("TCP")
    wire.flow.closed = True
    wire.back = WireFlow("TCP")
    wire.handles[0].refuse(make_response(wire.handles[0].request, 407, to_tag="b1"))
    assert wire.back.take() == []


def test_a_refusal_on_udp_is_repeated_until_its_ack_comes() -> None:
    wire = call()
    answer(wire, 486)
    wire.clock.advance(8)
    assert wire.flow.times() == [0, 0.5, 1.5, 3.5, 7.5]
    wire.receive(request_bytes("ACK", to="<sip:bob@example.com>;tag=b1"))
    wire.flow.take()
    wire.clock.advance(32)
    assert wire.flow.take() == []
    assert wire.layer.server_transactions == 0
    assert wire.events == ["request INVITE"]


@pytest.mark.parametrize(("repeats", "sent_at"), [(2, [0, 0.5, 1.5]), (0, [0])])
def test_a_refusal_to_somebody_unknown_is_repeated_seldom(
    repeats: int, sent_at: list[float]
) -> None:
    wire = call()
    refusal = make_response(wire.handles[0].request, 407, to_tag="b1")
    wire.handles[0].refuse(refusal, repeats)
    wire.clock.advance(33)
    assert wire.flow.times() == sent_at
    assert wire.layer.server_transactions == 0


def test_of_a_request_that_is_ignored_nothing_is_kept() -> None:
    wire = call()
    wire.handles[0].ignore()
    assert wire.layer.server_transactions == wire.layer.pending == 0
    wire.clock.advance(33)
    assert wire.flow.take() == []


def test_what_is_answered_statelessly_is_answered_anew_when_it_is_repeated() -> None:
    wire = Wire()
    wire.stateless = make_response(request("REGISTER"), 401, to_tag="b1")
    for _ in range(2):
        wire.receive(request_bytes("REGISTER"))
    assert wire.flow.take_lines() == ["SIP/2.0 401 Unauthorized"] * 2
    assert wire.layer.server_transactions == wire.layer.timers == 0
    assert wire.events == []


@pytest.mark.parametrize("method", ["INVITE", "ACK", "CANCEL"])
def test_what_belongs_to_an_invite_is_never_answered_statelessly(method: str) -> None:
    wire = call()
    wire.stateless = make_response(request("REGISTER"), 401, to_tag="b1")
    wire.receive(request_bytes(method))
    assert "SIP/2.0 401 Unauthorized" not in wire.flow.take_lines()


def test_server_transactions_are_told_by_method_and_state() -> None:
    wire = call()
    wire.receive(request_bytes("OPTIONS", via="SIP/2.0/UDP a;branch=z9hG4bKother"))
    assert wire.layer.server_states == {"INVITE proceeding": 1, "OPTIONS trying": 1}
    answer(wire, 486)
    assert wire.layer.server_states == {"INVITE completed": 1, "OPTIONS trying": 1}


def test_a_refusal_on_a_stream_is_sent_once() -> None:
    wire = call("TCP")
    answer(wire, 486)
    wire.clock.advance(40)
    assert wire.flow.take_lines() == ["SIP/2.0 486 Busy Here"]
    assert wire.layer.server_transactions == 0


def test_every_2xx_is_sent_and_a_repeated_invite_is_absorbed_after_the_first() -> None:
    wire = call()
    answer(wire, 200)
    answer(wire, 200)
    wire.receive(INVITE)
    answer(wire, 486)
    assert wire.flow.take_lines() == ["SIP/2.0 200 OK"] * 2


def test_the_ack_of_a_2xx_is_handed_up() -> None:
    wire = call()
    answer(wire, 200)
    other_branch = TOP_VIA.replace("z9hG4bK-1", "z9hG4bK-2")
    wire.receive(request_bytes("ACK", via=other_branch))
    wire.receive(request_bytes("ACK"))
    assert wire.events == ["request INVITE", "ack", "ack"]


def test_a_cancel_is_answered_200_and_handed_up_until_there_is_a_final_response() -> None:
    wire = call()
    wire.receive(request_bytes("CANCEL"))
    assert wire.flow.take_lines() == ["SIP/2.0 200 OK"]
    assert wire.events == ["request INVITE", "cancelled"]
    answer(wire, 487)
    assert wire.handles[0].completed
    wire.receive(request_bytes("CANCEL", via=TOP_VIA, cseq="1 CANCEL"))
    assert wire.events == ["request INVITE", "cancelled"]


def test_a_cancel_after_the_final_response_changes_nothing_and_is_answered_200() -> None:
    wire = call()
    answer(wire, 200)
    wire.flow.take()
    wire.receive(request_bytes("CANCEL"))
    assert wire.flow.take_lines() == ["SIP/2.0 200 OK"]
    assert wire.events == ["request INVITE"]


def test_what_goes_nowhere_is_refused_by_the_way_that_is_left() -> None:
    wire = call()
    wire.receive(INVITE.replace(b"branch=", b"branch=z9hG4bKother"))
    wire.flow.take()
    first, second = wire.handles
    first.merge(second)
    first.leave(first)
    first.end_alone(make_response(first.request, 487, to_tag="b1"))
    assert not first.completed
    reject(first, Rejection(Status.NOT_FOUND), "b1")
    assert first.completed
    sent = [(r.status, r.top_via.branch) for r in wire.flow.take() if isinstance(r, Response)]
    assert sent == [(487, first.branch), (404, second.branch)]


def test_a_cancel_of_nothing_is_answered_481() -> None:
    wire = Wire()
    wire.receive(request_bytes("CANCEL"))
    assert wire.flow.take_lines() == ["SIP/2.0 481 Call/Transaction Does Not Exist"]
    assert wire.events == []


def test_an_rfc_2543_invite_and_its_ack_are_one_transaction() -> None:
    wire = Wire()
    old_via = "SIP/2.0/UDP 192.0.2.1:5060"
    wire.receive(request_bytes("INVITE", via=old_via))
    wire.receive(request_bytes("INVITE", via=old_via))
    answer(wire, 486)
    wire.flow.take()
    wire.receive(request_bytes("ACK", via=old_via, to="<sip:bob@example.com>;tag=b1"))
    wire.clock.advance(10)
    assert wire.flow.take() == []
    assert wire.events == ["request INVITE"]


def test_equal_branches_of_two_hosts_are_two_transactions() -> None:
    wire = Wire()
    wire.receive(request_bytes())
    wire.receive(request_bytes(via=TOP_VIA.replace("192.0.2.1", "192.0.2.2")))
    assert wire.events == ["request OPTIONS"] * 2


def test_a_repeated_register_on_udp_gets_the_same_answer_for_timer_j() -> None:
    wire = Wire()
    wire.receive(request_bytes("REGISTER"))
    wire.receive(request_bytes("REGISTER"))
    assert wire.flow.take() == []
    answer(wire, 200)
    wire.receive(request_bytes("REGISTER"))
    first, second = wire.flow.take()
    assert first.to_bytes() == second.to_bytes()
    wire.clock.advance(31.9)
    wire.receive(request_bytes("REGISTER"))
    assert [again.to_bytes() for again in wire.flow.take()] == [first.to_bytes()]
    assert wire.events == ["request REGISTER"]
    assert wire.layer.server_states == {"non-INVITE completed": 1}
    wire.clock.advance(8.2)
    assert wire.layer.server_transactions == 0
    wire.receive(request_bytes("REGISTER"))
    assert wire.events == ["request REGISTER"] * 2


def test_a_repeated_request_gets_the_answer_where_it_came_from_this_time() -> None:
    wire, moved = Wire(), WireFlow(remote=("192.0.2.1", 7))
    wire.receive(request_bytes("REGISTER"))
    answer(wire, 200)
    wire.layer.messages_received([(moved, parse_datagram(request_bytes("REGISTER")))])
    assert moved.take_lines() == ["SIP/2.0 200 OK"]


def test_an_answer_that_could_not_be_sent_is_not_kept() -> None:
    wire = Wire()
    wire.receive(request_bytes("REGISTER"))
    wire.flow.closed = True
    answer(wire, 200)
    assert wire.layer.server_transactions == 0


def test_a_repeated_answer_to_a_request_is_heard_by_nobody_for_timer_k() -> None:
    wire = Wire()
    handle = send(wire, "MESSAGE")
    data = make_response(handle.request, 200, to_tag="b1").to_bytes()
    wire.receive(data)
    wire.clock.advance(4.9)
    wire.receive(data)
    assert (statuses(wire), wire.events) == ([200], [])
    assert wire.layer.client_transactions == 1
    wire.clock.advance(1.4)
    assert wire.layer.client_transactions == 0
    wire.receive(data)
    assert wire.events == ["stray 200"]


@pytest.mark.parametrize("status", [180, 183, 408])
def test_what_rfc_4320_forbids_is_not_sent_for_a_non_invite_request(status: int) -> None:
    wire = Wire()
    wire.receive(request_bytes("MESSAGE"))
    answer(wire, status)
    assert wire.flow.take() == []
    assert wire.layer.pending == (0 if status == 408 else 1)


def test_a_response_for_a_closed_stream_is_dropped() -> None:
    wire = call("TCP")
    wire.flow.close()
    answer(wire, 200)
    assert wire.flow.take() == []
    assert wire.handles[0].completed


@given(st.lists(st.sampled_from([100, 180, 200, 202, 404, 487, 600, "again", "wait"])))
def test_no_request_ever_gets_two_different_finals(steps: list[int | str]) -> None:
    wire = Wire()
    wire.receive(request_bytes("MESSAGE"))
    for step in steps:
        match step:
            case "again":
                wire.receive(request_bytes("MESSAGE"))
            case "wait":
                wire.clock.advance(3)
            case int():
                answer(wire, step)
    finals = {m.to_bytes() for m in wire.flow.take() if isinstance(m, Response) and m.status >= 200}
    assert len(finals) <= 1


@given(st.lists(st.sampled_from([180, 200, 486, 600, "again", "ack", "wait"])))
def test_an_invite_gets_one_refusal_or_2xx_only(steps: list[int | str]) -> None:
    wire = Wire()
    wire.receive(INVITE)
    for step in steps:
        match step:
            case "again":
                wire.receive(INVITE)
            case "ack":
                wire.receive(request_bytes("ACK"))
            case "wait":
                wire.clock.advance(2)
            case int():
                answer(wire, step)
    finals = [m.status for m in wire.flow.take() if isinstance(m, Response) and m.status >= 200]
    assert len(set(finals)) <= 1


# Client transactions


def test_a_request_leaves_with_our_via_and_its_response_comes_up_without_it() -> None:
    wire = Wire()
    handle = send(wire)
    (sent,) = wire.flow.take()
    vias = sent.headers.values("via")
    assert vias == ["SIP/2.0/UDP 198.51.100.1:5060;branch=z9hG4bKout;rport", TOP_VIA]
    reply(wire, handle, 180)
    assert statuses(wire) == [180]
    assert wire.responses[0].headers.values("via") == [TOP_VIA]


def test_an_invite_on_udp_is_repeated_until_something_comes() -> None:
    wire = Wire()
    handle = send(wire)
    wire.clock.advance(4)
    assert wire.flow.times() == [0, 0.5, 1.5, 3.5]
    reply(wire, handle, 100)
    wire.flow.take()
    wire.clock.advance(100)
    assert wire.flow.take() == []
    assert wire.failures == []


def test_a_request_on_a_stream_is_sent_once_and_times_out() -> None:
    wire = Wire("TCP")
    send(wire)
    wire.clock.advance(31.9)
    assert wire.failures == []
    wire.clock.advance(0.2)
    assert wire.failures == [Failure.TIMEOUT]
    assert len(wire.flow.sent) == 1
    assert wire.layer.client_transactions == 0


def test_a_non_invite_request_is_repeated_every_t2_and_times_out() -> None:
    wire = Wire()
    handle = send(wire, "MESSAGE")
    wire.clock.advance(10)
    assert wire.flow.times() == [0, 0.5, 1.5, 3.5, 7.5]
    reply(wire, handle, 100)
    wire.flow.take()
    wire.clock.advance(10)
    assert wire.flow.times() == pytest.approx([11.5, 15.5, 19.5], abs=0.15)
    wire.clock.advance(20)
    assert wire.failures == [Failure.TIMEOUT]


def test_a_refused_invite_is_acked_each_time_and_handed_up_once() -> None:
    wire = Wire()
    handle = send(wire)
    wire.flow.take()
    reply(wire, handle, 486)
    reply(wire, handle, 486)
    first, second = wire.flow.take()
    assert isinstance(first, Request)
    assert first.to_bytes() == second.to_bytes()
    assert (first.method, first.cseq.number, first.to.tag) == ("ACK", 1, "b1")
    assert first.headers.values("via") == [handle.request.headers.values("via")[0]]
    assert statuses(wire) == [486]


def test_every_2xx_is_handed_up_for_timer_m_and_is_a_stray_afterwards() -> None:
    wire = Wire()
    handle = send(wire)
    wire.flow.take()
    answer = make_response(handle.request, 200, to_tag="b1").to_bytes()
    wire.receive(answer)
    wire.receive(answer)
    wire.receive(answer)
    assert statuses(wire) == [200, 200, 200]
    wire.clock.advance(33)
    wire.receive(answer)
    assert wire.events == ["stray 200"]
    assert wire.flow.take() == []


def test_a_cancel_waits_for_a_provisional_response_and_is_sent_once() -> None:
    wire = Wire()
    handle = send(wire)
    handle.cancel("SIP;cause=200")
    assert len(wire.flow.take()) == 1
    reply(wire, handle, 180)
    handle.cancel()
    (cancel,) = wire.flow.take()
    assert isinstance(cancel, Request)
    assert (cancel.method, cancel.cseq.method) == ("CANCEL", "CANCEL")
    assert cancel.headers.get("reason") == "SIP;cause=200"
    assert cancel.headers.values("via") == [handle.request.headers.values("via")[0]]
    reply(wire, handle, 487)
    assert statuses(wire) == [180, 487]


def test_a_cancelled_invite_that_is_never_answered_times_out() -> None:
    wire = Wire()
    handle = send(wire)
    reply(wire, handle, 180)
    handle.cancel()
    wire.clock.advance(33)
    assert wire.failures == [Failure.TIMEOUT]
    assert wire.layer.client_transactions == 0


@pytest.mark.parametrize("final", [200, 487])
def test_an_abandoned_invite_falls_silent_and_is_cancelled_when_the_device_wakes_after_all(
    final: int,
) -> None:
    wire = Wire()
    handle = send(wire)
    handle.abandon()
    wire.flow.take()
    wire.clock.advance(5)
    assert wire.flow.take() == []
    reply(wire, handle, 180)
    reply(wire, handle, 180)
    assert [line.split()[0] for line in wire.flow.take_lines()] == ["CANCEL"]
    reply(wire, handle, final)
    assert statuses(wire) == [180, 180, final]


def test_an_abandoned_request_reports_no_failure() -> None:
    wire = Wire()
    send(wire).abandon()
    assert wire.layer.pending == 0
    wire.clock.advance(33)
    assert wire.failures == []
    assert wire.layer.client_transactions == 0


@pytest.mark.parametrize("method", ["INVITE", "MESSAGE"])
@pytest.mark.parametrize("after", [0, 0.2, 2])
def test_an_abandoned_request_is_forgotten_when_it_would_have_timed_out(
    method: str, after: float
) -> None:
    wire = Wire()
    handle = send(wire, method)
    wire.clock.advance(after)
    handle.abandon()
    wire.clock.advance(31.9 - after)
    assert wire.layer.client_transactions == 1
    wire.clock.advance(0.2)
    assert wire.layer.client_transactions == 0


def test_what_takes_the_place_of_an_abandoned_request_gets_its_answer() -> None:
    wire = Wire()
    first = send(wire, "MESSAGE")
    first.abandon()
    send(wire, "MESSAGE")
    reply(wire, first, 200)
    assert statuses(wire) == [200]


def test_what_took_the_place_of_an_abandoned_request_still_hears_that_its_flow_fails() -> None:
    wire = Wire()
    send(wire, "MESSAGE").abandon()
    wire.clock.advance(31)
    send(wire, "MESSAGE")
    wire.clock.advance(2)
    wire.layer.flow_unreachable(wire.flow)
    assert wire.failures == [Failure.TRANSPORT]


@pytest.mark.parametrize("method", ["INVITE", "MESSAGE"])
def test_a_request_on_udp_is_timed_out_once_and_not_before_it_is_repeated(method: str) -> None:
    wire = Wire()
    send(wire, method)
    assert wire.layer.timers == 1
    wire.clock.advance(8)
    assert wire.layer.timers == 2
    wire.clock.advance(23.9)
    assert wire.failures == []
    wire.clock.advance(0.2)
    assert wire.failures == [Failure.TIMEOUT]


def test_retransmit_sends_again_until_something_came() -> None:
    wire = Wire("TCP")
    handle = send(wire)
    handle.retransmit()
    assert len(wire.flow.take()) == 2
    reply(wire, handle, 100)
    handle.retransmit()
    assert wire.flow.take() == []


def test_a_closed_stream_fails_what_is_unanswered_on_it_at_once() -> None:
    wire = Wire("TCP")
    handle = send(wire)
    reply(wire, handle, 180)
    wire.layer.flow_closed(WireFlow("TCP", ("192.0.2.77", 1)))
    assert wire.failures == []
    wire.layer.flow_closed(wire.flow)
    assert wire.failures == [Failure.TRANSPORT]


def test_icmp_fails_only_what_had_no_response() -> None:
    wire = Wire()
    handle = send(wire)
    reply(wire, handle, 100)
    send(wire, "MESSAGE")
    wire.layer.flow_unreachable(wire.flow)
    assert wire.failures == [Failure.TRANSPORT]
    assert wire.layer.pending == 1


def test_a_request_that_cannot_be_sent_fails_after_send_request_has_returned() -> None:
    wire = Wire("TCP")
    wire.flow.close()
    send(wire)
    assert wire.failures == []
    wire.clock.advance(0)
    assert wire.failures == [Failure.TRANSPORT]


# Bad input


def test_a_malformed_request_is_answered_statelessly_and_counted() -> None:
    wire = Wire()
    wire.receive(request_bytes(without="Call-ID"))
    (response,) = wire.flow.take()
    assert response.start_line == "SIP/2.0 400 Missing Call-ID"
    assert response.top_via.params["rport"] == "5060"
    assert wire.layer.malformed == 1
    assert wire.layer.server_transactions == 0
    assert wire.events == []


@pytest.mark.parametrize(
    "data",
    [request_bytes("ACK", without="Call-ID"), request_bytes(without="Via")],
    ids=["ACK", "no Via"],
)
def test_what_cannot_be_answered_is_dropped(data: bytes) -> None:
    wire = Wire()
    wire.receive(data)
    assert wire.flow.take() == []
    assert wire.events == []
    assert wire.layer.malformed == 1


def test_a_malformed_response_and_noise_are_dropped() -> None:
    wire = Wire()
    response = make_response(request(), 200)
    response.headers.remove("call-id")
    wire.receive(response.to_bytes())
    wire.layer.malformed_received(wire.flow, MessageError("Malformed Request Line"))
    assert wire.flow.take() == []
    assert wire.layer.malformed == 2


def test_nobody_gets_more_from_a_malformed_request_than_was_sent() -> None:
    wire = Wire()
    data = request_bytes(extra=("Contact: <sip:alice@192.0.2.1>",), content_length="7")
    with pytest.raises(MessageError) as caught:
        parse_datagram(data)
    wire.layer.malformed_received(wire.flow, caught.value)
    ((_, sent),) = wire.flow.sent
    assert len(sent) <= len(data) + len(";received=192.0.2.1;tag=id0")


# Draining


async def test_drain_waits_for_the_last_final_response() -> None:
    wire = call()
    handle = send(wire, "MESSAGE")
    drained = asyncio.ensure_future(wire.layer.drain())
    answer(wire, 200)
    await asyncio.sleep(0)
    assert not drained.done()
    reply(wire, handle, 200)
    await asyncio.wait_for(drained, 1)
    assert wire.layer.pending == 0


def test_a_cancel_from_another_address_is_refused_and_swallows_no_true_one() -> None:
    wire = Wire()
    wire.receive(request_bytes("INVITE"))
    spoofer = WireFlow(remote=("192.0.2.66", 5060))
    wire.layer.messages_received([(spoofer, parse_datagram(request_bytes("CANCEL")))])
    assert spoofer.take_lines() == ["SIP/2.0 481 Call/Transaction Does Not Exist"]
    assert wire.events == ["request INVITE"]
    wire.receive(request_bytes("CANCEL"))
    assert wire.flow.take_lines()[-1] == "SIP/2.0 200 OK"
    assert wire.events == ["request INVITE", "cancelled"]


def test_a_caller_behind_a_nat_may_cancel_from_another_port() -> None:
    wire = Wire()
    wire.receive(request_bytes("INVITE"))
    ip, port = wire.flow.remote
    wire.layer.messages_received(
        [(WireFlow(remote=(ip, port + 1)), parse_datagram(request_bytes("CANCEL")))]
    )
    assert wire.events == ["request INVITE", "cancelled"]


def test_a_refusal_that_nobody_acknowledges_is_repeated_twice() -> None:
    wire = Wire()
    wire.receive(request_bytes("INVITE"))
    (handle,) = wire.handles
    handle.refuse(make_response(handle.request, 407, to_tag="t"))
    wire.clock.advance(60)
    assert wire.flow.times() == [0.0, 0.0, 0.5, 1.5]
    assert wire.layer.server_transactions == 0


# A response to what we forwarded


@pytest.mark.parametrize(
    ("method", "head", "heard"),
    [
        ("INVITE", "Via: {ours}|Via: {theirs}|{from_}", [180, 200, 200]),
        ("INVITE", "Via: {ours}, {theirs}|{from_}", [180, 200, 200]),
        ("INVITE", "{from_}|Via: {ours}|X: y|Via: {theirs}", [180, 200, 200]),
        ("INVITE", "Via: {ours}|{from_}", []),
        ("INVITE", "{from_}|Via: {ours}", []),
        ("BYE", "Via: {ours}|{from_}", [180, 200]),
    ],
)
def test_a_response_to_what_we_forwarded_that_leads_back_to_nobody_is_dropped(
    method: str, head: str, heard: list[int]
) -> None:
    wire = Wire()
    sent = request(method)
    if method == "BYE":  # our own
        sent.headers.remove("via")
    handle = wire.layer.send_request(
        sent, wire.flow, "z9hG4bKout", wire.responses.append, wire.failures.append
    )
    ours = handle.request.headers.values("via")[0]
    top = head.format(ours=ours, theirs=TOP_VIA, from_="From: <sip:a@x>;tag=a1").split("|")
    rest = ["To: <sip:b@x>;tag=b1", "Call-ID: call-1@192.0.2.1", f"CSeq: 1 {method}", "", ""]
    for status in (180, 200, 200):
        wire.receive("\r\n".join([f"SIP/2.0 {status} Whatever", *top, *rest]).encode())
    assert statuses(wire) == heard
