"""REGISTERs that say what was said before (test_registration.py asks about all others)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sipush.core.refresh import Refreshes, what_is_said
from sipush.core.registration import Update, register
from tests.core.test_registration import (
    AOR,
    CONTACT,
    FLOW,
    INSTANCE,
    KEY,
    NOW,
    OFF,
    POLICY,
    PUSH,
    request,
)

RFC8599 = "Contact: <sip:101@192.0.2.1;pn-provider=fcm;pn-param=my-project-1;pn-prid=cc33>"


def heard(refreshes: Refreshes, *lines: str, at: float = NOW) -> None:
    """A phone registers for the first time."""
    decision = register(request(*lines), AOR, FLOW, POLICY, at, key=KEY)
    refreshes.learn(what_is_said(request(*lines), AOR), POLICY, decision)


def again(refreshes: Refreshes, *lines: str, aor: str = AOR) -> Update | None:
    """What is known of such a REGISTER by now."""
    said = what_is_said(request(*lines), aor)
    return refreshes.decide(said, request(*lines, call_id="c2"), FLOW, POLICY, NOW + 60)


@pytest.mark.parametrize(
    ("lines", "is_known"),
    [
        ([CONTACT, PUSH], True),
        ([f"{CONTACT};{INSTANCE}", "Path: <sip:edge.example.com;lr>", "Expires: 600"], True),
        ([f"{CONTACT};{INSTANCE};reg-id=1", "Supported: outbound"], False),
        ([f"{CONTACT};expires=0", PUSH], False),
        ([CONTACT, OFF], False),
        ([CONTACT, PUSH.replace("aa11", "\u00e4")], True),
        ([CONTACT, PUSH, "Contact: <sip:102@192.0.2.2>"], False),
        (["Contact: *", "Expires: 0"], False),
        ([RFC8599, "Expires: 600"], False),
        ([], False),
    ],
)
def test_a_refresh_of_the_usual_kind_is_known(lines: list[str], is_known: bool) -> None:
    refreshes = Refreshes()
    heard(refreshes, *lines)
    update = again(refreshes, *lines)
    assert (update is not None) is is_known
    if update is not None:
        assert update.registration.bind[0].call_id == "c2"


def test_a_refresh_of_a_refresh_lasts_as_long_over_the_flow_it_came_by() -> None:
    refreshes = Refreshes()
    heard(refreshes, CONTACT, PUSH)
    for n in range(1, 4):
        flow, now = f"{FLOW}{n}", NOW + n * 500.3
        again = request(CONTACT, PUSH, call_id=f"c{n}", cseq=n)
        update = refreshes.decide(what_is_said(again, AOR), again, flow, POLICY, now)
        assert update == register(again, AOR, flow, POLICY, now, key=KEY)


def test_what_devices_have_in_common_is_kept_once() -> None:
    refreshes = Refreshes()
    aors = ["101@example.com", "102@example.com"]
    for aor in aors:
        decision = register(request(CONTACT, PUSH), aor, FLOW, POLICY, NOW, key=KEY)
        refreshes.learn(what_is_said(request(CONTACT, PUSH), aor), POLICY, decision)
    updates = [again(refreshes, CONTACT, PUSH, aor=aor) for aor in aors]
    kept = [
        (u.headers, u.registration.bind[0].user_agent, u.registration.push[0].app_id)
        for u in updates
        if u is not None
    ]
    assert [u.registration.aor for u in updates if u is not None] == aors
    assert all(one is other for one, other in zip(*kept, strict=True))


def test_what_a_device_said_is_kept_with_where_its_user_is() -> None:
    refreshes = Refreshes()
    heard(refreshes, CONTACT, PUSH)
    update = again(refreshes, CONTACT, PUSH)
    assert update is not None
    (known,) = refreshes._known.values()
    assert (known.bind, known.push) == (update.registration.bind, update.registration.push)
    assert known.bind is update.registration.bind
    assert known.push is update.registration.push


def test_nobody_is_taken_for_another_whose_text_has_the_same_hash() -> None:
    refreshes = Refreshes()
    heard(refreshes, CONTACT, PUSH)
    (known,) = refreshes._known.values()
    for aor in ("102@example.com", "1101@example.com"):
        refreshes._known[hash(what_is_said(request(CONTACT, PUSH), aor))] = known
        assert again(refreshes, CONTACT, PUSH, aor=aor) is None


def test_of_what_is_said_anew_nothing_is_known() -> None:
    refreshes = Refreshes()
    heard(refreshes, CONTACT, PUSH)
    assert again(refreshes, CONTACT, PUSH, "Expires: 61") is None
    assert again(refreshes, CONTACT, PUSH.replace("aa11", "aa12")) is None
    assert again(refreshes, CONTACT, PUSH, aor="102@example.com") is None


def test_what_was_decided_under_another_policy_counts_no_more() -> None:
    refreshes, reloaded = Refreshes(), replace(POLICY, max_expires=500)
    heard(refreshes, CONTACT, PUSH)
    said = what_is_said(request(CONTACT, PUSH), AOR)
    assert refreshes.decide(said, request(CONTACT, PUSH), FLOW, reloaded, NOW) is None
    decision = register(request(CONTACT, PUSH), AOR, FLOW, reloaded, NOW, key=KEY)
    refreshes.learn(said, reloaded, decision)
    assert refreshes.decide(said, request(CONTACT, PUSH), FLOW, reloaded, NOW) == decision
    assert again(refreshes, CONTACT, PUSH) is None


def test_among_several_nodes_a_refresh_is_known_over_the_flow_that_they_know() -> None:
    refreshes, node = Refreshes(), replace(POLICY, node="sip:192.0.2.1")
    said = what_is_said(request(CONTACT, PUSH), AOR)
    for flow in (FLOW, f"{FLOW}1"):
        assert refreshes.decide(said, request(CONTACT, PUSH), flow, node, NOW) is None
        decision = register(request(CONTACT, PUSH), AOR, flow, node, NOW, key=KEY)
        refreshes.learn(said, node, decision)
        assert refreshes.decide(said, request(CONTACT, PUSH), flow, node, NOW) == decision


def test_no_more_are_known_than_there_is_room_for_and_others_an_hour_later() -> None:
    refreshes = Refreshes(2)
    contacts = [f"Contact: <sip:101@192.0.2.{n}>;{INSTANCE}" for n in range(3)]

    def known() -> list[bool]:
        return [again(refreshes, contact) is not None for contact in contacts]

    for contact in contacts:
        heard(refreshes, contact)
    assert known() == [True, True, False]
    for later, is_known in ((3599, [True, True, False]), (3600, [False, False, True])):
        heard(refreshes, contacts[2], at=NOW + later)
        assert known() == is_known
