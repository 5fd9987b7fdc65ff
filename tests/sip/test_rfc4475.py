"""The torture test messages of RFC 4475, each with our verdict at the syntax layer."""

from pathlib import Path

import pytest

from sipush.errors import MessageError
from sipush.sip.framing import StreamFramer
from sipush.sip.message import Request, Response, make_response, parse_datagram
from sipush.sip.validation import check

MESSAGES = Path(__file__).parent / "rfc4475"

#: Accepted and forwardable byte for byte. Those of §3.1.2 among them are bad in a header that only
#: their final recipient acts on, or that we act on later (Contact, Require, Max-Forwards of 0).
# fmt: off
ACCEPTED = [
    "badaspec", "badbranch", "baddate", "baddn", "bcast", "bext01", "cparam01",
    "cparam02", "esc01", "esc02", "escnull", "intmeth", "inv2543", "invut",
    "longreq", "lwsdisp", "mpart01", "noreason", "regaut01", "regbadct", "regescrt",
    "sdp01", "semiuri", "transports", "unksm2", "unreason", "wsinv", "zeromf",
]
# fmt: on

REFUSED = {
    "badinv01": (400, "Malformed Via"),
    "badvers": (505, "Version Not Supported"),
    "clerr": (400, "Body Shorter Than Content-Length"),
    "escruri": (400, "Headers Not Allowed in Request-URI"),
    "insuf": (400, "Missing From"),
    "ltgtruri": (400, "Malformed Request-URI"),
    "lwsruri": (400, "Malformed Request Line"),
    "lwsstart": (400, "Malformed Request Line"),
    "mcl01": (400, "Conflicting Content-Length"),
    "mismatch01": (400, "CSeq Method Does Not Match Request"),
    "mismatch02": (400, "CSeq Method Does Not Match Request"),
    "multi01": (400, "Conflicting To"),
    "ncl": (400, "Malformed Content-Length"),
    "novelsc": (416, "Unsupported URI Scheme"),
    "quotbal": (400, "Malformed Address in To"),
    "scalar02": (400, "CSeq Number Out of Range"),
    "trws": (400, "Malformed Request Line"),
    "unkscm": (416, "Unsupported URI Scheme"),
}

#: Responses, and a request line of RFC 2543's first draft: dropped, there is nothing to answer.
DROPPED = {
    "bigcode": "Malformed Status Line",
    "scalarlg": "CSeq Number Out of Range",
    "test": "Malformed Request Line",
}

#: Two messages in one datagram: the second is not looked at (§3.1.1.8).
TWO_IN_ONE = "dblreq"


def read(name: str) -> bytes:
    return (MESSAGES / f"{name}.dat").read_bytes()


def fault_of(name: str) -> MessageError:
    with pytest.raises(MessageError) as caught:
        check(parse_datagram(read(name)))
    return caught.value


def test_every_message_has_a_verdict() -> None:
    names = [path.stem for path in MESSAGES.glob("*.dat")]
    assert sorted(names) == sorted([*ACCEPTED, *REFUSED, *DROPPED, TWO_IN_ONE])
    assert len(names) == 50


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_accepted_message_leaves_byte_for_byte(name: str) -> None:
    message = parse_datagram(read(name))
    check(message)
    assert message.to_bytes() == read(name)


def test_bytes_beyond_the_content_length_of_a_datagram_are_dropped() -> None:
    message = parse_datagram(read(TWO_IN_ONE))
    check(message)
    assert read(TWO_IN_ONE).startswith(message.to_bytes())
    assert message.start_line == "REGISTER sip:example.com SIP/2.0"


def test_two_messages_in_one_segment_of_a_stream_are_two() -> None:
    frames = StreamFramer().feed(read(TWO_IN_ONE))
    assert [str(frame) for frame in frames if isinstance(frame, Request)] == [
        "<Request REGISTER sip:example.com>",
        "<Request INVITE sip:joe@example.com>",
    ]


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_request_can_be_answered_with_its_fault(name: str) -> None:
    fault = fault_of(name)
    assert (fault.status, fault.reason) == REFUSED[name]
    assert fault.message is not None
    assert not isinstance(fault.message, Response)
    assert "via" in make_response(fault.message, fault.status, fault.reason).headers


@pytest.mark.parametrize("name", DROPPED)
def test_a_dropped_message_leaves_nothing_to_answer(name: str) -> None:
    fault = fault_of(name)
    assert fault.reason == DROPPED[name]
    assert fault.message is None or isinstance(fault.message, Response)
