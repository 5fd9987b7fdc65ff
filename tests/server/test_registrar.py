"""REGISTERs as the whole server answers them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from sipush.config import load
from sipush.core.registration import RegistrationPolicy
from sipush.metrics import REGISTERS
from sipush.sip.message import Response, parse_datagram
from tests.bench.in_process import Server, Wire, authorization, configuration, register_from
from tests.bench.servers import DOMAIN

_CREDENTIALS = 'username="u000001", realm="elsewhere", nonce="n", uri="u", response="r"'
FORGED = f"Authorization: Digest {_CREDENTIALS}\r\n"


def answers(server: Server) -> list[Response]:
    parsed = [parse_datagram(data) for data in server.phone.sent]
    return [message for message in parsed if isinstance(message, Response)]


async def test_a_register_without_credentials_is_challenged_and_forgotten(tmp_path: Path) -> None:
    server = Server(configuration(tmp_path))
    register = register_from(1, "")
    for data in (register, register, register_from(1, "")):
        await server.send(server.phone, data)
    first, repeated, other = answers(server)
    assert [first.status, repeated.status, other.status] == [401] * 3
    assert first.to.tag == repeated.to.tag != other.to.tag  # §8.2.7
    assert server.proxy.layer.server_transactions == server.proxy.layer.timers == 0


@pytest.mark.parametrize(
    ("changed", "into", "status", "transactions"),
    [
        ("To: <sip:u000001@", "To: <sip:u000001@elsewhere.", 403, 0),
        ("REGISTER sip:", "REGISTER sip:elsewhere.", 403, 0),
        ("To: <sip:", "To: <tel:", 416, 1),
        ("Max-Forwards", f"{FORGED}Max-Forwards", 401, 1),
    ],
)
async def test_other_registers_that_nobody_signed_are_answered_as_ever(
    tmp_path: Path, changed: str, into: str, status: int, transactions: int
) -> None:
    server = Server(configuration(tmp_path))
    data = register_from(1, "").replace(changed.encode(), into.encode())
    await server.send(server.phone, data)
    assert [answer.status for answer in answers(server)] == [status]
    assert server.proxy.layer.server_transactions == transactions


async def test_a_device_that_comes_or_goes_is_news_and_a_refresh_is_not(tmp_path: Path) -> None:
    server = Server(configuration(tmp_path))

    async def told(leaves: bool = False) -> list[str]:
        with capture_logs() as lines:
            await (server.unregister() if leaves else server.refresh())
        return [line["event"] for line in lines if line["log_level"] == "info"]

    await server.register()
    assert await told() == []
    assert await told(leaves=True) == ["unregistered"]
    assert await told() == ["registered"]
    assert await told() == []


@pytest.mark.parametrize(
    ("changed", "into", "status"),
    [
        (b"Expires: 3600", b"Expires: 1", 423),
        (b"Expires: 3600", b"Expires: 3600\r\nRequire: gruu", 420),
        (b"To: <sip:u000001@", b"To: <sip:u000002@", 403),
    ],
)
async def test_a_user_who_signed_in_and_is_refused_is_counted(
    tmp_path: Path, changed: bytes, into: bytes, status: int
) -> None:
    server = Server(configuration(tmp_path))
    await server.register()
    before = dict(REGISTERS.counts)
    register = register_from(1, server.credentials())
    assert changed in register
    await server.send(server.phone, register.replace(changed, into))
    assert answers(server)[-1].status == status
    assert REGISTERS.counts == before | {("refused",): before["refused",] + 1}


PATH = "<sip:127.0.0.1:6379;transport=tcp;lr>"


async def registered_with_path(server: Server, wire: Wire, path: str = PATH) -> Response:
    """The final answer to a REGISTER with a Path that comes over ``wire``."""
    return await registered(server, wire, 7, f"Path: {path}\r\n")


async def registered(server: Server, wire: Wire, number: int, header: str = "") -> Response:
    """The final answer to a REGISTER of one of the user's phones that comes over ``wire``."""
    credentials = ""
    for _ in ("challenged", "accepted"):
        data = register_from(number, credentials + header)
        await server.send(wire, data)
        if nonce := re.search(rb'nonce="([^"]*)"', wire.sent[-1]):
            credentials = authorization(nonce[1].decode(), 1)
    answer = parse_datagram(wire.sent[-1])
    assert isinstance(answer, Response)
    return answer


def wire_of(server: Server, ip: str, number: int) -> Wire:
    """A flow to a host that is not the callers' own."""
    wire = server.wire(number)
    wire.remote = (ip, 5060)
    return wire


async def test_only_the_path_of_a_peer_leads_anywhere(tmp_path: Path) -> None:
    server = Server(configuration(tmp_path))
    peer, user = wire_of(server, "127.0.0.1", 3), wire_of(server, "192.0.2.66", 4)
    aor = f"u000001@{DOMAIN}"

    async def paths() -> list[tuple[str, ...]]:
        return [b.path for b in (await server.proxy.store.lookup(aor, 0.0)).bindings]

    with capture_logs() as lines:
        assert (await registered_with_path(server, peer)).status == 200
        assert await paths() == [(PATH,)]
        for _ in range(2):  # what is known of the peer's does not count, nor is it forgotten
            answer = await registered_with_path(server, user)
            assert (answer.status, "path" in answer.headers) == (200, False)
            assert answer.headers.get("warning") is not None
            assert await paths() == [()]
        assert (await registered_with_path(server, peer)).headers.get("warning") is None
        assert await paths() == [(PATH,)]
    told = [line for line in lines if line["event"] == "path_ignored"]
    assert [(line["path"], line["aor"]) for line in told] == [(PATH, aor)] * 2
    assert all("[[peers]]" in line["reason"] for line in told)


async def test_a_peer_is_told_of_a_path_that_cannot_be_read(tmp_path: Path) -> None:
    server = Server(configuration(tmp_path))
    answer = await registered_with_path(server, wire_of(server, "127.0.0.1", 3), "<sip:edge")
    assert (answer.status, answer.reason) == (400, "Malformed Address in Path")


class Connection(Wire):
    """A flow to a phone that opened it, and may close it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.name = f"tcp/127.0.0.1:5060/127.0.0.1:{self.remote[1]}/{self.number}"


def connected(server: Server, number: int) -> Connection:
    connection = Connection(number)
    server._wires.flows[connection.name] = connection  # type: ignore[assignment]
    return connection


@pytest.mark.parametrize("closed", ["gone", "closing"])
async def test_a_phone_without_a_name_may_come_back_as_often_as_it_likes(
    tmp_path: Path, closed: str
) -> None:
    server = Server(configuration(tmp_path))
    limit = RegistrationPolicy().max_contacts
    for number in range(10, 10 + 2 * limit):
        connection = connected(server, number)
        assert (await registered(server, connection, number)).status == 200
        connection.closed = True
        if closed == "gone":
            del server._wires.flows[connection.name]
    bound = (await server.proxy.store.lookup(f"u000001@{DOMAIN}", 0.0)).bindings
    assert len(bound) == limit
    assert bound[0].flow == connection.name


@pytest.mark.parametrize("which", ["connections", "datagrams"])
async def test_phones_that_may_be_there_are_not_put_out_for_another(
    tmp_path: Path, which: str
) -> None:
    server = Server(configuration(tmp_path))
    new, limit = connected if which == "connections" else Server.wire, 10
    for number in range(10, 10 + limit):
        assert (await registered(server, new(server, number), number)).status == 200
    answer = await registered(server, new(server, 9), 9)
    assert (answer.status, answer.reason) == (403, "Too Many Contacts")
    assert len((await server.proxy.store.lookup(f"u000001@{DOMAIN}", 0.0)).bindings) == limit


async def test_who_begins_cseq_anew_in_an_old_call_id_is_told_so(tmp_path: Path) -> None:
    server = Server(configuration(tmp_path))
    await server.register()
    call_id = answers(server)[-1].call_id
    again = register_from(1, server.credentials()).replace(b"CSeq: 1 ", b"CSeq: 0 ")
    with capture_logs() as lines:
        await server.send(
            server.phone, re.sub(rb"Call-ID: [^\r]*", b"Call-ID: " + call_id.encode(), again)
        )
    answer = answers(server)[-1]
    assert (answer.status, answer.reason) == (500, "CSeq Not Above the Last of This Call-ID")
    told = {"reason": "out-of-order", "call_id": call_id, "cseq": 0}
    assert [told.items() <= line.items() for line in lines] == [True]


async def test_phones_that_may_be_there_are_put_out_where_the_operator_says_so(
    tmp_path: Path,
) -> None:
    configuration(tmp_path)
    file = tmp_path / "sipush.toml"
    file.write_text("registration.remove_existing = true\n" + file.read_text())
    server, limit = Server(load(file)), RegistrationPolicy().max_contacts
    with capture_logs() as lines:
        for number in range(10, 10 + limit + 1):
            assert (await registered(server, server.wire(number), number)).status == 200
    bound = (await server.proxy.store.lookup(f"u000001@{DOMAIN}", 0.0)).bindings
    contacts = [f"sip:u000001@127.0.0.1:{20_000 + n}" for n in range(10, 10 + limit + 1)]
    assert [binding.contact for binding in bound] == contacts[:0:-1]
    removed = [line["contacts"] for line in lines if line["event"] == "contacts_removed"]
    assert removed == [contacts[:1]]
