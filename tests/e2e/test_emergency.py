"""Emergency calls go to the route at once, with the caller's address (D4)."""

from __future__ import annotations

import email
from collections.abc import Mapping
from email.message import Message
from types import MappingProxyType
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.e2e.daemon import PBX, Daemon, in_time
from tests.e2e.fallback_server import FallbackServer
from tests.e2e.test_beside_a_pbx import a_phone_has_rung_out
from tests.e2e.test_messages import message, take
from tests.e2e.wire import SDP, Msg, OutCall
from tests.e2e.world import World, apns_token, x_push

pytestmark = pytest.mark.parametrize("store_type", ["sqlite"], indirect=True)

CIVIC = "{urn:ietf:params:xml:ns:pidf:geopriv10:civicAddr}"
HOME = {"country": "DE", "A3": "Berlin", "RD": "Straße des 17. Juni", "HNO": "135", "PC": "10623"}


async def with_route(
    world: World,
    *servers: FallbackServer,
    no_answer: float = 180,
    limits: Mapping[str, float] = MappingProxyType({}),
    **emergency: Any,
) -> Daemon:
    """A daemon whose emergency calls go to ``servers``; alice's address is on file."""
    return await world.start(
        wake={"no_answer": no_answer},
        limits=dict(limits),
        users={world.aor("alice"): {"fallback": f"sip:voicemail@{PBX}:1"}},
        emergency={
            "numbers": ["112", "911"],
            "route": [server.uri("psap") for server in servers],
            "addresses": {world.aor("alice"): HOME},
        }
        | emergency,
    )


def parts(invite: Msg) -> dict[str, Message]:
    """The parts of a multipart body by type."""
    whole = email.message_from_string(
        f"Content-Type: {invite['content-type']}\r\n\r\n{invite.body}"
    )
    return {part.get_content_type(): part for part in whole.get_payload()}


@pytest.mark.parametrize("number", ["112", "911"])
async def test_an_emergency_call_of_a_registered_phone_carries_its_address(
    world: World, transport: str, number: str
) -> None:
    async with FallbackServer() as psap:
        daemon = await with_route(world, psap)
        alice = await world.phone(daemon, "alice", transport)
        await alice.register()
        call = await alice.call(number, challenged=False)
        answer, incoming = await in_time(call.final(), psap.answers(daemon))
        assert answer.status == 200
        invite = incoming.invite
        assert invite.uri == psap.uri("psap")
        assert invite["p-asserted-identity"] == f"<sip:{world.aor('alice')}>"
        assert f"sip:{world.aor('alice')}" in invite["from"]
        sdp, pidf = parts(invite).values()
        assert sdp.get_payload() == SDP
        assert invite["geolocation"] == f"<cid:{pidf['content-id'].strip('<>')}>"
        civic = ElementTree.fromstring(pidf.get_payload().encode("utf-8", "surrogateescape"))
        told = {
            each.tag.removeprefix(CIVIC): each.text for each in civic.iter() if CIVIC in each.tag
        }
        assert told.items() >= HOME.items()
        await in_time(call.hang_up(answer), incoming.hung_up())


async def test_an_emergency_call_of_a_stranger_is_not_challenged(world: World) -> None:
    async with FallbackServer() as psap:
        daemon = await with_route(world, psap)
        alice = await world.phone(daemon, "alice")
        call = await alice.call("112", challenged=False)
        answer, incoming = await in_time(call.final(), psap.answers(daemon))
        assert answer.status == 200
        assert incoming.invite["p-asserted-identity"] == ""
        assert incoming.invite["geolocation"] == ""
        assert incoming.invite.body == SDP
        await daemon.log_event("emergency_call", caller="unknown", address=False)


async def test_an_emergency_service_has_no_domain(world: World) -> None:
    async with FallbackServer() as psap:
        daemon = await with_route(world, psap)
        alice = await world.phone(daemon, "alice")
        await alice.register()
        call = OutCall(alice, "urn:service:sos", (), f"sos-{world.domain}")
        call.send_invite()
        answer, incoming = await in_time(call.final(), psap.answers(daemon))
        assert answer.status == 200
        assert "To: <urn:service:sos>" in incoming.invite.text
        assert incoming.invite.uri == psap.uri("psap")


async def test_a_telephone_number_and_a_text_reach_the_emergency_centre(world: World) -> None:
    async with FallbackServer() as psap:
        daemon = await with_route(world, psap)
        alice = await world.phone(daemon, "alice")
        await alice.register()
        call = OutCall(alice, "tel:112", (), f"tel-{world.domain}")
        call.send_invite()
        answer, incoming = await in_time(call.final(), psap.answers(daemon))
        assert answer.status == 200
        await in_time(call.hang_up(answer), incoming.hung_up())
        text = message(alice, "112", "help")
        text.send()
        answer, came = await in_time(text.response(), take(psap.phone(daemon)))
        assert answer.status == 200
        assert came.uri == psap.uri("psap")
        assert came["p-asserted-identity"] == f"<sip:{world.aor('alice')}>"
        said, pidf = parts(came).values()
        assert said.get_payload() == "help"
        assert "Berlin" in pidf.get_payload()


async def test_a_caller_who_gives_up_reaches_the_emergency_centre_too(world: World) -> None:
    async with FallbackServer() as psap:
        daemon = await with_route(world, psap)
        alice = await world.phone(daemon, "alice")
        call = await alice.call("112", challenged=False)
        incoming = await psap.phone(daemon).incoming()
        incoming.reply(180)
        await call.expect(180)
        _, final, _ = await in_time(call.cancel(), call.final(), incoming.cancelled())
        assert final.status == 487


async def test_the_emergency_centre_may_ring_longer_than_a_phone(world: World) -> None:
    async with FallbackServer() as psap:
        daemon = await with_route(world, psap, no_answer=0.5)
        alice = await world.phone(daemon, "alice")
        call = await alice.call("112", challenged=False)
        incoming = await psap.phone(daemon).incoming()
        incoming.reply(180)
        await call.expect(180)
        await a_phone_has_rung_out(world, daemon)
        answer, _ = await in_time(call.final(), incoming.answer())
        assert answer.status == 200


@pytest.mark.parametrize("limit", ["failed_sign_ins", "failed_sign_ins_per_user"])
async def test_nobody_guesses_passwords_by_emergency_calls(world: World, limit: str) -> None:
    async with FallbackServer() as psap:
        limits = {limit: 3, "failure_window": 3600}
        daemon = await with_route(world, psap, strangers=False, limits=limits)
        eve = await world.phone(daemon, "alice", ip="127.0.0.71")
        calls = [await eve.call("112", challenged=False) for _ in range(12)]
        challenges = [await call.expect(407) for call in calls]
        right, eve.account.password = eve.account.password, "wrong"
        for call, challenge in zip(calls[:-1], challenges[:-1], strict=True):
            await call.authorize(challenge)
        await daemon.log_event("banned" if limit == "failed_sign_ins" else "user_slowed")
        eve.account.password = right
        await calls[-1].authorize(challenges[-1])
        await psap.phone(daemon).wire.heard()
        await daemon.has_no_requests()
        assert sum("authentication_failed" in line for line in daemon.log.all) == 3
        assert psap.phone(daemon).wire.count("INVITE") == 0


async def test_who_floods_the_emergency_number_is_hardly_asked_to_sign_in(world: World) -> None:
    async with FallbackServer() as psap:
        limits = {"stranger_rate": 1, "stranger_burst": 20}
        daemon = await with_route(world, psap, strangers=False, limits=limits)
        eve, alice = [await world.phone(daemon, "alice", ip=f"127.0.0.7{n}") for n in (1, 2)]
        await alice.register()
        await (await eve.call("112", challenged=False)).expect(407)
        for _ in range(100):
            await eve.call("112", challenged=False)
        await psap.phone(daemon).wire.heard()
        await daemon.has_no_requests()
        assert len(eve.wire.seen) <= 25
        call = await alice.call("112", challenged=False)
        answer, _ = await in_time(call.final(), psap.answers(daemon))
        assert answer.status == 200


async def test_strangers_may_be_asked_to_sign_in(world: World) -> None:
    async with FallbackServer() as psap:
        daemon = await with_route(world, psap, strangers=False)
        alice = await world.phone(daemon, "alice")
        call = await alice.call("112", challenged=True)
        answer, incoming = await in_time(call.final(), psap.answers(daemon))
        assert answer.status == 200
        assert incoming.invite["p-asserted-identity"] == f"<sip:{world.aor('alice')}>"


@pytest.mark.parametrize("first", ["down", "silent"])
async def test_the_next_server_is_tried_when_the_first_is(world: World, first: str) -> None:
    async with FallbackServer() as silent, FallbackServer() as psap:
        broken = silent if first == "silent" else FallbackServer()
        daemon = await with_route(world, broken, psap)
        alice = await world.phone(daemon, "alice")
        await alice.register()
        call = await alice.call("112", challenged=False)
        answer, incoming = await in_time(call.final(), psap.answers(daemon))
        assert answer.status == 200
        assert incoming.invite.uri == psap.uri("psap")


async def test_an_emergency_call_is_taken_while_the_server_goes_down(world: World) -> None:
    async with FallbackServer() as psap:
        daemon = await with_route(world, psap)
        alice, carol = [await world.phone(daemon, user) for user in ("alice", "carol")]
        await carol.register()
        ringing = await alice.call("carol")
        await (await carol.incoming()).phone.wire.options()
        daemon.terminate()
        await daemon.log_event("draining")
        call = await alice.call("112", challenged=False)
        answer, _ = await in_time(call.final(), psap.answers(daemon))
        assert answer.status == 200
        await ringing.cancel()


async def test_the_callback_wakes_the_phone(world: World, transport: str) -> None:
    async with FallbackServer() as psap:
        daemon = await with_route(world, psap)
        push = x_push(apns_token())
        alice = await world.registered(daemon, "alice", transport, push)
        call = await alice.call("112", challenged=False)
        answer, incoming = await in_time(call.final(), psap.answers(daemon))
        await in_time(call.hang_up(answer), incoming.hung_up())
        alice.kill()
        centre = psap.phone(daemon)
        callback = await centre.call("alice", domain=world.domain, challenged=False)
        await world.pushes.next()
        reborn = await world.registered(daemon, "alice", transport, push)
        final, _ = await in_time(callback.final(), reborn.rings_and_answers())
        assert final.status == 200


async def test_users_without_an_address_are_told_at_the_start(world: World) -> None:
    async with FallbackServer() as psap:
        daemon = await with_route(world, psap)
        told = await daemon.log_event("emergency_address_missing")
        assert world.aor("bob") in told["users"]
        assert world.aor("alice") not in told["users"]
