"""Who is called back over a connection of ours reaches no other server by us (RFC 3261 §18.2.2)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from tests.e2e.daemon import PBX, Daemon, in_time
from tests.e2e.nat import NEIGHBOUR, SERVER_BESIDE, Neighbour
from tests.e2e.wire import InCall, Phone, Wire, _Stream
from tests.e2e.world import World, apns_token, x_push


@pytest.fixture
def store_type() -> str:
    """Nothing of it is stored."""
    return "sqlite"


def usual_and_open() -> list[dict[str, object]]:
    """Doors that others reach too: who calls from this host may be behind a terminator on it."""
    places = (("udp", "127.0.0.1"), ("tcp", "127.0.0.1"), ("tcp", "0.0.0.0"))
    return [{"transport": each, "address": address, "port": 0} for each, address in places]


class Database:
    """Something else than SIP, on every address of the host, that nobody may reach by us."""

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        self.called = asyncio.Event()

    def accepted(self) -> asyncio.Protocol:
        """Count a connection."""
        self.connections += 1
        self.called.set()
        return asyncio.Protocol()


@pytest_asyncio.fixture(loop_scope="session")
async def database() -> AsyncIterator[Database]:
    """Running."""
    made = Database()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(made.accepted, "0.0.0.0", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()


@pytest.fixture(scope="module")
def neighbour() -> Iterator[Neighbour]:
    """Another host."""
    made = Neighbour.make()
    yield made
    made.remove()


@asynccontextmanager
async def caller_beside(world: World, neighbour: Neighbour, daemon: Daemon) -> AsyncIterator[Phone]:
    """alice, on another host, where she takes connections at another port than she comes from."""
    server = SERVER_BESIDE, daemon.addresses["TCP", "0.0.0.0"][1]
    wire = await Wire.open("TCP", server, NEIGHBOUR, inside=neighbour.inside())
    with neighbour.inside():
        sock = socket.create_server((NEIGHBOUR, 0))
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: _Stream(wire), sock=sock)
    wire.local = sock.getsockname()
    yield world.adopt(Phone(world.account("alice"), wire))
    listening.close()


async def started(world: World) -> Daemon:
    """A daemon that listens everywhere."""
    doors = [{"transport": each, "address": "0.0.0.0", "port": 0} for each in ("udp", "tcp")]
    return await world.daemon(listen=doors)


async def lost(alice: Phone, bob: Phone) -> None:
    """The connection of alice has ended, and the server has seen it by its answer to bob."""
    alice.kill()
    await alice.wire.closed.wait()
    await bob.wire.options()


async def callee(world: World, daemon: Daemon) -> Phone:
    """bob, registered."""
    server = "127.0.0.1", daemon.addresses["UDP", "0.0.0.0"][1]
    bob = world.adopt(await Phone.open(world.account("bob"), server))
    assert (await bob.register()).response.status == 200
    return bob


async def test_a_caller_on_another_host_is_called_back_where_his_contact_says(
    world: World, neighbour: Neighbour
) -> None:
    daemon = await started(world)
    bob = await callee(world, daemon)
    async with caller_beside(world, neighbour, daemon) as alice:
        call = await alice.call("bob")
        _, incoming = await in_time(call.final(), bob.rings_and_answers())
        await lost(alice, bob)
        hanging_up = asyncio.create_task(incoming.hang_up())
        assert (await alice.wire.expect("BYE"))["call-id"] == call.call_id
        hanging_up.cancel()


async def test_a_caller_on_another_host_gets_the_answer_where_his_via_says(
    world: World, neighbour: Neighbour
) -> None:
    daemon = await started(world)
    bob = await callee(world, daemon)
    async with caller_beside(world, neighbour, daemon) as alice:
        call = await alice.call("bob")
        incoming = await bob.incoming()
        await lost(alice, bob)
        incoming.reply(200, f"Contact: <{bob.contact_uri}>")
        assert (await call.expect(200)).tag("to") == incoming.tag


@pytest.mark.parametrize("host", ["127.0.0.1", PBX])
async def test_a_caller_names_no_server_of_our_host_or_of_a_peer_in_his_contact(
    world: World, database: Database, host: str
) -> None:
    """Our host is his where TLS ends at a terminator beside us."""
    daemon = await world.daemon(listen=usual_and_open())
    bob = await world.registered(daemon, "bob", "UDP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice", "TCP")
    connection, alice.wire.local = alice.wire.local, (host, database.port)
    call = await alice.call("bob")
    _, incoming = await in_time(call.final(), bob.rings_and_answers())
    assert incoming.invite.contact == f"sip:alice@{host}:{database.port};transport=tcp"
    assert connection != alice.wire.local
    await lost(alice, bob)
    assert (await incoming.request("INFO")).status == 480
    assert database.connections == 0


async def test_a_caller_is_on_this_host_where_nobody_else_can_be_and_names_his_port(
    world: World, database: Database
) -> None:
    """All listeners have loopback addresses: the port named is one that he reaches by himself."""
    daemon = await world.daemon()
    bob = await world.registered(daemon, "bob", "UDP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice", "TCP")
    alice.wire.local = ("127.0.0.1", database.port)
    await alice.call("bob")
    incoming = await bob.incoming()
    await lost(alice, bob)
    incoming.reply(200, f"Contact: <{bob.contact_uri}>")
    await in_time(database.called.wait())


async def test_a_caller_names_no_server_of_our_host_in_his_via(
    world: World, database: Database
) -> None:
    daemon = await world.daemon(listen=usual_and_open())
    bob = await world.registered(daemon, "bob", "UDP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice", "TCP")
    alice.wire.local = ("127.0.0.1", database.port)
    said = len(daemon.log.all)
    call = await alice.call("bob")
    incoming: InCall = await bob.incoming()
    await lost(alice, bob)
    incoming.reply(200, f"Contact: <{bob.contact_uri}>")
    await daemon.log_event("response_lost", start=said)
    assert call.call_id == incoming.invite["call-id"]
    assert database.connections == 0


@pytest.mark.parametrize("unclosed", ['x="', "x=<", 'received="1;2"'])
async def test_a_via_that_closes_no_quote_hides_from_nobody_where_it_came_from(
    world: World, database: Database, unclosed: str
) -> None:
    """What we note in it would be part of the quote, and answers go to any host that it names."""
    daemon = await world.daemon(listen=usual_and_open())
    bob = await world.registered(daemon, "bob", "UDP", x_push(apns_token()))
    alice = await world.phone(daemon, "alice", "TCP")
    plain, own = alice.wire.send, f"Via: SIP/2.0/TCP {alice.wire.host_port};"

    def from_elsewhere(text: str | bytes) -> None:
        assert isinstance(text, str)
        plain(
            text.replace(own, f"Via: SIP/2.0/TCP {PBX}:{database.port};").replace(
                ";rport", f";{unclosed}", 1
            )
        )

    alice.wire.send = from_elsewhere  # type: ignore[method-assign]
    said = len(daemon.log.all)
    await alice.call("bob")
    incoming = await bob.incoming()
    await lost(alice, bob)
    incoming.reply(200, f"Contact: <{bob.contact_uri}>")
    await daemon.log_event("response_lost", start=said)
    assert database.connections == 0


async def test_a_via_names_no_server_of_our_host_after_two_crashes_either(
    world: World, database: Database
) -> None:
    daemon = await world.start(listen=usual_and_open(), wake={"hold": 60.0, "probe": 0.25})
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", "UDP", push)
    alice = await world.phone(daemon, "alice", "TCP")
    alice.wire.local = ("127.0.0.1", database.port)
    await alice.call("bob")
    await world.pushes.next()
    await daemon.restart_after_kill()
    bob = await world.registered(daemon, "bob", "UDP", push)
    incoming = await bob.incoming()
    incoming.reply(180)
    await daemon.log_event("response_lost")
    await bob.wire.options()
    await daemon.restart_after_kill()
    said = len(daemon.log.all)
    incoming.reply(200, f"Contact: <{bob.contact_uri}>")
    await daemon.log_event("response_lost", start=said)
    assert database.connections == 0
