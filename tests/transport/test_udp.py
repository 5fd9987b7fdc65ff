from __future__ import annotations

import asyncio
import select
import socket
import struct

import pytest
import structlog

from sipush.errors import TransportError
from sipush.sip.message import Message
from sipush.transport import udp
from sipush.transport.address import format_address
from sipush.transport.flow import Flow
from sipush.transport.udp import BATCH, UdpFlow
from tests.transport.conftest import Open
from tests.transport.support import TIMEOUT, DatagramPhone, Recorder, register, soon

LOOPBACKS = [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.2"), ("::1", "::1"), ("::", "::1")]
"Where the listener is bound, and where the phone reaches it."


def closed_port(ip: str) -> tuple[str, int]:
    """An address where nobody listens."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((ip, 0))
        host, port = sock.getsockname()[:2]
        return host, port


@pytest.mark.parametrize(("bound", "reached"), LOOPBACKS)
async def test_a_request_comes_with_its_flow_and_the_answer_leaves_from_the_address_it_reached(
    listen: Open, recorder: Recorder, bound: str, reached: str
) -> None:
    listeners = await listen("udp", address=bound)
    local = (reached, listeners.addresses[0].bound[1])
    phone = await DatagramPhone.open(reached)
    phone.transport.sendto(register(7), local)

    flow, request = await recorder.request()
    flow.send(b"SIP/2.0 200 OK\r\n\r\n")

    assert request.cseq.number == 7
    assert (flow.transport, flow.local, flow.remote) == ("UDP", local, phone.address)
    host = f"[{reached}]" if ":" in reached else reached
    assert flow.sent_by == f"{host}:{local[1]}"
    assert flow.name == f"udp/{host}:{local[1]}/{host}:{phone.address[1]}"
    assert await soon(phone.received.get()) == (b"SIP/2.0 200 OK\r\n\r\n", local)
    phone.transport.close()


async def test_more_datagrams_than_one_batch_all_arrive_in_order(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("udp")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
        phone.connect(listeners.addresses[0].bound)
        for number in range(BATCH * 2 + 1):
            phone.send(register(number))
    seen = [(await recorder.request())[1].cseq.number for _ in range(BATCH * 2 + 1)]
    assert seen == list(range(BATCH * 2 + 1))


async def test_answers_leave_in_order_when_all_that_was_there_has_been_heard(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("udp")
    early: list[object] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
        phone.connect(listeners.addresses[0].bound)
        phone.settimeout(TIMEOUT)

        def answer(flow: Flow, message: Message) -> None:
            flow.send(str(message.cseq.number).encode())
            early.extend(select.select([phone], [], [], 0)[0])

        recorder.on_message = answer
        for number in range(20):
            phone.send(register(number))
        await heard(recorder, 20)
        assert early == []
        assert [int(phone.recv(100)) for _ in range(20)] == list(range(20))


async def test_what_came_alone_is_answered_before_it_has_been_heard_to_its_end(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("udp")
    bound = listeners.addresses[0].bound
    nowhere = listeners.flow(f"udp/{format_address(bound)}/192.0.2.1:5060")  # from the loopback
    answers: list[bytes] = []
    told_early: list[bool] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
        phone.connect(bound)
        phone.settimeout(TIMEOUT)

        def answer(flow: Flow, message: Message) -> None:
            assert nowhere is not None
            nowhere.send(b"refused by the kernel")
            told_early.append(not recorder.unreachable.empty())
            for number in b"12":
                flow.send(bytes([number]))
                answers.append(phone.recv(100))

        recorder.on_message = answer
        phone.send(register())
        await recorder.request()
    assert answers == [b"1", b"2"]
    assert await soon(recorder.unreachable.get()) is nowhere
    assert told_early == [False]


async def test_a_datagram_the_kernel_refuses_makes_its_flow_unreachable_and_no_other(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("udp")
    bound = listeners.addresses[0].bound
    nowhere = listeners.flow(f"udp/{format_address(bound)}/192.0.2.1:5060")  # from the loopback
    assert nowhere is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
        phone.bind(("127.0.0.1", 0))
        phone.settimeout(TIMEOUT)
        somewhere = await listeners.connect("udp", phone.getsockname())
        with structlog.testing.capture_logs() as logs:
            for flow in (somewhere, nowhere, somewhere):
                flow.send(b"x")
            assert await soon(recorder.unreachable.get()) is nowhere
        (line,) = logs
        assert (line["event"], line["flow"]) == ("datagram_not_sent", nowhere.name)
        assert line["error"] == "Invalid argument"
        assert [phone.recv(100) for _ in range(2)] == [b"x", b"x"]
    assert recorder.unreachable.empty()


async def test_what_was_sent_just_before_the_end_leaves(listen: Open) -> None:
    listeners = await listen("udp")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
        phone.bind(("127.0.0.1", 0))
        phone.settimeout(TIMEOUT)
        (await listeners.connect("udp", phone.getsockname())).send(b"x")
        await listeners.close()
        assert phone.recv(100) == b"x"


def call(method: str, number: int) -> bytes:
    return register(number).replace(b"REGISTER", method.encode())


async def heard(recorder: Recorder, many: int) -> list[str]:
    requests = [(await recorder.request())[1] for _ in range(many)]
    return [f"{request.method} {request.cseq.number}" for request in requests]


async def test_a_register_behind_many_calls_is_heard_before_them_and_a_cancel_after_its_call(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("udp")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
        phone.connect(listeners.addresses[0].bound)
        for number in range(50):
            phone.send(call("INVITE", number))
        phone.send(call("CANCEL", 0))
        phone.send(register(7))
    calls = [f"INVITE {number}" for number in range(50)]
    assert await heard(recorder, 52) == ["REGISTER 7", *calls, "CANCEL 0"]


async def test_more_calls_than_are_kept_are_all_heard(
    listen: Open, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "AT_ONCE", 1)
    monkeypatch.setattr(udp, "MAX_CALLS", 3)
    monkeypatch.setattr(udp, "CALLS_SLICE", 0)
    listeners = await listen("udp")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
        phone.connect(listeners.addresses[0].bound)
        for number in range(20):
            phone.send(call("INVITE", number))
        phone.send(register(7))
    came = await heard(recorder, 21)
    assert [each for each in came if each != "REGISTER 7"] == [f"INVITE {n}" for n in range(20)]
    assert came.index("REGISTER 7") < 20


@pytest.mark.parametrize(("bound", "reached"), LOOPBACKS)
async def test_an_icmp_error_makes_that_flow_unreachable(
    listen: Open, recorder: Recorder, bound: str, reached: str
) -> None:
    listeners = await listen("udp", address=bound)
    flow = await listeners.connect("udp", closed_port(reached))

    flow.send(register())

    assert (await soon(recorder.unreachable.get())).name == flow.name
    assert not flow.closed


async def test_one_dead_peer_does_not_keep_others_from_being_sent_to_or_heard(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("udp")
    dead = [await listeners.connect("udp", closed_port("127.0.0.1")) for _ in range(5)]
    phone = await DatagramPhone.open()
    living = await listeners.connect("udp", phone.address)
    for flow in dead:
        flow.send(register())  # ICMP has answered on loopback before this returns
        living.send(b"to the living")
        phone.transport.sendto(register(), listeners.addresses[0].bound)

    names = {(await soon(recorder.unreachable.get())).name for _ in dead}
    assert names == {flow.name for flow in dead}
    for _ in dead:
        assert (await soon(phone.received.get()))[0] == b"to the living"
        assert (await recorder.request())[0].name == living.name
    phone.transport.close()


async def test_what_is_there_is_read_at_once_though_a_peer_is_gone(
    listen: Open, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call to a dead phone leaves an error to be read; a REGISTER once waited behind each."""
    monkeypatch.setattr(udp, "SLICE", 60)  # no slow machine may end a turn early
    listeners = await listen("udp")
    dead = await listeners.connect("udp", closed_port("127.0.0.1"))
    dead.send(register())
    await asyncio.sleep(0)
    many = 3 * udp.AT_ONCE
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
        phone.connect(listeners.addresses[0].bound)
        for number in range(many):
            phone.send(register(number))
    await recorder.request()
    assert recorder.messages.qsize() == many - 1
    assert (await soon(recorder.unreachable.get())).name == dead.name


@pytest.mark.parametrize("junk", [b"\r\n\r\n", b"\r\n", b"\0", b"jaK", b"\0" * 20, b" " * 40])
async def test_keep_alives_and_short_junk_are_dropped_without_a_word(
    listen: Open, recorder: Recorder, junk: bytes
) -> None:
    listeners = await listen("udp")
    phone = await DatagramPhone.open()
    phone.transport.sendto(junk, listeners.addresses[0].bound)
    phone.transport.sendto(register(), listeners.addresses[0].bound)
    flow, _ = await recorder.request()
    assert recorder.active.get_nowait() is flow
    assert recorder.active.empty()
    assert recorder.malformed.empty()
    assert phone.received.empty()
    phone.transport.close()


async def test_what_is_not_sip_is_told_with_its_flow(listen: Open, recorder: Recorder) -> None:
    listeners = await listen("udp")
    phone = await DatagramPhone.open()
    phone.transport.sendto(
        register().replace(b"REGISTER sip", b"REG ISTER sip", 1)[:60], listeners.addresses[0].bound
    )
    flow, error = await soon(recorder.malformed.get())
    assert flow.remote == phone.address
    assert error.status == 400
    phone.transport.close()


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
async def test_a_stun_binding_request_on_the_sip_port_is_told_its_own_address(
    listen: Open, recorder: Recorder, ip: str
) -> None:
    listeners = await listen("udp", address=ip)
    phone = await DatagramPhone.open(ip)
    transaction = bytes(range(12))
    request = struct.pack("!HHI12s", 1, 0, 0x2112A442, transaction)
    phone.transport.sendto(request, listeners.addresses[0].bound)

    data, _ = await soon(phone.received.get())

    kind, length, cookie, echoed = struct.unpack_from("!HHI12s", data)
    assert (kind, length, cookie, echoed) == (0x0101, len(data) - 20, 0x2112A442, transaction)
    assert (await soon(recorder.active.get())).remote == phone.address
    attribute, size, family, port = struct.unpack_from("!HHxBH", data, 20)
    mask = struct.pack("!I", 0x2112A442) + transaction
    packed = bytes(a ^ b for a, b in zip(data[28:], mask, strict=False))
    assert (attribute, size) == (0x0020, len(packed) + 4)
    assert family == (2 if ":" in ip else 1)
    assert port ^ 0x2112 == phone.address[1]
    assert socket.inet_ntop(socket.AF_INET6 if ":" in ip else socket.AF_INET, packed) == ip
    assert recorder.malformed.empty()
    phone.transport.close()


@pytest.mark.parametrize(("bound", "reached"), LOOPBACKS)
async def test_a_flow_is_found_by_name_after_a_restart(
    listen: Open, recorder: Recorder, bound: str, reached: str
) -> None:
    before = await listen("udp", address=bound)
    port = before.addresses[0].bound[1]
    phone = await DatagramPhone.open(reached)
    phone.transport.sendto(register(), (reached, port))
    name = (await recorder.request())[0].name
    await before.close()

    after = await listen("udp", address=bound, port=port)
    flow = after.flow(name)

    assert flow is not None
    assert (flow.name, flow.local, flow.remote) == (name, (reached, port), phone.address)
    flow.send(b"ring ring, it is me")
    assert await soon(phone.received.get()) == (b"ring ring, it is me", (reached, port))
    assert after.flow(name) is flow
    phone.transport.close()


@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0"])
async def test_a_flow_of_another_server_or_nonsense_is_not_found(listen: Open, bound: str) -> None:
    listeners = await listen("udp", address=bound)
    port = listeners.addresses[0].bound[1]
    for name in (
        f"udp/192.0.2.77:{port}/127.0.0.1:5071",
        f"udp/127.0.0.1:{port ^ 1}/127.0.0.1:5071",
        f"udp/[::1]:{port}/[::1]:5071",
        f"udp/127.0.0.1:{port}/[::1]:5071",
        f"udp/127.0.0.1:{port}/example.com:5071",
        f"udp/127.0.0.1:{port}",
        f"udp/127.0.0.1:{port}/127.0.0.1:99999",
        "udp/",
        "",
    ):
        assert listeners.flow(name) is None, name


async def test_the_flow_of_a_link_local_peer_knows_the_interface(listen: Open) -> None:
    listeners = await listen("udp", address="::1")
    port = listeners.addresses[0].bound[1]
    for interface, scope in (("lo", socket.if_nametoindex("lo")), ("none9", 0)):
        name = f"udp/[::1]:{port}/[fe80::1%{interface}]:5071"
        flow = listeners.flow(name)
        assert isinstance(flow, UdpFlow)
        assert flow.name == name
        assert flow.target == (f"fe80::1%{interface}", 5071, 0, scope)
        assert listeners.flow(name) is flow


@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0", "::"])
async def test_a_flow_is_at_hand_until_there_are_too_many(
    listen: Open, bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sipush.transport.udp.MAX_FLOWS", 2)
    listeners = await listen("udp", address=bound)
    ip = "[::1]" if bound == "::" else "127.0.0.1"
    names = [f"udp/{ip}:{listeners.addresses[0].bound[1]}/{ip}:{n}" for n in (5071, 5072, 5073)]
    first, second = listeners.flow(names[0]), listeners.flow(names[1])
    assert first is not None
    assert (listeners.flow(names[0]), listeners.flow(names[1])) == (first, second)
    assert first.sent_by == f"{ip}:{listeners.addresses[0].bound[1]}"
    listeners.flow(names[2])
    assert listeners.flow(names[0]) is not first


async def test_a_datagram_too_large_for_udp_is_an_error(listen: Open) -> None:
    listeners = await listen("udp")
    flow = await listeners.connect("udp", closed_port("127.0.0.1"))
    with pytest.raises(TransportError, match=r"^udp 127\.0\.0\.1:"):
        flow.send(bytes(70_000))


async def test_sending_after_the_end_is_an_error(listen: Open) -> None:
    listeners = await listen("udp")
    flow = await listeners.connect("udp", closed_port("127.0.0.1"))
    await listeners.close()
    with pytest.raises(TransportError):
        flow.send(register())


async def test_flows_beyond_the_limit_are_made_anew(
    listen: Open, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sipush.transport.udp.MAX_FLOWS", 2)
    listeners = await listen("udp")
    phones = [await DatagramPhone.open() for _ in range(3)]
    for phone in phones:
        phone.transport.sendto(register(), listeners.addresses[0].bound)
        name = (await recorder.request())[0].name
        for flow in (listeners.flow(name), await listeners.connect("udp", phone.address)):
            assert flow is not None
            assert flow.name == name
            flow.send(b"still here")
            assert (await soon(phone.received.get()))[0] == b"still here"
        phone.transport.close()


async def test_what_a_peer_sent_before_it_was_gone_is_heard_before_that(
    listen: Open, recorder: Recorder
) -> None:
    """A phone that answers and then changes networks has answered."""
    listeners = await listen("udp")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone:
        phone.bind(("127.0.0.1", 0))
        flow = await listeners.connect("udp", phone.getsockname())
        phone.sendto(register(), listeners.addresses[0].bound)
    was_gone: list[bool] = []
    recorder.on_message = lambda flow, message: was_gone.append(not recorder.unreachable.empty())
    flow.send(register())  # ICMP has answered on loopback before this returns

    assert (await soon(recorder.unreachable.get())).name == flow.name
    assert (await recorder.request())[0].name == flow.name
    assert was_gone == [False]
