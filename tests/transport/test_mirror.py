"""Copies for a capture server: all of both directions, and nothing waits for them."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from websockets.asyncio.client import connect as open_websocket
from websockets.typing import Subprotocol

from sipush import metrics
from sipush.config import HepConfig
from sipush.errors import ConfigError
from sipush.transport.listeners import Listeners
from sipush.transport.mirror import Mirror, connected_to
from tests.servers.ports import free_port
from tests.transport.conftest import Open
from tests.transport.support import DatagramPhone, Recorder, TcpPhone, register, soon
from tests.transport.test_hep import chunks

OK = b"SIP/2.0 200 OK\r\n\r\n"
STUN = struct.pack("!HHI12s", 1, 0, 0x2112A442, bytes(12))


class CaptureServer:
    """A datagram socket."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(("127.0.0.1", 0))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.socket.getsockname()[1]}"

    async def packet(self) -> dict[int, bytes]:
        """The chunks of the next packet."""
        return chunks(await soon(asyncio.get_running_loop().sock_recv(self.socket, 65_535)))


@pytest.fixture
async def server() -> AsyncIterator[CaptureServer]:
    server = CaptureServer()
    yield server
    server.socket.close()


@pytest.fixture
async def mirrored(server: CaptureServer) -> AsyncIterator[Callable[..., Mirror]]:
    """``mirrored(listeners, …)``: has copies of theirs sent to the server."""
    mirrors = []

    def start(listeners: Listeners, **config: object) -> Mirror:
        mirror = Mirror(HepConfig.model_validate({"send_to": server.address, **config}))
        listeners.mirror_to(mirror)
        mirror.open()
        mirrors.append(mirror)
        return mirror

    yield start
    for mirror in mirrors:
        mirror.close()


def ends(chunks: dict[int, bytes]) -> tuple[tuple[str, int], tuple[str, int]]:
    """Source and destination."""
    if chunks[0x01] == b"\x0a":
        assert not {0x03, 0x04} & chunks.keys()
        family, source, destination = socket.AF_INET6, chunks[0x05], chunks[0x06]
    else:
        assert chunks[0x01] == b"\x02"
        family, source, destination = socket.AF_INET, chunks[0x03], chunks[0x04]
    ports = [int.from_bytes(chunks[kind], "big") for kind in (0x07, 0x08)]
    return (socket.inet_ntop(family, source), ports[0]), (
        socket.inet_ntop(family, destination),
        ports[1],
    )


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
async def test_a_request_over_udp_and_its_answer(
    listen: Open,
    recorder: Recorder,
    server: CaptureServer,
    mirrored: Callable[..., Mirror],
    ip: str,
) -> None:
    listeners = await listen("udp", address="::" if ":" in ip else "0.0.0.0")
    mirrored(listeners)
    local = (ip, listeners.addresses[0].bound[1])
    phone = await DatagramPhone.open(ip)
    for data in (b"\r\n\r\n", STUN, b"no message at all", b"\r\n\r\n" + register()):
        phone.transport.sendto(data, local)
    flow, _ = await recorder.request()
    flow.send(OK)

    request, answer = await server.packet(), await server.packet()
    assert (request[0x0F], ends(request)) == (register(), (phone.address, local))
    assert (answer[0x0F], ends(answer)) == (OK, (local, phone.address))
    assert request[0x02] == answer[0x02] == b"\x11"
    assert request[0x11] == b"a84b4c76e66710@pc33.example.com"
    phone.transport.close()


async def test_a_message_that_cannot_be_read_is_copied_as_it_came(
    listen: Open, server: CaptureServer, mirrored: Callable[..., Mirror]
) -> None:
    listeners = await listen("udp")
    mirrored(listeners)
    phone = await DatagramPhone.open()
    broken = register().replace(b"Content-Length: 0", b"Content-Length: 1")
    phone.transport.sendto(broken, listeners.addresses[0].bound)
    assert (await server.packet())[0x0F] == broken
    phone.transport.close()


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
async def test_a_request_over_tcp_and_its_answer(
    listen: Open,
    recorder: Recorder,
    server: CaptureServer,
    mirrored: Callable[..., Mirror],
    ip: str,
) -> None:
    listeners = await listen("tcp", address=ip)
    mirrored(listeners, agent_id=4_294_967_295, node_name="edge-1")
    local = listeners.addresses[0].bound
    phone = await TcpPhone.open(local)
    first, second = register(1, b"v=0"), register(2)
    phone.writer.write(b"\r\n\r\n" + first + second)
    flow, _ = await recorder.request()
    flow.send(OK)

    copies = [await server.packet() for _ in range(3)]
    hidden = first.replace(b"v=0", b"***")
    assert [copy[0x0F] for copy in copies] == [hidden, second, OK]
    assert [ends(copy) for copy in copies] == [
        (phone.address, local),
        (phone.address, local),
        (local, phone.address),
    ]
    for copy in copies:
        assert (copy[0x02], copy[0x0C], copy[0x13]) == (b"\x06", b"\xff" * 4, b"edge-1")


async def test_a_request_over_websocket_and_its_answer(
    listen: Open, recorder: Recorder, server: CaptureServer, mirrored: Callable[..., Mirror]
) -> None:
    listeners = await listen("ws")
    mirrored(listeners)
    host, port = listeners.addresses[0].bound
    async with open_websocket(f"ws://{host}:{port}", subprotocols=[Subprotocol("sip")]) as browser:
        await browser.send(register().decode())
        flow, _ = await recorder.request()
        flow.send(OK)
        request, answer = await server.packet(), await server.packet()
        remote = browser.local_address[:2]
    assert (request[0x0F], ends(request)) == (register(), (remote, (host, port)))
    assert (answer[0x0F], ends(answer)) == (OK, ((host, port), remote))
    assert request[0x02] == b"\x06"


async def test_the_key_is_the_first_line_of_its_file(
    listen: Open,
    recorder: Recorder,
    server: CaptureServer,
    mirrored: Callable[..., Mirror],
    tmp_path: Path,
) -> None:
    (tmp_path / "key").write_text(" myHep \nsomething else\n")
    listeners = await listen("udp")
    mirrored(listeners, key_file=tmp_path / "key")
    phone = await DatagramPhone.open()
    phone.transport.sendto(register(), listeners.addresses[0].bound)
    assert (await server.packet())[0x0E] == b"myHep"
    phone.transport.close()


@pytest.mark.parametrize(("text", "length"), [("", 0), ("\nkey", 0), ("k" * 256, 256)])
def test_a_key_that_cannot_be_sent_is_told(tmp_path: Path, text: str, length: int) -> None:
    (tmp_path / "key").write_text(text)
    config = HepConfig.model_validate({"send_to": "192.0.2.9", "key_file": tmp_path / "key"})
    with pytest.raises(ConfigError) as caught:
        Mirror(config)
    assert caught.value.problems == [
        f"hep.key_file: {length} bytes in the first line (allowed: 1 to 255)"
    ]


def test_another_key_in_the_same_file_is_another_mirror(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("one")
    config = HepConfig.model_validate({"send_to": "192.0.2.9", "key_file": key_file})
    mirror, same = Mirror(config), Mirror(config.model_copy())
    key_file.write_text("two")
    assert mirror.is_like(same)
    assert not mirror.is_like(Mirror(config))
    assert not mirror.is_like(Mirror(config.model_copy(update={"bodies": True, "key_file": None})))


def lost() -> int:
    return metrics.HEP_PACKETS.counts["lost",]


async def test_what_a_full_buffer_does_not_take_is_lost_and_told_once(
    listen: Open, recorder: Recorder
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    mirror = Mirror(HepConfig(send_to="192.0.2.9:9060"), lambda address: ours)
    listeners = await listen("udp")
    listeners.mirror_to(mirror)
    phone = await DatagramPhone.open()
    before = lost()
    with capture_logs() as logs:
        mirror.open()
        for number in range(600):  # more than net.unix.max_dgram_qlen, which is 512 at most
            phone.transport.sendto(register(number), listeners.addresses[0].bound)
            await recorder.request()
    assert lost() - before >= 60
    (line,) = [line for line in logs if line["event"] == "trace_lost"]
    assert (line["messages"], line["reason"]) == (1, "the socket's buffer is full")

    while True:  # it reads again
        try:
            theirs.recv(65_535)
        except BlockingIOError:
            break
    count = lost()
    phone.transport.sendto(register(7), listeners.addresses[0].bound)
    await recorder.request()
    assert chunks(theirs.recv(65_535))[0x0F] == register(7)
    assert lost() == count
    mirror.close()
    theirs.close()
    phone.transport.close()


async def test_a_server_that_is_gone_is_told_once_and_every_lost_copy_counted(
    listen: Open, recorder: Recorder
) -> None:
    mirror = Mirror(HepConfig(send_to=f"127.0.0.1:{free_port('127.0.0.1')}"))
    listeners = await listen("udp")
    listeners.mirror_to(mirror)
    phone = await DatagramPhone.open()
    before = lost()
    with capture_logs() as logs:
        mirror.open()
        for number in range(20):
            phone.transport.sendto(register(number), listeners.addresses[0].bound)
            await recorder.request()
    assert lost() - before == 19  # of the last one nobody has told yet
    (line,) = [line for line in logs if line["event"] == "trace_lost"]
    assert (line["messages"], line["reason"]) == (1, "nobody listens there")
    mirror.close()
    phone.transport.close()


async def test_a_name_is_looked_up() -> None:
    addresses: asyncio.Queue[tuple[str, int]] = asyncio.Queue()

    def connect(address: tuple[str, int]) -> socket.socket:
        addresses.put_nowait(address)
        return connected_to(address)

    mirror = Mirror(HepConfig(send_to="localhost"), connect)
    mirror.open()
    assert await soon(addresses.get()) in (("127.0.0.1", 9060), ("::1", 9060))
    mirror.close()


async def test_without_a_way_to_the_server_copies_are_lost_and_the_reason_is_told(
    listen: Open, recorder: Recorder
) -> None:
    def connect(address: tuple[str, int]) -> socket.socket:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    mirror = Mirror(HepConfig(send_to="192.0.2.9"), connect)
    listeners = await listen("udp")
    listeners.mirror_to(mirror)
    phone = await DatagramPhone.open()
    before = lost()
    with capture_logs() as logs:
        mirror.open()
        phone.transport.sendto(register(), listeners.addresses[0].bound)
        await recorder.request()
    assert lost() - before == 1
    assert [(line["event"], line["reason"]) for line in logs] == [
        ("trace_server_unknown", "Network is unreachable"),
        ("trace_lost", "its address is not known"),
    ]
    mirror.close()
    phone.transport.close()
