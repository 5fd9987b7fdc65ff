"""Where requests go and what they look like there."""

from __future__ import annotations

import pytest

from sipush.core.bindings import Binding, Location, Platform, PushRecord, Subscriber
from sipush.core.fallback import Cause
from sipush.core.outbound import RouteToken, encode_route_token
from sipush.core.rejection import Rejection
from sipush.core.routing import (
    AppPolicy,
    Diversion,
    Realm,
    TargetPolicy,
    ToAor,
    ToDialog,
    ToServer,
    caller,
    destination,
    drop_claims,
    forward_request,
    has_video,
    invitation_expires,
    is_anonymous,
    loop_digest,
    make_route_token,
    read_route_token,
    strip_push_params,
    validate,
)
from sipush.core.target_set import Target
from sipush.errors import MessageError
from sipush.sip.message import Request, parse_datagram
from sipush.sip.status import Status

KEY = b"k" * 32
CALL = "call-1"
REALM = Realm(
    ("example.com", "example.net"),
    frozenset({"sip.example.org"}),
    lambda host, port: host in ("192.0.2.1", "::1") and port in (None, 5060),
    lambda host: host in ("192.0.2.1", "::1"),
)


def invite(
    uri: str = "sip:bob@example.com", *headers: str, body: bytes = b"", to_tag: str = ""
) -> Request:
    lines = [
        f"INVITE {uri} SIP/2.0",
        "Via: SIP/2.0/UDP 192.0.2.9:5062;branch=z9hG4bKcaller",
        "Max-Forwards: 70",
        'From: "Alice, Dr." <sip:alice@example.com>;tag=1',
        f"To: <sip:bob@example.com>{to_tag}",
        f"Call-ID: {CALL}",
        "CSeq: 1 INVITE",
        "Contact: <sip:alice@192.0.2.9:5062>",
        *headers,
        f"Content-Length: {len(body)}",
    ]
    request = parse_datagram("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    assert isinstance(request, Request)
    return request


# -- destination --


@pytest.mark.parametrize(
    ("uri", "aor"),
    [
        ("sip:bob@example.com", "bob@example.com"),
        ("sip:bob@EXAMPLE.com:5999;user=phone", "bob@example.com"),
        ("sip:b%6Fb@example.net", "bob@example.net"),
        ("sip:bob@sip.example.org", "bob@example.com"),
        ("sip:bob@192.0.2.1", "bob@example.com"),
        ("sip:bob@192.0.2.1:5060", "bob@example.com"),
        ("sip:bob@[::1]:5060", "bob@example.com"),
        ("sip:%2B4930123@example.com", "+4930123@example.com"),
    ],
)
def test_a_uri_of_ours_is_a_users(uri: str, aor: str) -> None:
    assert destination(invite(uri), REALM, KEY) == ToAor(aor)


@pytest.mark.parametrize("uri", ["sip:example.com", "sip:192.0.2.1:5060"])
def test_a_uri_without_user_is_for_the_server(uri: str) -> None:
    assert destination(invite(uri), REALM, KEY) == ToServer()


@pytest.mark.parametrize("uri", ["sip:bob@example.org", "sip:bob@192.0.2.1:5080"])
def test_another_domain_is_not_relayed(uri: str) -> None:
    where = destination(invite(uri), REALM, KEY)
    assert isinstance(where, Rejection)
    assert where.status is Status.FORBIDDEN
    assert "Not Served Here" in where.reason


def test_another_scheme_is_refused_by_name() -> None:
    with pytest.raises(MessageError, match="Unsupported URI Scheme mailto"):
        destination(invite("mailto:bob@example.com"), REALM, KEY)


def test_our_two_routes_are_taken_off_and_the_last_names_the_side() -> None:
    caller_side, callee_side = (
        RouteToken("udp/a/b"),
        RouteToken("tcp/c/d/1", "bob@example.com", "x"),
    )
    routes = [
        f"Route: <sip:{encode_route_token(token, 'call-1', KEY)}@192.0.2.1;transport=udp;lr>"
        for token in (caller_side, callee_side)
    ]
    request = invite("sip:bob@10.0.0.1:4000", *routes, to_tag=";tag=2")
    assert destination(request, REALM, KEY) == ToDialog(callee_side)
    assert "route" not in request.headers


def test_routes_on_one_line_are_the_same_as_on_two() -> None:
    tokens = [RouteToken("udp/a/b"), RouteToken("tcp/c/d/1")]
    routes = ", ".join(f"<sip:{encode_route_token(t, 'call-1', KEY)}@192.0.2.1;lr>" for t in tokens)
    request = invite("sip:x@y", f"Route: {routes}", to_tag=";tag=2")
    assert destination(request, REALM, KEY) == ToDialog(tokens[1])


def test_a_request_that_came_by_a_strict_router_is_what_a_loose_one_would_have_sent() -> None:
    caller_side, callee_side = (
        RouteToken("udp/a/b"),
        RouteToken("tcp/c/d/1", "bob@example.com", "x"),
    )
    ours, other = (
        f"sip:{encode_route_token(token, CALL, KEY)}@192.0.2.1;transport=udp;lr"
        for token in (caller_side, callee_side)
    )
    beyond, remote_target = "<sip:192.0.2.50;lr>", "sip:bob@10.0.0.1:4000;x=y"
    routes = [f"Route: <{other}>, {beyond}", f"Route: <{remote_target}>"]
    request = invite(ours, *routes, to_tag=";tag=2")
    assert destination(request, REALM, KEY) == ToDialog(callee_side)
    assert request.uri == remote_target
    assert request.sip_uri.host == "10.0.0.1"
    assert request.headers.values("route") == [beyond]
    request = invite(other, f"Route: <{remote_target}>", to_tag=";tag=2")
    assert destination(request, REALM, KEY) == ToDialog(callee_side)
    assert (request.uri, "route" in request.headers) == (remote_target, False)


@pytest.mark.parametrize("uri", ["sip:x@192.0.2.1;lr", "sip:192.0.2.9;lr", "tel:+1;lr"])
def test_another_request_uri_with_lr_is_left_as_it_is(uri: str) -> None:
    token = RouteToken("tcp/c/d/1")
    route = f"<sip:{encode_route_token(token, CALL, KEY)}@192.0.2.1;lr>"
    request = invite(uri, f"Route: {route}, <sip:bob@10.0.0.1>", to_tag=";tag=2")
    assert destination(request, REALM, KEY) == ToDialog(token)
    assert request.uri == uri


def test_the_route_of_a_dialog_begins_no_other() -> None:
    token = encode_route_token(RouteToken("tcp/c/d/1", "bob@example.com", "x"), CALL, KEY)
    request = invite("sip:bob@10.0.0.1:4000", f"Route: <sip:{token}@192.0.2.1;lr>")
    assert destination(request, REALM, KEY) == Rejection(Status.FORBIDDEN, "Route of a Dialog")


@pytest.mark.parametrize(
    "uri",
    [
        "sip:192.0.2.1:5060;lr",
        "sip:example.com;lr",
        "sip:EXAMPLE.net:8443;transport=ws;lr",
        "sip:sip.example.org;transport=tls;lr",
        "sips:sip.example.org:5061;lr",
    ],
)
def test_a_phone_may_name_us_as_its_outbound_proxy(uri: str) -> None:
    request = invite("sip:bob@example.com", f"Route: <{uri}>")
    assert destination(request, REALM, KEY) == ToAor("bob@example.com")
    assert "route" not in request.headers


def test_the_route_of_another_call_leads_nowhere() -> None:
    token = encode_route_token(RouteToken("tcp/c/d/1", "bob@example.com", "x"), "call-2", KEY)
    request = invite("sip:bob@10.0.0.1", f"Route: <sip:{token}@192.0.2.1;lr>", to_tag=";tag=2")
    assert isinstance(destination(request, REALM, KEY), Rejection)


def test_a_token_that_was_just_made_is_good_for_its_call_and_key_only() -> None:
    token = RouteToken("tcp/c/d/1", "bob@example.com", "x")
    user = make_route_token(token, CALL, KEY)
    assert read_route_token(user, CALL, KEY) == token
    assert read_route_token(user, "another call", KEY) is None
    assert read_route_token(user, CALL, b"x" * 32) is None
    assert read_route_token(user[:-1], CALL, KEY) is None


def test_a_token_made_by_another_process_is_read_and_then_known() -> None:
    token = RouteToken("tcp/c/d/2", "bob@example.com", "x")
    user = encode_route_token(token, CALL, KEY)
    first = read_route_token(user, CALL, KEY)
    assert first == token
    assert read_route_token(user, CALL, KEY) is first


def test_a_forged_route_is_no_way_to_elsewhere() -> None:
    forged = encode_route_token(RouteToken("udp/a/b"), CALL, b"x" * 32)
    request = invite("sip:bob@10.0.0.1", f"Route: <sip:{forged}@192.0.2.1;lr>")
    assert isinstance(destination(request, REALM, KEY), Rejection)


def test_a_route_to_somebody_else_is_refused() -> None:
    request = invite("sip:bob@example.com", "Route: <sip:evil.example.org;lr>")
    assert destination(request, REALM, KEY) == Rejection(Status.FORBIDDEN, "Route Not Ours")


# -- validation --


def test_a_request_without_hops_left_is_refused() -> None:
    request = invite()
    request.headers.set("Max-Forwards", "0")
    assert validate(request, REALM) == Rejection(Status.TOO_MANY_HOPS)


@pytest.mark.parametrize("hops", ["-1", "x", "256", "1.5"])
def test_max_forwards_that_is_no_number_is_refused(hops: str) -> None:
    request = invite()
    request.headers.set("Max-Forwards", hops)
    assert validate(request, REALM) == Rejection(Status.BAD_REQUEST, "Malformed Max-Forwards")


def test_an_extension_a_proxy_must_know_is_refused_by_name() -> None:
    assert validate(invite("sip:bob@example.com", "Proxy-Require: foo, bar"), REALM) == Rejection(
        Status.BAD_EXTENSION, headers=(("Unsupported", "foo, bar"),)
    )


def test_a_request_that_comes_back_unchanged_is_a_loop() -> None:
    request = invite()
    mark = loop_digest(request)
    request.headers.prepend("Via", f"SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKours-{mark}")
    request.headers.prepend("Via", "SIP/2.0/UDP 192.0.2.7;branch=z9hG4bKother")
    assert validate(request, REALM) == Rejection(Status.LOOP_DETECTED)


def test_a_dialog_that_goes_through_us_twice_is_no_loop() -> None:
    routes = ["Route: <sip:pbx.example;lr>", "Route: <sip:token@192.0.2.1;lr>"]
    mark = loop_digest(invite("sip:bob@h", *routes, to_tag=";tag=2"))
    request = invite("sip:bob@h", *routes[1:], to_tag=";tag=2")
    request.headers.prepend("Via", f"SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKours-{mark}")
    request.headers.prepend("Via", "SIP/2.0/UDP 192.0.2.10;branch=z9hG4bKpbx")
    assert validate(request, REALM) is None


def test_a_spiral_with_another_request_uri_is_no_loop() -> None:
    mark = loop_digest(invite())
    request = invite("sip:carol@example.com")
    request.headers.prepend("Via", f"SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKours-{mark}")
    request.headers.prepend("Via", "SIP/2.0/UDP 192.0.2.7;branch=z9hG4bKother")
    assert validate(request, REALM) is None


# -- the target set --


def binding(device: str = "d", flow: str = "udp/1/2", path: tuple[str, ...] = ()) -> Binding:
    uri = f"sip:bob@10.0.0.1;x={device}"
    return Binding("bob@x", device, uri, uri, 9e9, "c", 1, flow, path=path)


def record(device: str = "d", app_id: str = "app", allow_call: bool = True) -> PushRecord:
    return PushRecord("bob@x", device, Platform.FCM, app_id, "t", "t", allow_call)


def policy(**app: object) -> TargetPolicy:
    settings = {"hold": 30.0, "push_always": False} | app
    return TargetPolicy(
        {"app": AppPolicy(**settings)},
        lambda b: b.flow != "dead",
        lambda r: r.allow_call,
    )


BOB = Subscriber("bob@x")


def test_a_device_with_contact_and_push_record_is_one_target() -> None:
    (target,) = policy().target_set(Location((binding(),), (record(),)), BOB)
    assert (target.live, target.flow, target.hold, target.push) == (True, "udp/1/2", 30, record())


def test_a_device_without_contact_can_only_be_woken() -> None:
    (target,) = policy().target_set(Location((), (record(),)), BOB)
    assert (target.live, target.uri, target.wakeable) == (False, "", True)


def test_a_dead_flow_is_not_live() -> None:
    (target,) = policy().target_set(Location((binding(flow="dead"),), (record(),)), BOB)
    assert (target.live, target.wakeable) == (False, True)


def test_a_contact_behind_an_edge_proxy_is_reached_by_its_path() -> None:
    path = ("<sip:edge.example.com;lr>",)
    (target,) = policy().target_set(Location((binding(path=path),)), BOB)
    assert (target.flow, target.route) == ("", path)


def test_the_flows_of_an_instance_are_one_target_that_tries_the_newest_first() -> None:
    flows = ("tcp/3", "dead", "tcp/1")
    bindings = [binding(f"instance:u;{n}", flow) for n, flow in zip((3, 2, 1), flows, strict=True)]
    location = Location(tuple(bindings), (record("instance:u;1"),))
    (target,) = policy().target_set(location, BOB)
    assert (target.device, target.flow, target.wakeable) == ("bob@x instance:u", "tcp/3", True)
    assert [(other.flow, other.wakeable) for other in target.others] == [("tcp/1", True)]
    assert target.uri != target.others[0].uri
    assert policy().target("instance:u;1", location, BOB) == target


def test_an_instance_whose_flows_are_all_dead_can_only_be_woken() -> None:
    bindings = tuple(binding(f"instance:u;{n}", "dead") for n in (2, 1))
    (target,) = policy().target_set(Location(bindings, (record("instance:u;2"),)), BOB)
    assert (target.live, target.others, target.wakeable) == (False, (), True)


def test_two_devices_are_two_targets() -> None:
    location = Location((binding("a"), binding("b")), (record("b"), record("c")))
    targets = policy().target_set(location, BOB)
    assert [t.device for t in targets] == ["bob@x a", "bob@x b", "bob@x c"]
    assert [t.wakeable for t in targets] == [False, True, True]


@pytest.mark.parametrize(
    ("asleep", "subscriber", "app", "reason"),
    [
        (record(allow_call=False), BOB, {}, "the app has switched pushes for calls off"),
        (record(app_id="unknown"), BOB, {}, "no app unknown in the configuration"),
        (record(), Subscriber("bob@x", hold=False), {}, "hold is switched off for this user"),
        (record(), Subscriber("bob@x", hold_seconds=0), {}, "the time to hold is 0"),
        (record(), BOB, {"hold": 0.0}, "the time to hold is 0"),
    ],
    ids=["no-consent", "unknown-app", "user-switch-off", "user-window-0", "app-window-0"],
)
def test_who_is_not_woken_and_why(
    asleep: PushRecord, subscriber: Subscriber, app: dict[str, object], reason: str
) -> None:
    (target,) = policy(**app).target_set(Location((), (asleep,)), subscriber)
    assert not target.wakeable
    assert policy(**app).why_not_pushed(asleep, subscriber) == reason


def test_who_is_woken_needs_no_reason() -> None:
    assert policy().why_not_pushed(record(), BOB) == ""


def test_the_users_window_comes_before_the_apps() -> None:
    subscriber = Subscriber("bob@x", hold_seconds=12)
    (target,) = policy().target_set(Location((), (record(),)), subscriber)
    assert target.hold == 12


# -- the request as it leaves --


def test_what_a_device_is_pushed_by_does_not_leave_in_any_uri() -> None:
    push = "pn-provider=fcm;pn-prid=secret;pn-param=p"
    diversion = Diversion("sip:bob@example.com", 480, Cause.UNREACHABLE)
    target = Target("d", f"sip:bob@10.0.0.1;{push};transport=tcp")
    request = invite("sip:bob@example.com", "m: <sip:x@y;PN-PRID=secret;ob>;+sip.instance=z")
    request.headers.remove("contact")
    request.headers.append("Contact", f'"A, B" <sip:x@y;{push};pn-purr=abc;ob>;x=1')
    forwarded = forward_request(request, target, (), diversions=[diversion])
    assert forwarded.uri == "sip:bob@10.0.0.1;transport=tcp"
    assert forwarded.headers.get("contact") == '"A, B" <sip:x@y;pn-purr=abc;ob>;x=1'
    assert b"secret" not in forwarded.to_bytes()


def test_only_what_must_change_changes() -> None:
    request = invite("sip:bob@example.com", "X-Odd:  kept ;As=Is", "Subject: a\r\n folded line")
    forwarded = forward_request(
        request, Target("d", "sip:bob@10.0.0.1"), ["sip:a@h;lr", "sip:b@h;lr"]
    )
    before = request.to_bytes().split(b"\r\n")
    after = forwarded.to_bytes().split(b"\r\n")
    assert [line for line in after if line not in before] == [
        b"INVITE sip:bob@10.0.0.1 SIP/2.0",
        b"Record-Route: <sip:b@h;lr>",
        b"Record-Route: <sip:a@h;lr>",
        b"Max-Forwards: 69",
        b"Max-Breadth: 60",
    ]
    assert request.uri == "sip:bob@example.com"


def test_a_request_without_max_forwards_gets_70() -> None:
    request = invite()
    request.headers.remove("max-forwards")
    forwarded = forward_request(request, Target("d", "sip:b@h"), ())
    assert forwarded.headers.get("max-forwards") == "70"


@pytest.mark.parametrize(
    ("target", "left", "breadth"),
    [
        (Target("d", "sip:b@h", "udp/a/b"), None, "1"),
        (Target("d", "sip:b@h", route=("<sip:p;lr>",)), 7, "1"),
        (Target("sip:vm@h", "sip:vm@h"), None, "60"),
        (Target("sip:vm@h", "sip:vm@h"), 7, "7"),
    ],
    ids=["device", "device behind an edge", "server", "server, limited"],
)
def test_every_request_has_one_max_breadth(target: Target, left: int | None, breadth: str) -> None:
    request = invite("sip:bob@example.com", "Max-Breadth: 9")
    forwarded = forward_request(request, target, (), breadth=left)
    assert forwarded.headers.get_all("max-breadth") == [breadth]


@pytest.mark.parametrize(
    ("value", "seconds"), [("20", 20), ("0", 0), ("soon", None), ("-1", None), ("20;x", None)]
)
def test_an_invitation_expires_when_it_says_so(value: str, seconds: int | None) -> None:
    assert invitation_expires(invite("sip:bob@example.com", f"Expires: {value}")) == seconds


def test_what_expires_in_another_request_is_no_invitation() -> None:
    text = invite("sip:bob@example.com", "Expires: 20").to_bytes()
    request = parse_datagram(text.replace(b"INVITE", b"SUBSCRIBE"))
    assert isinstance(request, Request)
    assert invitation_expires(request) is None


def test_the_path_becomes_the_route_and_our_credentials_stay_here() -> None:
    request = invite("sip:bob@example.com", "Proxy-Authorization: Digest username=x")
    target = Target("d", "sip:b@h", route=("<sip:p1;lr>", "<sip:p2;lr>"))
    forwarded = forward_request(request, target, ())
    assert forwarded.headers.values("route") == ["<sip:p1;lr>", "<sip:p2;lr>"]
    assert "proxy-authorization" not in forwarded.headers


OURS = 'Digest username="x", realm="example.com", nonce="n", uri="sip:h", response="1"'
ANOTHERS = 'Digest realm="pbx, too",username="x",nonce="n",uri="sip:h",response="2",algorithm=X'


def test_a_server_gets_the_credentials_that_are_not_for_us() -> None:
    lines = [f"Proxy-Authorization: {each}" for each in (OURS, ANOTHERS, "Digest x=y", "Bearer z")]
    request = invite("sip:bob@example.com", *lines)
    for target, to_registrar, left in (
        (Target("vm", "sip:vm@pbx"), False, [ANOTHERS]),
        (Target("vm", "sip:vm@pbx"), True, [OURS, ANOTHERS, "Digest x=y", "Bearer z"]),
        (Target("d", "sip:b@h", "tcp/1"), False, []),
        (Target("d", "sip:b@h", route=("<sip:p1;lr>",)), False, []),
    ):
        forwarded = forward_request(
            request, target, (), to_registrar=to_registrar, realms=REALM.domains
        )
        assert forwarded.headers.get_all("proxy-authorization") == left


def test_the_push_id_is_in_the_invite() -> None:
    forwarded = forward_request(invite(), Target("d", "sip:b@h"), (), "uuid-1")
    assert forwarded.headers.get("x-push-id") == "uuid-1"


def test_an_ack_without_hops_left_goes_nowhere() -> None:
    request = invite()
    request.headers.set("Max-Forwards", "0")
    with pytest.raises(MessageError, match="Too Many Hops"):
        forward_request(request, Target("vm", "sip:vm@pbx"), ())


BUSY = Diversion("sip:bob@example.com", 486, Cause.BUSY)
ASLEEP = Diversion("sip:carol@example.com", 480, Cause.UNREACHABLE)


def test_a_call_that_falls_back_says_from_where_and_why() -> None:
    forwarded = forward_request(invite(), Target("vm", "sip:vm@pbx"), (), "", [BUSY])
    assert forwarded.headers.get_all("diversion") == [
        "<sip:bob@example.com>;reason=user-busy;counter=1"
    ]
    assert forwarded.headers.values("history-info") == [
        "<sip:bob@example.com?Reason=SIP%3Bcause%3D486>;index=1",
        "<sip:vm@pbx>;index=1.1;mp=1",
    ]


def test_a_call_that_falls_back_twice_tells_the_whole_way() -> None:
    forwarded = forward_request(invite(), Target("vm", "sip:vm@pbx"), (), "", [BUSY, ASLEEP])
    assert forwarded.headers.get_all("diversion") == [
        "<sip:carol@example.com>;reason=unavailable;counter=1",
        "<sip:bob@example.com>;reason=user-busy;counter=1",
    ]
    assert forwarded.headers.values("history-info") == [
        "<sip:bob@example.com?Reason=SIP%3Bcause%3D486>;index=1",
        "<sip:carol@example.com?Reason=SIP%3Bcause%3D480>;index=1.1;mp=1",
        "<sip:vm@pbx>;index=1.1.1;mp=1.1",
    ]


def test_a_call_that_falls_back_to_a_user_of_ours_names_the_user_and_then_the_contact() -> None:
    aor, key = "carol@example.com", "urn:uuid:1"
    device = Target(f"{aor} {key}", "sip:carol@192.0.2.1:40000", aor=aor, key=key)
    forwarded = forward_request(invite(), device, (), "", [BUSY])
    assert forwarded.headers.values("history-info") == [
        "<sip:bob@example.com?Reason=SIP%3Bcause%3D486>;index=1",
        "<sip:carol@example.com>;index=1.1;mp=1",
        "<sip:carol@192.0.2.1:40000>;index=1.1.1;rc=1.1",
    ]


def test_a_history_that_came_with_the_call_goes_on() -> None:
    request = invite("sip:bob@example.com", "History-Info: <sip:a@h>;index=1, <sip:b@h>;index=1.2")
    forwarded = forward_request(request, Target("vm", "sip:vm@pbx"), (), "", [BUSY])
    assert forwarded.headers.values("history-info")[2:] == [
        "<sip:bob@example.com?Reason=SIP%3Bcause%3D486>;index=1.2.1",
        "<sip:vm@pbx>;index=1.2.1.1;mp=1.2.1",
    ]


@pytest.mark.parametrize("came", ["garbage", "<sip:a@h", "<sip:a@h>"])
def test_a_history_that_cannot_be_read_costs_no_fallback(came: str) -> None:
    request = invite("sip:bob@example.com", f"History-Info: {came}")
    forwarded = forward_request(request, Target("vm", "sip:vm@pbx"), (), "", [BUSY])
    assert forwarded.headers.get_all("history-info") == [
        came,
        "<sip:bob@example.com?Reason=SIP%3Bcause%3D486>;index=1.1",
        "<sip:vm@pbx>;index=1.1.1;mp=1.1",
    ]


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (Cause.BUSY, "user-busy"),
        (Cause.DECLINED, "deflection"),
        (Cause.NO_ANSWER, "no-answer"),
        (Cause.UNREACHABLE, "unavailable"),
    ],
)
def test_the_diversion_reason_follows_the_cause(cause: Cause, reason: str) -> None:
    assert Diversion("sip:x@y", 480, cause).reason == reason


def test_push_parameters_do_not_leave_towards_others() -> None:
    request = invite()
    request.headers.set(
        "Contact",
        '"A;pn-x" <sip:a@10.0.0.1;pn-provider=apns;pn-prid=secret;ob>;+sip.instance="<urn:1>"',
    )
    strip_push_params(request)
    assert request.headers.get("contact") == (
        '"A;pn-x" <sip:a@10.0.0.1;ob>;+sip.instance="<urn:1>"'
    )


UNREADABLE = [
    '"x" y" <sip:a@10.0.0.1;pn-prid=secret>',
    "<sip:a@10.0.0.1;pn-provider=fcm;pn-prid=secret",
    "<sip:b@c>;x, <sip:a@10.0.0.1;pn-prid=secret",
]


@pytest.mark.parametrize("contact", UNREADABLE)
def test_push_parameters_are_cut_out_of_what_cannot_be_read(contact: str) -> None:
    request = invite()
    request.headers.set("Contact", contact)
    strip_push_params(request)
    left = request.headers.get("contact")
    assert left is not None
    assert "secret" not in left
    assert "sip:a@10.0.0.1" in left


@pytest.mark.parametrize("contact", UNREADABLE)
def test_a_contact_that_hides_push_parameters_is_refused(contact: str) -> None:
    request = invite()
    request.headers.set("Contact", contact)
    refused = Rejection(Status.BAD_REQUEST, "Malformed Address in Contact")
    assert validate(request, REALM) == refused


def test_any_other_contact_is_for_the_one_it_is_meant_for() -> None:
    for contact in ("<sip:a@10.0.0.1", "<sip:a@10.0.0.1;pn-provider=fcm;pn-prid=x>"):
        request = invite()
        request.headers.set("Contact", contact)
        assert validate(request, REALM) is None


# -- small questions --


def test_video_is_an_offered_stream_with_a_port() -> None:
    assert has_video(invite(body=b"v=0\r\nm=audio 4 RTP/AVP 0\r\nm=video 6 RTP/AVP 96\r\n"))
    assert not has_video(invite(body=b"v=0\r\nm=video 0 RTP/AVP 96\r\n"))
    assert not has_video(invite())


def test_the_caller_is_what_from_says() -> None:
    assert caller(invite()) == ("alice", "Alice, Dr.")
    request = invite()
    request.headers.set("From", "<tel:+49-30-123;phone-context=x>;tag=1")
    assert caller(request) == ("+49-30-123", "")


def test_an_anonymous_caller_is_known_by_the_uri() -> None:
    assert not is_anonymous(invite())
    request = invite()
    request.headers.set("From", '"Anonymous" <sip:anonymous@anonymous.invalid>;tag=1')
    assert is_anonymous(request)


# -- whom to believe --


def test_what_a_caller_says_of_himself_and_of_where_his_call_has_been_is_taken_out() -> None:
    request = invite()
    before = list(request.headers)
    for name in ("P-Asserted-Identity", "Remote-Party-ID", "Diversion", "History-Info"):
        request.headers.append(name, "<sip:a@b>")
        request.headers.append(name, "<sip:c@d>")
    request.headers.append("X-Push-Id", "1")
    drop_claims(request)
    assert list(request.headers) == before


@pytest.mark.parametrize(
    ("privacy", "key", "is_hidden"),
    [
        ("Privacy: id", "d", True),
        ("Privacy: user; ID;critical", "d", True),
        ("Privacy: header\r\nPrivacy: id", "d", True),
        ("Privacy: none", "d", False),
        ("Privacy: id", "", False),
        ("Subject: id", "d", False),
    ],
)
def test_who_wants_to_be_unknown_is_so_to_devices(privacy: str, key: str, is_hidden: bool) -> None:
    says = ("P-Asserted-Identity: <tel:+4930123>", "Remote-Party-ID: <tel:+4930123>")
    request = invite("sip:bob@example.com", *says, privacy)
    forwarded = forward_request(request, Target("bob", "sip:bob@192.0.2.3", key=key), ())
    assert ("p-asserted-identity" not in forwarded.headers) == is_hidden
    assert ("remote-party-id" not in forwarded.headers) == is_hidden
    assert forwarded.headers.get_all("privacy") == request.headers.get_all("privacy")
