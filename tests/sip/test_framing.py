from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipush.errors import MessageError
from sipush.sip.framing import Frame, KeepAlive, StreamFramer
from sipush.sip.message import Message, Request, Response, parse_datagram
from tests.sip.messages import request_bytes

INVITE = request_bytes("INVITE", body=b"v=0\r\n\r\nno\r\n")
OPTIONS = request_bytes()
BAD_HEADER = request_bytes(extra=("no colon here",), body=b"skipped")


def comparable(frame: Frame) -> object:
    if isinstance(frame, Message):
        return frame.to_bytes()
    return (frame.status, frame.reason) if isinstance(frame, MessageError) else frame


def frames_of(*segments: bytes, framer: StreamFramer | None = None) -> list[object]:
    framer = framer or StreamFramer()
    return [comparable(frame) for segment in segments for frame in framer.feed(segment)]


def lost_by(data: bytes, **sizes: int) -> MessageError:
    framer = StreamFramer(**sizes)
    *_, error = framer.feed(data)
    assert framer.lost
    assert framer.feed(OPTIONS) == []
    assert isinstance(error, MessageError)
    return error


STREAM = b"".join([INVITE, b"\r\n\r\n", OPTIONS, b"\r\n", BAD_HEADER, OPTIONS, b"\r\n\r\n\r\n"])
FRAMES = [
    INVITE,
    KeepAlive.PING,
    OPTIONS,
    (400, "Malformed Header"),
    OPTIONS,
    KeepAlive.PING,
]


def test_many_messages_in_one_segment_come_in_order() -> None:
    assert frames_of(STREAM) == FRAMES


def test_a_stream_may_be_split_at_every_byte() -> None:
    assert frames_of(*(STREAM[i : i + 1] for i in range(len(STREAM)))) == FRAMES


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_a_stream_may_be_split_anywhere(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in pairwise(edges)]
    assert frames_of(*pieces) == FRAMES


@given(st.binary(max_size=300), st.integers(0, 600))
def test_a_framed_message_equals_the_same_datagram(body: bytes, cut: int) -> None:
    data = request_bytes("MESSAGE", body=body)
    assert frames_of(data[:cut], data[cut:]) == [parse_datagram(data).to_bytes()]


@given(st.lists(st.sampled_from([INVITE, b"\r\n", b"\r\n\r\n", b"\0", b"SIP", b": 1\r\n"])))
def test_no_input_raises(pieces: list[bytes]) -> None:
    whole, split = StreamFramer(), StreamFramer()
    data = b"".join(pieces)
    assert frames_of(data, framer=whole) == frames_of(
        *(data[i : i + 1] for i in range(len(data))), framer=split
    )
    assert whole.lost == split.lost


def test_a_single_line_end_is_ignored_even_when_it_comes_alone() -> None:
    assert frames_of(b"\r\n", OPTIONS) == [OPTIONS]


def test_a_ping_may_arrive_in_two_halves() -> None:
    assert frames_of(b"\r\n\r", b"\n") == [KeepAlive.PING]


def test_a_bad_header_does_not_lose_the_framing_and_can_be_answered() -> None:
    framer = StreamFramer()
    error, following = framer.feed(BAD_HEADER + OPTIONS)
    assert isinstance(error, MessageError)
    assert isinstance(error.message, Request)
    assert error.message.call_id == "call-1@192.0.2.1"
    assert isinstance(following, Request)
    assert not framer.lost


@pytest.mark.parametrize("start", ["180 Ringing\r\nno colon here", "18 Ringing"])
def test_a_bad_response_is_skipped_with_its_body(start: str) -> None:
    framer = StreamFramer()
    bad = f"SIP/2.0 {start}\r\nl: 4\r\n\r\nbody".encode()
    error, following = framer.feed(bad + OPTIONS)
    assert isinstance(error, MessageError)
    assert isinstance(error.message, Response)
    assert error.message.start_line == f"SIP/2.0 {start}".partition("\r\n")[0]
    assert isinstance(following, Request)
    assert not framer.lost


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (request_bytes(without="Content-Length"), 400, "Missing Content-Length"),
        (request_bytes(content_length="-1"), 400, "Malformed Content-Length"),
        (request_bytes(extra=("l: 7",)), 400, "Conflicting Content-Length"),
        (request_bytes(content_length="99999"), 513, "Message Too Large"),
        (request_bytes(extra=("X: " + "x" * 20_000,)), 513, "Header Too Large"),
    ],
)
def test_lost_framing_can_still_be_answered(data: bytes, status: int, reason: str) -> None:
    error = lost_by(data)
    assert (error.status, error.reason) == (status, reason)
    assert isinstance(error.message, Request)
    assert error.message.call_id == "call-1@192.0.2.1"


@pytest.mark.parametrize("cut", range(4))
def test_a_head_of_the_size_that_is_allowed_may_end_in_two_pieces(cut: int) -> None:
    data = request_bytes()
    end = len(data) - cut
    framer = StreamFramer(max_header_size=len(data) - len(b"\r\n\r\n"))
    frames = framer.feed(data[:end]) + framer.feed(data[end:])
    assert [type(frame) for frame in frames] == [Request]


def test_a_head_without_end_is_refused_once_it_is_too_large() -> None:
    framer = StreamFramer(max_header_size=1000)
    start = request_bytes().removesuffix(b"\r\n\r\n") + b"\r\nX: "
    assert framer.feed(start + b"x" * 500) == []
    (error,) = framer.feed(b"x" * 500)
    assert comparable(error) == (513, "Header Too Large")


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\r\n\r\n", b" \r\n\r\n"])
def test_what_is_not_sip_loses_the_framing_and_gets_no_answer(data: bytes) -> None:
    assert lost_by(data).message is None
