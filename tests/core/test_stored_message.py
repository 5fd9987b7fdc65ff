"""What is stored of a MESSAGE, shown of it and delivered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sipush.core.stored_message import (
    StoredMessage,
    from_sender,
    is_composing,
    lifetime,
    message_key,
    shown,
    to_deliver,
    to_store,
)
from sipush.core.target_set import Target
from sipush.sip.message import Request, parse_datagram

AOR = "bob@example.com"
NOW = 1_800_000_000.0
PHONE = Target("phone", "sip:bob@192.0.2.1:5060", "tcp/1", live=True)


def request(*lines: str, body: bytes = b"Lunch?", content_type: str = "text/plain") -> Request:
    head = "\r\n".join(
        [
            "MESSAGE sip:bob@example.com SIP/2.0",
            "Via: SIP/2.0/UDP 192.0.2.7;branch=z9hG4bK1",
            "Max-Forwards: 70",
            "From: Alice <sip:alice@example.com>;tag=a1",
            "To: <sip:bob@example.com>",
            "Call-ID: c1@192.0.2.7",
            "CSeq: 7 MESSAGE",
            f"Content-Type: {content_type}",
            *lines,
        ]
    )
    message = parse_datagram(head.encode() + b"\r\n\r\n" + body)
    assert isinstance(message, Request)
    return message


def cpim(content_type: str, body: str) -> bytes:
    return (
        "From: <sip:alice@example.com>\r\nTo: <sip:bob@example.com>\r\n"
        "NS: imdn <urn:ietf:params:imdn>\r\n\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: 9\r\n\r\n{body}"
    ).encode()


def stored_from(message: Request) -> StoredMessage:
    return to_store(from_sender(message), AOR, NOW, 60)


def test_the_way_from_the_sender_is_not_stored_and_the_rest_is_kept() -> None:
    stored = stored_from(
        request(
            "Route: <sip:pbx.example.com;lr>",
            "Record-Route: <sip:pbx.example.com;lr>",
            'Proxy-Authorization: Digest username="alice"',
            'Authorization: Digest username="alice"',
            "X-Own:   kept  as it came",
            body=b"\x00\xff\r\n\r\nz",
        )
    )
    delivered = to_deliver(replace(stored, id=17), PHONE)
    for name in ("via", "route", "record-route", "proxy-authorization", "authorization"):
        assert name not in delivered.headers
    assert ("x-own", "X-Own:   kept  as it came") in delivered.headers.fields
    assert delivered.body == b"\x00\xff\r\n\r\nz"
    assert delivered.headers.get("content-length") == "7"
    assert delivered.uri == PHONE.uri
    assert (stored.stored_epoch, stored.expires_epoch) == (NOW, NOW + 60)


def test_a_delivered_message_has_its_number_and_the_senders_own_ones_are_gone() -> None:
    stored = stored_from(request("X-Push-Id: 99999", "portsip-push-id: 99999"))
    assert b"99999" not in stored.content
    delivered = to_deliver(replace(stored, id=17), PHONE)
    assert delivered.headers.get_all("x-push-id") == ["17"]
    assert delivered.headers.get_all("portsip-push-id") == ["17"]


def test_a_stored_message_says_when_it_was_sent() -> None:
    stored = stored_from(request())
    assert b"\r\nDate: Fri, 15 Jan 2027 08:00:00 GMT\r\n" in stored.content
    own = "Date: Thu, 14 Jan 2027 23:59:59 GMT"
    assert own.encode() in stored_from(request(own)).content


def test_a_message_whose_contact_cannot_be_read_is_delivered_without_what_looks_like_a_token() -> (
    None
):
    stored = stored_from(request('Contact: "x <sip:alice@192.0.2.7;pn-prid=secret>'))
    delivered = to_deliver(replace(stored, id=17), PHONE)
    assert delivered.headers.get("contact") == '"x <sip:alice@192.0.2.7'


def test_the_same_message_has_the_same_key_whatever_way_it_came() -> None:
    once = request()
    again = request("Date: Fri, 15 Jan 2027 08:00:00 GMT", "Route: <sip:x;lr>")
    assert message_key(once) == message_key(again)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Call-ID", "c2@192.0.2.7"),
        ("CSeq", "8 MESSAGE"),
        ("From", "Alice <sip:alice@example.com>;tag=a2"),
    ],
)
def test_another_message_has_another_key(name: str, value: str) -> None:
    other = request()
    other.headers.set(name, value)
    assert message_key(other) != message_key(request())


@pytest.mark.parametrize(
    ("content_type", "body", "is_report"),
    [
        ("text/plain", b"", False),
        ("message/imdn+xml", b"<imdn/>", True),
        ("Message/IMDN+xml;charset=utf-8", b"", True),
        ("message/cpim", cpim("message/imdn+xml", "<imdn/>"), True),
        ("message/cpim", cpim("text/plain", "<imdn/>"), False),
    ],
)
def test_a_delivery_report_is_known_by_what_is_stored_of_it(
    content_type: str, body: bytes, is_report: bool
) -> None:
    report = request(content_type=content_type, body=body)
    stored = stored_from(report)
    assert stored.is_report is is_report
    assert stored.key == message_key(from_sender(report))


def test_no_device_learns_who_sent_it_if_he_wants_nobody_to_know() -> None:
    identity = "P-Asserted-Identity: <sip:200@pbx.example.com>"
    for privacy, is_told in (("Privacy: id", False), ("Privacy: none", True)):
        sent = from_sender(request(identity, privacy))
        assert ("p-asserted-identity" in sent.headers) is is_told


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        ((), 600),
        (("Expires: 60",), 60),
        (("Expires: 0",), 0),
        (("Expires: 601",), 600),
        (("Expires: 99999999999999999999",), 600),
        (("Expires: soon",), 600),
        (("Expires: -1",), 600),
        (("Expires:",), 600),
    ],
)
def test_expires_is_honoured_up_to_the_longest_lifetime(
    lines: tuple[str, ...], seconds: float
) -> None:
    assert lifetime(request(*lines), 600) == seconds


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        ("text/plain", b"Lunch?", ("text/plain", "Lunch?")),
        ("Text/Plain;charset=UTF-8", "Z\xfcri".encode(), ("text/plain", "Z\xfcri")),
        ("text/plain", b"\xff", ("text/plain", "\ufffd")),
        ("text/html", b"<b>x</b>", ("text/html", "New message")),
        (
            "message/cpim",
            cpim("text/plain; charset=utf-8", "Hi\r\n\r\nyou"),
            ("text/plain", "Hi\r\n\r\nyou"),
        ),
        ("message/cpim", cpim("image/png", "x"), ("image/png", "New message")),
        ("message/cpim", b"nonsense", ("message/cpim", "New message")),
    ],
)
def test_a_push_shows_the_text(content_type: str, body: bytes, expected: tuple[str, str]) -> None:
    assert shown(request(content_type=content_type, body=body)) == expected


def test_somebody_typing_is_recognised_also_inside_cpim() -> None:
    typing = "application/im-iscomposing+xml"
    assert is_composing(request(content_type=typing))
    assert is_composing(request(content_type="message/cpim", body=cpim(typing, "<x/>")))
    assert not is_composing(request())
