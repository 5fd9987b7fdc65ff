"""What must hold for any bytes that arrive, whoever made them up."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from sipush.core.authentication import Accepted, Authenticator
from sipush.core.bindings import Location, Platform, Subscriber
from sipush.core.registration import (
    Fetch,
    RegistrationPolicy,
    Update,
    ok_response,
    register,
    wants_location,
)
from sipush.core.rejection import Rejection, rejection_response
from sipush.core.routing import (
    Realm,
    ToAor,
    ToDialog,
    caller,
    destination,
    forward_request,
    has_video,
    loop_digest,
    validate,
)
from sipush.core.stored_message import from_sender, lifetime, shown, to_deliver, to_store
from sipush.core.target_set import Target
from sipush.errors import MessageError
from sipush.sip.digest import find_credentials, parse_credentials
from sipush.sip.fields import parse_name_addr
from sipush.sip.framing import Frame, StreamFramer
from sipush.sip.message import Request, Response, make_response, parse_datagram
from sipush.sip.push_params import PushParams, parse_push_headers
from sipush.sip.transaction import client_key, server_key
from sipush.sip.uri import parse_sip_uri
from sipush.sip.validation import MessageLimits, check, stamp_received
from sipush.transport.blanking import blanked

KEY = b"k" * 32
NOW = 1_800_000_000.0
REMOTE = ("192.0.2.201", 5060)
REALM = Realm(("example.com",), frozenset(), lambda _host, _port: False, lambda _host: False)
BOB = Subscriber("101@example.com", "0" * 32, "0" * 64)
AUTHENTICATOR = Authenticator(KEY, 300)
POLICY = RegistrationPolicy(
    min_expires=30,
    apps={"com.example.phone": frozenset(Platform)},
    push_hosts={"com.example.phone": ("push.example", "*.example.com")},
)
_CREDENTIALS = ("authorization", "proxy-authorization")


def one_input(data: bytes) -> None:
    """Fail on whatever would be an unanswered request, or a lie, in the server."""
    _stream(data)
    try:
        message = parse_datagram(data)
    except MessageError as error:
        _answer_malformed(error)
        return
    _comes_out_as_it_went_in(message)
    _hides_secrets(data.lstrip(b"\r\n"), message)
    try:
        check(message, MessageLimits())
    except MessageError as error:
        _answer_malformed(error)
        return
    if isinstance(message, Request):
        _serve(message)
    else:
        client_key(message, message.top_via)


def _stream(data: bytes) -> None:
    """However TCP cuts it, the same messages come out."""
    whole = _frames(StreamFramer(8192, 4096), data)
    cut = StreamFramer(8192, 4096)
    step = 1 + len(data) % 7
    parts = [data[n : n + step] for n in range(0, len(data), step)]
    pieces = [text for part in parts for text in _frames(cut, part)]
    assert pieces == whole, (pieces, whole)


def _frames(framer: StreamFramer, data: bytes) -> list[bytes]:
    return [_written(frame) for frame in framer.feed(data)]


def _written(frame: Frame) -> bytes:
    if isinstance(frame, Request | Response):
        return frame.to_bytes()
    return frame.reason.encode() if isinstance(frame, MessageError) else frame.value.encode()


def _answer_malformed(error: MessageError) -> None:
    """As the transaction layer does."""
    request = error.message
    if isinstance(request, Request) and "via" in request.headers:
        with suppress(MessageError):
            stamp_received(request, REMOTE)
        make_response(request, error.status, error.reason, to_tag="t1").to_bytes()


def _comes_out_as_it_went_in(message: Request | Response) -> None:
    again = parse_datagram(message.to_bytes())
    assert again.to_bytes() == message.to_bytes()
    assert again.headers.fields == message.headers.fields


def _hides_secrets(data: bytes, message: Request | Response) -> None:
    """What we take for a token or a digest is nothing that a capture server sees."""
    copy = blanked(data, bodies=True)
    assert len(copy) == len(data)
    values = [value for name in _CREDENTIALS for value in message.headers.get_all(name)]
    secrets = {found.response for value in values if (found := parse_credentials(value))}
    push = parse_push_headers(message.headers)
    if isinstance(push, PushParams):
        secrets |= {push.call_token, push.message_token, push.extra.get("auth", "")}
    for contact in message.headers.values("contact"):
        with suppress(MessageError):
            params = parse_sip_uri(parse_name_addr(contact).uri).params
            secrets |= {params.get(name) or "" for name in ("pn-prid", "pn-tok", "pn-auth")}
    for secret in secrets:
        text = secret.encode("utf-8", "surrogateescape").lower()
        if len(text) >= 8 and data.lower().count(text) == 1:
            assert text not in copy.lower(), (secret, copy)


def _serve(request: Request) -> None:
    stamp_received(request, REMOTE)
    server_key(request, request.top_via, request.method)
    _is_sound(make_response(request, 486, to_tag="t1"), request)
    credentials = find_credentials(request.headers.get_all("authorization"), "example.com")
    assert AUTHENTICATOR.verify(credentials, request, BOB, NOW) != Accepted()
    loop_digest(request)
    caller(request)
    has_video(request)
    if request.method == "REGISTER":
        _register(request)
    else:
        _forward(request)
    if request.method == "MESSAGE":
        _store(request)


def _store(request: Request) -> None:
    shown(request)
    try:
        stored = to_store(from_sender(request), BOB.aor, NOW, lifetime(request, 60))
        delivered = to_deliver(replace(stored, id=17), Target("d", "sip:101@192.0.2.9"))
    except MessageError:
        return
    again = parse_datagram(delivered.to_bytes())
    assert again.headers.get_all("portsip-push-id") == ["17"]
    assert again.body == request.body


def _register(request: Request) -> None:
    wants_location(request)
    decision = register(
        request,
        "101@example.com",
        "udp/a/b",
        POLICY,
        NOW,
        key=KEY,
        location=Location(),
        from_peer=True,
    )
    match decision:
        case Update(registration):
            assert len(registration.bind) <= 200
            location = Location(registration.bind, registration.push)
            _is_sound(ok_response(request, decision, location, NOW, "t1"), request)
        case Fetch():
            _is_sound(ok_response(request, decision, Location(), NOW, "t1"), request)
        case Rejection():
            _is_sound(rejection_response(request, decision, "t1"), request)


def _forward(request: Request) -> None:
    try:
        if validate(request, REALM) is not None:
            return
        where = destination(request, REALM, KEY)
    except MessageError:
        return
    assert not isinstance(where, ToDialog), "nobody forges our tokens"
    if isinstance(where, ToAor):
        target = Target("d", "sip:101@192.0.2.9", live=True)
        try:
            sent = forward_request(request, target, ["sip:r@example.com;lr"], "push-id")
        except MessageError:
            return
        again = parse_datagram(sent.to_bytes())
        assert again.headers.get("x-push-id") == "push-id"
        assert again.headers.get_all("x-push-id") == ["push-id"]
        assert again.body == request.body


def _is_sound(response: Response, request: Request) -> None:
    """Nothing in the request smuggled a header or another message into the response."""
    again = parse_datagram(response.to_bytes())
    assert isinstance(again, Response)
    assert [name for name, _ in again.headers.fields] == [
        name for name, _ in response.headers.fields
    ]
    check(again)
    assert again.call_id == request.call_id
    assert again.cseq == request.cseq
