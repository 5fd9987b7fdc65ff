"""The torture messages of RFC 4475 sent to the daemon, over UDP and TCP: a verdict for each."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path

import pytest

from tests.e2e.daemon import Daemon
from tests.e2e.wire import PATIENCE, new_branch
from tests.e2e.world import World

MESSAGES = Path(__file__).parents[1] / "sip" / "rfc4475"
DOMAINS = ["example.com", "example.org", "example.net"]
LAST = "the-last-one"

ANSWERS = {
    # What is answered over UDP and over TCP; "dropped" are a few responses, and what is no SIP.
    "badaspec": ("407", "407"),
    "badbranch": ("407", "407"),
    "baddate": ("407", "407"),
    "baddn": ("407", "407"),
    "badinv01": ("400", "400"),
    "badvers": ("505", "505"),
    "bcast": ("dropped", "dropped"),
    "bext01": ("420", "420"),
    "bigcode": ("dropped", "dropped"),
    "clerr": ("400", "closed"),
    "cparam01": ("401", "401"),
    "cparam02": ("401", "401"),
    "dblreq": ("401", "401 407 closed"),
    "esc01": ("407", "407"),
    "esc02": ("403", "403"),
    "escnull": ("401", "401"),
    "escruri": ("400", "400"),
    "insuf": ("400", "400"),
    "intmeth": ("407", "407"),
    "inv2543": ("407", "400 closed"),
    "invut": ("407", "407"),
    "longreq": ("407", "407"),
    "ltgtruri": ("400", "400"),
    "lwsdisp": ("407", "407"),
    "lwsruri": ("400", "400"),
    "lwsstart": ("400", "400"),
    "mcl01": ("400", "400 closed"),
    "mismatch01": ("400", "400"),
    "mismatch02": ("400", "400"),
    "mpart01": ("403", "403"),
    "multi01": ("400", "400"),
    "ncl": ("400", "400 closed"),
    "noreason": ("dropped", "dropped"),
    "novelsc": ("416", "416"),
    "quotbal": ("400", "400"),
    "regaut01": ("401", "401"),
    "regbadct": ("401", "401"),
    "regescrt": ("401", "401"),
    "scalar02": ("400", "400"),
    "scalarlg": ("dropped", "dropped"),
    "sdp01": ("407", "407"),
    "semiuri": ("407", "407"),
    "test": ("dropped", "closed"),
    "transports": ("407", "407"),
    "trws": ("400", "400"),
    "unkscm": ("416", "416"),
    "unksm2": ("416", "416"),
    "unreason": ("dropped", "dropped"),
    "wsinv": ("403", "403"),
    "zeromf": ("200", "200"),
}


@pytest.fixture(params=["sqlite"])
def store_type(request: pytest.FixtureRequest) -> str:
    """Nothing of it is stored."""
    name: str = request.param
    return name


def final_request(transport: str) -> bytes:
    """What is answered when everything before it has been dealt with: nothing waits for a call."""
    return (
        "INVITE sip:b@example.com SIP/2.0\r\n"
        f"Via: SIP/2.0/{transport} 127.0.0.1;rport;branch={new_branch()}\r\n"
        "From: <sip:a@example.com>;tag=a\r\nTo: <sip:b@example.com>\r\n"
        "Contact: <sip:a@127.0.0.1>\r\n"
        f"Call-ID: {LAST}\r\nCSeq: 1 INVITE\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
    ).encode()


def statuses(answers: bytes) -> str:
    """The final ones, in order, but for that of the last request."""
    found = re.findall(rb"^SIP/2\.0 ([2-6]\d\d)(.*?)\r\n\r\n", answers, re.MULTILINE | re.DOTALL)
    return " ".join(status.decode() for status, rest in found if LAST.encode() not in rest)


async def over_udp(daemon: Daemon, message: bytes) -> str:
    loop, answers = asyncio.get_running_loop(), b""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
        phone.setblocking(False)
        phone.connect(daemon.at("UDP"))
        phone.send(message)
        phone.send(final_request("UDP"))
        async with asyncio.timeout(PATIENCE):
            while LAST.encode() not in answers:
                answers += await loop.sock_recv(phone, 65536)
    return statuses(answers) or "dropped"


async def over_tcp(daemon: Daemon, message: bytes) -> str:
    reader, writer = await asyncio.open_connection(*daemon.at("TCP"))
    writer.write(message + final_request("TCP"))
    answers = b""
    async with asyncio.timeout(PATIENCE):
        while LAST.encode() not in answers and (data := await reader.read(65536)):
            answers += data
    closed = LAST.encode() not in answers
    writer.close()
    return " ".join(filter(None, [statuses(answers), "closed" if closed else ""])) or "dropped"


def test_every_message_has_a_verdict_on_each_transport() -> None:
    assert sorted(ANSWERS) == sorted(path.stem for path in MESSAGES.glob("*.dat"))
    assert len(ANSWERS) == 50


@pytest.mark.parametrize("transport", ["UDP", "TCP"])
async def test_every_message_is_answered_as_it_should_be(world: World, transport: str) -> None:
    # One daemon for each transport, or the second copy would be a repeat of the first.
    daemon = await world.start(
        sip={"domains": [*DOMAINS, world.domain]}, limits={"message_time": 0.5}
    )
    send = over_udp if transport == "UDP" else over_tcp
    given = {}
    for path in sorted(MESSAGES.glob("*.dat")):
        message = path.read_bytes()
        if path.stem == "regescrt":  # another of these has its branch, too
            message = message.replace(b"branch=z9hG4bKkdjuw", b"branch=z9hG4bKregescrt")
        given[path.stem] = await send(daemon, message)
    assert given == {name: answers[transport == "TCP"] for name, answers in ANSWERS.items()}
