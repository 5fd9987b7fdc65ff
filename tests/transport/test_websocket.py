from __future__ import annotations

import asyncio
import base64
import os
import tracemalloc
from contextlib import suppress

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import CloseCode
from websockets.protocol import State
from websockets.typing import Subprotocol

from sipush.errors import TransportError
from sipush.transport.connection import Limits
from sipush.transport.listeners import Listeners
from tests.transport.authority import Authority
from tests.transport.conftest import Open
from tests.transport.support import Recorder, TcpPhone, register, soon

SIP = [Subprotocol("sip")]


async def browser(listeners: Listeners, **options: object) -> ClientConnection:
    host, port = listeners.addresses[0].bound
    scheme = "wss" if "ssl" in options else "ws"
    host = f"[{host}]" if ":" in host else host
    options = {"subprotocols": SIP} | options
    return await connect(f"{scheme}://{host}:{port}", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
async def test_a_request_comes_over_websocket_and_the_answer_goes_back_as_text(
    listen: Open, recorder: Recorder, ip: str
) -> None:
    listeners = await listen("ws", address=ip)
    async with await browser(listeners) as phone:
        assert phone.subprotocol == "sip"
        await phone.send(register(6).decode())
        flow, request = await recorder.request()
        assert request.cseq.number == 6
        assert (flow.transport, flow.local) == ("WS", listeners.addresses[0].bound)
        assert flow.remote == phone.local_address[:2]
        assert flow.name.startswith("ws/")
        assert listeners.flow(flow.name) is flow
        flow.send("SIP/2.0 200 Schön\r\n\r\n".encode())
        assert await soon(phone.recv()) == "SIP/2.0 200 Schön\r\n\r\n"
    assert await soon(recorder.closed.get()) is flow


@pytest.mark.parametrize(
    ("proxies", "headers", "remote"),
    [
        (["127.0.0.0/8"], ["192.0.2.1"], "192.0.2.1"),
        (["127.0.0.1"], ["10.0.0.1, 2001:db8::7"], "2001:db8::7"),
        (["127.0.0.1"], ["10.0.0.1", "192.0.2.1"], "192.0.2.1"),
        (["127.0.0.1"], ["unknown"], "127.0.0.1"),
        (["127.0.0.1"], [], "127.0.0.1"),
        (["192.0.2.1"], ["192.0.2.1"], "127.0.0.1"),
        ([], ["192.0.2.1"], "127.0.0.1"),
    ],
)
async def test_only_a_proxy_of_ours_is_believed_where_a_browser_is(
    listen: Open, recorder: Recorder, proxies: list[str], headers: list[str], remote: str
) -> None:
    listeners = await listen("ws", proxies=proxies, limits=Limits(connections_per_address=1))
    told = [("X-Forwarded-For", header) for header in headers]
    async with await browser(listeners, additional_headers=told) as phone:
        await phone.send(register(6).decode())
        flow, _ = await recorder.request()
        assert flow.remote == (remote, phone.local_address[1])
        assert listeners.flow(flow.name) is flow
    assert await soon(recorder.closed.get()) is flow
    assert recorder.closed.empty()
    async with await browser(listeners, additional_headers=told):
        pass


async def test_the_same_over_secure_websocket(
    listen: Open, recorder: Recorder, authority: Authority
) -> None:
    listeners = await listen("wss", tls=authority.issue("127.0.0.1"))
    async with await browser(listeners, ssl=authority.client()) as phone:
        await phone.send(register(6).decode())
        flow, _ = await recorder.request()
        assert flow.transport == "WSS"
        flow.send(b"SIP/2.0 200 OK\r\n\r\n")
        assert await soon(phone.recv()) == "SIP/2.0 200 OK\r\n\r\n"
        flow.close()
        with pytest.raises(ConnectionClosed):
            await soon(phone.recv())
    assert await soon(recorder.closed.get()) is flow


async def test_binary_and_fragmented_messages_are_read_and_what_is_not_text_leaves_as_binary(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("ws")
    async with await browser(listeners) as phone:
        body = b"\xff\xfe"
        message = register(1, body)
        await phone.send(message)
        assert (await recorder.request())[1].body == body
        await phone.send([message[:10], message[10:50], message[50:]])
        flow, request = await recorder.request()
        assert request.body == body
        flow.send(message)
        assert await soon(phone.recv()) == message


FRAGMENTS = [(0x01, 0x82), (0x00, 0x80), (0x80, 0x82)]
"Heads: two bytes of a text, none, and its last two."


async def test_empty_fragments_are_not_kept(listen: Open, recorder: Recorder) -> None:
    """They count for no limit: anybody could fill the memory with them."""
    listeners = await listen("ws")
    begin, nothing, end = (bytes([head, size, 0, 0, 0, 0]) for head, size in FRAGMENTS)
    async with await browser(listeners) as phone:
        phone.transport.write(begin + b"\r\n")
        tracemalloc.start()
        for _ in range(100):
            phone.transport.write(nothing * 1000)
            await soon(await phone.ping())
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        phone.transport.write(end + b"\r\n")
        assert await soon(phone.recv()) == "\r\n"
    assert size < 300_000


@pytest.mark.parametrize(
    "begun",
    [b"\x81\xfe\x10\x00abcdREGISTER", b"\x01\x84\0\0\0\0REGI"],
    ids=["frame", "fragments"],
)
async def test_a_message_that_never_ends_ends_the_connection(
    listen: Open, recorder: Recorder, begun: bytes
) -> None:
    """Also of who answers pings, which may come between fragments."""
    listeners = await listen("ws", limits=Limits(message_timeout=0.3, ping_interval=0.1))
    async with await browser(listeners) as phone:
        await phone.send(register(1).decode())
        flow, _ = await recorder.request()
        phone.transport.write(begun)
        for _ in range(30):
            if phone.state is not State.OPEN:
                break
            phone.transport.write(b"\x8a\x80\0\0\0\0" if begun[0] == 1 else b"\0")
            await asyncio.sleep(0.05)
        assert await soon(recorder.closed.get()) is flow


async def test_a_double_crlf_is_answered_with_one_and_one_is_ignored(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("ws")
    async with await browser(listeners) as phone:
        await phone.send("\r\n")
        await phone.send("\r\n\r\n")
        assert await soon(phone.recv()) == "\r\n"
        flow = await soon(recorder.active.get())
        await soon(await phone.ping())
        assert await soon(recorder.active.get()) is flow
    assert recorder.malformed.empty()


@pytest.mark.parametrize("offered", [None, [Subprotocol("chat")]])
async def test_a_client_that_does_not_speak_sip_is_refused(
    listen: Open, recorder: Recorder, offered: list[Subprotocol] | None
) -> None:
    listeners = await listen("ws")
    with pytest.raises(InvalidStatus) as refused:
        await browser(listeners, subprotocols=offered)
    assert refused.value.response.status_code == 400


async def test_what_is_not_sip_is_told_and_the_connection_stays(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("ws")
    async with await browser(listeners) as phone:
        await phone.send("this is not SIP")
        flow, error = await soon(recorder.malformed.get())
        assert error.status == 400
        await phone.send(register().decode())
        assert (await recorder.request())[0] is flow


async def test_a_message_that_is_too_large_ends_the_connection(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("ws", limits=Limits(message_size=3000))
    async with await browser(listeners) as phone:
        await phone.send(register(1, bytes(3000)))
        with pytest.raises(ConnectionClosed) as closed:
            await soon(phone.recv())
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == CloseCode.MESSAGE_TOO_BIG
    await soon(recorder.closed.get())


async def test_the_last_message_before_the_end_is_heard(listen: Open, recorder: Recorder) -> None:
    listeners = await listen("ws")
    phone = await browser(listeners)
    await phone.send(register(8).decode())
    await phone.close()
    flow, request = await recorder.request()
    assert request.cseq.number == 8
    assert await soon(recorder.closed.get()) is flow
    with pytest.raises(TransportError, match="closed"):
        flow.send(register())


async def test_closing_a_flow_says_goodbye(listen: Open, recorder: Recorder) -> None:
    listeners = await listen("ws")
    async with await browser(listeners) as phone:
        await phone.send(register().decode())
        flow, _ = await recorder.request()
        flow.send(b"SIP/2.0 200 OK\r\n\r\n")
        flow.close()
        assert flow.closed
        assert await soon(phone.recv()) == "SIP/2.0 200 OK\r\n\r\n"
        with pytest.raises(ConnectionClosed) as closed:
            await soon(phone.recv())
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == CloseCode.GOING_AWAY
    assert await soon(recorder.closed.get()) is flow


async def deaf_browser(listeners: Listeners) -> TcpPhone:
    """A client that has opened a WebSocket and then leaves every frame unread."""
    phone = await TcpPhone.open(listeners.addresses[0].bound)
    key = base64.b64encode(os.urandom(16)).decode()
    phone.writer.write(
        f"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Protocol: sip\r\n\r\n".encode()
    )
    head = await soon(phone.reader.readuntil(b"\r\n\r\n"))
    assert head.startswith(b"HTTP/1.1 101 ")
    return phone


async def test_a_client_that_answers_no_ping_is_dead(listen: Open, recorder: Recorder) -> None:
    listeners = await listen("ws", limits=Limits(ping_interval=0.01))
    phone = await deaf_browser(listeners)
    assert await soon(phone.reader.read(-1)) == b"\x89\x00"  # one ping
    await soon(recorder.closed.get())


async def test_a_client_that_answers_pings_lives(listen: Open, recorder: Recorder) -> None:
    listeners = await listen("ws", limits=Limits(ping_interval=0.3, message_timeout=0.3))
    async with await browser(listeners) as phone:
        deaf = await deaf_browser(listeners)
        await soon(deaf.reader.read(-1))
        await phone.send(register().decode())
        flow, _ = await recorder.request()
        assert recorder.active.get_nowait() is flow


async def test_pongs_alone_keep_a_connection_for_a_while(listen: Open, recorder: Recorder) -> None:
    listeners = await listen("ws", limits=Limits(ping_interval=0.05, message_timeout=0.1))
    async with await browser(listeners) as phone:
        await phone.send(register().decode())
        spoken, _ = await recorder.request()
        async with await browser(listeners) as silent:
            await soon(silent.wait_closed())
            assert silent.close_code == 1001
        assert not spoken.closed
        assert listeners.flow(spoken.name) is spoken


async def test_a_client_that_ignores_our_goodbye_is_cut_off(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("ws", limits=Limits(close_timeout=0.01))
    phone = await deaf_browser(listeners)
    await soon(listeners.close())
    assert (await soon(phone.reader.read(-1)))[:1] == b"\x88"  # a close frame
    await soon(recorder.closed.get())


@pytest.mark.parametrize(
    ("request_", "status"),
    [(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"426"), (b"POST / HTTP/1.1\r\n\r\n", b"405")],
)
async def test_plain_http_is_turned_away(listen: Open, request_: bytes, status: bytes) -> None:
    listeners = await listen("ws")
    phone = await TcpPhone.open(listeners.addresses[0].bound)
    phone.writer.write(request_)
    answer = await soon(phone.reader.read(-1))
    assert answer.split(b" ")[1] == status


@pytest.mark.parametrize("key", ["", "dGhlIHNhbXBsZSBub25jZQ=="], ids=["refused", "accepted"])
async def test_garbage_that_comes_with_the_request_ends_the_connection(
    listen: Open, key: str
) -> None:
    errors: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    listeners = await listen("ws")
    phone = await TcpPhone.open(listeners.addresses[0].bound)
    phone.writer.write(
        "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: sip\r\n"
        f"Sec-WebSocket-Key: {key}\r\n\r\n{'9' * 500}".encode()
    )
    with suppress(ConnectionResetError):
        assert await soon(phone.reader.read(-1)) == b""
    assert errors == []


@pytest.mark.parametrize("begun", [b"", b"GET / HT"])
async def test_a_handshake_that_never_ends_ends_the_connection(
    listen: Open, recorder: Recorder, begun: bytes
) -> None:
    listeners = await listen("ws", limits=Limits(message_timeout=0.01))
    phone = await TcpPhone.open(listeners.addresses[0].bound)
    phone.writer.write(begun)
    assert await soon(phone.reader.read(-1)) == b""
    await soon(recorder.closed.get())


async def test_many_answers_in_one_turn_all_arrive_in_order(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("ws")
    async with await browser(listeners) as phone:
        await phone.send(register().decode())
        flow, _ = await recorder.request()
        for number in range(50):
            flow.send(str(number).encode())
        async with asyncio.timeout(10):
            assert [await phone.recv() for _ in range(50)] == [str(n) for n in range(50)]
