from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipush.errors import MessageError
from sipush.sip.message import Request, Response, make_response, parse_datagram
from tests.sip.messages import request, request_bytes

HEADER_TEXT = st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]))
NAME = st.from_regex(r"\AX-[A-Za-z0-9.!%*_+'~-]{1,20}\Z")


@given(st.lists(st.tuples(NAME, HEADER_TEXT)), st.binary())
def test_a_message_leaves_byte_for_byte(fields: list[tuple[str, str]], body: bytes) -> None:
    lines = tuple(f"{name} :{value}" for name, value in fields)
    data = request_bytes("MESSAGE", extra=lines, body=body)
    assert parse_datagram(data).to_bytes() == data


@given(st.binary(max_size=200))
def test_noise_is_refused_or_leaves_as_it_came(noise: bytes) -> None:
    data = b"OPTIONS sip:a SIP/2.0\r\nX: " + noise + b"\r\n\r\n"
    with suppress(MessageError):
        assert data.startswith(parse_datagram(data).to_bytes())


@pytest.mark.parametrize("line", ["X: a\nVia: forged", "X: a\rVia: forged", "\nVia: forged"])
def test_a_header_cannot_be_hidden_behind_a_lone_line_end(line: str) -> None:
    with pytest.raises(MessageError, match="Malformed Header") as caught:
        parse_datagram(request_bytes(extra=(line,)))
    assert caught.value.message is not None
    assert b"forged" not in caught.value.message.to_bytes()


def test_bytes_that_are_not_utf8_survive() -> None:
    data = request_bytes(extra=("Subject: @@",)).replace(b"@@", b"\xff\xfe")
    assert parse_datagram(data).to_bytes() == data


def test_a_response_repeats_what_8_2_6_2_asks_for() -> None:
    invite = request("INVITE", "sip:bob@example.com")
    response = make_response(invite, 486, to_tag="b1")
    assert response.start_line == "SIP/2.0 486 Busy Here"
    assert response.to.tag == "b1"
    for name in ("via", "from", "call-id", "cseq"):
        assert response.headers.lines(name) == invite.headers.lines(name)


@pytest.mark.parametrize("tag", [";tag=old", ";  tag = old", ";x=1\r\n ;TAG=old", " ;tag=old"])
def test_a_to_tag_that_is_there_stays(tag: str) -> None:
    invite = request("INVITE", to=f"<sip:bob@example.com>{tag}")
    response = make_response(invite, 486, to_tag="new")
    assert response.to.tag == "old"
    assert "new" not in str(response.headers.get("to"))


def test_a_response_is_read() -> None:
    response = parse_datagram(make_response(request(), 200).to_bytes())
    assert isinstance(response, Response)
    assert (response.status, response.reason, response.cseq.method) == (200, "OK", "OPTIONS")


def test_a_copy_may_be_changed_alone() -> None:
    original = request()
    copied = original.copy()
    copied.headers.remove("via")
    copied.set_body(b"hi", "text/plain")
    assert isinstance(copied, Request)
    assert "via" in original.headers
    assert copied.headers.get("content-length") == "2"
    assert original.body == b""
