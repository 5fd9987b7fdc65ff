"""Who may call whom, and what becomes of a call that no device takes (W3, D3)."""

from __future__ import annotations

from tests.e2e.daemon import PBX, in_time
from tests.e2e.wire import Account
from tests.e2e.world import World, apns_token, x_push


async def test_a_caller_without_credentials_is_challenged(world: World, transport: str) -> None:
    daemon = await world.daemon()
    await world.sleeping(daemon, "bob", transport, x_push(apns_token()))
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob", challenged=False)
    assert (await call.final()).status == 407
    assert world.pushes.all == []


async def test_a_wrong_password_calls_nobody(world: World, transport: str) -> None:
    daemon = await world.daemon()
    await world.sleeping(daemon, "bob", transport, x_push(apns_token()))
    liar = await world.phone(
        daemon, "alice", transport, who=Account("alice", "guess", world.domain)
    )
    call = await liar.call("bob")
    assert (await call.final()).status in (403, 407)
    assert world.pushes.all == []


async def test_a_wrong_password_registers_nothing(world: World, transport: str) -> None:
    daemon = await world.daemon()
    liar = await world.phone(daemon, "bob", transport, who=Account("bob", "guess", world.domain))
    result = await liar.register(x_push(apns_token()))
    assert result.response.status in (401, 403)
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    assert (await call.final()).status == 480
    assert world.pushes.all == []


async def test_a_user_cannot_register_for_another(world: World, transport: str) -> None:
    daemon = await world.daemon()
    mallory = await world.phone(daemon, "carol", transport)
    mallory.register_for = world.aor("bob")
    result = await mallory.register(x_push(apns_token()))
    assert result.response.status == 403


async def test_a_foreign_domain_is_not_relayed(world: World, transport: str) -> None:
    daemon = await world.daemon()
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob", domain="elsewhere.test", challenged=False)
    first = await call.final()
    if first.status == 407:
        call = await alice.call("bob", domain="elsewhere.test")
        first = await call.final()
    assert first.status == 403


async def test_an_unknown_user_is_not_told_to_strangers(world: World, transport: str) -> None:
    daemon = await world.daemon()
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("nobody", challenged=False)
    assert (await call.final()).status == 407
    call = await alice.call("nobody")
    assert (await call.final()).status == 404


async def test_a_known_user_without_any_device_is_unavailable(world: World, transport: str) -> None:
    daemon = await world.daemon()
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    assert (await call.final()).status == 480


async def test_a_trusted_peer_is_not_challenged(world: World, transport: str) -> None:
    daemon = await world.daemon()
    push = x_push(apns_token())
    await world.sleeping(daemon, "bob", transport, push)
    pbx = await world.phone(daemon, "200", transport, ip=PBX)
    call = await pbx.call("bob", challenged=False)
    await world.pushes.next()
    reborn = await world.registered(daemon, "bob", transport, push)
    answer, incoming = await in_time(call.final(), reborn.rings_and_answers())
    assert answer.status == 200
    await in_time(call.hang_up(answer), incoming.hung_up())


async def test_the_fallback_gets_the_call_that_no_device_took(world: World, transport: str) -> None:
    voicemail = await world.sipp(None, "voicemail", "voicemail", transport, ip=PBX)
    tail = ";transport=tcp" if transport == "TCP" else ""
    fallback = f"sip:bob-box@{PBX}:{voicemail.port}{tail}"
    daemon = await world.start(
        users={world.aor("bob"): {"fallback": fallback, "hold_seconds": 0.5}}
    )
    await world.sleeping(daemon, "bob", transport, x_push(apns_token()))
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    answer = await call.final()
    assert answer.status == 200
    await voicemail.said("invited")
    assert (await call.hang_up(answer)).status == 200
    await voicemail.said("hung up")
