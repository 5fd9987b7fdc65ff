"""Who may call whom, and what becomes of a call that no device takes (W3, D3)."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.daemon import PBX, in_time
from tests.e2e.fallback_server import FallbackServer
from tests.e2e.wire import FINAL, Account, Msg, new_branch
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
    await daemon.log_event("request_refused", call_id=call.call_id, status=403)


async def test_an_unknown_user_is_not_told_to_strangers(world: World, transport: str) -> None:
    daemon = await world.daemon()
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("nobody", challenged=False)
    assert (await call.final()).status == 407
    call = await alice.call("nobody")
    assert (await call.final()).status == 404
    await daemon.log_event("request_refused", call_id=call.call_id, status=404)


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


async def answers_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Msg:
    """Takes a request without a body, as a server would."""
    request = Msg((await reader.readuntil(b"\r\n\r\n")).decode())
    copied = "".join(
        f"{name}: {value}\r\n"
        for name, value in request.headers
        if name in ("via", "from", "to", "call-id", "cseq")
    )
    writer.write(f"SIP/2.0 200 OK\r\n{copied}Content-Length: 0\r\n\r\n".encode())
    return request


@pytest.mark.parametrize("by", ["route", "host name"])
@pytest.mark.parametrize("transport", ["TCP"])
async def test_a_peer_whose_connection_has_closed_is_called_back(
    world: World, transport: str, by: str
) -> None:
    """Kamailio before an Asterisk, whose connections end when they are idle."""
    came: asyncio.Queue[Msg] = asyncio.Queue()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.put_nowait(await answers_one(reader, writer))
        await reader.read()
        writer.close()

    ip = PBX if by == "route" else "127.0.0.1"
    listening = await asyncio.start_server(take, ip, 0)
    port = listening.sockets[0].getsockname()[1]
    door = {"transport": "tcp", "address": "127.0.0.1", "port": 0}
    daemon = await world.start(listen=[door], peers=[{"name": "pbx", "address": ip}])
    bob = await world.phone(daemon, "bob", transport)
    await bob.register()
    pbx = await world.phone(daemon, "200", transport, ip=ip)
    route = f"<sip:{ip}:{port};transport=tcp;lr>"
    plain = pbx.wire.send

    def through_its_proxy(text: str | bytes) -> None:
        assert isinstance(text, str)
        plain(text.replace(f"Route: {route}\r\n", "") if text.startswith("ACK") else text)

    pbx.wire.send = through_its_proxy  # type: ignore[method-assign]
    if by == "route":
        pbx.wire.host = "192.0.2.99:5060"
        call = await pbx.call("bob", challenged=False, headers=[f"Record-Route: {route}"])
    else:
        pbx.wire.host = f"localhost:{port}"
        call = await pbx.call("bob", challenged=False)
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    assert answer.status == 200
    pbx.kill()
    await bob.wire.options()  # by its answer, the end of the connection has been seen
    ended, bye = await in_time(incoming.hang_up(), came.get())
    assert ended.status == 200
    assert bye.start == f"BYE {incoming.invite.contact} SIP/2.0"
    assert bye.all("route") == ([route] if by == "route" else [])
    listening.close()


CLAIMS = (
    'P-Asserted-Identity: "Boss" <sip:1@127.0.0.1>',
    'Remote-Party-ID: "Boss" <sip:1@127.0.0.1>;party=calling',
    "X-Push-Id: 11111111-1111-4111-8111-111111111111",
)


@pytest.mark.parametrize("user", ["bob", "112"])
async def test_nobody_passes_for_somebody_else(world: World, user: str) -> None:
    async with FallbackServer() as psap:
        emergency = {"numbers": ["112"], "route": [psap.uri("psap")]}
        daemon = await world.start(emergency=emergency)
        bob, alice = await world.phone(daemon, "bob"), await world.phone(daemon, "alice")
        await bob.register()
        call = await alice.call(user, headers=CLAIMS, challenged=user == "bob")
        callee = bob if user == "bob" else psap.phone(daemon)
        answer, incoming = await in_time(call.final(), callee.rings_and_answers())
        routes = [f"Route: {value}" for value in reversed(answer.all("record-route"))]
        call.cseq += 1
        inside = (answer.contact, new_branch(), answer.tag("to"), *routes, *CLAIMS)
        alice.wire.send(call._request("INFO", *inside))
        for came in (incoming.invite, await incoming.requested("INFO")):
            names = {name for name, _ in came.headers}
            assert not {"p-asserted-identity", "remote-party-id", "x-push-id"} & names
        await in_time(call.hang_up(answer), incoming.hung_up())


@pytest.mark.parametrize("hides", [False, True])
async def test_a_peer_says_who_calls_and_whether_the_phone_may_know(
    world: World, hides: bool
) -> None:
    daemon = await world.daemon()
    bob, pbx = await world.phone(daemon, "bob"), await world.phone(daemon, "200", ip=PBX)
    await bob.register()
    headers = [*CLAIMS[:2], *(["Privacy: id"] if hides else [])]
    call = await pbx.call("bob", headers=headers, challenged=False)
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    told = incoming.invite.all("p-asserted-identity") + incoming.invite.all("remote-party-id")
    assert len(told) == (0 if hides else 2)
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


async def test_the_ringback_of_a_sleeping_phone_is_a_whole_early_dialog(
    world: World, transport: str
) -> None:
    """SIP.js drops a 180 without Contact, and its user hears nothing."""
    daemon = await world.daemon()
    await world.sleeping(daemon, "bob", transport, x_push(apns_token()))
    alice = await world.phone(daemon, "alice", transport)
    upstream = "<sip:192.0.2.9;lr>"
    call = await alice.call("bob", headers=[f"Record-Route: {upstream}"])
    ringing = await call.expect(180)
    ip, port = daemon.at(transport)
    assert ringing.contact == f"sip:{ip}:{port};transport={transport.lower()}"
    assert ringing.all("record-route") == [upstream]
    assert ringing.tag("to")
    await in_time(call.cancel(), call.final())


async def test_nobody_is_in_the_early_dialog_of_a_call_that_waits(
    world: World, transport: str
) -> None:
    daemon = await world.daemon()
    await world.sleeping(daemon, "bob", transport, x_push(apns_token()))
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    ringing = await call.expect(180)
    assert (await call.request(ringing, "UPDATE")).status == 481


async def test_options_with_no_hops_left_is_answered_and_goes_nowhere(
    world: World, transport: str
) -> None:
    daemon = await world.daemon()
    bob = await world.phone(daemon, "bob", transport)
    await bob.register()
    alice = await world.phone(daemon, "alice", transport)
    alice.wire.send(
        f"OPTIONS sip:{world.aor('bob')} SIP/2.0\r\n"
        f"Via: SIP/2.0/{transport} {alice.wire.host_port};branch={new_branch()};rport\r\n"
        f"Max-Forwards: 0\r\nFrom: <sip:{world.aor('alice')}>;tag=1\r\n"
        f"To: <sip:{world.aor('bob')}>\r\nCall-ID: trace\r\nCSeq: 1 OPTIONS\r\n"
        "Content-Length: 0\r\n\r\n"
    )
    answer = await alice.wire.expect(FINAL, method="OPTIONS")
    assert (answer.status, answer["supported"]) == (200, "path, outbound")
    await bob.wire.options()
    assert bob.wire.count("OPTIONS") == 0
