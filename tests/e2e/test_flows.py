"""Phones and their flows: keep-alives, several flows, SBCs in between (D1, R7, W10)."""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import Any

import pytest

from tests.e2e.daemon import PBX, in_time
from tests.e2e.robots import branch_of
from tests.e2e.wire import FINAL, InCall, Phone
from tests.e2e.world import World, apns_token, x_push


@pytest.mark.parametrize("transport", ["TCP"])
async def test_a_keep_alive_of_a_silent_phone_is_a_wake(world: World, transport: str) -> None:
    daemon = await world.daemon()
    bob = await world.registered(daemon, "bob", transport, x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    first = await bob.incoming()
    await world.pushes.next()
    bob.wire.send("\r\n\r\n")
    again = await bob.incoming()
    assert again.invite["via"] == first.invite["via"]
    again.reply(180)
    await call.expect(180)
    answer, _ = await in_time(call.final(), again.answer())
    assert answer.status == 200
    assert len(world.pushes.all) == 1
    assert bob.wire.count("INVITE") == 2


@pytest.mark.parametrize("transport", ["TCP"])
async def test_an_options_ping_of_a_silent_phone_is_a_wake(world: World, transport: str) -> None:
    daemon = await world.daemon()
    bob = await world.registered(daemon, "bob", transport, x_push(apns_token()))
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await bob.incoming()
    await world.pushes.next()
    assert (await bob.wire.options()).status == 200
    again = await bob.incoming()
    answer, _ = await in_time(call.final(), again.answer())
    assert answer.status == 200


def outbound(phone: Phone, reg_id: int) -> dict[str, Any]:
    """What makes a REGISTER one of several flows (RFC 5626)."""
    contact = f'<{phone.contact_uri};ob>;+sip.instance="<{phone.instance}>";reg-id={reg_id}'
    return {"contact": contact, "headers": ["Supported: path, outbound"]}


async def test_outbound_is_granted_with_the_time_between_keep_alives(
    world: World, transport: str
) -> None:
    daemon = await world.daemon()
    bob = await world.phone(daemon, "bob", transport, instance=f"urn:uuid:{uuid.uuid4()}")
    response = (await bob.register(**outbound(bob, 1))).response
    assert response.status == 200
    assert response["require"] == "outbound"
    assert response["flow-timer"] == {"UDP": "30", "TCP": "120"}[transport]


@pytest.mark.parametrize("transport", ["TCP"])
async def test_of_two_flows_the_newest_gets_the_call_and_the_other_when_it_fails(
    world: World, transport: str
) -> None:
    daemon = await world.daemon()
    urn = f"urn:uuid:{uuid.uuid4()}"
    first, second = [await world.phone(daemon, "bob", transport, instance=urn) for _ in range(2)]
    await first.register(**outbound(first, 1))
    listed = await second.register(**outbound(second, 2))
    assert len(listed.response.all("contact")) == 2
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    await second.incoming()
    assert first.wire.count("INVITE") == 0
    second.kill()
    incoming = await first.incoming()
    answer, _ = await in_time(call.final(), incoming.answer())
    assert answer.status == 200
    assert (await in_time(call.hang_up(answer), incoming.hung_up()))[0].status == 200


async def test_a_phone_that_rings_on_a_flow_that_breaks_goes_on_on_the_other(world: World) -> None:
    daemon = await world.daemon()
    urn, push = f"urn:uuid:{uuid.uuid4()}", x_push(apns_token())
    first, second = [await world.phone(daemon, "bob", "TCP", instance=urn) for _ in range(2)]
    await first.register(push, **outbound(first, 1))
    await second.register(push, **outbound(second, 2))
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    ringing = await second.incoming()
    ringing.reply(180)
    await call.expect(180)
    second.kill()
    again = await first.incoming()
    assert branch_of(again.invite) == branch_of(ringing.invite)  # a retransmission, to the phone
    answer, _ = await in_time(call.final(), again.answer())
    assert answer.status == 200
    assert (await in_time(call.hang_up(answer), again.hung_up()))[0].status == 200
    assert world.pushes.all == []


@pytest.mark.parametrize("end", ["the caller gives up", "another phone answers"])
async def test_a_phone_that_moves_while_it_rings_hears_that_the_call_is_over(
    world: World, end: str
) -> None:
    daemon = await world.daemon()
    urn, push = f"urn:uuid:{uuid.uuid4()}", x_push(apns_token())
    other = await world.registered(daemon, "bob", "UDP", x_push(apns_token()))
    old = await world.registered(daemon, "bob", "UDP", push, urn)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    ringing, elsewhere = await old.incoming(), await other.incoming()
    ringing.reply(180)
    await call.expect(180)
    ringing.phone = await world.registered(daemon, "bob", "UDP", push, urn)
    if end == "the caller gives up":
        elsewhere.reply(180)
        await in_time(call.cancel(), call.final(), ringing.cancelled(), elsewhere.cancelled())
    else:
        await in_time(call.final(), elsewhere.answer(), ringing.cancelled())
    assert old.wire.count("CANCEL") == 0


@pytest.mark.parametrize("rings", ["as it moves", "after it has moved"])
async def test_a_phone_that_moves_with_the_call_in_hand_keeps_it(world: World, rings: str) -> None:
    """It has not answered yet, and refuses what comes over its new flow as merged (§8.2.2.2)."""
    daemon = await world.daemon()
    urn, push = f"urn:uuid:{uuid.uuid4()}", x_push(apns_token())
    old = await world.registered(daemon, "bob", "UDP", push, urn)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    in_hand = await old.incoming()
    moved = await world.registered(daemon, "bob", "UDP", push, urn)
    merged = await moved.incoming()
    if rings == "as it moves":
        in_hand.reply(180)
        await daemon.log_event("response", call_id=call.call_id, status=180)
    await merged.refuse(482)
    again = await moved.incoming()
    assert branch_of(again.invite) == branch_of(in_hand.invite)  # a retransmission, to the phone
    again.reply(180)
    await call.expect(180)
    answer, _ = await in_time(call.final(), again.answer())
    assert answer.status == 200
    assert (await in_time(call.hang_up(answer), again.hung_up()))[0].status == 200
    assert old.wire.count("CANCEL") == moved.wire.count("CANCEL") == 0


@pytest.mark.parametrize("old_socket", ["closed", "silent"])
async def test_a_bye_under_way_follows_a_phone_that_moves(world: World, old_socket: str) -> None:
    daemon = await world.daemon()
    urn, push = f"urn:uuid:{uuid.uuid4()}", x_push(apns_token())
    bob = await world.registered(daemon, "bob", "UDP", push, urn)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    answer, _ = await in_time(call.final(), bob.rings_and_answers())

    async def moves() -> None:
        if old_socket == "silent":
            await bob.wire.expect("BYE")
        else:
            await daemon.log_event("contact_failed", call_id=call.call_id, method="BYE")
        moved = await world.registered(daemon, "bob", "UDP", push, urn)
        InCall(moved, await moved.wire.expect("BYE")).reply(200)

    if old_socket == "closed":
        bob.kill()
    bye, _ = await in_time(call.hang_up(answer), moves())
    assert bye.status == 200


async def test_a_phone_that_moves_is_found_inside_a_call_whatever_its_user_is_called(
    world: World,
) -> None:
    name, urn = "john doe", f"urn:uuid:{uuid.uuid4()}"
    daemon = await world.start(users={world.aor(name): {"ha1_md5": world.ha1(name)}})
    old = await world.phone(daemon, name, "TCP", instance=urn)
    await old.register()
    alice = await world.phone(daemon, "alice")
    call = await alice.call("john%20doe")
    answer, taken = await in_time(call.final(), old.rings_and_answers())
    old.kill()
    taken.phone = await world.phone(daemon, name, "TCP", instance=urn)
    assert (await taken.phone.register()).response.status == 200
    bye, _ = await in_time(call.hang_up(answer), taken.hung_up())
    assert bye.status == 200


async def test_a_phone_behind_an_sbc_is_called_along_its_path(world: World) -> None:
    daemon = await world.daemon()
    sbc = await world.phone(daemon, "bob", ip=PBX)
    path = f"<sip:{sbc.wire.host_port};lr;x=1>"
    contact = "<sip:bob@192.0.2.77:5099>"
    registered = await sbc.register(contact=contact, headers=[f"Path: {path}", "Supported: path"])
    assert registered.response.all("path") == [path]
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    incoming = await sbc.incoming()
    assert incoming.invite["route"] == path
    assert incoming.invite.uri == "sip:bob@192.0.2.77:5099"
    answer, _ = await in_time(call.final(), incoming.answer())
    assert answer.status == 200


async def test_a_phone_behind_an_edge_for_anybody_signs_in_and_is_called_along_its_path(
    world: World,
) -> None:
    peers = [{"name": "edge", "address": PBX, "challenge": True}]
    daemon = await world.start(peers=peers)
    edge = await world.phone(daemon, "bob", ip=PBX)
    path = f"<sip:{edge.wire.host_port};lr>"
    registered = await edge.register(headers=[f"Path: {path}", "Supported: path"])
    assert registered.response.all("path") == [path]
    caller = await world.phone(daemon, "alice", ip=PBX)
    call = await caller.call("bob", challenged=False)
    await call.authorize(await call.expect(407))
    incoming = await edge.incoming()
    assert incoming.invite["route"] == path
    answer, _ = await in_time(call.final(), incoming.answer())
    assert answer.status == 200


@pytest.mark.parametrize("said", [100, 477])
async def test_a_phone_that_died_behind_an_sbc_is_pushed_and_woken(world: World, said: int) -> None:
    """The 100 is the SBC's own; 477 is what Kamailio says of a connection that is gone."""
    daemon = await world.daemon(wake={"hold": 60.0})
    sbc = await world.phone(daemon, "bob", ip=PBX)
    phone = await world.phone(daemon, "bob", ip=PBX, instance=f"urn:uuid:{uuid.uuid4()}")
    push, path = x_push(apns_token()), f"Path: <sip:{sbc.wire.host_port};lr>"

    async def registers_at(port: int) -> None:
        contact = f'<sip:bob@192.0.2.77:{port}>;+sip.instance="<{phone.instance}>"'
        through = [path, "Supported: path"]
        answer = (await phone.register(push, contact=contact, headers=through)).response
        assert answer.status == 200

    await registers_at(5099)
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    dead = await sbc.incoming()
    if said == 100:
        dead.reply(100)
    else:
        await dead.refuse(said)
    pushed = await world.pushes.next()
    await registers_at(6001)
    woken = await sbc.incoming()
    assert woken.invite.uri == "sip:bob@192.0.2.77:6001"
    assert woken.push_id == pushed.push_id
    answer, _ = await in_time(call.final(), woken.answer())
    assert answer.status == 200


@pytest.mark.parametrize("crash", [False, True])
async def test_a_phone_behind_a_peer_that_wakes_too_late_sees_the_call_begin_and_end(
    world: World, crash: bool
) -> None:
    daemon = await world.start(wake={"hold": 60.0})
    sbc = await world.phone(daemon, "bob", ip=PBX)
    push = x_push(apns_token())
    path = [f"Path: <sip:{sbc.wire.host_port};lr>", "Supported: path"]
    contact = f'<sip:bob@192.0.2.77>;+sip.instance="<urn:uuid:{uuid.uuid4()}>"'
    for expires in ("600", "0"):
        with_expires = f"{contact};expires={expires}"
        answer = (await sbc.register(push, contact=with_expires, headers=path)).response
        assert answer.status == 200
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    await world.pushes.next()
    _, final = await in_time(call.cancel(), call.final())
    assert final.status == 487
    assert (await sbc.register(push, contact=contact, headers=path)).response.status == 200
    late = await sbc.incoming()
    if crash:
        await daemon.restart_after_kill()
        again = await sbc.incoming()
        assert branch_of(again.invite) == branch_of(late.invite)
    late.reply(180)
    await late.cancelled()


async def test_nobody_can_make_up_a_way_to_a_flow(world: World) -> None:
    daemon = await world.daemon()
    bob = await world.phone(daemon, "bob")
    await bob.register()
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    incoming = await bob.incoming()
    route = incoming.invite.all("record-route")[0]
    user = route.partition(":")[2].partition("@")[0]
    # Not the last letter, of which Base64 uses only some bits.
    forged = route.replace(user, user[:-5] + ("A" if user[-5] != "A" else "B") + user[-4:])
    await incoming.refuse(486)
    await call.final()
    alice.wire.send(
        f"INFO {bob.contact_uri} SIP/2.0\r\n"
        f"Via: SIP/2.0/{alice.wire.transport} {alice.wire.host_port};branch=z9hG4bKforged\r\n"
        f"Max-Forwards: 70\r\nRoute: {forged}\r\nFrom: <sip:alice@x>;tag=a\r\n"
        f"To: <sip:bob@x>;tag=b\r\nCall-ID: forged\r\nCSeq: 1 INFO\r\nContent-Length: 0\r\n\r\n"
    )
    refused = await alice.wire.expect(FINAL, method="INFO")
    assert refused.status == 403
    assert bob.wire.count("INFO") == 0


@pytest.mark.parametrize(
    "contact",
    [
        '"Doe, Jane; \\"JD\\"" <sip:{user}@{at};x={long}>;q=0.5',
        "Jane Doe <sip:%62ob%2B1@{at};x=a%3Bb>",
        "sip:{user}@{at};expires=300",
        '<sip:{user}@{at};ob;+vendor=1;x=y>;+sip.ice;methods="INVITE, BYE, MESSAGE"',
    ],
    ids=["long-and-quoted", "escaped", "bare", "odd-parameters"],
)
async def test_a_contact_comes_back_and_is_called_as_it_was_written(
    world: World, contact: str
) -> None:
    daemon = await world.daemon()
    bob = await world.phone(daemon, "bob")
    value = contact.format(user="bob", at=bob.wire.host_port, long="z" * 600)
    result = await bob.register(contact=value)
    uri = re.search(r"sips?:[^>\s]+", value)[0].partition(";expires")[0]  # type: ignore[index]
    assert result.response.contact == uri
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    incoming = await bob.incoming()
    assert incoming.invite.uri == uri
    await incoming.refuse(486)
    assert (await call.final()).status == 486


async def test_a_register_in_compact_form_folded_and_on_ipv6_is_understood(world: World) -> None:
    daemon = await world.daemon()
    bob = await world.phone(daemon, "bob", "UDP", ip="::1")
    plain = bob.wire.send

    def written_otherwise(text: str | bytes) -> None:
        assert isinstance(text, str)
        for long, short in (("Via", "v"), ("From", "f"), ("To", "t"), ("Call-ID", "i")):
            text = re.sub(rf"(?m)^{long}: ", f"{short} :\r\n  ", text)
        text = text.replace("Contact: ", "m:\r\n\t").replace("Content-Length: ", "l: ")
        plain(text.replace(";branch", "\r\n ;branch"))

    bob.wire.send = written_otherwise  # type: ignore[method-assign]
    result = await bob.register()
    assert result.response.status == 200
    assert result.response.contact == bob.contact_uri
    assert "[::1]" in bob.contact_uri


@pytest.mark.parametrize("written_by", ["a user", "a peer"])
async def test_a_path_to_a_stranger_is_not_dialled(world: World, written_by: str) -> None:
    """Whoever may register must not be able to send our INVITEs anywhere."""
    daemon = await world.start()
    stranger = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.99", 0)
    port = stranger.sockets[0].getsockname()[1]
    bob = await world.phone(daemon, "bob", ip=PBX if written_by == "a peer" else "127.0.0.1")
    path = f"Path: <sip:127.0.0.99:{port};transport=tcp;lr>"
    assert (await bob.register(headers=[path])).response.status == 200
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    if written_by == "a peer":
        assert (await call.final()).status == 480
        refused = await daemon.log_event("next_hop_unreachable")
        assert "is not one of [[peers]]" in refused["reason"]
    else:
        await (await bob.incoming()).refuse(486)  # over its own flow
        assert (await call.final()).status == 486
    stranger.close()


async def test_a_user_cannot_have_a_peer_called_in_our_name(world: World) -> None:
    """Neither by a Path to it, nor by a Contact there: a call to a PBX may cost money."""
    daemon = await world.daemon()
    pbx = await world.phone(daemon, "alice", ip=PBX)
    bob = await world.phone(daemon, "bob")
    contact = f"<sip:00900123456@{pbx.wire.host_port}>"
    path = f"<sip:{pbx.wire.host_port};lr>"
    answer = (
        await bob.register(contact=contact, headers=[f"Path: {path}", "Supported: path"])
    ).response
    assert (answer.status, answer.all("path")) == (200, [])
    assert "Path ignored: 127.0.0.1 is not a trusted peer" in answer["warning"]
    told = await daemon.log_event("path_ignored", path=path)
    assert (told["aor"], told["remote"]) == (world.aor("bob"), "127.0.0.1")
    call = await (await world.phone(daemon, "alice")).call("bob")
    incoming = await bob.incoming()
    assert incoming.invite.uri == contact.strip("<>")
    await incoming.refuse(486)
    assert (await call.final()).status == 486
    assert pbx.wire.count("INVITE") == 0


@pytest.mark.parametrize("old_contact", ["removed", "left"])
async def test_a_phone_that_moves_without_a_name_is_found_by_the_contact_of_its_re_invite(
    world: World, old_contact: str
) -> None:
    """It has neither +sip.instance nor token: only the other side's remote target tells of it."""
    daemon = await world.daemon()
    bob = await world.phone(daemon, "bob")
    await bob.register()
    alice = await world.phone(daemon, "alice")
    call = await alice.call("bob")
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    moved = await world.phone(daemon, "bob")
    bob.kill()
    contact = f"<{moved.contact_uri}>"
    if old_contact == "removed":
        contact = f"<{bob.contact_uri}>;expires=0, {contact}"
    assert (await moved.register(contact=contact)).response.status == 200
    incoming.phone = moved
    refreshed, _ = await in_time(call.requested("INVITE"), incoming.request("INVITE"))
    assert refreshed.contact == moved.contact_uri
    answer.headers = [
        (name, f"<{refreshed.contact}>" if name == "contact" else value)
        for name, value in answer.headers
    ]
    await in_time(call.hang_up(answer), incoming.hung_up())
