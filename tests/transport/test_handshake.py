"""TLS handshakes: limited while they last, and what comes with their end is not lost."""

from __future__ import annotations

import asyncio
import tracemalloc
from asyncio import sslproto

import pytest

from sipush.transport import handshake
from sipush.transport.connection import READ_SIZE, Limits
from tests.transport.authority import Authority
from tests.transport.conftest import Open
from tests.transport.support import Recorder, TcpPhone, TlsPipe, register, soon


@pytest.mark.parametrize("limits", [Limits(connections_per_address=2), Limits(connections=2)])
async def test_a_handshake_that_does_not_end_counts_as_a_connection(
    listen: Open, recorder: Recorder, authority: Authority, limits: Limits
) -> None:
    listeners = await listen("tls", tls=authority.issue("127.0.0.1"), limits=limits)
    address = listeners.addresses[0].bound
    stalled = [await TcpPhone.open(address) for _ in range(2)]
    refused = await TcpPhone.open(address)
    assert await soon(refused.reader.read(-1)) == b""
    stalled[0].writer.close()
    welcome = await served_at_last(authority, address)
    await recorder.request()
    for phone in (*stalled, welcome):
        phone.writer.close()


async def served_at_last(authority: Authority, address: tuple[str, int]) -> TcpPhone:
    """A phone that has registered: the server hears of an end soon, but not at once."""
    async with asyncio.timeout(10):
        while True:
            try:
                phone = await TcpPhone.open(address, ssl=authority.client())
            except OSError:
                continue
            phone.writer.write(register())
            return phone


async def test_a_handshake_that_does_not_end_is_given_up(
    listen: Open, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "HANDSHAKE_TIME", 0.1)
    listeners = await listen("tls", tls=authority.issue("127.0.0.1"))
    phone = await TcpPhone.open(listeners.addresses[0].bound)
    assert await soon(phone.reader.read(-1)) == b""


async def test_a_request_in_the_packet_that_ends_the_handshake_is_heard(
    listen: Open, recorder: Recorder, authority: Authority
) -> None:
    listeners = await listen("tls", tls=authority.issue("127.0.0.1"))
    phone = await TlsPipe.open(listeners.addresses[0].bound, authority.client())
    phone.write(register(7))
    _, request = await recorder.request()
    assert request.cseq.number == 7
    phone.close()


async def test_connections_share_what_they_read_into_and_nothing_else(
    listen: Open, recorder: Recorder, authority: Authority
) -> None:
    listeners = await listen("tls", tls=authority.issue("127.0.0.1"))
    address = listeners.addresses[0].bound
    tracemalloc.start()
    try:
        phones = [await TcpPhone.open(address, ssl=authority.client()) for _ in range(10)]
        for cseq, phone in enumerate(phones):
            phone.writer.write(register(cseq)[:100])
            await phone.writer.drain()
        for cseq, phone in enumerate(phones):
            phone.writer.write(register(cseq)[100:])
        heard = [await recorder.request() for _ in phones]
        traces = tracemalloc.take_snapshot().traces
    finally:
        tracemalloc.stop()
    by_port = {flow.remote[1]: request.cseq.number for flow, request in heard}
    assert by_port == {phone.address[1]: cseq for cseq, phone in enumerate(phones)}
    buffers = [
        trace
        for trace in traces
        if trace.size >= READ_SIZE and trace.traceback[0].filename == sslproto.__file__
    ]
    assert len(buffers) == len(phones)  # those of the phones, which are in this process too
