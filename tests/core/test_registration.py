"""What the registrar makes of a REGISTER."""

from dataclasses import replace

import pytest

from sipush.core.bindings import Binding, Location, Platform, PushRecord, Refusal
from sipush.core.nodes import way_to
from sipush.core.outbound import purr
from sipush.core.refresh import Refreshes, what_is_said
from sipush.core.registration import (
    GOES_BY,
    Decision,
    Fetch,
    RegistrationPolicy,
    Update,
    ok_response,
    refuse,
    register,
    wants_location,
)
from sipush.core.rejection import Rejection, rejection_response
from sipush.sip.message import Request, parse_head
from sipush.sip.push_params import NO_EXTRA
from sipush.sip.uri import contact_key

AOR = "101@example.com"
APP = "com.example.app"
FLOW = "udp/192.0.2.9:5060/192.0.2.1:5060"
NOW = 1_800_000_000.0
KEY = b"k" * 32
POLICY = RegistrationPolicy(
    min_expires=60,
    max_expires=1800,
    default_expires=600,
    apps={
        APP: frozenset({Platform.APNS, Platform.FCM}),
        "my-project-1": frozenset({Platform.FCM}),
        "com.example.hooked": frozenset({Platform.WEBHOOK}),
        "com.example.apple": frozenset({Platform.APNS}),
    },
)
CONTACT = "Contact: <sip:101@192.0.2.1:5060>"
INSTANCE = '+sip.instance="<urn:uuid:F81D4FAE-7DEC-11D0-A765-00A0C91E6BF6>"'
DEVICE = "instance:urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6"
PUSH = f"X-Push: device-os=ios;device-uid=aa11|bb22;app-id={APP}"
OFF = f"{PUSH};allow-call-push=false;allow-message-push=false"


def request(*lines: str, call_id: str = "c1", cseq: int = 7) -> Request:
    head = [
        "REGISTER sip:example.com SIP/2.0",
        "Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1",
        "From: <sip:101@example.com>;tag=f",
        "To: <sip:101@example.com>",
        f"Call-ID: {call_id}",
        f"CSeq: {cseq} REGISTER",
        "User-Agent: phone/1.0",
        *lines,
    ]
    message = parse_head("\r\n".join(head).encode())
    assert isinstance(message, Request)
    return message


def decide(*lines: str, from_peer: bool = True) -> Decision:
    decision = register(request(*lines), AOR, FLOW, POLICY, NOW, key=KEY, from_peer=from_peer)
    if from_peer:
        check_refresh(lines, decision)
        check_goes_by(lines, decision)
    return decision


def check_refresh(lines: tuple[str, ...], decision: Decision) -> None:
    """What is known is decided as ``register`` does when it is said again later, elsewhere."""
    stored = Location(decision.registration.bind) if isinstance(decision, Update) else Location()
    for flow, now in (("udp/a/b/c", NOW + 1234.567), ("tcp/a/b/c", NOW + 86400)):
        refreshes = Refreshes()
        refreshes.learn(what_is_said(request(*lines)), POLICY, decision, None)
        again = request(*lines, call_id="c2", cseq=9)
        said = what_is_said(again)
        refreshed = refreshes.decide(again, flow, POLICY, now, said=said, location=stored)
        assert refreshed in (None, register(again, AOR, flow, POLICY, now, key=KEY, from_peer=True))


def check_goes_by(lines: tuple[str, ...], decision: Decision) -> None:
    """Without all that is not in GOES_BY ``register`` decides the same."""
    bare = request(*lines)
    needed = GOES_BY | {"via", "from", "to", "call-id", "cseq"}
    for name in {name for name, _ in bare.headers.fields if name not in needed}:
        bare.headers.remove(name)
    assert register(bare, AOR, FLOW, POLICY, NOW, key=KEY, from_peer=True) == decision


def accept(*lines: str, from_peer: bool = True) -> Update:
    decision = decide(*lines, from_peer=from_peer)
    assert isinstance(decision, Update)
    return decision


def bound(*lines: str) -> Binding:
    (binding,) = accept(*lines).registration.bind
    return binding


def pushed(*lines: str) -> PushRecord:
    (record,) = accept(*lines).registration.push
    return record


# -- bindings --


def test_a_contact_becomes_a_binding_with_all_that_was_said() -> None:
    line = f'Contact: "A, B" <sip:101@192.0.2.1:5060;transport=tcp>;q=0.5;{INSTANCE};Expires=300'
    assert accept(line).registration.bind == (
        Binding(
            AOR,
            DEVICE,
            "sip:101@192.0.2.1:5060;transport=tcp",
            "sip:101@192.0.2.1:5060;transport=tcp",
            NOW + 300,
            "c1",
            7,
            FLOW,
            f";q=0.5;{INSTANCE}",
            (),
            "phone/1.0",
            NOW,
        ),
    )


def test_the_registration_carries_the_order_and_the_limit() -> None:
    registration = accept(CONTACT).registration
    assert (registration.aor, registration.call_id, registration.cseq) == (AOR, "c1", 7)
    assert (registration.now_epoch, registration.max_contacts) == (NOW, POLICY.max_contacts)


def test_no_contact_asks_for_the_bindings() -> None:
    assert decide() == Fetch()


def test_several_contacts_are_one_registration() -> None:
    update = accept(
        "m: <sip:101@192.0.2.1:5060>;expires=0, <sip:101@192.0.2.1:5062>;expires=90",
        "Contact: sip:101@192.0.2.1:5064;expires=120",
    )
    assert [(b.contact, b.expires_epoch - NOW) for b in update.registration.bind] == [
        ("sip:101@192.0.2.1:5062", 90),
        ("sip:101@192.0.2.1:5064", 120),
    ]
    assert update.registration.unbind == (
        ("contact:sip:101@192.0.2.1:5060", "sip:101@192.0.2.1:5060"),
    )


def test_of_two_contacts_of_one_device_the_first_counts() -> None:
    update = accept(f"Contact: <sip:a@192.0.2.1>;{INSTANCE}, <sip:b@192.0.2.1>;{INSTANCE}")
    assert [b.contact for b in update.registration.bind] == ["sip:a@192.0.2.1"]


@pytest.mark.parametrize(
    ("lines", "granted"),
    [
        ([CONTACT], 600),
        ([CONTACT, "Expires: 90"], 90),
        ([f"{CONTACT};expires=120", "Expires: 90"], 120),
        ([f"{CONTACT};expires=60"], 60),
        ([f"{CONTACT};expires=1801"], 1800),
        ([f"{CONTACT};expires=4294967296"], 1800),
        ([f"{CONTACT};expires={'9' * 5000}"], 1800),
        ([f"{CONTACT};expires=00000000000090"], 90),
        ([f"{CONTACT};expires=soon", "Expires: 90"], 600),
        ([CONTACT, "Expires: Thu, 01 Dec 2030 16:00:00 GMT"], 600),
        ([f"{CONTACT};expires=-1"], 600),
        ([f"{CONTACT};expires=٣"], 600),
    ],
)
def test_expiry_is_the_parameter_else_the_header_else_the_default(
    lines: list[str], granted: int
) -> None:
    assert bound(*lines).expires_epoch - NOW == granted


@pytest.mark.parametrize("lines", [[f"{CONTACT};expires=59"], [CONTACT, "Expires: 1"]])
def test_too_brief_an_interval_is_423_and_names_the_minimum(lines: list[str]) -> None:
    decision = decide(*lines)
    assert decision == Rejection(423, "Interval Too Brief", (("Min-Expires", "60"),))
    assert isinstance(decision, Rejection)
    response = rejection_response(request(), decision, "t")
    assert response.start_line == "SIP/2.0 423 Interval Too Brief"
    assert response.headers.get("min-expires") == "60"


def test_one_contact_that_is_too_brief_refuses_them_all() -> None:
    assert isinstance(decide(CONTACT, "Contact: <sip:101@h>;expires=5"), Rejection)


def test_contact_star_with_expires_0_removes_all_bindings() -> None:
    registration = accept("Contact: *", "Expires: 0").registration
    assert (registration.unbind_all, registration.bind, registration.push_off) == (True, (), ())


@pytest.mark.parametrize(
    "lines",
    [
        ["Contact: *"],
        ["Contact: *", "Expires: 60"],
        ["Contact: *", CONTACT, "Expires: 0"],
        ["Contact: *, *", "Expires: 0"],
        ["Contact: *;expires=0"],
        ["Contact: <sip:101@>"],
        ["Contact: nonsense"],
        ["Contact: <tel:+4930123>"],
        ["Contact: <tel:+4930123>", PUSH],
        ["Contact: <mailto:x@example.com>", PUSH],
        ["Contact: <sip:101@host:99999>", PUSH],
        ["Contact: <sip:101@host:99999>;expires=0", PUSH],
        [CONTACT, "Path: <sip:edge.example"],
    ],
)
def test_a_contact_that_makes_no_sense_is_400(lines: list[str]) -> None:
    decision = decide("Supported: path, outbound", *lines)
    assert isinstance(decision, Rejection)
    assert decision.status == 400


# -- devices --


@pytest.mark.parametrize(
    ("lines", "device"),
    [
        ([f"{CONTACT};{INSTANCE}"], DEVICE),
        ([f"{CONTACT};{INSTANCE}", PUSH], DEVICE),
        ([f"{CONTACT};{INSTANCE};reg-id=1", "Supported: outbound"], f"{DEVICE};1"),
        ([f"{CONTACT};{INSTANCE};reg-id=1"], DEVICE),
        ([f"{CONTACT};{INSTANCE};reg-id=x", "Supported: outbound"], DEVICE),
        ([f"{CONTACT};reg-id=1", "Supported: outbound"], "contact:sip:101@192.0.2.1:5060"),
        ([CONTACT, PUSH], "token:aa11"),
        ([CONTACT, PUSH.replace("aa11|", "|")], "token:bb22"),
        ([CONTACT, "x-p-push: device-os=android"], "contact:sip:101@192.0.2.1:5060"),
        ([CONTACT, "X-Push: nonsense"], "contact:sip:101@192.0.2.1:5060"),
        ([CONTACT], "contact:sip:101@192.0.2.1:5060"),
    ],
)
def test_a_device_is_its_instance_else_its_token_else_its_contact(
    lines: list[str], device: str
) -> None:
    assert bound(*lines).device == device


def test_a_refresh_without_the_token_is_still_the_same_device() -> None:
    first = accept(CONTACT, PUSH).registration
    refresh = register(
        request(CONTACT), AOR, FLOW, POLICY, NOW, key=KEY, location=Location(first.bind, first.push)
    )
    assert isinstance(refresh, Update)
    assert [binding.device for binding in refresh.registration.bind] == ["token:aa11"]


@pytest.mark.parametrize("uid", ["", "|", '""', " "])
def test_an_empty_token_is_that_of_the_device_that_had_one(uid: str) -> None:
    lines = [CONTACT, f"X-Push: device-os=ios;device-uid={uid};app-id={APP}"]
    assert wants_location(request(*lines))
    first = accept(CONTACT, PUSH).registration
    again = register(
        request(*lines), AOR, FLOW, POLICY, NOW, key=KEY, location=Location(first.bind, first.push)
    )
    assert isinstance(again, Update)
    assert [binding.device for binding in again.registration.bind] == ["token:aa11"]
    assert (again.registration.push, again.registration.push_off) == ((), ())


@pytest.mark.parametrize(
    ("goodbye", "flow", "call_id"),
    [
        ([f"{CONTACT};expires=0"], "tcp/a/198.51.100.7:1/1", "c9"),
        (["Contact: <sip:101@192.0.2.1:4000>;expires=0"], FLOW, "c9"),
        (["Contact: <sip:101@192.0.2.1:4000>;expires=0"], "tcp/a/198.51.100.7:1/1", "c1"),
        (["Contact: *", "Expires: 0"], FLOW, "c9"),
        (["Contact: *", "Expires: 0"], "tcp/a/198.51.100.7:1/1", "c1"),
        ([CONTACT], FLOW, "c9"),
        (["Contact: <sip:101@192.0.2.1:4000>"], FLOW, "c9"),
    ],
    ids=["contact", "flow", "Call-ID", "all by flow", "all by Call-ID", "stays", "stays, moved"],
)
def test_push_ends_without_a_token_for_who_has_this_contact_flow_or_call_id(
    goodbye: list[str], flow: str, call_id: str
) -> None:
    off = "X-Push: device-os=ios;device-uid=;allow-call-push=false;allow-message-push=false"
    first = accept(CONTACT, PUSH).registration
    key = "sip:101@192.0.2.99"
    other = Binding(AOR, "token:other", key, key, NOW + 60, "c0", 1, "udp/a/192.0.2.99:1")
    ends = register(
        request(*goodbye, off, call_id=call_id),
        AOR,
        flow,
        POLICY,
        NOW,
        key=KEY,
        location=Location((other, *first.bind), first.push),
    )
    assert isinstance(ends, Update)
    assert ends.registration.push_off == (("token:aa11", ""),)


def test_push_ends_for_nobody_when_nobody_is_meant() -> None:
    off = "X-Push: device-uid=;allow-call-push=false;allow-message-push=false"
    assert accept("Contact: *", "Expires: 0", off).registration.push_off == (("", ""),)
    instance = accept(f"{CONTACT};{INSTANCE};expires=0", off).registration
    assert instance.push_off == ((DEVICE, ""),)


@pytest.mark.parametrize("by", ["flow", "call_id", "host"])
def test_of_two_phones_with_one_private_address_the_nearer_one_refreshes(by: str) -> None:
    other_host = "udp/192.0.2.9:5060/198.51.100.7:5060"
    near = {
        "flow": {"flow": FLOW},
        "call_id": {"call_id": "c1"},
        "host": {"flow": FLOW.replace("1:5060", "1:4000")},
    }[by]
    key = "sip:101@192.0.2.1:5060"
    other = Binding(AOR, "token:other", key, key, NOW + 60, "c0", 1, other_host)
    mine = replace(replace(other, device="token:mine"), **near)
    for bindings in ((other, mine), (mine, other)):
        refresh = register(
            request(CONTACT), AOR, FLOW, POLICY, NOW, key=KEY, location=Location(bindings)
        )
        assert isinstance(refresh, Update)
        assert [binding.device for binding in refresh.registration.bind] == ["token:mine"]


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ([CONTACT], True),
        ([CONTACT, "x-p-push: device-os=android"], True),
        (["Contact: *", "Expires: 0", PUSH], True),
        ([CONTACT, PUSH], False),
        ([f"{CONTACT};{INSTANCE}"], False),
        (["m: <sip:101@h;PN-PRID=x>"], False),
        ([CONTACT, "X-Push: device-os=android;device-uid=;app-id=x"], True),
        ([CONTACT, "X-Push: device-os=ios;device-uid=|;app-id=x"], True),
        ([CONTACT, "X-Push: device-os=ios;device-uid=|bb22;app-id=x"], False),
        ([CONTACT, 'X-Push: device-os=ios;app-id=x;device-uid=""'], True),
        ([CONTACT, "X-Push: device-uid=", "X-Push: device-os=ios"], True),
        ([f'{CONTACT};+sip.instance="<>"'], True),
        ([f"{CONTACT};+sip.instance"], True),
        (["m: <sip:101@h;pn-provider=fcm;pn-prid=>"], True),
        ([CONTACT, "X-Push: Device-UID=x"], False),
        ([CONTACT, f"m: <sip:102@h>;{INSTANCE}"], False),
        ([PUSH], False),
        ([], True),
    ],
)
def test_the_store_is_asked_only_when_the_phone_does_not_say_which_it_is(
    lines: list[str], wanted: bool
) -> None:
    assert wants_location(request(*lines)) is wanted


def test_outbound_is_granted_on_a_direct_flow_and_behind_an_edge_that_knows_it() -> None:
    contact, supported = f"{CONTACT};{INSTANCE};reg-id=1", "Supported: path, outbound"
    granted = ("Require", "outbound")
    assert granted in accept(contact, supported).headers
    edge = "Path: <sip:inner.example;lr>, <sip:edge.example;lr;ob>"
    assert granted in accept(contact, supported, edge).headers
    plain = "Path: <sip:edge.example;lr>"
    assert granted not in accept(contact, supported, plain).headers
    timer = ("Flow-Timer", "30")
    assert timer in accept(contact, supported).headers
    assert timer not in accept(contact, supported, edge).headers
    hop = "Via: SIP/2.0/UDP 192.0.2.7;branch=z9hG4bK0"
    assert granted not in accept(contact, supported, hop).headers


def test_a_flow_takes_one_contact() -> None:
    flow, other = f"<sip:101@a>;{INSTANCE};reg-id=1", "<sip:101@b>"
    decision = decide(f"Contact: {flow}, {other}", "Supported: outbound")
    assert decision == Rejection(400, "One Flow Takes One Contact")
    assert isinstance(decide(f"Contact: {flow}, {other};expires=0", "Supported: outbound"), Update)
    assert isinstance(decide(f"Contact: {flow}, {other}"), Update)


def test_a_connection_needs_fewer_keep_alives_than_udp() -> None:
    asked = request(f"{CONTACT};{INSTANCE};reg-id=1", "Supported: outbound")
    flow = "tls/192.0.2.9:5061/192.0.2.1:4000/x-1"
    update = register(asked, AOR, flow, POLICY, NOW, key=KEY)
    assert isinstance(update, Update)
    assert ("Flow-Timer", "120") in update.headers


# -- what phones write --


@pytest.mark.parametrize(
    ("line", "uri"),
    [
        ('m: "Doe, J; \\"x\\" <home>" <sip:101@192.0.2.1>;q=0.1', "sip:101@192.0.2.1"),
        ("Contact: Jane Doe <sip:101@192.0.2.1:5060>", "sip:101@192.0.2.1:5060"),
        ("Contact: <sip:1%30%31@192.0.2.1;a=b%3Bc>", "sip:1%30%31@192.0.2.1;a=b%3Bc"),
        ("Contact:\r\n <sip:101@192.0.2.1>\r\n\t;expires=90", "sip:101@192.0.2.1"),
        (
            "Contact: <sip:101@[2001:db8::1]:5060;transport=tcp>",
            "sip:101@[2001:db8::1]:5060;transport=tcp",
        ),
        (f"Contact: <sip:101@h;x={'y' * 3000}>", f"sip:101@h;x={'y' * 3000}"),
        ("contact : sip:101@192.0.2.1;expires=90", "sip:101@192.0.2.1"),
    ],
)
def test_every_way_to_write_a_contact_is_kept_as_written(line: str, uri: str) -> None:
    assert bound(line).contact == uri


@pytest.mark.parametrize(
    "uri",
    [
        "sip:101@192.0.2.1",
        "sip:101@EXAMPLE.com:05060",
        "sip:1%30%31@192.0.2.1:5062",
        "sip:101:secret@192.0.2.1?subject=x",
        "sips:192.0.2.1",
        "sip:101@192.0.2.1;transport=TCP;pn-type=x",
        "SIP:101@[2001:db8::1]:5060",
    ],
)
def test_a_binding_has_the_key_of_its_contact(uri: str) -> None:
    assert bound(f"Contact: <{uri}>").contact_key == contact_key(uri)
    assert bound(f"Contact: <{uri}>", PUSH).contact_key == contact_key(uri)


def test_commas_in_quotes_and_brackets_do_not_split_contacts() -> None:
    line = 'Contact: "A, B" <sip:a,b@192.0.2.1>, "C, D" <sip:c@192.0.2.1>'
    assert [b.contact for b in accept(line).registration.bind] == [
        "sip:a,b@192.0.2.1",
        "sip:c@192.0.2.1",
    ]


def test_a_token_of_4_kilobytes_is_not_cut() -> None:
    token = "t:-_" * 1024
    record = pushed(f"Contact: <sip:101@h;pn-provider=fcm;pn-prid={token};pn-param=my-project-1>")
    assert record.call_token == token


# -- extensions --


def test_path_of_a_peer_is_stored_always_and_echoed_to_those_who_know_it() -> None:
    paths = ["Path: <sip:p1.example;lr>", "Path: <sip:p2.example;lr>"]
    both = ("<sip:p1.example;lr>", "<sip:p2.example;lr>")
    knows, does_not = accept(CONTACT, *paths, "k: path"), accept(CONTACT, *paths)
    assert knows.registration.bind[0].path == does_not.registration.bind[0].path == both
    assert knows.headers == (("Path", ", ".join(both)),)
    assert does_not.headers == ()


def test_the_path_of_who_is_no_peer_leads_nowhere_and_the_phone_is_told() -> None:
    path = "<sip:127.0.0.1:6379;transport=tcp;lr>"
    update = accept(CONTACT, f"Path: {path}", "Supported: path", from_peer=False)
    (binding,) = update.registration.bind
    assert (binding.path, binding.flow) == ((), FLOW)
    warning = '399 example.com "Path ignored: 192.0.2.1 is not a trusted peer"'
    assert update.headers == (("Warning", warning),)
    assert (update.ignored_path, update.push_fault) == (path, "")
    nonsense = accept(CONTACT, "Path: <sip:edge.example", from_peer=False)
    assert nonsense.registration.bind[0].path == ()
    assert accept(CONTACT, "Path: ", from_peer=False).headers == ()
    unusable = accept(CONTACT, f"Path: {path}", "X-Push: nonsense", from_peer=False)
    assert [name for name, _ in unusable.headers] == ["Warning", "Warning"]


TCP = "tcp/192.0.2.9:5060/192.0.2.1:41234/1-1"
V6 = "udp/[2001:db8::9]:5060/[2001:db8::1]:5061"


@pytest.mark.parametrize(
    ("flow", "path", "counts"),
    [
        (FLOW, "<sip:192.0.2.1;lr>", True),
        (FLOW, "<sip:192.0.2.1:5060;lr;ob>, <sip:inner.example;lr>", True),
        (FLOW, "<sip:token@192.0.2.1:5060;lr;received=sip:10.0.0.7:4711>", True),
        (FLOW, "<sip:192.0.2.1:5061;lr>", False),
        (FLOW, "<sip:192.0.2.1;transport=tls;lr>", False),
        (FLOW, "<sip:192.0.2.2;lr>", False),
        (FLOW, "<sip:edge.example;lr>", False),
        (FLOW, "<sip:inner.example;lr>, <sip:192.0.2.1;lr>", False),
        (TCP, "<sip:192.0.2.1;transport=tcp;lr>", True),
        (TCP, "<sip:192.0.2.1:6379;transport=tcp;lr>", True),
        (TCP, "<sip:192.0.2.2:41234;transport=tcp;lr>", False),
        (TCP.replace("tcp", "tls"), "<sips:192.0.2.1;lr>", True),
        (V6, "<sip:[2001:DB8:0::1];transport=tls;lr>", True),
        (V6, "<sip:[2001:db8::1];lr>", False),
    ],
)
def test_the_path_of_who_is_no_peer_counts_where_the_register_came_from(
    flow: str, path: str, counts: bool
) -> None:
    """And leads over its flow alone, in whatever way other nodes get there."""
    told = request(CONTACT, f"Path: {path}", "Supported: path")
    for node in ("", "sip:192.0.2.31"):
        update = register(told, AOR, flow, replace(POLICY, node=node), NOW, key=KEY)
        assert isinstance(update, Update)
        (binding,) = update.registration.bind
        assert way_to(binding, node) == (flow, tuple(path.split(", ")) if counts else ())
        if node:
            assert binding.path[0].endswith("@192.0.2.31;lr;node>")
        assert [name for name, _ in update.headers] == ["Path" if counts else "Warning"]
        assert update.ignored_path == ("" if counts else path)


def test_a_path_of_who_is_no_peer_that_counts_has_to_be_read_too() -> None:
    decision = decide(CONTACT, "Path: <sip:192.0.2.1;lr>, <sip:edge", from_peer=False)
    assert decision == Rejection(400, "Malformed Address in Path")


def test_without_its_path_a_phone_has_the_flow_it_came_over() -> None:
    contact, supported = f"{CONTACT};{INSTANCE};reg-id=1", "Supported: path, outbound"
    edge = "Path: <sip:edge.example;lr;ob>"
    on_a_direct_flow = accept(contact, supported, edge, from_peer=False)
    assert ("Require", "outbound") in on_a_direct_flow.headers
    assert ("Flow-Timer", "30") in on_a_direct_flow.headers
    policy = replace(POLICY, node="sip:192.0.2.31")
    by_node = register(request(CONTACT, edge), AOR, FLOW, policy, NOW, key=KEY)
    assert isinstance(by_node, Update)
    (path,) = by_node.registration.bind[0].path
    assert path.endswith("@192.0.2.31;lr;node>")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("<sip:edge.example", "Malformed Address in Path"),
        ("<sip:edge.example;lr>, <sip:edge:99999>", "Port Out of Range in URI in Path"),
        ("<http://edge.example>", "Unsupported URI Scheme http in Path"),
    ],
)
def test_a_path_of_a_peer_that_cannot_be_read_is_400(path: str, reason: str) -> None:
    assert decide(CONTACT, f"Path: {path}") == Rejection(400, reason)


def test_a_required_extension_we_lack_is_420_and_named() -> None:
    decision = decide(CONTACT, "Require: path, gruu", "Require: pref")
    assert decision == Rejection(420, "Bad Extension", (("Unsupported", "gruu, pref"),))


# -- push --


def test_a_push_header_becomes_the_push_record_of_the_device() -> None:
    line = f"{PUSH};allow-call-push=true;allow-message-push=False;build=9"
    update = accept(f"{CONTACT};{INSTANCE}", line)
    assert update.registration.push == (
        PushRecord(
            AOR,
            DEVICE,
            Platform.APNS,
            APP,
            "aa11",
            "bb22",
            True,
            False,
            "X-Push",
            {"build": "9"},
            NOW,
            NOW + POLICY.push_record_lifetime,
        ),
    )
    assert update.push_fault == ""


def test_the_200_echoes_each_push_header_name_without_the_token() -> None:
    lines = [f"portsip-push: device-os=android;device-uid=tok99;app-id={APP}"]
    lines.append(lines[0].replace("portsip-push", "x-p-push"))
    update = accept(CONTACT, *lines)
    assert [name for name, _ in update.headers] == ["portsip-push", "x-p-push"]
    assert "tok99" not in repr(update.headers)
    assert len(update.registration.push) == 1


def test_a_push_record_with_nothing_extra_keeps_nothing_for_it() -> None:
    decision = decide(CONTACT, PUSH)
    assert isinstance(decision, Update)
    assert decision.registration.push[0].extra is NO_EXTRA


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("X-Push: nonsense", "X-Push: device-os is missing"),
        (PUSH.replace(APP, "com.other"), "unknown app-id com.other"),
        (PUSH.replace(APP, APP.upper()), f"unknown app-id {APP.upper()}"),
        (
            "X-Push: device-os=android;device-uid=a;app-id=com.example.apple",
            "no push service for this platform in app-id com.example.apple",
        ),
        ('X-Push: device-os=ios;device-uid=a;app-id="a\\"b"', 'unknown app-id a"b'),
    ],
)
def test_a_push_header_that_cannot_be_used_costs_a_warning_not_the_registration(
    line: str, text: str
) -> None:
    update = accept(CONTACT, line)
    escaped = text.replace('"', '\\"')
    assert len(update.registration.bind) == 1
    assert (update.registration.push, update.registration.push_off) == ((), ())
    assert update.push_fault == text
    assert update.headers == (("Warning", f'399 example.com "{escaped}"'),)


@pytest.mark.parametrize(
    ("line", "platform"),
    [
        ("X-Push: device-os=ios;device-uid=a;app-id=com.example.hooked", Platform.WEBHOOK),
        ("X-Push: device-os=harmony;device-uid=a;app-id=com.example.hooked", Platform.WEBHOOK),
        (f"X-Push: device-os=android;device-uid=a;app-id={APP}", Platform.FCM),
    ],
)
def test_a_device_goes_to_the_service_of_its_platform_else_to_the_webhook(
    line: str, platform: Platform
) -> None:
    assert pushed(CONTACT, line).platform is platform


@pytest.mark.parametrize(
    "line", ["x-p-push: device-os=android", f"X-Push: device-os=ios;device-uid=|;app-id={APP}"]
)
def test_without_a_token_a_phone_is_registered_and_nothing_is_promised(line: str) -> None:
    update = accept(CONTACT, line)
    assert len(update.registration.bind) == 1
    assert (update.registration.push, update.headers, update.push_fault) == ((), (), "")


@pytest.mark.parametrize("expires", ["", ";expires=0"])
def test_both_consents_withdrawn_turn_push_off(expires: str) -> None:
    update = accept(f"{CONTACT};{INSTANCE}{expires}", OFF)
    assert update.registration.push_off == ((DEVICE, "aa11"),)
    assert (update.registration.push, update.headers) == ((), ())


def test_push_is_turned_off_for_an_app_we_no_longer_know() -> None:
    update = accept(CONTACT, OFF.replace(APP, "com.gone"))
    assert update.registration.push_off == (("token:aa11", "aa11"),)
    assert update.push_fault == ""


def test_an_unregister_with_consents_keeps_the_push_record_fresh() -> None:
    update = accept(f"{CONTACT};{INSTANCE};expires=0", PUSH)
    assert update.registration.unbind == ((DEVICE, "sip:101@192.0.2.1:5060"),)
    assert [record.device for record in update.registration.push] == [DEVICE]
    assert [name for name, _ in update.headers] == ["X-Push"]


def test_an_unregister_without_a_push_header_leaves_the_push_record_alone() -> None:
    registration = accept(f"{CONTACT};{INSTANCE};expires=0").registration
    assert (registration.push, registration.push_off) == ((), ())


def test_contact_star_with_consents_refreshes_the_device_that_has_the_token() -> None:
    record = pushed(f"{CONTACT};{INSTANCE}", PUSH)
    star = request("Contact: *", "Expires: 0", PUSH)
    known = Location(push_records=(record,))
    update = register(star, AOR, FLOW, POLICY, NOW + 5, key=KEY, location=known)
    assert isinstance(update, Update)
    assert update.registration.unbind_all
    assert update.registration.push == (
        replace(record, updated_epoch=NOW + 5, expires_epoch=NOW + 5 + POLICY.push_record_lifetime),
    )


def test_contact_star_with_consents_and_nothing_known_is_kept_by_token() -> None:
    assert pushed("Contact: *", "Expires: 0", PUSH).device == "token:aa11"


def test_contact_star_without_consents_turns_push_off() -> None:
    registration = accept("Contact: *", "Expires: 0", OFF).registration
    assert registration.push_off == (("token:aa11", "aa11"),)


def test_the_push_header_belongs_to_the_contact_that_stays() -> None:
    update = accept("Contact: <sip:101@old>;expires=0, <sip:101@new>", PUSH)
    assert [r.device for r in update.registration.push] == ["token:aa11"]
    assert update.registration.bind[0].device == "token:aa11"
    assert update.registration.unbind == (("contact:sip:101@old", "sip:101@old"),)


# -- RFC 8599 --

PN = "pn-provider=apns;pn-prid=aa11;pn-param=TEAM123456.com.example.app.voip"


def test_rfc8599_parameters_are_a_push_record_and_feature_caps_say_so() -> None:
    update = accept(f"Contact: <sip:101@192.0.2.1:5060;{PN}>;{INSTANCE}")
    (record,) = update.registration.push
    assert (record.platform, record.app_id, record.call_token) == (Platform.APNS, APP, "aa11")
    assert (record.dialect, record.device) == ("rfc8599", DEVICE)
    assert update.headers == (("Feature-Caps", '*;+sip.pns="apns"'),)


def test_two_contacts_with_rfc8599_are_two_devices() -> None:
    fcm = "pn-provider=fcm;pn-prid=cc33;pn-param=my-project-1"
    update = accept(f"Contact: <sip:101@a;{PN}>, <sip:101@b;{fcm}>")
    assert [r.device for r in update.registration.push] == ["token:aa11", "token:cc33"]
    assert [b.device for b in update.registration.bind] == ["token:aa11", "token:cc33"]
    reference = purr(AOR, "token:cc33", KEY, NOW)
    assert update.headers == (
        ("Feature-Caps", '*;+sip.pns="apns"'),
        ("Feature-Caps", f'*;+sip.pns="fcm";+sip.pnspurr="{reference}"'),
    )


def test_a_push_header_counts_before_rfc8599_parameters() -> None:
    record = pushed(f"Contact: <sip:101@192.0.2.1:5060;{PN}>", PUSH)
    assert (record.dialect, record.message_token) == ("X-Push", "bb22")


def test_when_a_proxy_before_us_pushes_we_stay_out() -> None:
    contact = f"Contact: <sip:101@192.0.2.1:5060;{PN}>"
    update = accept(contact, 'Feature-Caps: *;+sip.pns="apns"')
    assert (update.registration.push, update.headers) == ((), ())
    other = accept(contact, 'Feature-Caps: *;+sip.pns="fcm"')
    assert len(other.registration.push) == 1


@pytest.mark.parametrize(
    ("params", "caps"),
    [
        ("pn-provider=apns", ["apns"]),
        ("pn-provider=fcm", ["fcm"]),
        ("pn-provider", ["apns", "fcm"]),
        ("pn-provider=FCM", ["FCM"]),
        ("pn-provider=apns.dev", ["apns.dev"]),
    ],
)
def test_a_provider_without_prid_asks_what_is_supported(params: str, caps: list[str]) -> None:
    update = accept(f"Contact: <sip:101@192.0.2.1:5060;{params}>")
    assert update.registration.push == ()
    assert update.headers == tuple(("Feature-Caps", f'*;+sip.pns="{c}"') for c in caps)


@pytest.mark.parametrize(
    "params",
    [
        "pn-provider=webpush",
        "pn-provider=webpush;pn-prid=https:%2F%2Fpush.example",
        "pn-provider=acme;pn-prid=x;pn-param=y",
        "pn-provider=apns%0D%0AX:",
        "pn-provider=apns.%0D%0AX:",
    ],
)
def test_a_service_that_nobody_on_the_path_can_push_by_is_555(params: str) -> None:
    decision = decide(f"Contact: <sip:101@192.0.2.1:5060;{params}>;{INSTANCE}")
    assert decision == Rejection(555, "Push Notification Service Not Supported")


def test_a_service_of_no_app_of_ours_is_555() -> None:
    policy = replace(POLICY, apps={APP: frozenset({Platform.APNS})})
    asked = request("Contact: <sip:101@h;pn-provider=fcm;pn-prid=x;pn-param=y>")
    decision = register(asked, AOR, FLOW, policy, NOW, key=KEY)
    assert decision == Rejection(555, "Push Notification Service Not Supported")


def test_who_asks_is_registered_when_another_on_the_path_pushes_by_any_service() -> None:
    others = 'Feature-Caps: *;+sip.pns="acme"'
    assert isinstance(decide("Contact: <sip:101@h;pn-provider=webpush>", others), Update)
    wants = decide("Contact: <sip:101@h;pn-provider=webpush;pn-prid=x>", others)
    assert isinstance(wants, Rejection)
    assert wants.status == 555


@pytest.mark.parametrize(
    "lines",
    [
        ['Feature-Caps: *;+sip.pns="webpush"'],
        ["X-Push: device-os=android;device-uid=a;app-id=com.example.app"],
        ["Expires: 0"],
    ],
)
def test_no_555_where_another_pushes_or_nobody_is_to_be_pushed(lines: list[str]) -> None:
    contact = "Contact: <sip:101@h;pn-provider=webpush;pn-prid=https:%2F%2Fpush.example>"
    assert isinstance(decide(contact, *lines), Update)


def test_a_registrar_without_apps_takes_every_phone() -> None:
    asked = request(f"Contact: <sip:101@h;{PN}>")
    policy = replace(POLICY, apps={})
    assert isinstance(register(asked, AOR, FLOW, policy, NOW, key=KEY), Update)


def test_an_unknown_app_of_a_known_service_costs_a_warning_not_the_registration() -> None:
    update = accept("Contact: <sip:101@h;pn-provider=fcm;pn-prid=x;pn-param=other-project>")
    assert update.headers == (("Warning", '399 example.com "unknown app-id other-project"'),)


FCM = "pn-provider=fcm;pn-prid=cc33;pn-param=my-project-1"


def caps(*lines: str) -> str:
    (value,) = [value for name, value in accept(*lines).headers if name == "Feature-Caps"]
    return value


@pytest.mark.parametrize(
    ("params", "expires", "asked", "promised"),
    [
        (FCM, 600, True, True),
        (FCM, 360, True, True),
        (FCM, 600, False, False),
        (PN, 600, True, True),
    ],
)
def test_a_phone_that_can_refresh_by_itself_is_told_how_long_before_the_end(
    params: str, expires: int, asked: bool, promised: bool
) -> None:
    tag = ";+sip.pnsreg" if asked else ""
    value = caps(f"Contact: <sip:101@h;{params}>;{INSTANCE}{tag};expires={expires}")
    assert ('+sip.pnsreg="180"' in value) is promised


@pytest.mark.parametrize(
    ("params", "expires", "due"),
    [
        (FCM, 600, [(DEVICE, NOW + 450)]),
        (FCM, 0, []),
        (PN, 600, []),
    ],
)
def test_a_refresh_is_due_before_the_end_where_a_push_need_not_ring(
    params: str, expires: int, due: list[tuple[str, float]]
) -> None:
    update = accept(f"Contact: <sip:101@h;{params}>;{INSTANCE};expires={expires}")
    assert update.registration.refreshes == tuple(due)


def test_a_binding_too_short_to_be_refreshed_by_push_is_423_for_those_that_need_it() -> None:
    short = f"Contact: <sip:101@h;{FCM}>;{INSTANCE};expires=359"
    assert decide(short) == Rejection(423, "Interval Too Brief", (("Min-Expires", "360"),))
    for other in (f"<sip:101@h;{PN}>;expires=60", "<sip:101@h>;expires=60"):
        assert isinstance(decide(f"Contact: {other}"), Update)


def test_no_longer_binding_is_asked_for_than_the_operator_grants() -> None:
    policy = replace(POLICY, max_expires=300)
    asked = request(f"Contact: <sip:101@h;{FCM}>;{INSTANCE};expires=359")
    decision = register(asked, AOR, FLOW, policy, NOW, key=KEY)
    assert isinstance(decision, Update)
    assert decision.registration.refreshes == ()
    brief = request(f"Contact: <sip:101@h;{FCM}>;{INSTANCE};expires=299")
    refused = register(brief, AOR, FLOW, policy, NOW, key=KEY)
    assert refused == Rejection(423, "Interval Too Brief", (("Min-Expires", "300"),))


WEB = "com.example.web"
VAPID = "BA1Hxzyi1RUM1b5wjxsn7nGxAszw2u61m164i3MrAIxHF6YK5h4SDYic-dRuU_RCPCfA5aq9ojSwk5Y2EmClBPs"
WITH_WEB = replace(
    POLICY,
    apps={**POLICY.apps, WEB: frozenset({Platform.WEBPUSH})},
    push_hosts={WEB: ("push.example",)},
    vapid_keys={WEB: VAPID},
)
ENDPOINT = "https://push.example/s/aa11"
KEYS = {
    "p256dh": "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNto"
    "IAiw4",
    "auth": "BTBZMqHH6r4Tts7J_aSIgg",
}
WEB_CAPS = ("Feature-Caps", f'*;+sip.pns="webpush";+sip.vapid="{VAPID}"')
PN_WEB = "pn-provider=webpush;pn-prid=https:%2F%2Fpush.example%2Fs%2Faa11"


def decide_web(*lines: str, policy: RegistrationPolicy = WITH_WEB) -> Update:
    decision = register(request(*lines), AOR, FLOW, policy, NOW, key=KEY)
    assert isinstance(decision, Update)
    return decision


def test_a_page_is_pushed_by_web_push() -> None:
    keys = ";".join(f"{name}={value}" for name, value in KEYS.items())
    header = f'X-Push: device-os=web;device-uid="{ENDPOINT}";{keys};app-id={WEB}'
    update = decide_web(f"{CONTACT};{INSTANCE}", header)
    (record,) = update.registration.push
    assert (record.platform, record.app_id, record.extra) == (Platform.WEBPUSH, WEB, KEYS)
    assert record.call_token == record.message_token == ENDPOINT
    assert record.hears_of_the_end
    assert update.headers == (
        ("X-Push", f"allow-call-push=true;allow-message-push=true;app-id={WEB}"),
    )


def test_a_page_of_an_app_with_a_webhook_only_goes_there_whatever_its_token() -> None:
    header = "X-Push: device-os=web;device-uid=aa11;app-id=com.example.hooked"
    assert pushed(CONTACT, header).platform is Platform.WEBHOOK


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ("device-uid=aa11", "the subscription's endpoint is not an https URL"),
        (
            'device-uid="https://127.0.0.1/s"',
            "the subscription's push service is not allowed here",
        ),
        (
            f'device-uid="{ENDPOINT}";auth=aa',
            "p256dh and auth are not the keys of a subscription",
        ),
    ],
)
def test_an_unusable_subscription_costs_a_warning_not_the_registration(
    params: str, text: str
) -> None:
    update = decide_web(CONTACT, f"X-Push: device-os=web;{params};app-id={WEB}")
    assert update.registration.push == ()
    assert len(update.registration.bind) == 1
    assert update.headers == (("Warning", f'399 example.com "{text}"'),)


def test_a_page_with_rfc8599_needs_no_keys_and_no_app_id_where_there_is_one_app() -> None:
    update = decide_web(f"Contact: <sip:101@h;transport=ws;{PN_WEB}>;{INSTANCE};expires=60")
    (record,) = update.registration.push
    assert (record.platform, record.app_id, record.call_token) == (Platform.WEBPUSH, WEB, ENDPOINT)
    assert not record.hears_of_the_end
    assert (update.headers, update.registration.refreshes) == ((WEB_CAPS,), ())


def test_of_several_apps_for_browsers_rfc8599_has_to_name_one() -> None:
    both = {WEB: ("push.example",), "com.example.other": ("push.example",)}
    policy = replace(WITH_WEB, apps=dict.fromkeys(both, WITH_WEB.apps[WEB]), push_hosts=both)
    unnamed = decide_web(f"Contact: <sip:101@h;{PN_WEB}>", policy=policy)
    assert unnamed.headers == (("Warning", '399 example.com "app-id is missing"'),)
    named = decide_web(f"Contact: <sip:101@h;app-id={WEB};{PN_WEB}>", policy=policy)
    assert named.headers == (WEB_CAPS,)


def test_a_page_that_asks_is_told_the_key_to_subscribe_with() -> None:
    assert decide_web("Contact: <sip:101@h;pn-provider=webpush>").headers == (WEB_CAPS,)
    assert decide_web("Contact: <sip:101@h;pn-provider>").headers == (
        ("Feature-Caps", '*;+sip.pns="apns"'),
        ("Feature-Caps", '*;+sip.pns="fcm"'),
        WEB_CAPS,
    )


def test_x_push_phones_refresh_by_themselves() -> None:
    line = f"X-Push: device-os=android;device-uid=a;app-id={APP}"
    assert accept(CONTACT, line).registration.refreshes == ()


def test_the_purr_is_the_same_on_every_flow_of_a_device() -> None:
    flows = [
        caps(f"Contact: <sip:101@{host};{FCM}>;{INSTANCE};reg-id={n}", "Supported: outbound")
        for n, host in enumerate("ab", 1)
    ]
    assert flows[0] == flows[1]
    assert flows[0] == f'*;+sip.pns="fcm";+sip.pnspurr="{purr(AOR, DEVICE, KEY, NOW)}"'


def test_a_phone_that_must_ring_for_every_push_gets_no_purr() -> None:
    assert caps(f"Contact: <sip:101@192.0.2.1:5060;{PN}>") == '*;+sip.pns="apns"'


def test_rfc8599_push_ends_with_the_binding() -> None:
    registration = accept(f"Contact: <sip:101@192.0.2.1:5060;{PN}>;expires=0").registration
    assert registration.unbind == (("token:aa11", "sip:101@192.0.2.1:5060"),)
    assert registration.push == registration.push_off == ()


@pytest.mark.parametrize(
    ("lines", "unpushed"),
    [
        ([f"Contact: <sip:101@h>;{INSTANCE}"], (DEVICE,)),
        ([f"Contact: <sip:101@h;pn-provider=apns>;{INSTANCE}"], (DEVICE,)),
        ([f"Contact: <sip:101@h;{PN}>;{INSTANCE}"], ()),
        ([f"Contact: <sip:101@h;pn-provider=fcm;pn-prid=x>;{INSTANCE}"], ()),
        ([f"Contact: <sip:101@h>;{INSTANCE}", PUSH], ()),
        ([f"Contact: <sip:101@h>;{INSTANCE};expires=0"], ()),
    ],
    ids=["nothing", "only asks", "pushed", "faulty", "X-Push", "unbound"],
)
def test_a_contact_without_push_ends_what_an_earlier_one_asked_for(
    lines: list[str], unpushed: tuple[str, ...]
) -> None:
    assert accept(*lines).registration.unpushed == unpushed


# -- answers --


def test_the_200_lists_every_binding_with_the_time_it_has_left() -> None:
    update = accept(f"{CONTACT};q=0.5;{INSTANCE};expires=90", "Supported: path")
    (mine,) = update.registration.bind
    other = replace(mine, device="contact:x", contact="sip:x@h", params="", expires_epoch=NOW + 7.2)
    response = ok_response(request(), update, Location((mine, other)), NOW, "t1")
    assert response.start_line == "SIP/2.0 200 OK"
    assert response.to.tag == "t1"
    assert response.headers.get_all("contact") == [
        f"<sip:101@192.0.2.1:5060>;q=0.5;{INSTANCE};expires=90",
        "<sip:x@h>;expires=8",
    ]
    assert response.headers.get("supported") == "path, outbound"
    assert response.headers.get("service-route") is None
    assert response.headers.get("date") == "Fri, 15 Jan 2027 08:00:00 GMT"


def test_a_200_carries_the_headers_of_the_decision() -> None:
    update = accept(CONTACT, PUSH)
    response = ok_response(request(), update, Location(update.registration.bind), NOW, "t")
    value = f"allow-call-push=true;allow-message-push=true;app-id={APP}"
    assert response.headers.get("x-push") == value


def test_tokens_of_the_users_other_devices_do_not_come_back() -> None:
    mine = accept(f"Contact: <sip:101@a;transport=tcp;{PN}>")
    others = [
        f"sip:101@b;{PN.replace('aa11', 'cc33')};transport=tcp?Subject=x",
        "sip:101@c;app-id=x;pn-type=apple;pn-tok=cc33",
    ]
    (binding,) = mine.registration.bind
    rest = [replace(binding, device="d", contact=uri) for uri in others]
    response = ok_response(request(), mine, Location((binding, *rest)), NOW, "t")
    assert response.headers.get_all("contact") == [
        f"<sip:101@a;transport=tcp;{PN}>;expires=600",
        "<sip:101@b;transport=tcp?Subject=x>;expires=600",
        "<sip:101@c>;expires=600",
    ]
    fetched = ok_response(request(), Fetch(), Location((binding,)), NOW, "t")
    assert fetched.headers.get("contact") == "<sip:101@a;transport=tcp>;expires=600"


@pytest.mark.parametrize(
    ("refusal", "start_line"),
    [
        (Refusal.OUT_OF_ORDER, "SIP/2.0 500 CSeq Not Above the Last of This Call-ID"),
        (Refusal.TOO_MANY_CONTACTS, "SIP/2.0 403 Too Many Contacts"),
    ],
)
def test_what_the_store_refuses_is_answered_with_its_reason(
    refusal: Refusal, start_line: str
) -> None:
    assert rejection_response(request(), refuse(refusal), "t").start_line == start_line
