"""The ladders of the last calls: which are kept, and how much of them."""

from __future__ import annotations

import pytest

from sipush.server.call_history import HALF, CallHistory
from tests.sip.messages import request


def call(history: CallHistory, call_id: str, *, routed: bool = True) -> None:
    ladder = history.arrived(request("INVITE", call_id=call_id), "udp/x")
    assert ladder is not None
    if routed:
        history.routed(ladder)


def kept(history: CallHistory) -> set[str]:
    return {ladder.call_id for ladder in history.newest_first}


def test_the_oldest_call_goes_when_there_are_enough() -> None:
    history = CallHistory(3)
    for number in range(5):
        call(history, str(number))
    assert kept(history) == {"2", "3", "4"}
    assert history.get("1") is None


def test_calls_of_strangers_push_none_out_that_went_anywhere() -> None:
    history = CallHistory(8)
    for number in range(8):
        call(history, f"good-{number}")
    for number in range(100):
        call(history, f"bad-{number}", routed=False)
    assert kept(history) == {*(f"good-{n}" for n in range(8)), "bad-98", "bad-99"}


def test_an_invite_that_is_repeated_with_credentials_is_the_same_call() -> None:
    history = CallHistory(8)
    call(history, "c", routed=False)
    call(history, "c")
    assert [len(ladder.steps) for ladder in history.newest_first] == [2]


@pytest.mark.parametrize("method", ["BYE", "OPTIONS", "MESSAGE"])
def test_only_an_invite_begins_a_call(method: str) -> None:
    assert CallHistory(8).arrived(request(method), "udp/x") is None


def test_an_invite_inside_a_dialog_that_nobody_knows_begins_none() -> None:
    reinvite = request("INVITE", to="<sip:bob@example.com>;tag=b")
    assert CallHistory(8).arrived(reinvite, "udp/x") is None


def test_a_request_of_the_other_side_is_told_from_one_of_the_caller() -> None:
    history = CallHistory(8)
    call(history, "c")
    theirs = request("BYE", call_id="c", from_="<sip:bob@example.com>;tag=of-bob")
    history.arrived(theirs, "udp/y")
    history.acknowledged(request("ACK", call_id="c"))
    (ladder,) = history.newest_first
    assert [(step.method, step.from_caller) for step in ladder.steps] == [
        ("INVITE", True),
        ("BYE", False),
        ("ACK", True),
    ]


def test_what_one_call_may_cost_is_bounded() -> None:
    history = CallHistory(8)
    invite = request("INVITE", uri=f"sip:{'x' * 60_000}@example.com")
    ladder = history.arrived(invite, "udp/x")
    assert ladder is not None
    for number in range(1000):
        ladder.add("told", invite, {"number": number})
    numbers = [step.facts.get("number") for step in ladder.steps]
    assert numbers == [None, *range(HALF - 1), *range(1000 - HALF, 1000)]
    assert ladder.left_out == 1001 - 2 * HALF
    assert all(len(str(step.facts)) < 5000 for step in ladder.steps)
