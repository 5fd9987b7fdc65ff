"""REGISTERs that say what was said before (test_registration.py asks about all others)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sipush.core.bindings import Binding, Location
from sipush.core.refresh import Refreshes, what_is_said
from sipush.core.registration import Decision, RegistrationPolicy, Update, register
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
OUTBOUND = (f"{CONTACT};{INSTANCE};reg-id=1", "Supported: outbound")
NOTHING = Location()


def heard(
    refreshes: Refreshes,
    *lines: str,
    aor: str = AOR,
    flow: str = FLOW,
    policy: RegistrationPolicy = POLICY,
    at: float = NOW,
) -> Decision:
    """A phone registers for the first time."""
    decision = register(request(*lines), aor, flow, policy, at, key=KEY, from_peer=True)
    refreshes.learn(what_is_said(request(*lines)), policy, decision, None)
    return decision


def again(
    refreshes: Refreshes,
    *lines: str,
    aor: str = AOR,
    flow: str = FLOW,
    policy: RegistrationPolicy = POLICY,
    at: float = NOW + 60,
    call_id: str = "c2",
    location: Location | None = NOTHING,
) -> Update | None:
    """What is known of such a REGISTER by now."""
    message = request(*lines, call_id=call_id)
    said = what_is_said(message)
    return refreshes.decide(message, aor, flow, policy, at, said=said, location=location)


@pytest.mark.parametrize(
    ("lines", "is_known"),
    [
        ([CONTACT, PUSH], True),
        ([f"{CONTACT};{INSTANCE}", "Path: <sip:edge.example.com;lr>", "Expires: 600"], True),
        ([CONTACT], True),
        ([*OUTBOUND], True),
        ([*OUTBOUND, "Path: <sip:edge.example.com;lr;ob>"], True),
        ([*OUTBOUND, "Path: <sip:edge.example.com;lr>"], False),
        ([f"{CONTACT};{INSTANCE};reg-id=1"], False),
        ([f"{CONTACT};expires=0", PUSH], False),
        ([CONTACT, OFF], False),
        ([CONTACT, PUSH.replace("aa11", "\u00e4")], True),
        ([CONTACT, PUSH, "Contact: <sip:102@192.0.2.2>"], False),
        (["Contact: *", "Expires: 0"], False),
        ([RFC8599, "Expires: 600"], True),
        ([RFC8599, "Expires: 300"], False),
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
        update = again(refreshes, CONTACT, PUSH, call_id=f"c{n}", flow=flow, at=now)
        message = request(CONTACT, PUSH, call_id=f"c{n}")
        assert update == register(message, AOR, flow, POLICY, now, key=KEY)


def test_what_devices_have_in_common_is_kept_once() -> None:
    refreshes = Refreshes()
    aors = ["101@example.com", "102@example.com"]
    for aor in aors:
        heard(refreshes, CONTACT, PUSH, aor=aor)
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
    ((known,),) = refreshes._known.values()
    assert (known.bind, known.push) == (update.registration.bind, update.registration.push)
    assert known.bind is update.registration.bind
    assert known.push is update.registration.push


def test_of_what_is_said_anew_nothing_is_known() -> None:
    refreshes = Refreshes()
    heard(refreshes, CONTACT, PUSH)
    assert again(refreshes, CONTACT, PUSH, "Expires: 61") is None
    assert again(refreshes, CONTACT, PUSH.replace("aa11", "aa12")) is None
    assert again(refreshes, CONTACT, PUSH, aor="102@example.com") is None


def test_what_does_not_matter_may_differ() -> None:
    refreshes = Refreshes()
    heard(refreshes, "Date: Mon, 30 Nov 2026 20:00:00 GMT", CONTACT, PUSH)
    assert again(refreshes, CONTACT, PUSH, "Timestamp: 54", "P-Access-Network-Info: WLAN")


def test_what_was_decided_under_another_policy_counts_no_more() -> None:
    refreshes, reloaded = Refreshes(), replace(POLICY, max_expires=500)
    heard(refreshes, CONTACT, PUSH)
    assert again(refreshes, CONTACT, PUSH, policy=reloaded) is None
    decision = heard(refreshes, CONTACT, PUSH, policy=reloaded)
    assert again(refreshes, CONTACT, PUSH, policy=reloaded, at=NOW, call_id="c1") == decision
    assert again(refreshes, CONTACT, PUSH) is None


def test_among_several_nodes_a_refresh_is_known_over_the_flow_that_they_know() -> None:
    refreshes, node = Refreshes(), replace(POLICY, node="sip:192.0.2.1")
    for flow in (FLOW, f"{FLOW}1"):
        assert again(refreshes, CONTACT, PUSH, flow=flow, policy=node) is None
        decision = heard(refreshes, CONTACT, PUSH, flow=flow, policy=node)
        known = again(refreshes, CONTACT, PUSH, flow=flow, policy=node, at=NOW, call_id="c1")
        assert known == decision


def test_no_more_are_known_than_there_is_room_for_and_others_an_hour_later() -> None:
    refreshes = Refreshes(2)
    aors = [f"{n}@example.com" for n in range(3)]

    def known() -> list[bool]:
        return [again(refreshes, CONTACT, aor=aor) is not None for aor in aors]

    for aor in aors:
        heard(refreshes, CONTACT, aor=aor)
    assert known() == [True, True, False]
    for later, is_known in ((3599, [True, True, False]), (3600, [False, False, True])):
        heard(refreshes, CONTACT, aor=aors[2], at=NOW + later)
        assert known() == is_known


def test_of_one_user_the_devices_of_late_are_known_each_by_what_it_said_last() -> None:
    refreshes = Refreshes()
    contacts = [f'Contact: <sip:101@192.0.2.{n}>;{INSTANCE[:-2]}{n}"' for n in range(6)]
    moved = contacts[5].replace("192.0.2.5", "192.0.2.9")
    for contact in (*contacts, moved):
        heard(refreshes, contact)
    known = [again(refreshes, contact) is not None for contact in (*contacts, moved)]
    assert known == [False, False, True, True, True, False, True]


@pytest.mark.parametrize("flow", ["udp/a/b/c", "tcp/a/b/c"])
def test_a_flow_of_several_is_known_while_it_comes_directly_by_that_transport(flow: str) -> None:
    refreshes = Refreshes()
    heard(refreshes, *OUTBOUND, flow=flow)
    for other in ("udp/a/b/d", "tcp/a/b/d"):
        is_known = flow[:3] == other[:3]
        update = again(refreshes, *OUTBOUND, flow=other)
        assert (update is not None) is is_known
        assert again(refreshes, *OUTBOUND, "Via: SIP/2.0/UDP edge", flow=other) is None
        if update is not None:
            assert update == register(
                request(*OUTBOUND, call_id="c2"), AOR, other, POLICY, NOW + 60, key=KEY
            )


def test_a_reference_of_another_day_is_made_anew() -> None:
    refreshes, lines, day = Refreshes(), (RFC8599, "Expires: 600"), 86400 * 20_000
    heard(refreshes, *lines, at=day)
    late = again(refreshes, *lines, at=day + 86399)
    assert late is not None
    assert late == register(request(*lines, call_id="c2"), AOR, FLOW, POLICY, day + 86399, key=KEY)
    assert late.registration.refreshes == ((late.devices[0], day + 86399 + 600 - 150),)
    assert again(refreshes, *lines, at=day + 86400) is None


def binding_of(*lines: str) -> Binding:
    decision = register(request(*lines), AOR, FLOW, POLICY, NOW, key=KEY)
    assert isinstance(decision, Update)
    return decision.registration.bind[0]


def test_a_phone_told_by_its_contact_alone_is_asked_about_when_another_device_has_that() -> None:
    refreshes = Refreshes()
    heard(refreshes, CONTACT)
    itself, other = binding_of(CONTACT), binding_of("Contact: <sip:101@192.0.2.2>")
    assert again(refreshes, CONTACT, location=Location((itself, other))) is not None
    told = binding_of(CONTACT, PUSH)
    assert again(refreshes, CONTACT, location=Location((told,))) is None
    assert again(refreshes, CONTACT, location=None) is None


def test_a_phone_that_the_store_knows_by_its_contact_is_not_learnt() -> None:
    refreshes, stored = Refreshes(), Location((binding_of(CONTACT, PUSH),))
    decision = register(request(CONTACT), AOR, FLOW, POLICY, NOW, key=KEY, location=stored)
    refreshes.learn(what_is_said(request(CONTACT)), POLICY, decision, stored)
    assert again(refreshes, CONTACT, location=stored) is None
    assert again(refreshes, CONTACT) is None
