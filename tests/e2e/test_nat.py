"""Phones behind a real NAT register, are called, killed, pushed and woken (D1)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.daemon import Daemon, in_time
from tests.e2e.nat import PRIVATE, PUBLIC, SERVER, Nat
from tests.e2e.wire import PATIENCE, Msg, Phone, Wire
from tests.e2e.world import World, apns_token, x_push

INSTANCE = "urn:uuid:1d9b1a2e-6f0a-4a57-9d0e-0f3c9b8a7e61"


@pytest.fixture
def store_type() -> str:
    """A NAT does not depend on the store."""
    return "sqlite"


@pytest.fixture(scope="module")
def nat() -> Iterator[Nat]:
    """One for all tests, each of which has phones of its own behind it."""
    made = Nat.make()
    yield made
    made.remove()


async def started(world: World, **changes: Any) -> Daemon:
    """A daemon that listens everywhere, so that it must know itself where it was reached."""
    return await world.daemon(
        listen=[
            {"transport": transport, "address": "0.0.0.0", "port": 0}
            for transport in ("udp", "tcp")
        ],
        **changes,
    )


def public(daemon: Daemon, transport: str) -> tuple[str, int]:
    """Where phones behind the NAT find it."""
    return SERVER, daemon.addresses[transport, "0.0.0.0"][1]


async def phone(world: World, nat: Nat, daemon: Daemon, user: str, transport: str) -> Phone:
    """A phone behind the NAT that knows only its inner address."""
    server = public(daemon, transport)
    wire = await Wire.open(transport, server, PRIVATE, inside=nat.inside())
    return world.adopt(Phone(world.account(user), wire, INSTANCE if user == "bob" else ""))


async def outside(world: World, daemon: Daemon, transport: str) -> Phone:
    """alice's phone, on no NAT's inner side."""
    server = "127.0.0.1", daemon.addresses[transport, "0.0.0.0"][1]
    return world.adopt(await Phone.open(world.account("alice"), server, transport))


async def registered(world: World, nat: Nat, daemon: Daemon, transport: str, push: str) -> Phone:
    """bob's phone, registered."""
    bob = await phone(world, nat, daemon, "bob", transport)
    response = (await bob.register(push)).response
    assert response.status == 200
    assert f"received={PUBLIC}" in response["via"]
    assert f"rport={bob.wire.local[1]};" not in response["via"] + ";", "the NAT maps ports too"
    return bob


async def test_a_phone_behind_nat_is_called_and_calls(
    world: World, nat: Nat, transport: str
) -> None:
    daemon = await started(world, wake={"probe": PATIENCE})
    bob = await registered(world, nat, daemon, transport, x_push(apns_token()))
    alice = await phone(world, nat, daemon, "alice", transport)
    for _ in range(2):
        call = await alice.call("bob")
        answer, incoming = await in_time(call.final(), bob.rings_and_answers(call.call_id))
        assert incoming.invite.uri.startswith(f"sip:bob@{PRIVATE}:{bob.wire.local[1]}")
        assert f" {SERVER}:" in incoming.invite["via"]
        await in_time(incoming.hang_up(), call.hung_up())
    call = await alice.call("bob")
    answer, incoming = await in_time(call.final(), bob.rings_and_answers(call.call_id))
    await in_time(call.hang_up(answer), incoming.hung_up())
    assert world.pushes.all == []


async def test_a_phone_behind_nat_is_killed_pushed_and_woken_on_a_new_mapping(
    world: World, nat: Nat, transport: str
) -> None:
    daemon = await started(world)
    push = x_push(apns_token())
    (await registered(world, nat, daemon, transport, push)).kill()
    alice = await outside(world, daemon, transport)
    call = await alice.call("bob")
    pushed = await world.pushes.next()
    reborn = await registered(world, nat, daemon, transport, push)
    answer, incoming = await in_time(call.final(), reborn.rings_and_answers())
    assert incoming.push_id == pushed.push_id
    await in_time(call.hang_up(answer), incoming.hung_up())


async def test_a_phone_that_its_nat_has_forgotten_is_pushed_and_woken(
    world: World, nat: Nat, transport: str
) -> None:
    """Nothing tells the server: packets to the old mapping are dropped without a word."""
    daemon = await started(world)
    push = x_push(apns_token())
    forgotten = await registered(world, nat, daemon, transport, push)
    nat.forget()
    alice = await outside(world, daemon, transport)
    call = await alice.call("bob")
    pushed = await world.pushes.next()
    reborn = await registered(world, nat, daemon, transport, push)
    answer, incoming = await in_time(call.final(), reborn.rings_and_answers())
    assert incoming.push_id == pushed.push_id
    await in_time(call.hang_up(answer), incoming.hung_up())
    assert forgotten.wire.count("INVITE") == 0


def mapping(response: Msg) -> str:
    """Where the NAT let the request come from."""
    return re.search(r"rport=(\d+)", response["via"])[1]  # type: ignore[index]


async def test_a_phone_whose_mapping_changes_learns_so_and_is_called_on_the_new_one(
    world: World, nat: Nat
) -> None:
    """Its keep-alives tell it (RFC 3581, RFC 5626 §4.4); one REGISTER and the old one is gone."""
    daemon = await started(world)
    bob = await registered(world, nat, daemon, "UDP", "")
    before = mapping(await bob.wire.options())
    nat.forget()
    after = mapping(await bob.wire.options())
    assert after != before
    listed = (await bob.register()).response
    assert mapping(listed) == after
    assert len(listed.all("contact")) == 1
    alice = await outside(world, daemon, "UDP")
    call = await alice.call("bob")
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    await in_time(call.hang_up(answer), incoming.hung_up())
    assert bob.wire.count("INVITE") == 1


async def test_a_call_goes_on_when_the_nat_gives_the_phone_a_new_mapping(
    world: World, nat: Nat, transport: str
) -> None:
    """The BYE goes to where the phone has registered since."""
    daemon = await started(world)
    push = x_push(apns_token())
    bob = await registered(world, nat, daemon, transport, push)
    alice = await outside(world, daemon, transport)
    call = await alice.call("bob")
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    nat.forget()
    moved = await registered(world, nat, daemon, transport, push)
    incoming.phone = moved
    await in_time(call.hang_up(answer), incoming.hung_up())


async def test_baresip_behind_nat_is_killed_pushed_restarted_and_talks(
    world: World, nat: Nat, transport: str
) -> None:
    daemon = await started(world)
    server = public(daemon, transport)
    app = await registered(world, nat, daemon, transport, x_push(apns_token()))
    app.kill()
    how = {"server": server, "nat": nat, "instance": INSTANCE.removeprefix("urn:uuid:")}
    bob = await world.baresip(daemon, "bob", transport, **how)
    await bob.registered()
    await bob.kill()

    alice = await world.baresip(daemon, "alice", transport, server=server, nat=nat)
    await alice.registered()
    woken = world.pushes.starts(lambda: world.baresip(daemon, "bob", transport, **how))
    alice.command("dial", f"sip:{world.aor('bob')}")
    _, reborn = await woken
    await in_time(alice.event("CALL_ESTABLISHED"), reborn.event("CALL_ESTABLISHED"))
    await in_time(alice.rtp_received(), reborn.rtp_received())
    reborn.command("hangup")
    await alice.event("CALL_CLOSED")


async def test_a_request_that_takes_many_fragments_passes_the_nat_in_both_directions(
    world: World, nat: Nat
) -> None:
    """RFC 3261 §18.1.1 asks for TCP beyond 1,300 bytes, but no TCP leads to this phone."""
    daemon = await started(world)
    bob = await registered(world, nat, daemon, "UDP", x_push(apns_token()))
    alice = await phone(world, nat, daemon, "alice", "UDP")
    call = await alice.call("bob", headers=[f"X-Big: {'x' * 9_000}"])
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    assert len(incoming.invite["x-big"]) == 9_000
    await in_time(call.hang_up(answer), incoming.hung_up())
