"""Several daemons on one Redis: a phone on any of them is called from any other (D5)."""

from __future__ import annotations

import pytest

from tests.e2e.daemon import PBX, Daemon, in_time
from tests.e2e.test_messages import message, take
from tests.e2e.world import World, apns_token, x_push
from tests.servers.ports import free_port

pytestmark = pytest.mark.parametrize("store_type", ["redis"], indirect=True)

NODES = "127.0.0.3"
"Where the daemons reach each other."


async def two_nodes(world: World, between: str) -> tuple[Daemon, Daemon]:
    """``between``: the transport that they use towards each other."""
    first = await one_node(world, between)
    return first, await one_node(world, between, store=first.settings["store"])


async def one_node(world: World, between: str, **changes: object) -> Daemon:
    port = free_port(NODES)
    door = {"transport": between.lower(), "address": NODES, "port": port}
    return await world.start(
        listen=[*world.doors(), door],
        node={"uri": f"sip:{NODES}:{port};transport={between.lower()}"},
        peers=[{"name": "pbx", "address": PBX}, {"name": "nodes", "address": NODES}],
        wake={"hold": 20.0, "probe": 0.5},
        **changes,
    )


async def test_a_phone_on_the_other_node_is_called_and_hangs_up(
    world: World, transport: str
) -> None:
    first, second = await two_nodes(world, transport)
    bob = await world.phone(second, "bob", transport)
    await bob.register(x_push(apns_token()))
    alice = await world.phone(first, "alice", transport)
    call = await alice.call("bob")
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    assert answer.status == 200
    assert incoming.invite.uri == bob.contact_uri
    assert not incoming.invite.all("route")
    await in_time(incoming.request("INVITE"), call.requested("INVITE"))
    await in_time(incoming.hang_up(), call.requested("BYE"))
    call = await alice.call("bob")
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    await in_time(call.hang_up(answer), incoming.hung_up())
    assert not world.pushes.all


async def test_a_phone_behind_a_proxy_that_is_no_peer_is_called_from_the_other_node(
    world: World, transport: str
) -> None:
    first, second = await two_nodes(world, "TCP")
    edge = await world.phone(second, "bob", transport)
    path = f"<sip:{edge.wire.host_port};transport={transport.lower()};lr>"
    through = [f"Path: {path}", "Supported: path"]
    answer = (await edge.register(contact="<sip:bob@192.0.2.77>", headers=through)).response
    assert (answer.status, answer.all("path")) == (200, [path])
    for node in (first, second):
        alice = await world.phone(node, "alice")
        call = await alice.call("bob")
        answer, incoming = await in_time(call.final(), edge.rings_and_answers())
        assert answer.status == 200
        assert incoming.invite.all("route") == [path]
        await in_time(call.request(answer, "INFO"), incoming.requested("INFO"))
        await in_time(incoming.hang_up(), call.requested("BYE"))


async def test_a_phone_that_died_on_the_other_node_is_woken_there(world: World) -> None:
    transport = "UDP"
    first, second = await two_nodes(world, "TCP")
    push = x_push(apns_token())
    await world.sleeping(second, "bob", transport, push)
    alice = await world.phone(first, "alice", transport)
    call = await alice.call("bob")
    pushed = await world.pushes.next()
    bob = await world.registered(second, "bob", transport, push)
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    assert answer.status == 200
    assert incoming.push_id == pushed.push_id
    await in_time(call.hang_up(answer), incoming.hung_up())
    assert len(world.pushes.all) == 1


async def test_a_phone_that_died_on_the_other_node_is_woken_here(world: World) -> None:
    transport = "TCP"
    first, second = await two_nodes(world, "UDP")
    push = x_push(apns_token())
    await world.sleeping(second, "bob", transport, push)
    alice = await world.phone(first, "alice", transport)
    call = await alice.call("bob")
    await world.pushes.next()
    bob = await world.registered(first, "bob", transport, push)
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    assert answer.status == 200
    await in_time(incoming.hang_up(), call.requested("BYE"))


async def test_a_phone_that_wakes_too_late_on_the_other_node_sees_the_call_begin_and_end(
    world: World, transport: str
) -> None:
    first, second = await two_nodes(world, transport)
    push = x_push(apns_token())
    await world.sleeping(second, "bob", "UDP", push)
    alice = await world.phone(first, "alice")
    call = await alice.call("bob")
    pushed = await world.pushes.next()
    await in_time(call.cancel('Reason: SIP;cause=200;text="changed my mind"'), call.final())
    bob = await world.registered(second, "bob", "UDP", push)
    incoming = await bob.incoming()
    incoming.reply(180)
    cancel = await incoming.cancelled()
    assert cancel["reason"] == 'SIP;cause=200;text="changed my mind"'
    assert incoming.push_id == pushed.push_id


async def test_the_phones_of_a_node_that_died_are_woken(world: World) -> None:
    first, second = await two_nodes(world, "TCP")
    push = x_push(apns_token())
    bob = await world.registered(second, "bob", "TCP", push)
    await second.kill()
    alice = await world.phone(first, "alice")
    call = await alice.call("bob")
    await world.pushes.next()
    bob = await world.registered(first, "bob", "TCP", push)
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    assert answer.status == 200
    await in_time(call.hang_up(answer), incoming.hung_up())


async def test_a_phone_that_changes_nodes_in_a_call_stays_in_it(world: World) -> None:
    first, second = await two_nodes(world, "TCP")
    push = x_push(apns_token())
    bob = await world.registered(first, "bob", "TCP", push)
    alice = await world.phone(first, "alice")
    call = await alice.call("bob")
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    bob.kill()
    incoming.phone = await world.registered(second, "bob", "TCP", push)
    await in_time(call.hang_up(answer), incoming.hung_up())


async def test_another_uri_of_the_node_waits_for_a_restart_and_calls_go_on(world: World) -> None:
    first, second = await two_nodes(world, "TCP")
    bob = await world.phone(second, "bob")
    await bob.register()
    alice = await world.phone(first, "alice")
    call = await alice.call("bob")
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    for node in (first, second):
        node.settings["node"]["uri"] += ";lr"
        node.reload()
        await node.log_event("reloaded")
        await node.log_event("restart_needed", section="node")
    await in_time(call.hang_up(answer), incoming.hung_up())


async def test_the_caller_gives_up(world: World) -> None:
    first, second = await two_nodes(world, "UDP")
    bob = await world.phone(second, "bob")
    await bob.register()
    alice = await world.phone(first, "alice")
    call = await alice.call("bob")
    incoming = await bob.incoming()
    incoming.reply(180)
    await call.expect(180)
    _, final, _ = await in_time(call.cancel(), call.final(), incoming.cancelled())
    assert final.status == 487


async def test_a_message_goes_to_the_phone_on_the_other_node(world: World) -> None:
    first, second = await two_nodes(world, "TCP")
    bob = await world.phone(second, "bob")
    await bob.register(x_push(apns_token()))
    alice = await world.phone(first, "alice")
    await alice.register()
    sent, came = await in_time(message(alice, "bob", "hello").sent(), take(bob))
    assert (sent.status, came.body) == (200, "hello")
    assert not world.pushes.all


async def test_nobody_gets_to_a_phone_by_a_route_that_he_made_up(world: World) -> None:
    _, second = await two_nodes(world, "TCP")
    bob = await world.phone(second, "bob")
    await bob.register()
    node = second.settings["node"]["uri"].removeprefix("sip:")
    mallory = await world.phone(second, "mallory")
    route = f"Route: <sip:{'A' * 60}@{node};lr>"
    call = await mallory.call("bob", headers=[route], challenged=False)
    assert (await call.final()).status in (403, 407)
