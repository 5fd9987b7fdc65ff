"""Who gets a call that is on its way to where nobody has been found yet."""

from __future__ import annotations

import asyncio
import gc
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sipush.config import load
from sipush.core.bindings import Aor, Location
from sipush.core.outbound import RouteToken, decode_route_token
from sipush.core.routing import make_route_token
from sipush.server.forwarding import Forwarding
from sipush.sip.message import parse_datagram
from sipush.transport.flow import Address, Flow
from tests.bench.in_process import Server, Wire, Wires, configuration, invite, response
from tests.bench.servers import DOMAIN, aor, ha1
from tests.location.rows import PHONE, TABLET, binding, registration
from tests.server.stores import ChangedStore
from tests.sip.messages import request_bytes

BOB, CAROL = aor(1), aor(3)


class StoreThatLooksLong(ChangedStore):
    """A store that takes its time to find one user, as she was when it was asked."""

    def __init__(self, user: Aor) -> None:
        super().__init__()
        self._user = user
        self.asked, self.may = asyncio.Event(), asyncio.Event()

    async def lookup(self, aor: Aor, now_epoch: float) -> Location:
        found = await self.unchanged.lookup(aor, now_epoch)
        if aor == self._user:
            self.asked.set()
            await self.may.wait()
        return found


async def registers(
    server: Server,
    user: Aor,
    number: int,
    kind: type[Wire] = Wire,
    path: tuple[str, ...] = (),
    device: str = PHONE,
) -> Wire:
    """A phone does, and its user is heard of."""
    wire = server.wire(number, kind)
    contact = f"sip:u@127.0.0.1:{wire.remote[1]}"
    phone = binding(device, contact, aor=user, flow=wire.name, cseq=number, path=path)
    location = await server.proxy.store.bind(registration(phone))
    assert isinstance(location, Location)
    server.proxy.bucket.refreshed(user, location, [phone.device])
    return wire


async def test_who_registers_while_being_looked_up_gets_the_call(tmp_path: Path) -> None:
    """She has no device that could be pushed, for which the call would wait."""
    store = StoreThatLooksLong(BOB)
    server = Server(configuration(tmp_path), store)
    calling = asyncio.ensure_future(server.send(server.caller, invite(1)))
    await store.asked.wait()
    phone = await registers(server, BOB, 3)
    store.may.set()
    await calling
    (request,) = phone.sent
    assert request.startswith(b"INVITE ")
    assert b"Diversion" not in request


async def test_who_registers_while_a_call_falls_back_to_her_gets_it_once_and_as_diverted(
    tmp_path: Path,
) -> None:
    configuration(tmp_path)
    file = tmp_path / "sipush.toml"
    with file.open("a") as more:
        more.write(f'fallback = "sip:{CAROL}"\n[users."{CAROL}"]\nha1_md5 = "{ha1(3)}"\n')
    store = StoreThatLooksLong(CAROL)
    server = Server(load(file), store)
    calling = asyncio.ensure_future(server.send(server.caller, invite(1)))
    await store.asked.wait()
    phone = await registers(server, CAROL, 3)
    store.may.set()
    await calling
    (request,) = phone.sent
    assert request.startswith(b"INVITE ")
    assert f"Diversion: <sip:{BOB}>;reason=unavailable" in request.decode()


async def test_a_user_called_again_as_a_member_of_a_group_is_watched_once(tmp_path: Path) -> None:
    configuration(tmp_path)
    file = tmp_path / "sipush.toml"
    team = f"team@{DOMAIN}"
    with file.open("a") as more:
        more.write(f'fallback = "sip:{team}"\n[users."{CAROL}"]\nha1_md5 = "{ha1(3)}"\n')
        more.write(f'[groups."{team}"]\nmembers = ["{BOB}", "{CAROL}"]\n')
    server = Server(load(file))
    phone = await registers(server, CAROL, 3)
    await server.send(server.caller, invite(1))
    await server.send(phone, response(phone.sent[-1], "603 Decline"))
    assert server.caller.sent[-1].startswith(b"SIP/2.0 603 ")
    assert server.proxy.bucket.watched == []


async def test_of_an_answered_call_only_what_repeats_its_answer_stays_in_memory(
    tmp_path: Path,
) -> None:
    server = Server(configuration(tmp_path))
    phone = await registers(server, BOB, 3)
    await server.send(server.caller, invite(1))
    assert len(in_memory(server)) == 1
    ok = response(phone.sent[-1], "200 OK")
    await server.send(phone, ok)
    first = server.caller.sent[-1]
    assert first.startswith(b"SIP/2.0 200 ")
    assert not in_memory(server)
    sent = len(server.caller.sent)
    await server.send(phone, ok)
    assert server.caller.sent[sent:] == [first]


async def test_what_is_no_repeated_answer_makes_nobody_wait_for_an_ack(tmp_path: Path) -> None:
    """The phone rings late where it has left from; its call has been answered since."""
    server = Server(configuration(tmp_path))
    left = await registers(server, BOB, 3)
    await server.send(server.caller, invite(1))
    phone = await registers(server, BOB, 4)
    await server.send(phone, response(phone.sent[-1], "200 OK"))
    assert server.caller.sent[-1].startswith(b"SIP/2.0 200 ")
    server.proxy.acknowledgements.came("bench-1")
    await server.send(left, response(left.sent[0], "180 Ringing"))
    draining = asyncio.ensure_future(server.proxy.acknowledgements.drain())
    await asyncio.sleep(0)
    assert draining.done()


UNREADABLE = b"Contact: <sip:a@127.0.0.1;pn-prid=secret"


def with_contact(message: bytes, line: bytes) -> bytes:
    return re.sub(rb"Contact: [^\r]*", line, message)


async def test_an_unreadable_contact_with_push_parameters_costs_nobody_else_a_call(
    tmp_path: Path,
) -> None:
    server = Server(configuration(tmp_path))
    await server.register()
    server.phone_leaves()
    await server.send(server.caller, with_contact(invite(1), UNREADABLE))
    assert server.caller.sent[-1].startswith(b"SIP/2.0 400 Malformed Address in Contact")
    assert (server.proxy.active, server.proxy.bucket.watched) == (0, [])
    await server.send(server.caller, invite(2))
    await server.phone_returns()
    assert server.phone.sent[-1].startswith(b"INVITE ")


async def test_a_call_goes_on_whose_answers_have_an_unreadable_contact(tmp_path: Path) -> None:
    server = Server(configuration(tmp_path))
    phone = await registers(server, BOB, 3)
    await server.send(server.caller, invite(1))
    request = phone.sent[-1]
    for status in ("180 Ringing", "200 OK", "200 OK"):  # the last is repeated
        sent = len(server.caller.sent)
        await server.send(phone, with_contact(response(request, status), UNREADABLE))
        (answer,) = server.caller.sent[sent:]
        assert answer.startswith(f"SIP/2.0 {status}".encode())
        assert b"Contact: <sip:a@127.0.0.1\r\n" in answer


class BrokenWire(Wire):
    """Sending over it runs into a bug of ours."""

    def send(self, data: bytes) -> None:
        raise ValueError("a bug")


async def test_a_bug_on_the_way_to_one_device_leaves_the_call_to_the_others(
    tmp_path: Path,
) -> None:
    server = Server(configuration(tmp_path))
    broken = await registers(server, BOB, 3, BrokenWire)
    phone = await registers(server, BOB, 4, device=TABLET)
    await server.send(server.caller, invite(1))
    await server.send(phone, response(phone.sent[-1], "486 Busy Here"))
    assert not broken.sent
    assert server.caller.sent[-1].startswith(b"SIP/2.0 486 ")
    assert (server.proxy.active, server.proxy.bucket.watched) == (0, [])


async def test_a_bug_on_the_only_way_is_told_to_the_caller(tmp_path: Path) -> None:
    server = Server(configuration(tmp_path))
    await registers(server, BOB, 3, BrokenWire)
    await server.send(server.caller, invite(1))
    assert server.caller.sent[-1].startswith(b"SIP/2.0 500 ")
    assert (server.proxy.active, server.proxy.bucket.watched) == (0, [])


class BrokenStore(ChangedStore):
    """Looking one user up runs into a bug of ours."""

    async def lookup(self, aor: Aor, now_epoch: float) -> Location:
        if aor == CAROL:
            raise ValueError("a bug")
        return await self.unchanged.lookup(aor, now_epoch)


async def test_a_bug_on_the_way_to_a_fallback_ends_the_call(tmp_path: Path) -> None:
    configuration(tmp_path)
    file = tmp_path / "sipush.toml"
    with file.open("a") as more:
        more.write(f'fallback = "sip:{CAROL}"\n[users."{CAROL}"]\nha1_md5 = "{ha1(3)}"\n')
    server = Server(load(file), BrokenStore())
    await server.send(server.caller, invite(1))
    assert server.caller.sent[-1].startswith(b"SIP/2.0 480 ")
    assert server.proxy.active == 0


class HeardWire(Wire):
    """Tells when something is sent on it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.heard = asyncio.Event()

    def send(self, data: bytes) -> None:
        super().send(data)
        self.heard.set()


class WiresToAnEdge(Wires):
    """To the proxy at our edge it takes time to connect."""

    def __init__(self) -> None:
        super().__init__()
        self.edge = HeardWire(9)
        self.asked, self.may = asyncio.Event(), asyncio.Event()
        self.remotes: list[str] = []

    async def connect(self, transport: str, remote: Address, server_name: str = "") -> Flow:
        self.remotes.append(f"{remote[0]}:{remote[1]}")
        self.asked.set()
        await self.may.wait()
        return self.edge


EDGE = "<sip:127.0.0.1:20009;lr>"
"A peer."


async def test_who_is_still_being_connected_to_does_not_ring_for_a_call_that_was_answered(
    tmp_path: Path,
) -> None:
    wires = WiresToAnEdge()
    server = Server(configuration(tmp_path), wires=wires)
    phone = await registers(server, BOB, 3)
    await registers(server, BOB, 4, path=(EDGE,), device=TABLET)
    caller = server.wire(2, HeardWire)
    calling = asyncio.ensure_future(server.send(caller, invite(1)))
    await wires.asked.wait()
    caller.heard.clear()
    answering = asyncio.ensure_future(server.send(phone, response(phone.sent[-1], "200 OK")))
    await caller.heard.wait()
    assert caller.sent[-1].startswith(b"SIP/2.0 200 ")
    wires.may.set()
    await asyncio.gather(calling, answering)
    assert not wires.edge.sent
    assert server.proxy.active == 0


async def test_who_wakes_late_behind_a_proxy_sees_the_call_begin_and_end(tmp_path: Path) -> None:
    wires = WiresToAnEdge()
    server = Server(configuration(tmp_path), wires=wires)
    await server.register()
    server.phone_leaves()
    call = invite(1)
    await server.send(server.caller, call)
    await server.send(server.caller, cancel(call))
    known = await server.proxy.store.lookup(BOB, time.time())
    woken = replace(known.bindings[0], path=(EDGE,))
    server.proxy.bucket.refreshed(BOB, replace(known, bindings=(woken,)), [woken.device])
    await wires.asked.wait()
    wires.may.set()
    await wires.edge.heard.wait()
    (late,) = wires.edge.sent
    assert late.startswith(b"INVITE ")
    await server.send(wires.edge, response(late, "180 Ringing"))
    assert wires.edge.sent[-1].startswith(b"CANCEL ")
    await server.send(wires.edge, response(late, "487 Request Terminated"))
    assert server.proxy.active == 0


@pytest.mark.parametrize("method", ["INVITE", "OPTIONS", "SUBSCRIBE", "MESSAGE"])
async def test_a_path_with_a_transport_that_nobody_knows_ends_the_request(
    tmp_path: Path, method: str
) -> None:
    server = Server(configuration(tmp_path))
    await registers(server, BOB, 3, path=("<sip:127.0.0.1;transport=sctp;lr>",))
    await server.send(server.caller, invite(1).replace(b"INVITE", method.encode()))
    assert server.caller.sent[-1].startswith((b"SIP/2.0 480 ", b"SIP/2.0 202 "))
    assert server.proxy.active == 0


async def test_a_bug_on_the_way_to_a_server_ends_the_request(tmp_path: Path) -> None:
    server = Server(configuration(tmp_path))  # to which nothing can be connected
    await registers(server, BOB, 3, path=(EDGE,))
    await server.send(server.caller, invite(1))
    assert server.caller.sent[-1].startswith(b"SIP/2.0 480 ")
    assert server.proxy.active == 0


PEER, STRANGER = "127.0.0.1:7", "192.0.2.9:7"


@pytest.mark.parametrize(
    ("was_at", "route", "uri", "asked"),
    [
        (PEER, PEER, STRANGER, [PEER]),
        (PEER, STRANGER, PEER, [PEER]),
        (PEER, STRANGER, STRANGER, []),
        (PEER, STRANGER, "localhost.invalid", []),
        (STRANGER, "127.0.0.1:5061", STRANGER, ["127.0.0.1:5061"]),
        (STRANGER, PEER, STRANGER, [STRANGER]),  # at a port that is not the peer's, but his
        (STRANGER, "192.0.2.8", STRANGER, [STRANGER]),
        (STRANGER, "192.0.2.8", "localhost", []),
    ],
)
async def test_a_side_that_has_lost_its_connection_is_called_back_at_a_peer_or_where_it_was(
    tmp_path: Path, was_at: str, route: str, uri: str, asked: list[str]
) -> None:
    wires = WiresToAnEdge()
    wires.may.set()
    server = Server(configuration(tmp_path), wires=wires)
    token = RouteToken(f"tcp/127.0.0.1:5060/{was_at}/x-1")
    user = make_route_token(token, "call-1", server.proxy.route_key)
    routes = (f"Route: <sip:{user}@127.0.0.1;lr>", f"Route: <sip:{route};lr>")
    to = "<sip:pbx@x>;tag=b"
    bye = request_bytes("BYE", f"sip:{uri}", to=to, call_id="call-1", extra=routes)
    await server.send(server.caller, bye)
    assert wires.remotes == asked


def cancel(call: bytes) -> bytes:
    """Of that INVITE."""
    head = call.partition(b"\r\n\r\n")[0].replace(b"INVITE", b"CANCEL")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-")]
    return b"\r\n".join([*lines, b"Content-Length: 0", b"", b""])


def in_memory(server: Server) -> list[Forwarding]:
    """What there is of the requests that it forwards, found or not."""
    gc.collect()
    forwardings = [each for each in gc.get_objects() if isinstance(each, Forwarding)]
    return [each for each in forwardings if each.proxy is server.proxy]


async def test_a_woken_phone_is_told_the_way_back_to_where_the_caller_is_by_then(
    tmp_path: Path,
) -> None:
    server = Server(configuration(tmp_path))
    await server.register()
    server.phone_leaves()
    call = invite(1)
    await server.send(server.caller, call)
    server.caller.closed = True  # and the INVITE is repeated over another connection
    elsewhere = server.wire(5)
    await server.send(elsewhere, call)
    await server.phone_returns()
    request = parse_datagram(server.phone.sent[-1])
    upstream = request.headers.lines("record-route")[-1][1]
    user = upstream.partition("<sip:")[2].partition("@")[0]
    token = decode_route_token(user, request.call_id, server.proxy.route_key)
    assert token is not None
    assert token.flow == elsewhere.name
