"""The IPv6 torture test messages of RFC 5118 §4, each with our verdict at the syntax layer."""

from __future__ import annotations

import pytest

from sipush.errors import MessageError
from sipush.sip.framing import StreamFramer
from sipush.sip.message import Message, Request, parse_datagram
from sipush.sip.uri import parse_sip_uri
from sipush.sip.validation import check, stamp_received

VIA = "SIP/2.0/UDP [2001:db8::9:1];branch=z9hG4bKas3-111"
SDP_6 = (
    "v=0\r\no=assistant 971731711378798081 0 IN IP6 2001:db8::20\r\ns=Live video feed\r\n"
    "c=IN IP6 2001:db8::20\r\nt=3338481189 3370017201\r\nm=audio 6000 RTP/AVP 2\r\n"
)
SDP_4_AND_6 = (
    "v=0\r\no=bob 280744730 28977631 IN IP4 host.example.com\r\ns=\r\nt=0 0\r\n"
    "m=audio 22334 RTP/AVP 0\r\nc=IN IP4 192.0.2.1\r\n"
    "m=video 6024 RTP/AVP 107\r\nc=IN IP6 2001:db8::1\r\n"
)


def message(method: str, uri: str, *, vias: tuple[str, ...] = (VIA,), body: str = "") -> bytes:
    contact = 'Contact: "Caller" <sip:caller@[2001:db8::1]>\r\n' if method == "REGISTER" else ""
    if method == "INVITE":
        contact = "Contact: <sip:user@[::ffff:192.0.2.10]>\r\nContent-Type: application/sdp\r\n"
    return (
        f"{method} {uri} SIP/2.0\r\nTo: sip:user@example.com\r\n"
        "From: sip:user@example.com;tag=81x2\r\n"
        + "".join(f"Via: {via}\r\n" for via in vias)
        + "Call-ID: SSG9559905523997077@hlau_4100\r\nMax-Forwards: 70\r\n"
        f"{contact}CSeq: 98176 {method}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


MANY_VIAS = (
    "SIP/2.0/UDP [2001:db8::9:1]:6050;branch=z9hG4bKas3-111",
    "SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKjhja8781hjuaij65144",
    "SIP/2.0/TCP [2001:db8::9:255];branch=z9hG4bK451jj;received=192.0.2.200",
)
MAPPED = ("SIP/2.0/UDP [::ffff:192.0.2.10]:19823;branch=z9hG4bKbh19",)

ACCEPTED = {
    "§4.1 an IPv6 reference": message("REGISTER", "sip:[2001:db8::10]"),
    "§4.3 what may be a port belongs to the address": message(
        "REGISTER", "sip:[2001:db8::10:5070]"
    ),
    "§4.4 a port behind the brackets": message("REGISTER", "sip:[2001:db8::10]:5070"),
    "§4.5 received with brackets": message(
        "BYE", "sip:[2001:db8::10]", vias=(f"{VIA};received=[2001:db8::9:255]",)
    ),
    "§4.5 received without them": message(
        "OPTIONS", "sip:[2001:db8::10]", vias=(f"{VIA};received=2001:db8::9:255",)
    ),
    "§4.6 IPv6 in SDP": message("INVITE", "sip:user@[2001:db8::10]", body=SDP_6),
    "§4.7 both families in headers": message("BYE", "sip:user@host.example.net", vias=MANY_VIAS),
    "§4.8 both families in SDP": message("INVITE", "sip:user@[2001:db8::10]", body=SDP_4_AND_6),
    "§4.9 IPv4-mapped": message("INVITE", "sip:user@example.com", vias=MAPPED, body=SDP_6),
    "§4.10 three colons, as RFC 3261 wrongly has them": message(
        "OPTIONS", "sip:user@[2001:db8:::192.0.2.1]"
    ),
    "§4.10 two colons": message("OPTIONS", "sip:user@[2001:db8::192.0.2.1]"),
}


def read(data: bytes, *, stream: bool) -> Message:
    if not stream:
        return parse_datagram(data)
    (frame,) = StreamFramer().feed(data)
    assert isinstance(frame, Message)
    return frame


@pytest.mark.parametrize("stream", [False, True], ids=["UDP", "stream"])
@pytest.mark.parametrize("name", ACCEPTED)
def test_a_message_is_accepted_and_forwarded_byte_for_byte(name: str, stream: bool) -> None:
    request = read(ACCEPTED[name], stream=stream)
    assert isinstance(request, Request)
    check(request)
    assert request.to_bytes() == ACCEPTED[name]
    stamp_received(request, ("2001:db8::9:fe", 5060))
    assert request.top_via.params["received"] == "2001:db8::9:fe"


def test_an_ipv6_address_without_brackets_is_refused() -> None:
    """§4.2."""
    with pytest.raises(MessageError) as refused:
        check(parse_datagram(message("REGISTER", "sip:2001:db8::10")))
    assert refused.value.status == 400


def test_a_port_is_one_only_behind_the_brackets() -> None:
    ambiguous = parse_sip_uri("sip:[2001:db8::10:5070]")
    assert (ambiguous.address, ambiguous.port) == ("2001:db8::10:5070", None)
    plain = parse_sip_uri("sip:[2001:db8::10]:5070")
    assert (plain.address, plain.port) == ("2001:db8::10", 5070)
