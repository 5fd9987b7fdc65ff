from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from sipush.errors import TransportError
from sipush.sip.message import Message
from sipush.transport.connection import Limits
from sipush.transport.flow import Flow
from sipush.transport.udp import AT_ONCE
from tests.servers.ports import free_port
from tests.transport.conftest import Open
from tests.transport.support import Recorder, TcpPhone, register, send_for_ever, soon


@pytest.mark.parametrize(
    ("bound", "reached"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.2"), ("::1", "::1"), ("::", "::1")],
)
async def test_a_request_comes_with_its_flow_and_the_answer_goes_back_on_it(
    listen: Open, recorder: Recorder, bound: str, reached: str
) -> None:
    listeners = await listen("tcp", address=bound)
    local = (reached, listeners.addresses[0].bound[1])
    phone = await TcpPhone.open(local, local_addr=(reached, 0))
    phone.writer.write(register(3, b"v=0"))

    flow, request = await recorder.request()
    flow.send(b"SIP/2.0 200 OK\r\n\r\n")

    assert (request.cseq.number, request.body) == (3, b"v=0")
    assert (flow.transport, flow.local, flow.remote) == ("TCP", local, phone.address)
    host = f"[{reached}]" if ":" in reached else reached
    assert flow.sent_by == f"{host}:{local[1]}"
    assert flow.name.startswith(f"tcp/{host}:{local[1]}/{host}:{phone.address[1]}/")
    assert listeners.flow(flow.name) is flow
    assert await soon(phone.reader.readuntil(b"\r\n\r\n")) == b"SIP/2.0 200 OK\r\n\r\n"


async def test_a_message_split_at_every_byte_is_one_message(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("tcp")
    phone = await TcpPhone.open(listeners.addresses[0].bound)
    message = register(4, b"split")
    for at in range(1, len(message)):
        phone.writer.write(message[:at])
        await phone.writer.drain()
        await asyncio.sleep(0)
        phone.writer.write(message[at:])
        assert (await recorder.request())[1].body == b"split"
    for byte in message:
        phone.writer.write(bytes([byte]))
        await asyncio.sleep(0)
    assert (await recorder.request())[1].body == b"split"


async def test_two_messages_and_a_ping_in_one_segment_are_all_served_in_order(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("tcp")
    recorder.on_message = lambda flow, message: flow.send(f"{message.cseq.number};".encode())
    phone = await TcpPhone.open(listeners.addresses[0].bound)
    phone.writer.write(register(1) + b"\r\n\r\n" + register(2))
    assert await soon(phone.reader.readexactly(6)) == b"1;\r\n2;"


async def test_what_several_connections_say_at_once_is_heard_together(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("tcp")
    address = listeners.addresses[0].bound
    with socket.create_connection(address) as one, socket.create_connection(address) as other:
        for phone in (one, other):
            phone.sendall(register())
            await recorder.request()
        recorder.together.clear()
        one.sendall(register(1) + register(2))
        other.sendall(register(3))
        numbers = [(await recorder.request())[1].cseq.number for _ in range(3)]
    assert sorted(numbers) == [1, 2, 3]
    assert numbers.index(1) < numbers.index(2)
    assert recorder.together == [3]


async def test_of_many_messages_a_few_are_heard_at_a_time(listen: Open, recorder: Recorder) -> None:
    listeners = await listen("tcp")
    with socket.create_connection(listeners.addresses[0].bound) as phone:
        phone.sendall(b"".join(register(n) for n in range(1, 31)))
        numbers = [(await recorder.request())[1].cseq.number for _ in range(30)]
    assert numbers == list(range(1, 31))
    assert max(recorder.together) == AT_ONCE


async def test_a_peer_that_sends_no_more_still_gets_what_was_answered(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("tcp")
    recorder.on_message = lambda flow, message: flow.send(f"{message.cseq.number};".encode())
    with socket.create_connection(listeners.addresses[0].bound) as phone:
        phone.sendall(register(1) + register(2))
        phone.shutdown(socket.SHUT_WR)
        await soon(recorder.closed.get())
        assert phone.recv(100) == b"1;2;"
        assert phone.recv(100) == b""


async def test_what_is_sent_in_a_turn_is_written_though_the_peer_ends_in_it(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("tcp")
    with socket.create_connection(listeners.addresses[0].bound) as phone:
        phone.sendall(register())
        flow, _ = await recorder.request()
        phone.shutdown(socket.SHUT_WR)
        asyncio.get_running_loop().call_soon(flow.send, b"before its end is read")
        await soon(recorder.closed.get())
        assert phone.recv(100) == b"before its end is read"


async def test_more_than_a_peer_may_leave_unread_is_sent_in_one_turn_to_one_that_reads(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("tcp", limits=Limits(write_buffer=20_000))
    phone = await TcpPhone.open(listeners.addresses[0].bound)
    phone.writer.write(register())
    flow, _ = await recorder.request()
    for _ in range(50):
        flow.send(bytes(1_000))
    assert len(await soon(phone.reader.readexactly(50_000))) == 50_000


@pytest.mark.parametrize("keep_alive", [b"\r\n\r\n", b"\r\n"])
async def test_a_keep_alive_is_told_with_its_flow(
    listen: Open, recorder: Recorder, keep_alive: bytes
) -> None:
    listeners = await listen("tcp")
    phone = await TcpPhone.open(listeners.addresses[0].bound)
    phone.writer.write(register())
    flow, _ = await recorder.request()
    assert recorder.active.empty()
    phone.writer.write(keep_alive)
    assert await soon(recorder.active.get()) is flow


async def test_a_connection_that_ends_is_told_once_and_its_name_never_comes_again(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("tcp")
    own = ("127.0.0.1", free_port("127.0.0.1"))
    phone = await TcpPhone.open(listeners.addresses[0].bound, local_addr=own)
    phone.writer.write(register())
    flow, _ = await recorder.request()
    _reset(phone)

    assert await soon(recorder.closed.get()) is flow
    assert flow.closed
    assert listeners.flow(flow.name) is None
    with pytest.raises(TransportError, match="closed"):
        flow.send(register())
    flow.close()

    again = await TcpPhone.open(listeners.addresses[0].bound, local_addr=own)
    again.writer.write(register())
    other, _ = await recorder.request()
    assert other.remote == flow.remote
    assert other.name != flow.name
    assert recorder.closed.empty()


def _reset(phone: TcpPhone) -> None:
    """Close with RST, so that the port may be used again at once."""
    sock = phone.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    phone.writer.transport.abort()


async def test_closing_a_flow_sends_first_what_is_queued(listen: Open, recorder: Recorder) -> None:
    listeners = await listen("tcp")
    phone = await TcpPhone.open(listeners.addresses[0].bound)
    phone.writer.write(register())
    flow, _ = await recorder.request()
    flow.send(bytes(500_000))
    flow.close()
    assert flow.closed
    assert len(await soon(phone.reader.read(-1))) == 500_000
    assert await soon(recorder.closed.get()) is flow


async def test_a_peer_that_does_not_read_is_dropped(listen: Open, recorder: Recorder) -> None:
    listeners = await listen("tcp", limits=Limits(write_buffer=100_000))
    with socket.create_connection(listeners.addresses[0].bound) as phone:
        phone.sendall(register())
        flow, _ = await recorder.request()
        with pytest.raises(TransportError, match="does not read"):
            send_for_ever(flow)
        assert flow.closed
        assert await soon(recorder.closed.get()) is flow


async def test_a_peer_that_does_not_take_what_is_queued_is_cut_off(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("tcp", limits=Limits(write_buffer=1 << 30, close_timeout=0.01))
    with socket.create_connection(listeners.addresses[0].bound) as phone:
        phone.sendall(register())
        flow, _ = await recorder.request()
        flow.send(bytes(50_000_000))
        flow.close()
        assert await soon(recorder.closed.get()) is flow


async def test_lost_framing_is_told_can_be_answered_and_ends_the_connection(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("tcp")
    phone = await TcpPhone.open(listeners.addresses[0].bound)
    phone.writer.write(register().replace(b"Content-Length: 0\r\n", b""))
    flow, error = await soon(recorder.malformed.get())
    assert error.message is not None
    assert await soon(phone.reader.read(-1)) == b""
    assert await soon(recorder.closed.get()) is flow


async def test_a_malformed_message_of_known_length_leaves_the_connection_open(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("tcp")
    phone = await TcpPhone.open(listeners.addresses[0].bound)
    phone.writer.write(register(1).replace(b"Max-Forwards: 70", b"no header") + register(2))
    _, error = await soon(recorder.malformed.get())
    assert error.status == 400
    assert (await recorder.request())[1].cseq.number == 2


@pytest.mark.parametrize("begun", [b"", b"\r\n", register()[:20], register() + b"REGIS"])
async def test_a_message_that_never_ends_ends_the_connection(
    listen: Open, recorder: Recorder, begun: bytes
) -> None:
    listeners = await listen("tcp", limits=Limits(message_timeout=0.01))
    phone = await TcpPhone.open(listeners.addresses[0].bound)
    phone.writer.write(begun)
    assert await soon(phone.reader.read(-1)) == b""
    await soon(recorder.closed.get())


async def test_a_connection_is_not_ended_between_messages(listen: Open, recorder: Recorder) -> None:
    listeners = await listen("tcp", limits=Limits(message_timeout=0.3))
    idle = await TcpPhone.open(listeners.addresses[0].bound)
    idle.writer.write(register() + b"\r\n")
    await recorder.request()
    slow = await TcpPhone.open(listeners.addresses[0].bound)
    assert await soon(slow.reader.read(-1)) == b""  # its time is over, so idle's would be too
    idle.writer.write(b"\r\n\r\n")
    assert await soon(idle.reader.readexactly(2)) == b"\r\n"


async def test_keep_alives_alone_keep_a_connection_for_a_while(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("tcp", limits=Limits(message_timeout=0.1))
    phone = await TcpPhone.open(listeners.addresses[0].bound)
    phone.writer.write(register() + b"\r\n\r\n")
    await recorder.request()
    stranger = await TcpPhone.open(listeners.addresses[0].bound)
    stranger.writer.write(b"\r\n\r\n")
    assert await soon(stranger.reader.read(-1)) == b"\r\n"
    assert (await soon(recorder.closed.get())).remote == stranger.address
    phone.writer.write(b"\r\n\r\n")
    assert await soon(phone.reader.readexactly(4)) == b"\r\n\r\n"


async def test_who_may_stay_may_say_nothing_but_keep_alives(listen: Open) -> None:
    asked: asyncio.Queue[Flow] = asyncio.Queue()
    is_welcome = True

    def may_stay(flow: Flow) -> bool:
        asked.put_nowait(flow)
        return is_welcome

    listeners = await listen("tcp", limits=Limits(message_timeout=0.1), may_stay=may_stay)
    peer = await TcpPhone.open(listeners.addresses[0].bound)
    peer.writer.write(b"\r\n\r\n")
    for _ in range(2):
        assert (await soon(asked.get())).remote == peer.address
        peer.writer.write(b"\r\n\r\n")
    assert await soon(peer.reader.readexactly(6)) == b"\r\n" * 3
    is_welcome = False
    assert await soon(peer.reader.read(-1)) == b""


async def test_an_address_with_too_many_connections_gets_no_more_until_one_ends(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("tcp", limits=Limits(connections_per_address=2))
    address = listeners.addresses[0].bound
    phones = [await TcpPhone.open(address) for _ in range(2)]
    for phone in phones:
        phone.writer.write(register())
        await recorder.request()
    refused = await TcpPhone.open(address)
    assert await soon(refused.reader.read(-1)) == b""

    phones[0].writer.close()
    await soon(recorder.closed.get())
    welcome = await TcpPhone.open(address)
    welcome.writer.write(register())
    await recorder.request()
    assert recorder.closed.empty()


async def test_with_too_many_connections_altogether_nobody_gets_another_until_one_ends(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("tcp", limits=Limits(connections=1))
    address = listeners.addresses[0].bound
    phone = await TcpPhone.open(address)
    phone.writer.write(register())
    await recorder.request()
    refused = await TcpPhone.open(address)
    assert await soon(refused.reader.read(-1)) == b""

    phone.writer.close()
    await soon(recorder.closed.get())
    welcome = await TcpPhone.open(address)
    welcome.writer.write(register())
    await recorder.request()


async def test_no_new_connection_while_draining_but_open_ones_go_on(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("tcp")
    address = listeners.addresses[0].bound
    phone = await TcpPhone.open(address)
    phone.writer.write(register())
    await recorder.request()
    listeners.stop_accepting()
    with pytest.raises(ConnectionRefusedError):
        await TcpPhone.open(address)
    phone.writer.write(register())
    await recorder.request()


async def test_closing_the_server_closes_its_connections(listen: Open, recorder: Recorder) -> None:
    listeners = await listen("tcp")
    phone = await TcpPhone.open(listeners.addresses[0].bound)
    phone.writer.write(register())
    flow, _ = await recorder.request()
    await soon(listeners.close())
    assert recorder.closed.get_nowait() is flow
    assert await soon(phone.reader.read(-1)) == b""


async def test_a_connection_to_a_server_is_made_once_and_again_when_it_has_ended(
    listen: Open, recorder: Recorder
) -> None:
    ours = await listen("tcp")
    peer = await listen("tcp")
    address = peer.addresses[0].bound
    flow, same = await asyncio.gather(ours.connect("tcp", address), ours.connect("TCP", address))
    assert flow is same
    assert flow.remote == address
    assert flow.sent_by == f"127.0.0.1:{ours.addresses[0].bound[1]}"

    def answer(theirs: Flow, message: Message) -> None:
        if theirs is not flow:
            theirs.send(register(2))

    recorder.on_message = answer
    flow.send(register(1))
    theirs, _ = await recorder.request()
    mine, answered = await recorder.request()
    assert mine is flow
    assert answered.cseq.number == 2

    assert len(ours._connects) == 1
    theirs.close()
    assert {await soon(recorder.closed.get()) for _ in range(2)} == {flow, theirs}
    assert len(ours._connects) == 0
    assert await ours.connect("tcp", address) is not flow


async def test_a_server_that_is_not_there_is_an_error_that_names_it(listen: Open) -> None:
    listeners = await listen("tcp")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = closed.getsockname()
        for _ in range(2):
            with pytest.raises(
                TransportError, match=rf"^tcp 127.0.0.1:{address[1]}: connection refused$"
            ):
                await listeners.connect("tcp", address)
    assert len(listeners._connects) == 0


async def test_a_connection_full_of_messages_does_not_keep_the_others_waiting(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("tcp")
    address = listeners.addresses[0].bound
    greedy, modest = socket.create_connection(address), socket.create_connection(address)
    for phone in (greedy, modest):
        phone.send(register())
        await recorder.request()
    greedy.setblocking(False)
    assert greedy.send(register(2) * 400) > 300 * len(register())
    modest.send(register(3))
    heard = 0
    while (await recorder.request())[1].cseq.number != 3:
        heard += 1
    assert heard < 100
    greedy.close()
    modest.close()
