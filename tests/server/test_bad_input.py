"""Every row of the "SIP syntax" table in docs/bad-input.md, on the transports it names."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from sipush.errors import MessageError
from sipush.sip.framing import KeepAlive, StreamFramer
from sipush.sip.message import parse_datagram
from tests.server.wire import Wire
from tests.sip.messages import TOP_VIA, request_bytes

_DOCUMENT = Path(__file__).parents[2] / "docs" / "bad-input.md"

INPUTS = {
    "no-start-line": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "lws-uri": request_bytes(uri="sip:bob@example.com; lr"),
    "version": request_bytes().replace(b" SIP/2.0\r\n", b" SIP/7.0\r\n", 1),
    "bad-status": b"SIP/2.0 4294967301 better\r\nVia: x\r\nContent-Length: 0\r\n\r\n",
    "bad-response": b"SIP/2.0 180 Ringing\r\nno colon\r\nContent-Length: 4\r\n\r\nbody",
    "endless-response": b"SIP/2.0 180 Ringing\r\nno colon\r\n\r\n",
    "no-colon": request_bytes(extra=("no colon",)),
    "bad-uri": request_bytes(uri="sip:"),
    "scheme": request_bytes(uri="soap.beep://192.0.2.103:3002"),
    "uri-headers": request_bytes(uri="sip:bob@example.com?Route=x"),
    "no-via": request_bytes(without="Via"),
    "bad-via": request_bytes(via=TOP_VIA.replace("SIP/2.0", "SIP")),
    "no-to": request_bytes(without="To"),
    "no-from": request_bytes(without="From"),
    "no-call-id": request_bytes(without="Call-ID"),
    "no-cseq": request_bytes(without="CSeq"),
    "no-max-forwards": request_bytes(without="Max-Forwards"),
    "bad-from": request_bytes(from_='"Alice <sip:alice@example.com>;tag=a1'),
    "bad-to-uri": request_bytes(to="<sip:bob@[::1>"),
    "bad-cseq": request_bytes(cseq="OPTIONS"),
    "big-cseq": request_bytes(cseq="2147483648 OPTIONS"),
    "endless-cseq": request_bytes(cseq=f"{'0' * 5000}1 OPTIONS"),
    "cseq-method": request_bytes(cseq="1 INVITE"),
    "bad-max-forwards": request_bytes(max_forwards="300"),
    "endless-max-forwards": request_bytes(max_forwards="9" * 5000),
    "two-call-ids": request_bytes(extra=("Call-ID: another",)),
    "many-headers": request_bytes(extra=("X: y",) * 200),
    "many-vias": request_bytes(extra=("Via: SIP/2.0/UDP a;branch=z9hG4bKx",) * 70),
    "many-record-routes": request_bytes(extra=("Record-Route: <sip:a;lr>, <sip:b;lr>",) * 16),
    "big-body": request_bytes(content_length="40000") + b"x" * 40_000,
    "unknown-method": request_bytes("NEWMETHOD"),
    "bytes-too-many": request_bytes() + b"more",
    "bytes-too-few": request_bytes(content_length="10"),
    "no-length": request_bytes(without="Content-Length"),
    "bad-length": request_bytes(content_length="ten"),
    "two-lengths": request_bytes(extra=("l: 5",)),
    "huge-length": request_bytes(content_length="70000"),
    "huge-head": request_bytes(extra=("X: " + "x" * 17_000,)),
}


class BadInput(NamedTuple):
    name: str
    transport: str
    answer: str
    reason: str


def documented() -> list[BadInput]:
    section = _DOCUMENT.read_text().split("\n## SIP syntax\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([a-z-]+)` [^|]*\| (.*?) \| (.*?) \| (.*?) \|", section, re.MULTILINE)
    return [
        BadInput(name, one, answer, reason)
        for name, transport, answer, reason in rows
        for one in (("UDP", "stream") if transport == "any" else (transport,))
    ]


def outcome(row: BadInput) -> tuple[str, str]:
    """(answer, reason phrase), as the document writes them, of feeding the row's input."""
    wire = Wire("UDP" if row.transport == "UDP" else "TCP")
    closed = False
    if row.transport == "UDP":
        try:
            wire.receive(INPUTS[row.name])
        except MessageError as error:
            wire.layer.malformed_received(wire.flow, error)
    else:
        framer = StreamFramer()
        for frame in framer.feed(INPUTS[row.name]):
            assert not isinstance(frame, KeepAlive)
            if isinstance(frame, MessageError):
                wire.layer.malformed_received(wire.flow, frame)
            else:
                wire.layer.messages_received([(wire.flow, frame)])
        closed = framer.lost
    responses = [parse_datagram(data).start_line.split(" ", 2) for _, data in wire.flow.sent]
    if responses:
        ((_, status, reason),) = responses
        return (f"{status}, closed" if closed else status), reason
    if closed:
        return "closed", "-"
    return ("accepted" if wire.events else "dropped"), "-"


@pytest.mark.parametrize("row", documented(), ids=lambda row: f"{row.name}-{row.transport}")
def test_bad_input_is_answered_as_documented(row: BadInput) -> None:
    assert outcome(row) == (row.answer, row.reason)


def test_document_and_test_hold_the_same_inputs() -> None:
    assert {row.name for row in documented()} == set(INPUTS)
