"""Proxies and SBCs in front of us that are no peers (RFC 3327)."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from tests.e2e.daemon import in_time
from tests.e2e.test_messages import send, take
from tests.e2e.wire import InCall, Phone
from tests.e2e.world import World, apns_token, x_push


class Listener(asyncio.Protocol):
    """Who is connected to, and should not be."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.calls.append(str(transport.get_extra_info("peername")))


def by_way_of(edge: Phone, user: str, port: int, path: str) -> dict[str, Any]:
    """A REGISTER of a phone of this user that an edge passes on."""
    urn = uuid.uuid5(uuid.NAMESPACE_URL, user)
    contact = f'<sip:{user}@192.0.2.77:{port}>;+sip.instance="<urn:uuid:{urn}>"'
    return {"contact": contact, "headers": [f"Path: {path}", "Supported: path"]}


async def test_a_proxy_in_front_that_is_no_peer_is_reached_where_it_registers_from(
    world: World, transport: str
) -> None:
    """With the whole Path as Route, whichever side speaks; and never by another connection."""
    daemon = await world.daemon()
    edge = await world.phone(daemon, "bob", transport)
    dialled: list[str] = []
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: Listener(dialled), edge.wire.local[0], 0)
    usual = listener.sockets[0].getsockname()[1]
    at = edge.wire.host_port if transport == "UDP" else f"127.0.0.1:{usual};transport=tcp"
    path = f"<sip:token@{at};lr;x=1>, <sip:inner.example;lr>"
    through = by_way_of(edge, "bob", 5099, path)
    answer = (await edge.register(**through)).response
    assert (answer.status, ", ".join(answer.all("path"))) == (200, path)
    assert answer["warning"] == ""
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    incoming = await edge.incoming()
    assert ", ".join(incoming.invite.all("route")) == path
    assert incoming.invite.uri == "sip:bob@192.0.2.77:5099"
    found, _ = await in_time(call.final(), incoming.answer())
    assert found.status == 200
    await in_time(call.request(found, "INFO"), incoming.requested("INFO"))
    await in_time(incoming.hang_up(), call.requested("BYE"))
    _, message = await in_time(send(alice, "by the edge"), take(edge))
    assert ", ".join(message.all("route")) == path
    assert dialled == []
    listener.close()


async def test_a_proxy_in_front_that_has_lost_its_connection_is_not_called_back(
    world: World,
) -> None:
    """Its phones are asleep then, and come back with their next REGISTER."""
    daemon = await world.daemon(wake={"hold": 60.0})
    first = await world.phone(daemon, "bob", "TCP")
    dialled: list[str] = []
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: Listener(dialled), "127.0.0.1", 0)
    path = f"<sip:127.0.0.1:{listener.sockets[0].getsockname()[1]};transport=tcp;lr>"
    through, push = by_way_of(first, "bob", 5099, path), x_push(apns_token())
    assert (await first.register(push, **through)).response.status == 200
    first.kill()
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await world.pushes.next()
    second = await world.phone(daemon, "bob", "TCP")
    assert (await second.register(push, **through)).response.status == 200
    found, incoming = await in_time(call.final(), second.rings_and_answers())
    assert found.status == 200
    assert incoming.invite.all("route") == [path]
    second.kill()
    third = await world.phone(daemon, "bob", "TCP")
    assert (await third.register(push, **through)).response.status == 200

    async def takes_it() -> None:
        InCall(third, await third.wire.expect("BYE")).reply(200)

    bye, _ = await in_time(call.hang_up(found), takes_it())
    assert bye.status == 200
    assert dialled == []
    listener.close()


async def test_what_others_say_by_a_proxy_in_front_wakes_no_phone_behind_it(world: World) -> None:
    daemon = await world.daemon(wake={"hold": 60.0})
    edge = await world.phone(daemon, "bob", "TCP")
    push, path = x_push(apns_token()), "<sip:127.0.0.1;transport=tcp;lr>"
    assert (await edge.register(push, **by_way_of(edge, "bob", 5099, path))).response.status == 200
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    dead = await edge.incoming()
    dead.reply(100)
    await world.pushes.next()
    assert (await edge.wire.options()).status == 200
    assert edge.wire.count("INVITE") == 1
    assert (await edge.register(push, **by_way_of(edge, "bob", 6001, path))).response.status == 200
    woken = await edge.incoming()
    assert woken.invite.uri == "sip:bob@192.0.2.77:6001"
    answer, _ = await in_time(call.final(), woken.answer())
    assert answer.status == 200


async def test_a_call_of_one_of_two_devices_behind_a_proxy_does_not_move_with_the_other(
    world: World,
) -> None:
    daemon = await world.daemon()
    edge = await world.phone(daemon, "alice")
    path = f"<sip:{edge.wire.host_port};lr>"
    other = f"urn:uuid:{uuid.uuid4()}"
    contact = f'<sip:alice@192.0.2.78>;+sip.instance="<{other}>"'
    for device in (by_way_of(edge, "alice", 5099, path), {"contact": contact}):
        assert (await edge.register(**device)).response.status == 200
    bob = await world.registered(daemon, "bob", "UDP", "")
    call = await edge.call("bob")
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    assert answer.status == 200
    gone_home = await world.registered(daemon, "alice", "UDP", "", other)
    await in_time(incoming.hang_up(), call.requested("BYE"))
    assert gone_home.wire.count("BYE") == 0


async def test_a_phone_that_rings_by_a_proxy_and_has_moved_is_cancelled_by_the_proxy(
    world: World,
) -> None:
    """It would not know the CANCEL, which has not the Via of the proxy."""
    daemon = await world.daemon()
    edge = await world.phone(daemon, "bob")
    path, instance = f"<sip:{edge.wire.host_port};lr>", f"urn:uuid:{uuid.uuid4()}"
    contact = f'<sip:bob@192.0.2.77>;+sip.instance="<{instance}>"'
    through = ["Supported: path", f"Path: {path}"]
    assert (await edge.register(contact=contact, headers=through)).response.status == 200
    call = await (await world.phone(daemon, "alice")).call("bob")
    incoming = await edge.incoming()
    incoming.reply(180)
    await call.expect(180)
    moved = await world.registered(daemon, "bob", "UDP", "", instance)
    _, cancel, final = await in_time(call.cancel(), incoming.cancelled(), call.final())
    assert (final.status, cancel.all("route")) == (487, [path])
    assert moved.wire.count("CANCEL") == 0
