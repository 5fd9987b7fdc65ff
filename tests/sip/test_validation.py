import sys
from types import FrameType

import pytest

from sipush.errors import MessageError
from sipush.sip.message import make_response
from sipush.sip.validation import check, stamp_received
from tests.sip.messages import request

REMOTE = ("203.0.113.9", 40_000)


@pytest.mark.parametrize(
    "uri", ["sip:bob@example.com", "tel:+1212", "urn:service:sos", "URN:service:sos", "TEL:112"]
)
def test_a_sound_request_passes(uri: str) -> None:
    check(request(uri=uri))


@pytest.mark.parametrize("name", ["via", "from", "to", "call-id", "cseq"])
def test_a_response_without_what_a_request_gave_it_is_refused(name: str) -> None:
    response = make_response(request(), 200)
    response.headers.remove(name)
    with pytest.raises(MessageError, match="Missing") as caught:
        check(response)
    assert caught.value.message is response


def test_a_field_repeated_with_the_same_value_is_tolerated() -> None:
    repeated = request()
    repeated.headers.append("Max-Forwards", "70")
    check(repeated)


def calls_of_a_check(repetitions: int) -> int:
    """Function calls for a field that a stranger has written so many times more."""
    repeated = request()
    for _ in range(repetitions):
        repeated.headers.append("Max-Forwards", "70")
    count = 0

    def count_calls(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(count_calls)
    try:
        check(repeated)
    finally:
        sys.setprofile(None)
    return count


def test_what_is_repeated_often_is_looked_at_once() -> None:
    assert calls_of_a_check(180) < 2.5 * calls_of_a_check(90)


# Bad requests: tests/server/test_bad_input.py has a row for each fault.


@pytest.mark.parametrize(
    ("via", "stamped"),
    [
        ("SIP/2.0/UDP 10.0.0.1;branch=b;rport", ";branch=b;rport=40000;received=203.0.113.9"),
        ("SIP/2.0/UDP 10.0.0.1;rport;branch=b", ";rport=40000;branch=b;received=203.0.113.9"),
        ("SIP/2.0/UDP 10.0.0.1;rport=7;branch=b", ";rport=40000;branch=b;received=203.0.113.9"),
        ("SIP/2.0/UDP 10.0.0.1;branch=b", ";branch=b;received=203.0.113.9"),
        ("SIP/2.0/UDP 10.0.0.1;received=6.6.6.6;branch=b", ";branch=b;received=203.0.113.9"),
        ("SIP/2.0/UDP 10.0.0.1;branch=b;", ";branch=b;received=203.0.113.9"),
        ("SIP/2.0/UDP a;Received=b;rport", ";rport=40000;received=203.0.113.9"),
        (
            "SIP/2.0/UDP a;branch=received;rport",
            ";branch=received;rport=40000;received=203.0.113.9",
        ),
        ("SIP/2.0/UDP 203.0.113.9;branch=b", ";branch=b"),
    ],
)
def test_the_top_via_says_where_the_request_came_from(via: str, stamped: str) -> None:
    stamped_request = request(via=via)
    stamp_received(stamped_request, REMOTE)
    host = via.partition(";")[0]
    assert stamped_request.headers.lines("via") == [("via", f"Via: {host}{stamped}")]


def test_other_vias_on_the_line_stay_as_they_are() -> None:
    stamped = request(via="SIP/2.0/UDP 10.0.0.1;rport;branch=b ,  SIP/2.0/TCP x;rport")
    stamp_received(stamped, REMOTE)
    assert stamped.headers.get("via") == (
        "SIP/2.0/UDP 10.0.0.1;rport=40000;branch=b;received=203.0.113.9 ,  SIP/2.0/TCP x;rport"
    )


def test_an_ipv6_source_is_written_without_brackets() -> None:
    stamped = request(via="SIP/2.0/UDP [2001:db8::1];branch=b;rport")
    stamp_received(stamped, ("2001:db8::2", 5060))
    assert stamped.top_via.params["received"] == "2001:db8::2"


@pytest.mark.parametrize(
    "params",
    [
        'branch=z9hG4bK1;x="',
        "branch=z9hG4bK1;x=<",
        'branch=z9hG4bK1;received="1;2"',
        'branch=z9hG4bK1;received=1.2.3.4;x=";received=5.6.7.8',
        'rport;branch=z9hG4bK1;x="',
        'branch=z9hG4bK1;x=", SIP/2.0/UDP 192.0.2.9',
    ],
)
def test_where_a_request_came_from_is_noted_whatever_quotes_are_open(params: str) -> None:
    came = request(via=f"SIP/2.0/TCP 10.0.0.1:6379;{params}")
    stamp_received(came, ("192.0.2.7", 40000))
    noted = came.top_via.params
    assert noted["received"] == "192.0.2.7"
    assert noted.get("rport") == ("40000" if params.startswith("rport") else None)
    assert came.top_via.branch == "z9hG4bK1"
