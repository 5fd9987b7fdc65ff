"""REGISTERs as the whole server answers them."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from sipush.metrics import REGISTERS
from sipush.sip.message import Response, parse_datagram
from tests.bench.in_process import Server, configuration, register_from

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
