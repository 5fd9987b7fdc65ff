"""What goes to a registrar elsewhere: every row of docs/edge.md, and what it does not say."""

from __future__ import annotations

from pathlib import Path

import pytest

from sipush.core.bindings import Binding, Location, Platform, PushRecord
from sipush.core.edge import (
    Here,
    asked,
    device_called,
    granted,
    is_called,
    leave_path,
    location_of,
    register_request,
    register_response,
    says_wrong_password,
    settle,
)
from sipush.core.location_update import apply
from sipush.core.outbound import RouteToken, device_digest
from sipush.core.registration import Fetch, RegistrationPolicy, Update, register
from sipush.core.rejection import Rejection
from sipush.core.target_set import Target
from sipush.sip.message import Request, Response, parse_head
from sipush.sip.push_params import RFC8599
from tests.core.test_registration import AOR, APP, FLOW, KEY, NOW, request
from tests.core.test_routing import invite

DOCUMENT = Path(__file__).parents[2] / "docs" / "edge.md"
HERE = Here("sip:192.0.2.5:5060;transport=tcp", "sip:192.0.2.5:5060;transport=tcp", KEY)
POLICY = RegistrationPolicy(
    push_record_lifetime=604_800,
    apps={
        APP: frozenset({Platform.APNS, Platform.FCM}),
        "com.example.hooked": frozenset({Platform.WEBHOOK}),
    },
)
DEVICE = "instance:urn:uuid:1"
CONTACT = '<sip:101@198.51.100.7:49152;transport=tcp>;+sip.instance="<urn:uuid:1>"'
PUSH = f"X-Push: device-os=android;device-uid=aa11;app-id={APP}"
OFF = "X-Push: allow-call-push=false;allow-message-push=false"
PN = f";pn-provider=fcm;pn-prid=aa11;pn-param={APP}"


def rows(first: str) -> list[list[str]]:
    """The body rows of the table of the document whose head begins so."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {first} |")) + 2
    end = next(n for n, line in enumerate(lines[start:], start) if not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:end]]


NOTHING = Location()
STORED = {
    "contact": Binding(
        *(AOR, DEVICE, "sip:101@198.51.100.7:1", "sip:101@198.51.100.7:1", NOW + 60, "old", 1, FLOW)
    ),
    "push record": PushRecord(
        AOR, DEVICE, Platform.FCM, APP, "aa11", "aa11", expires_epoch=NOW + 86_400
    ),
    "push record by `pn-` parameters": PushRecord(
        *(AOR, DEVICE, Platform.FCM, APP, "aa11", "aa11", True, True, RFC8599),
        expires_epoch=NOW + 86_400,
    ),
}


def stored(text: str) -> Location:
    """What the table says of what sipush has of the device."""
    rows = [STORED[name] for name in text.split(", ") if name != "-"]
    return Location(
        tuple(row for row in rows if isinstance(row, Binding)),
        tuple(row for row in rows if isinstance(row, PushRecord)),
    )


def registers(text: str) -> Request:
    """What the table says of a phone's REGISTER."""
    what, _, push = text.partition(",")
    if what == "asks for the contacts":
        return request()
    if what.startswith("all contacts"):
        return request("Contact: *", "Expires: 0")
    seconds, _, with_push = what.partition(" s")
    lines = [PUSH] if with_push else [OFF] if push else []
    return request(f"Contact: {CONTACT}", f"Expires: {seconds}", *lines)


def decided(asked_for: Request, before: Location) -> tuple[Fetch | Update, Location]:
    """What is decided, and what is stored afterwards."""
    decision = register(asked_for, AOR, FLOW, POLICY, NOW, key=KEY, location=before)
    if isinstance(decision, Fetch):
        return decision, before
    assert isinstance(decision, Update)
    after = apply(before, decision.registration)
    assert isinstance(after, Location)
    return decision, after


def passed_on(asked_for: Request, before: Location = NOTHING) -> Request:
    """The REGISTER as the registrar gets it."""
    decision, after = decided(asked_for, before)
    wanted = asked(decision, before, after) if isinstance(decision, Update) else {}
    return register_request(asked_for, AOR, decision, wanted, HERE)


def answer(*lines: str, status: str = "200 OK") -> Response:
    """What the registrar says."""
    head = [
        f"SIP/2.0 {status}",
        "Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1",
        "From: <sip:101@example.com>;tag=f",
        "To: <sip:101@example.com>;tag=pbx",
        "Call-ID: c1",
        "CSeq: 7 REGISTER",
        *lines,
        "Content-Length: 0",
    ]
    response = parse_head("\r\n".join(head).encode())
    assert isinstance(response, Response)
    return response


def test_the_tables_are_found() -> None:
    assert (len(rows("stored")), len(rows("push record"))) == (13, 10)


@pytest.mark.parametrize("row", rows("stored"), ids=" ".join)
def test_the_registrar_is_asked_for_what_the_table_says(row: list[str]) -> None:
    before, said, contact = row
    told = passed_on(registers(said), stored(before)).headers.values("contact")
    uri = HERE.contact_of(AOR, DEVICE)
    expected = {"none": [], "`*`": ["*"]}
    own = ';+sip.instance="<urn:uuid:1>"' if said.startswith("600") else ""
    assert told == expected.get(contact, [f"<{uri}>{own};expires={contact}"])


@pytest.mark.parametrize("row", rows("push record"), ids=" ".join)
def test_a_binding_lasts_and_is_refreshed_as_the_table_says(row: list[str]) -> None:
    service, seconds, grants, lasts, pushed_after = row
    header = {
        "none": [],
        "FCM": [PUSH],
        "webhook": ["X-Push: device-os=harmony;device-uid=aa11;app-id=com.example.hooked"],
        "APNs": [f"X-Push: device-os=ios;device-uid=aa11;app-id={APP}"],
    }
    contact = CONTACT
    if service.endswith("RFC 8599"):
        contact = CONTACT.replace(">", f"{PN}>", 1)
    asked_for = request(f"Contact: {contact}", f"Expires: {seconds}", *header.get(service, []))
    update, after = decided(asked_for, NOTHING)
    assert isinstance(update, Update)
    wanted = asked(update, NOTHING, after)
    uri = HERE.contact_of(AOR, DEVICE)
    said = answer(f"Contact: <{uri}>;expires={grants}")
    lost = settle(update, after, granted(said, AOR, wanted, HERE))
    registration = update.registration
    assert [b.expires_epoch - NOW for b in registration.bind] == [int(lasts)]
    due = [(DEVICE, NOW + int(pushed_after))] if pushed_after.isdigit() else []
    assert list(registration.refreshes) == due
    assert lost == ((DEVICE,) if pushed_after == "never: lost" else ())


def test_what_a_device_is_pushed_by_stays_here_and_all_else_is_passed_on() -> None:
    kept = [
        'Authorization: Digest username="101", realm="pbx", nonce="n", uri="sip:example.com"',
        "User-Agent: phone/1.0",
        "X-Custom:  as\tit came ",
    ]
    asked_for = request(
        *("Max-Forwards: 70", "Route: <sip:192.0.2.5;lr>", "Path: <sip:proxy.example;lr>"),
        f"Contact: {CONTACT.replace('>', PN + '>', 1)};reg-id=1;q=0.5;+sip.pnsreg",
        *("Supported: outbound", "Expires: 600", PUSH, *kept),
    )
    text = passed_on(asked_for).to_bytes().decode()
    for line in kept:
        assert f"\r\n{line}\r\n" in text
    for word in ("pn-", "X-Push", "aa11", "Route:", "proxy.example", "reg-id", "pnsreg", "198.51"):
        assert word not in text
    assert "Max-Forwards: 69\r\n" in text
    assert "Supported: outbound\r\n" in text
    assert "Supported: path\r\n" in text
    assert ";q=0.5;" in text


def test_the_contact_of_a_device_is_the_same_wherever_it_comes_from() -> None:
    moved = CONTACT.replace("198.51.100.7:49152", "203.0.113.9:1234")
    once, again = (
        passed_on(request(f"Contact: {contact};reg-id={flow}", "Supported: outbound"))
        for contact, flow in ((CONTACT, 1), (moved, 2))
    )
    assert once.headers.get("contact") == again.headers.get("contact")
    assert once.headers.get("path") == again.headers.get("path")


def test_a_contact_fits_into_what_a_pbx_stores() -> None:
    (contact,) = passed_on(request(f"Contact: {CONTACT.replace('>', PN + '>', 1)}")).headers.values(
        "contact"
    )
    assert len(contact) < 255


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        (["Contact: <{uri}>;expires=300"], 300),
        (["Contact: <sip:desk@192.0.2.7>;expires=60, <{uri}>;q=1;expires=300"], 300),
        (["Contact: <{uri}>", "Expires: 300"], 300),
        (["Expires: 300"], 300),
        (["Contact: <{uri}>;expires=9999"], 600),
        ([], 600),
        (["Contact: <{uri}>;expires=0"], 0),
    ],
)
def test_what_the_registrar_grants(lines: list[str], seconds: int) -> None:
    uri = HERE.contact_of(AOR, DEVICE)
    said = answer(*(line.format(uri=uri) for line in lines))
    assert granted(said, AOR, {DEVICE: 600}, HERE) == {DEVICE: seconds}


def test_the_phone_hears_what_the_registrar_said_with_its_own_contact_and_our_signs() -> None:
    asked_for = request(f"Contact: {CONTACT}", "Expires: 600", PUSH)
    decision, after = decided(asked_for, NOTHING)
    said = answer(
        f"Contact: <{HERE.contact_of(AOR, DEVICE)}>;expires=604800",
        "Contact: <sip:101@192.0.2.77:5060>;expires=1800",
        *("Expires: 604800", "Path: <sip:us;lr>", "Service-Route: <sip:192.0.2.10;lr>"),
        *("Server: PBX 1", "P-Associated-URI: <sip:101@example.com>", "Date: then"),
    )
    response = register_response(asked_for, said, decision, after, NOW)
    headers = response.headers
    assert (response.status, response.to.tag) == (200, "pbx")
    assert headers.values("contact") == [
        f"{CONTACT};expires=600",
        "<sip:101@192.0.2.77:5060>;expires=1800",
    ]
    assert headers.get("x-push") == f"allow-call-push=true;allow-message-push=true;app-id={APP}"
    assert (headers.get("server"), headers.get_all("date")) == ("PBX 1", ["then"])
    assert headers.get("p-associated-uri") == "<sip:101@example.com>"
    for name in ("expires", "path", "service-route"):
        assert name not in headers


@pytest.mark.parametrize(
    ("status", "lines", "credentials", "wrong"),
    [
        ("401 Unauthorized", ['WWW-Authenticate: Digest realm="p", nonce="n"'], True, True),
        ("401 Unauthorized", ['WWW-Authenticate: Digest nonce="n", stale=TRUE'], True, False),
        ("407 Proxy Auth", ['Proxy-Authenticate: Digest nonce="n", stale="true"'], True, False),
        ("407 Proxy Auth", ['Proxy-Authenticate: Digest nonce="n", stale=false'], True, True),
        ("401 Unauthorized", ['WWW-Authenticate: Digest realm="p", nonce="n"'], False, False),
        ("403 Forbidden", [], True, True),
        ("404 Not Found", [], True, True),
        ("403 Forbidden", [], False, False),
        ("423 Interval Too Brief", [], True, False),
        ("200 OK", [], True, False),
    ],
)
def test_which_answers_say_that_a_password_was_wrong(
    status: str, lines: list[str], credentials: bool, wrong: bool
) -> None:
    signed = ["Authorization: Digest x"] if credentials else []
    assert says_wrong_password(request(*signed), answer(*lines, status=status)) == wrong


def test_a_call_that_is_refused_is_no_guess() -> None:
    call = invite("sip:0900@example.com", "Authorization: Digest x")
    assert not says_wrong_password(call, answer(status="403 Forbidden"))
    assert says_wrong_password(call, answer(status="401 Unauthorized"))


TOKEN = RouteToken("", AOR, device_digest(DEVICE))


@pytest.mark.parametrize(
    ("uri", "route"),
    [
        (HERE.contact_of(AOR, DEVICE), ""),
        (f"{HERE.contact_of(AOR, DEVICE)};x-ast-orig-host=192.0.2.5", HERE.path_of(AOR, DEVICE)),
        ("sip:101@192.0.2.5:40000", HERE.path_of(AOR, DEVICE)),
        (HERE.contact_of(AOR, DEVICE), HERE.path_of(AOR, "")),
    ],
    ids=["no Path", "both", "another contact", "a Path for several"],
)
def test_the_registrar_names_the_device_it_calls(uri: str, route: str) -> None:
    request = invite(uri, *([f"Route: {route}"] if route else []))
    assert device_called(request, KEY) == TOKEN


def test_nobody_makes_a_device_up() -> None:
    made_up = HERE.contact_of(AOR, DEVICE)
    foreign = Here(HERE.contact, HERE.path, b"x" * 32)
    for uri in (f"{made_up}A", foreign.contact_of(AOR, DEVICE), "sip:101@192.0.2.5;device=x"):
        called = device_called(invite(uri), KEY)
        assert isinstance(called, Rejection)
        assert called.status == 404
    assert device_called(invite("sip:101@h", f"Route: {foreign.path_of(AOR, DEVICE)}"), KEY) is None


def test_a_path_that_comes_again_inside_a_dialog_is_left_out_of_its_route_set() -> None:
    routes = ["<sip:abc@192.0.2.5;lr>", "<sip:proxy.example;lr>"]
    path = HERE.path_of(AOR, DEVICE)
    request = invite("sip:101@h", *(f"Route: {each}" for each in (*routes, path)), to_tag=";tag=2")
    leave_path(request, KEY)
    assert request.headers.values("route") == routes
    leave_path(request, KEY)
    assert request.headers.values("route") == routes


def test_only_the_device_that_is_named_is_called() -> None:
    assert is_called(Target(f"{AOR} {DEVICE}", key=DEVICE), TOKEN)
    assert is_called(Target(f"{AOR} {DEVICE};1", key=f"{DEVICE};1"), TOKEN)
    assert not is_called(Target(f"{AOR} token:aa11", key="token:aa11"), TOKEN)
    other = PushRecord(AOR, "token:zz", Platform.FCM, APP)
    both = Location((STORED["contact"],), (other,), messages=True)  # type: ignore[arg-type]
    assert location_of(both, TOKEN.device) == Location(both.bindings, (), messages=True)
