"""What is for users and numbers of the domain that are not here goes to the PBX (D3)."""

from __future__ import annotations

import secrets
import socket
from typing import Any

import pytest

from tests.e2e.daemon import PBX, Daemon, in_time
from tests.e2e.fallback_server import FallbackServer
from tests.e2e.test_messages import message, take
from tests.e2e.wire import OutCall, digest_answer
from tests.e2e.world import World, apns_token, x_push
from tests.servers.ports import free_port

pytestmark = pytest.mark.parametrize("store_type", ["sqlite"], indirect=True)


async def with_route(world: World, *servers: str, **changes: Any) -> Daemon:
    """A daemon whose domain has these servers."""
    return await world.start(domains={world.domain: {"route": list(servers)}}, **changes)


def address(pbx: FallbackServer) -> str:
    return f"sip:{pbx.ip}:{pbx.port}"


async def test_a_number_that_nobody_has_is_called_at_the_pbx(world: World, transport: str) -> None:
    async with FallbackServer() as pbx:
        daemon = await with_route(world, address(pbx))
        alice = await world.phone(daemon, "alice", transport)
        await alice.register()
        call = await alice.call("%23100*7", challenged=True)
        answer, incoming = await in_time(call.final(), pbx.answers(daemon))
        assert answer.status == 200
        assert incoming.invite.uri == pbx.uri("%23100*7")
        assert f"<sip:{world.aor('%23100*7')}>" in incoming.invite["to"]
        assert not incoming.invite.all("diversion")
        await in_time(incoming.hang_up(), call.requested("BYE"))


async def test_the_pbx_is_found_by_its_name(world: World) -> None:
    ip = str(socket.getaddrinfo("localhost", None, type=socket.SOCK_DGRAM)[0][4][0])
    async with FallbackServer(ip) as pbx:
        daemon = await with_route(world, f"sip:localhost:{pbx.port}")
        alice = await world.phone(daemon, "alice", ip="127.0.0.3")
        call = await alice.call("700")
        answer, incoming = await in_time(call.final(), pbx.answers(daemon))
        await in_time(call.hang_up(answer), incoming.hung_up())


async def test_the_pbx_hangs_up_and_is_hung_up(world: World, transport: str) -> None:
    async with FallbackServer() as pbx:
        daemon = await with_route(world, address(pbx))
        alice = await world.phone(daemon, "alice", transport)
        call = await alice.call("0301234567")
        answer, incoming = await in_time(call.final(), pbx.answers(daemon))
        await in_time(call.hang_up(answer), incoming.hung_up())


async def test_a_server_that_fails_or_refuses_is_followed_by_the_next(world: World) -> None:
    async with FallbackServer() as refusing, FallbackServer() as pbx:
        nobody = f"sip:{PBX}:{free_port()}"
        daemon = await with_route(world, nobody, address(refusing), address(pbx))
        alice = await world.phone(daemon, "alice")
        call = await alice.call("700")
        await (await refusing.phone(daemon).incoming()).refuse(503)
        answer, incoming = await in_time(call.final(), pbx.answers(daemon))
        assert answer.status == 200
        await in_time(call.hang_up(answer), incoming.hung_up())


async def test_a_pbx_that_asks_for_a_password_of_its_own_gets_the_answer_and_not_ours(
    world: World,
) -> None:
    async with FallbackServer() as pbx:
        daemon = await with_route(world, address(pbx))
        alice = await world.phone(daemon, "alice")
        call = await alice.call("700", challenged=False)
        by_us = await call.expect(407)
        await call.authorize(by_us)
        challenge = 'Digest realm="pbx", nonce="abc", qop="auth"'
        asking = (await pbx.phone(daemon).incoming()).refuse(
            407, f"Proxy-Authenticate: {challenge}"
        )
        refused, _ = await in_time(call.expect(407), asking)
        assert refused["proxy-authenticate"] == challenge
        asked, who = by_us["proxy-authenticate"], alice.account
        ours = digest_answer(asked, who.user, who.password, "INVITE", call.uri, 2)
        call.headers += (f"Proxy-Authorization: {ours}",)
        await call.authorize(refused)
        again = await pbx.phone(daemon).incoming()
        assert again.invite.text.count("Proxy-Authorization") == 1
        assert again.invite["proxy-authorization"] == call.authorization
        await in_time(call.final(), again.answer())


async def a_phone_has_rung_out(world: World, daemon: Daemon) -> None:
    """As long as a phone may ring (``wake.no_answer``)."""
    carol = await world.phone(daemon, "carol")
    await carol.register()
    call = await (await world.phone(daemon, "bob")).call("carol")
    incoming = await carol.incoming()
    incoming.reply(180)
    _, final = await in_time(incoming.cancelled(), call.final())
    assert final.status == 408


@pytest.mark.parametrize("way", ["number", "fallback"])
async def test_the_pbx_may_ring_longer_than_a_phone(world: World, way: str) -> None:
    async with FallbackServer() as pbx:
        users = {world.aor("bob"): {"fallback": pbx.uri("queue")}}
        daemon = await with_route(world, address(pbx), wake={"no_answer": 0.5}, users=users)
        alice = await world.phone(daemon, "alice")
        call = await alice.call("bob" if way == "fallback" else "700")
        incoming = await pbx.phone(daemon).incoming()
        incoming.reply(180)
        await call.expect(180)
        await a_phone_has_rung_out(world, daemon)
        answer, _ = await in_time(call.final(), incoming.answer())
        assert answer.status == 200


async def test_the_answer_of_the_pbx_goes_back(world: World) -> None:
    async with FallbackServer() as pbx:
        daemon = await with_route(world, address(pbx))
        alice = await world.phone(daemon, "alice")
        call = await alice.call("700")
        final, _ = await in_time(call.final(), (await pbx.phone(daemon).incoming()).refuse(404))
        assert final.status == 404


@pytest.mark.parametrize("place", [0, 1])
async def test_a_number_that_the_pbx_asks_for_goes_to_no_server_of_its_route(
    world: World, place: int
) -> None:
    """What goes to the other one comes back as another call."""
    async with FallbackServer() as pbx, FallbackServer("127.0.0.3") as other:
        servers = [address(other)]
        servers.insert(place, address(pbx))
        daemon = await with_route(world, *servers)
        call = await pbx.phone(daemon).call("700", domain=world.domain, challenged=False)
        assert (await call.final()).status == 404
        assert other.phone(daemon).wire.count("INVITE") == 0


@pytest.mark.parametrize("why", ["fallback", "forward"])
async def test_a_call_of_the_pbx_ends_at_a_number_there_by_way_of_a_user(
    world: World, why: str
) -> None:
    async with FallbackServer() as pbx, FallbackServer() as other:
        users = {world.aor("bob"): {why: f"sip:{world.aor('700')}"}}
        daemon = await with_route(world, address(other), users=users)
        call = await pbx.phone(daemon).call("bob", domain=world.domain, challenged=False)
        answer, incoming = await in_time(call.final(), other.answers(daemon))
        assert answer.status == 200
        assert incoming.invite.uri == other.uri("700")


async def test_the_pbx_wakes_a_phone_that_is_here(world: World) -> None:
    async with FallbackServer() as pbx:
        daemon = await with_route(world, address(pbx))
        push = x_push(apns_token())
        await world.sleeping(daemon, "bob", "UDP", push)
        call = await pbx.phone(daemon).call("bob", domain=world.domain, challenged=False)
        await world.pushes.next()
        bob = await world.registered(daemon, "bob", "UDP", push)
        answer, incoming = await in_time(call.final(), bob.rings_and_answers())
        assert answer.status == 200
        await in_time(call.hang_up(answer), incoming.hung_up())


async def test_a_fallback_may_be_a_number_of_the_pbx(world: World) -> None:
    async with FallbackServer() as pbx:
        users = {world.aor("bob"): {"fallback": f"sip:{world.aor('700')}"}}
        daemon = await with_route(world, address(pbx), users=users)
        alice = await world.phone(daemon, "alice")
        call = await alice.call("bob")
        answer, incoming = await in_time(call.final(), pbx.answers(daemon))
        assert incoming.invite.uri == pbx.uri("700")
        assert world.aor("bob") in incoming.invite["diversion"]
        await in_time(call.hang_up(answer), incoming.hung_up())


async def test_a_message_to_somebody_there_goes_there(world: World) -> None:
    async with FallbackServer() as pbx:
        daemon = await with_route(world, address(pbx))
        alice = await world.phone(daemon, "alice")
        await alice.register()
        sent, taken = await in_time(message(alice, "700", "hello").sent(), take(pbx.phone(daemon)))
        assert (sent.status, taken.uri, taken.body) == (200, pbx.uri("700"), "hello")


async def test_a_caller_that_does_not_sign_in_gets_nowhere(world: World) -> None:
    async with FallbackServer() as pbx:
        daemon = await with_route(world, address(pbx))
        stranger = await world.phone(daemon, "nobody")
        call = await stranger.call("0900123456", challenged=False)
        assert (await call.final()).status == 407


async def test_a_secure_call_goes_to_no_server_that_is_not(world: World) -> None:
    async with FallbackServer() as pbx:
        daemon = await with_route(world, address(pbx))
        alice = await world.phone(daemon, "alice")
        call = OutCall(alice, f"sips:{world.aor('700')}", (), f"call-{secrets.token_hex(8)}")
        call.send_invite()
        await call.authorize(await call.expect(407))
        assert (await call.final()).status == 404


@pytest.mark.parametrize("why", ["fallback", "forward"])
async def test_a_secure_call_falls_back_to_no_server_that_is_not(world: World, why: str) -> None:
    async with FallbackServer() as pbx:
        daemon = await world.start(users={world.aor("bob"): {why: pbx.uri("box")}})
        alice = await world.phone(daemon, "alice")
        call = OutCall(alice, f"sips:{world.aor('bob')}", (), f"call-{secrets.token_hex(8)}")
        call.send_invite()
        await call.authorize(await call.expect(407))
        assert (await call.final()).status == 480
        await daemon.log_event("fallback_failed", to=pbx.uri("box"))
        assert pbx.phone(daemon).wire.count("INVITE") == 0


async def test_what_the_pbx_refuses_a_stranger_is_hardly_repeated(world: World) -> None:
    """Who has forged his address has a victim there flooded."""
    async with FallbackServer() as pbx:
        daemon = await world.start(
            users=None,
            domains={world.domain: {"registrar": address(pbx)}},
            peers=[{"name": "pbx", "address": PBX}, {"name": "other", "address": "127.0.0.3"}],
        )
        eve = await world.phone(daemon, "alice", ip="127.0.0.71")
        await eve.call("bob", challenged=False)
        challenge = f'Proxy-Authenticate: Digest realm="{world.domain}", nonce="a"'
        await (await pbx.phone(daemon).incoming()).refuse(407, challenge)
        other = await world.phone(daemon, "carol", ip="127.0.0.3")
        await other.call("bob", challenged=False)
        await (await pbx.phone(daemon).incoming()).refuse(404)
        for _ in range(4):  # the fourth time after 3.5 s
            await other.wire.expect(404)
        assert eve.wire.count(407) == 3


async def test_without_a_route_nobody_has_that_number(world: World) -> None:
    daemon = await world.daemon()
    alice = await world.phone(daemon, "alice")
    assert (await (await alice.call("700")).final()).status == 404
