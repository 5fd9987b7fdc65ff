"""What only a trusted peer may say, and where it is found again inside a call."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from sipush.config import load
from sipush.sip.fields import parse_via
from sipush.sip.message import Response, parse_datagram
from sipush.transport.flow import Address, Flow
from tests.bench.in_process import CALLERS, HERE, USER, Server, Wire, Wires, invite, response
from tests.bench.servers import DOMAIN

PBX = "10.9.9.9"
CLAIMS = "P-Asserted-Identity: <sip:boss@x>\r\nDiversion: <sip:200@x>\r\nX-Push-Id: 7\r\n"
FOREIGN = (
    'Proxy-Authorization: Digest username="u", realm="pbx", nonce="n", uri="u", response="0"\r\n'
)

PEER = '[[peers]]\nname = "pbx"\naddress = "10.9.9.0/24"\n'
EDGE = f"{CALLERS}challenge = true\n"
ROUTE = f'[domains."{DOMAIN}"]\nroute = ["sip:{PBX};transport=tcp"]\n'
REGISTRAR = f'[domains."{DOMAIN}"]\nregistrar = "sip:{PBX};transport=tcp"\n'
EMERGENCY = f'[emergency]\nnumbers = ["112"]\nstrangers = false\nroute = ["sip:{PBX}"]\n'


@dataclass
class Tcp(Wire):
    transport: str = "TCP"


class Dialled(Wires):
    """Connections that the server opens."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, Address]] = []
        self.out = Wire(0)

    async def connect(self, transport: str, remote: Address, server_name: str = "") -> Flow:
        self.asked.append((transport, remote))
        self.out = (Wire if transport == "UDP" else Tcp)(0)
        self.out.remote = remote
        self.out.name = f"{transport.lower()}/127.0.0.1:5060/{remote[0]}:{remote[1]}/out"
        self.flows[self.out.name] = self.out
        return self.out

    def sent_by(self, transport: str, remote: Address) -> str:
        return "127.0.0.1:5060"

    def lose(self) -> None:
        """The connection of the last call ends."""
        del self.flows[self.out.name]
        self.out.closed = True
        self.asked.clear()


def server_with(folder: Path, *parts: str) -> tuple[Server, Dialled]:
    file = folder / "sipush.toml"
    file.write_text("".join([HERE, PEER, *parts]))
    wires = Dialled()
    return Server(load(file), wires=wires), wires


def with_lines(message: bytes, lines: str) -> bytes:
    """With header lines more."""
    first, rest = message.split(b"\r\n", 1)
    return first + b"\r\n" + lines.encode() + rest


def answer(wire: Wire) -> Response:
    message = parse_datagram(wire.sent[-1])
    assert isinstance(message, Response)
    return message


def inside(answered: Response, method: str, uri: str, lines: str = "") -> bytes:
    """A request of the caller inside the call that was answered so."""
    routes = "".join(f"Route: {v}\r\n" for v in reversed(answered.headers.values("record-route")))
    kept = "".join(
        f"{n}: {answered.headers.first[n.lower()].partition(':')[2].strip()}\r\n"
        for n in ("From", "To", "Call-ID")
    )
    return (
        f"{method} {uri} SIP/2.0\r\n"
        f"Via: SIP/2.0/UDP 127.0.0.1:20002;branch=z9hG4bK{method};rport\r\n"
        f"{routes}{kept}{lines}CSeq: 2 {method}\r\nContact: <sip:x@127.0.0.1:20002>\r\n"
        "Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
    ).encode()


async def calls_pbx(
    server: Server, wires: Dialled, contact: str, record_route: str = ""
) -> Response:
    """A call to a number of the PBX, which answers with that Contact and a Record-Route before."""
    await server.send(server.caller, invite(1).replace(b"u000001", b"100"))
    ok = response(wires.out.sent[-1], "200 OK")
    ok = ok.replace(b"sip:u000001@127.0.0.1:20001", contact.encode())
    if record_route:
        ok = with_lines(ok, f"Record-Route: <{record_route}>\r\n")
    await server.send(wires.out, ok)
    return answer(server.caller)


@pytest.mark.parametrize(
    ("contact", "record_route", "dialled"),
    [
        (f"sip:100@{PBX}:5080;transport=tcp", "", (PBX, 5080)),
        ("sip:100@10.9.9.7:5060", "sip:10.9.9.8:5070;transport=tcp;lr", ("10.9.9.8", 5070)),
    ],
)
async def test_a_pbx_is_called_back_where_it_has_said(
    tmp_path: Path, contact: str, record_route: str, dialled: Address
) -> None:
    server, wires = server_with(tmp_path, CALLERS, USER, ROUTE)
    answered = await calls_pbx(server, wires, contact, record_route)
    wires.lose()
    await server.send(server.caller, inside(answered, "BYE", contact))
    assert wires.asked == [("TCP", dialled)]
    assert wires.out.sent[-1].startswith(b"BYE")


async def test_a_pbx_is_called_back_nowhere_else(tmp_path: Path) -> None:
    """Not at the port of a database that runs beside it."""
    server, wires = server_with(tmp_path, CALLERS, USER, ROUTE)
    answered = await calls_pbx(server, wires, f"sip:100@{PBX}:5080;transport=tcp")
    wires.lose()
    await server.send(server.caller, inside(answered, "BYE", f"sip:100@{PBX}:6379;transport=tcp"))
    assert wires.asked == []
    assert answer(server.caller).status == 480


async def test_a_pbx_that_asks_for_a_password_inside_a_call_gets_it(tmp_path: Path) -> None:
    server, wires = server_with(tmp_path, CALLERS, USER, ROUTE)
    contact = f"sip:100@{PBX}:5080;transport=tcp"
    answered = await calls_pbx(server, wires, contact)
    await server.send(server.caller, inside(answered, "INVITE", contact, FOREIGN))
    assert wires.out.sent[-1].startswith(b"INVITE")
    assert FOREIGN.encode() in wires.out.sent[-1]


@pytest.mark.parametrize("trusted", [False, True])
async def test_only_a_peer_may_say_who_answers(tmp_path: Path, trusted: bool) -> None:
    server, _ = server_with(tmp_path, CALLERS, USER)
    await server.register()
    if not trusted:
        server.phone.remote = ("192.0.2.7", 5060)
    await server.send(server.caller, invite(1))
    ringing = response(server.phone.sent[-1], "180 Ringing")
    await server.send(server.phone, with_lines(ringing, CLAIMS))
    for name in ("p-asserted-identity", "diversion", "x-push-id"):
        assert (name in answer(server.caller).headers) is trusted


async def test_who_answers_a_peer_may_hide_it_from_others(tmp_path: Path) -> None:
    server, _ = server_with(tmp_path, CALLERS, USER)
    await server.register()
    await server.send(server.caller, invite(1))
    secret = "P-Asserted-Identity: <sip:secret@x>\r\nPrivacy: id\r\n"
    ringing = with_lines(response(server.phone.sent[-1], "180 Ringing"), secret)
    await server.send(server.phone, ringing)
    assert "p-asserted-identity" in answer(server.caller).headers
    server.caller.remote = ("192.0.2.8", 5060)
    await server.send(server.phone, ringing)
    assert "p-asserted-identity" not in answer(server.caller).headers


async def test_behind_an_edge_for_anybody_nobody_is_known_by_his_address(tmp_path: Path) -> None:
    server, wires = server_with(tmp_path, EDGE, USER, EMERGENCY)
    await server.register()
    to_112 = invite(1).replace(b"INVITE sip:u000001", b"INVITE sip:112")
    as_user = re.sub(rb"From: <sip:u000002", b"From: <sip:u000001", to_112)
    await server.send(server.caller, as_user)
    assert answer(server.caller).status == 407
    assert wires.asked == []


@pytest.mark.parametrize(
    ("wide", "narrow", "status"), [("", "challenge = true\n", 407), ("challenge = true\n", "", 404)]
)
async def test_of_two_peers_that_hold_an_address_the_narrower_one_counts(
    tmp_path: Path, wide: str, narrow: str, status: int
) -> None:
    around = f'[[peers]]\nname = "all"\naddress = "127.0.0.0/8"\n{wide}'
    for peers in (around + CALLERS + narrow, CALLERS + narrow + around):
        server, _ = server_with(tmp_path, peers)
        await server.send(server.caller, invite(1))
        assert answer(server.caller).status == status


async def test_names_that_strangers_write_take_no_memory(tmp_path: Path) -> None:
    """What a Request-URI inside a dialog names may be as long as a message."""
    server, _ = server_with(tmp_path, CALLERS)
    policy = server.proxy.policy
    assert [policy.is_peer(host) for host in (PBX, "a" * 60_000, "")] == [True, False, False]
    assert list(policy._are_peers) == [PBX]


async def test_an_edge_for_anybody_says_nothing_that_only_peers_may(tmp_path: Path) -> None:
    server, wires = server_with(tmp_path, EDGE, REGISTRAR)
    await server.send(server.caller, with_lines(invite(1), CLAIMS))
    assert wires.out.sent[-1].startswith(b"INVITE")
    assert b"boss" not in wires.out.sent[-1]
    assert b"Diversion" not in wires.out.sent[-1]


async def test_a_port_of_our_host_that_was_refused_stays_so_for_who_takes_the_call_over(
    tmp_path: Path,
) -> None:
    server, _ = server_with(tmp_path, USER, '[[listen]]\ntransport = "tcp"\naddress = "0.0.0.0"')
    via = parse_via("SIP/2.0/TCP 192.0.2.1:6379;branch=z9hG4bK1")
    lost = server.proxy.way_back(via, "tcp/127.0.0.1:5060/127.0.0.1:40000/1")
    again = server.proxy.way_back(via, lost.name)
    assert (lost.refused, again.refused) == (True, True)
    assert again.remote[0] == "127.0.0.1"
    own = server.proxy.way_back(via, "tcp/127.0.0.1:5060/127.0.0.1:6379/1")
    assert (own.refused, server.proxy.way_back(via, own.name).refused) == (False, False)
