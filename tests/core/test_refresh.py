"""REGISTERs that say what was said before (test_registration.py asks about all others)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sipush.core.bindings import Binding, Location
from sipush.core.location_update import apply
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


class Registrar:
    """What registers, with the location service that its bindings are in."""

    def __init__(self) -> None:
        self.refreshes = Refreshes()
        self.stored: dict[str, Location] = {}

    def heard(
        self,
        *lines: str,
        aor: str = AOR,
        flow: str = FLOW,
        policy: RegistrationPolicy = POLICY,
        at: float = NOW,
        call_id: str = "c1",
    ) -> Decision:
        """A phone registers for the first time."""
        message = request(*lines, call_id=call_id)
        decision = register(message, aor, flow, policy, at, key=KEY, from_peer=True)
        self.refreshes.learn(what_is_said(request(*lines)), policy, decision, None)
        self.store(aor, decision)
        return decision

    def store(self, aor: str, decision: Decision | None) -> None:
        """As the store in memory does with what was decided."""
        if isinstance(decision, Update):
            location = apply(self.stored.get(aor, Location()), decision.registration)
            assert isinstance(location, Location)
            self.stored[aor] = location

    def again(
        self,
        *lines: str,
        aor: str = AOR,
        flow: str = FLOW,
        policy: RegistrationPolicy = POLICY,
        at: float = NOW + 60,
        call_id: str = "c2",
        location: Location | None = None,
    ) -> Update | None:
        """What is known of such a REGISTER by now; what it asks for is not stored."""
        message = request(*lines, call_id=call_id)
        location = location or self.stored.get(aor, Location())
        said = what_is_said(message)
        return self.refreshes.decide(message, flow, policy, at, said=said, location=location)


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
    registrar = Registrar()
    registrar.heard(*lines)
    update = registrar.again(*lines)
    assert (update is not None) is is_known
    if update is not None:
        assert update.registration.bind[0].call_id == "c2"


def test_a_refresh_of_a_refresh_lasts_as_long_over_the_flow_it_came_by() -> None:
    registrar = Registrar()
    registrar.heard(CONTACT, PUSH)
    for n in range(1, 4):
        flow, now = f"{FLOW}{n}", NOW + n * 500.3
        update = registrar.again(CONTACT, PUSH, call_id=f"c{n}", flow=flow, at=now)
        message = request(CONTACT, PUSH, call_id=f"c{n}")
        assert update == register(message, AOR, flow, POLICY, now, key=KEY)


def test_what_devices_have_in_common_is_kept_once() -> None:
    registrar = Registrar()
    aors = ["101@example.com", "102@example.com"]
    for aor in aors:
        registrar.heard(CONTACT, PUSH, aor=aor)
    updates = [registrar.again(CONTACT, PUSH, aor=aor) for aor in aors]
    kept = [
        (u.headers, u.registration.bind[0].user_agent, u.registration.push[0].app_id)
        for u in updates
        if u is not None
    ]
    assert [u.registration.aor for u in updates if u is not None] == aors
    assert all(one is other for one, other in zip(*kept, strict=True))


def test_what_a_device_said_is_kept_with_where_its_user_is() -> None:
    registrar = Registrar()
    registrar.heard(CONTACT, PUSH)
    update = registrar.again(CONTACT, PUSH)
    assert update is not None
    (known,) = [binding.known for binding in registrar.stored[AOR].bindings]
    assert known is not None
    assert [binding.known for binding in update.registration.bind] == [known]
    assert known.push is update.registration.push


def test_of_what_is_said_anew_nothing_is_known() -> None:
    registrar = Registrar()
    registrar.heard(CONTACT, PUSH)
    assert registrar.again(CONTACT, PUSH, "Expires: 61") is None
    assert registrar.again(CONTACT, PUSH.replace("aa11", "aa12")) is None
    assert registrar.again(CONTACT, PUSH, aor="102@example.com") is None


def test_what_does_not_matter_may_differ() -> None:
    registrar = Registrar()
    registrar.heard("Date: Mon, 30 Nov 2026 20:00:00 GMT", CONTACT, PUSH)
    assert registrar.again(CONTACT, PUSH, "Timestamp: 54", "P-Access-Network-Info: WLAN")


def test_what_was_decided_under_another_policy_counts_no_more() -> None:
    registrar, reloaded = Registrar(), replace(POLICY, max_expires=500)
    registrar.heard(CONTACT, PUSH)
    assert registrar.again(CONTACT, PUSH, policy=reloaded) is None
    decision = registrar.heard(CONTACT, PUSH, policy=reloaded)
    assert registrar.again(CONTACT, PUSH, policy=reloaded, at=NOW, call_id="c1") == decision
    assert registrar.again(CONTACT, PUSH) is None


def test_among_several_nodes_a_refresh_is_known_over_the_flow_that_they_know() -> None:
    registrar, node = Registrar(), replace(POLICY, node="sip:192.0.2.1")
    for flow in (FLOW, f"{FLOW}1"):
        assert registrar.again(CONTACT, PUSH, flow=flow, policy=node) is None
        decision = registrar.heard(CONTACT, PUSH, flow=flow, policy=node)
        known = registrar.again(CONTACT, PUSH, flow=flow, policy=node, at=NOW, call_id="c1")
        assert known == decision


def test_each_device_of_a_user_is_known_by_what_it_said_last() -> None:
    registrar = Registrar()
    contacts = [f'Contact: <sip:101@192.0.2.{n}>;{INSTANCE[:-2]}{n}"' for n in range(6)]
    moved = contacts[5].replace("192.0.2.5", "192.0.2.9")
    for contact in (*contacts, moved):
        registrar.heard(contact, call_id=contact)
    known = [registrar.again(contact) is not None for contact in (*contacts, moved)]
    assert known == [True, True, True, True, True, False, True]


def test_what_is_known_of_a_device_goes_with_its_binding() -> None:
    registrar = Registrar()
    registrar.heard(CONTACT, PUSH)
    registrar.store(AOR, registrar.again(CONTACT, PUSH))
    assert registrar.again(CONTACT, PUSH, call_id="c3") is not None
    registrar.heard("Contact: *", "Expires: 0", call_id="c4")
    assert registrar.again(CONTACT, PUSH) is None
    registrar.heard(CONTACT, PUSH, call_id="c5")
    assert registrar.again(CONTACT, PUSH) is not None
    not_learnt = request(CONTACT, PUSH, call_id="c6")
    registrar.store(AOR, register(not_learnt, AOR, FLOW, POLICY, NOW, key=KEY))
    assert registrar.again(CONTACT, PUSH) is None


def test_a_push_record_that_is_gone_comes_again_with_a_refresh() -> None:
    registrar = Registrar()
    registrar.heard(CONTACT, PUSH)
    stored = registrar.stored[AOR]
    update = registrar.again(CONTACT, PUSH, location=Location(stored.bindings))
    message = request(CONTACT, PUSH, call_id="c2")
    assert update == register(message, AOR, FLOW, POLICY, NOW + 60, key=KEY)


@pytest.mark.parametrize("flow", ["udp/a/b/c", "tcp/a/b/c"])
def test_a_flow_of_several_is_known_while_it_comes_directly_by_that_transport(flow: str) -> None:
    registrar = Registrar()
    registrar.heard(*OUTBOUND, flow=flow)
    for other in ("udp/a/b/d", "tcp/a/b/d"):
        is_known = flow[:3] == other[:3]
        update = registrar.again(*OUTBOUND, flow=other)
        assert (update is not None) is is_known
        assert registrar.again(*OUTBOUND, "Via: SIP/2.0/UDP edge", flow=other) is None
        if update is not None:
            assert update == register(
                request(*OUTBOUND, call_id="c2"), AOR, other, POLICY, NOW + 60, key=KEY
            )


def test_a_reference_of_another_day_is_made_anew() -> None:
    registrar, lines, day = Registrar(), (RFC8599, "Expires: 600"), 86400 * 20_000
    registrar.heard(*lines, at=day)
    late = registrar.again(*lines, at=day + 86399)
    assert late is not None
    assert late == register(request(*lines, call_id="c2"), AOR, FLOW, POLICY, day + 86399, key=KEY)
    assert late.registration.refreshes == ((late.devices[0], day + 86399 + 600 - 150),)
    assert registrar.again(*lines, at=day + 86400) is None


def binding_of(*lines: str) -> Binding:
    decision = register(request(*lines), AOR, FLOW, POLICY, NOW, key=KEY)
    assert isinstance(decision, Update)
    return decision.registration.bind[0]


def test_a_phone_told_by_its_contact_alone_is_asked_about_when_another_device_has_that() -> None:
    registrar = Registrar()
    registrar.heard(CONTACT)
    (itself,) = registrar.stored[AOR].bindings
    other, told = binding_of("Contact: <sip:101@192.0.2.2>"), binding_of(CONTACT, PUSH)
    assert registrar.again(CONTACT, location=Location((itself, other))) is not None
    assert registrar.again(CONTACT, location=Location((itself, told))) is None
    assert registrar.again(CONTACT, location=Location((told,))) is None


def test_a_phone_that_the_store_knows_by_its_contact_is_not_learnt() -> None:
    registrar, stored = Registrar(), Location((binding_of(CONTACT, PUSH),))
    decision = register(request(CONTACT), AOR, FLOW, POLICY, NOW, key=KEY, location=stored)
    registrar.refreshes.learn(what_is_said(request(CONTACT)), POLICY, decision, stored)
    assert isinstance(decision, Update)
    assert registrar.again(CONTACT, location=stored) is None
    assert registrar.again(CONTACT, location=Location(decision.registration.bind)) is None
