"""What phones and networks do to SIP messages, and what becomes of it here."""

from __future__ import annotations

import asyncio
import hashlib
import secrets

import pytest

from tests.e2e.daemon import Daemon, in_time
from tests.e2e.wire import Account, OutCall, Phone, Wire, new_branch
from tests.e2e.world import World, apns_token, x_push


@pytest.fixture
def store_type() -> str:
    """None of this depends on the store."""
    return "sqlite"


async def registered(world: World, daemon: Daemon, transport: str, user: str = "bob") -> Phone:
    """A phone that has registered."""
    phone = await world.phone(daemon, user, transport)
    assert (await phone.register()).response.status == 200
    return phone


# -- addresses --


@pytest.mark.parametrize(
    "uri",
    ["sip:bob@{domain}", "sips:bob@{domain}", "sip:%62%6Fb@{domain}", "sip:bob@{domain};user=ip"],
)
async def test_a_user_is_called_however_the_uri_is_written(world: World, uri: str) -> None:
    daemon = await world.daemon(listen=world.doors())
    bob = await registered(world, daemon, "TLS")
    alice = await world.phone(daemon, "alice", "TLS")
    call = OutCall(alice, uri.format(domain=world.domain), (), f"call-{secrets.token_hex(8)}")
    call.send_invite()
    await call.authorize(await call.expect(407))
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    assert incoming.invite["to"] == f"<{uri.format(domain=world.domain)}>"
    await in_time(call.hang_up(answer), incoming.hung_up())


async def test_a_telephone_number_is_a_user_of_the_caller_s_domain(world: World) -> None:
    number = Account("+49301234", "secret", world.domain)
    ha1 = hashlib.md5(f"{number.user}:{world.domain}:secret".encode()).hexdigest()
    daemon = await world.start(users={number.aor: {"ha1_md5": ha1}})
    desk = await world.phone(daemon, "", "TCP", who=number)
    assert (await desk.register()).response.status == 200
    alice = await world.phone(daemon, "alice", "TCP")
    for uri in (
        "tel:+49-30-(1234)",
        "tel:+49301234",
        f"tel:+49301234;phone-context={world.domain}",
        f"sip:%2B49301234@{world.domain}",
        f"sip:+49301234@{world.domain};user=phone",
    ):
        call = OutCall(alice, uri, (), f"call-{secrets.token_hex(8)}")
        call.send_invite()
        await call.authorize(await call.expect(407))
        answer, incoming = await in_time(call.final(), desk.rings_and_answers())
        await in_time(call.hang_up(answer), incoming.hung_up())


async def test_a_call_has_passed_other_servers_on_its_way(world: World, transport: str) -> None:
    """Their Vias come back in the answer, in order and untouched."""
    daemon = await world.daemon()
    bob = await registered(world, daemon, transport)
    alice = await world.phone(daemon, "alice", transport)
    vias = [
        "SIP/2.0/TLS [2001:db8::9]:5061;branch=z9hG4bKa;received=2001:db8::9",
        'SIP/2.0/UDP pc33.example.org;branch=z9hG4bKb;x="a, b;c"',
    ]
    call = await alice.call("bob", headers=[f"v: {vias[0]},", f" {vias[1]}"])
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    assert incoming.invite.all("via")[2:] == vias
    assert answer.all("via")[1:] == vias
    await in_time(call.hang_up(answer), incoming.hung_up())


# -- size --


@pytest.mark.parametrize("size", [1_300, 9_000, 60_000])
async def test_a_big_request_comes_over_udp_and_leaves_over_udp(world: World, size: int) -> None:
    """There is no other way to a phone behind a NAT: its datagrams are fragmented."""
    daemon = await world.daemon()
    bob = await registered(world, daemon, "UDP")
    alice = await world.phone(daemon, "alice", "UDP")
    call = await alice.call("bob", headers=[f"X-Big: {'x' * size}"])
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    assert len(incoming.invite["x-big"]) == size
    await in_time(call.hang_up(answer), incoming.hung_up())


# -- streams --


def options(world: World, number: int, transport: str, host_port: str) -> str:
    """One request that is answered at once."""
    return (
        f"OPTIONS sip:{world.domain} SIP/2.0\r\n"
        f"Via: SIP/2.0/{transport} {host_port};branch={new_branch()};rport\r\n"
        f"From: <sip:bob@{world.domain}>;tag=1\r\nTo: <sip:{world.domain}>\r\n"
        f"Call-ID: options\r\nCSeq: {number} OPTIONS\r\nContent-Length: 4\r\n\r\nbody"
    )


@pytest.mark.parametrize("transport", ["TCP", "TLS"])
async def test_messages_come_byte_by_byte_and_several_at_once(world: World, transport: str) -> None:
    daemon = await world.daemon(listen=world.doors())
    wire = (await world.phone(daemon, "bob", transport)).wire
    texts = [options(world, number, transport, wire.host_port) for number in (1, 2, 3)]
    for byte in texts[0].encode():
        wire.send(bytes([byte]))
        await asyncio.sleep(0)
    assert (await wire.expect(200))["cseq"] == "1 OPTIONS"
    wire.send("\r\n\r\n" + texts[1] + "\r\n" + texts[2] + texts[0][:30])
    assert {(await wire.expect(200))["cseq"] for _ in "23"} == {"2 OPTIONS", "3 OPTIONS"}
    wire.send(texts[0][30:])
    assert (await wire.expect(200))["cseq"] == "1 OPTIONS"


# -- ports --


@pytest.mark.parametrize("user", ["bob", "carol"])
@pytest.mark.parametrize("transport", ["UDP", "TCP", "TLS"])
async def test_a_phone_that_takes_the_port_of_a_killed_one_gets_its_own_calls(
    world: World, transport: str, user: str
) -> None:
    """The same phone after a restart, or another one behind the same NAT."""
    daemon = await world.daemon(listen=world.doors())
    dead = await registered(world, daemon, transport)
    port = dead.wire.local[1]
    dead.kill(reset=transport != "UDP")
    await asyncio.sleep(0)  # the socket is closed then
    wire = await Wire.open(transport, daemon.at(transport), port=port, tls=world.tls)
    reborn = world.adopt(Phone(world.account(user), wire))
    assert (await reborn.register()).response.status == 200
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call(user)
    answer, incoming = await in_time(call.final(), reborn.rings_and_answers())
    assert incoming.invite.uri == reborn.contact_uri
    await in_time(call.hang_up(answer), incoming.hung_up())


@pytest.mark.parametrize("transport", ["UDP", "TCP", "TLS"])
async def test_a_phone_woken_on_the_port_it_had_before_is_called_once(
    world: World, transport: str
) -> None:
    daemon = await world.daemon(listen=world.doors())
    push, urn = x_push(apns_token()), "urn:uuid:6a2f41a3-c54c-fce8-32d2-0324e1c32e22"
    dead = await world.registered(daemon, "bob", transport, push, urn)
    port = dead.wire.local[1]
    dead.kill(reset=transport != "UDP")
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    await world.pushes.next()
    wire = await Wire.open(transport, daemon.at(transport), port=port, tls=world.tls)
    reborn = world.adopt(Phone(world.account("bob"), wire, urn))
    assert (await reborn.register(push)).response.status == 200
    answer, incoming = await in_time(call.final(), reborn.rings_and_answers())
    await in_time(call.hang_up(answer), incoming.hung_up())
    branches = {msg["via"] for msg in wire.seen if msg.method == "INVITE"}
    assert len(branches) == 1
