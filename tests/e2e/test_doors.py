"""Every phone gets in by its own door, and calls go from any door to any other (D1, D2)."""

from __future__ import annotations

import asyncio
import re
import secrets
import ssl
from pathlib import Path

import pytest

from sipush.config import TlsConfig
from tests.e2e.daemon import Daemon, in_time
from tests.e2e.wire import Msg, OutCall, Phone, new_branch
from tests.e2e.world import DOORS, World, apns_token, x_push
from tests.servers.ports import free_port
from tests.transport.authority import Authority

TRANSPORTS = [name.upper() for name in DOORS]


@pytest.fixture
def store_type() -> str:
    """Doors do not depend on the store."""
    return "sqlite"


def host_port(address: tuple[str, int]) -> str:
    """As a URI has it."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def uri_transport(transport: str) -> str:
    """The transport parameter of a URI: RFC 7118 §5.2 knows no wss."""
    return transport.lower().replace("wss", "ws")


def assert_recorded(msg: Msg, *doors: tuple[str, str]) -> None:
    """``Record-Route`` names these (transport, host:port), in this order."""
    routes = msg.all("record-route")
    found = [re.fullmatch(r"<sip:[\w-]+@(.*);transport=(\w+);lr>", route) for route in routes]
    assert [match and (match[2], match[1]) for match in found] == [
        (uri_transport(transport), host) for transport, host in doors
    ]


async def woken_call(
    world: World, daemon: Daemon, caller: tuple[str, str], callee: tuple[str, str]
) -> tuple[Phone, Phone]:
    """bob (transport, ip) was killed; alice's call wakes him, and either hangs up one call."""
    (from_door, from_ip), (to_door, to_ip) = caller, callee
    push = x_push(apns_token())
    asleep = await world.phone(daemon, "bob", to_door, ip=to_ip)
    assert (await asleep.register(push)).response.status == 200
    asleep.kill()
    alice = await world.phone(daemon, "alice", from_door, ip=from_ip)
    call = await alice.call("bob")
    pushed = await world.pushes.next()
    bob = await world.phone(daemon, "bob", to_door, ip=to_ip)
    assert (await bob.register(push)).response.status == 200
    incoming = await bob.incoming()
    invite = incoming.invite
    assert incoming.push_id == pushed.push_id
    assert invite.uri == bob.contact_uri

    ours, hers = daemon.at(to_door, to_ip), daemon.at(from_door, from_ip)
    top, below = invite.all("via")
    assert top.startswith(f"SIP/2.0/{to_door} {host_port(ours)};branch=z9hG4bK")
    assert below.startswith(f"SIP/2.0/{from_door} {alice.wire.host_port};")
    assert f"received={alice.wire.local[0]}" in below
    assert f"rport={alice.wire.local[1]}" in below
    assert_recorded(invite, (to_door, host_port(ours)), (from_door, host_port(hers)))
    assert invite["max-forwards"] == "69"
    assert invite["proxy-authorization"] == ""

    answer, _ = await in_time(call.final(), incoming.answer())
    assert len(answer.all("via")) == 1
    assert answer.all("record-route") == invite.all("record-route")
    await in_time(call.hang_up(answer), incoming.hung_up())

    call = await alice.call("bob")
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    await in_time(incoming.hang_up(), call.hung_up())
    return alice, bob


@pytest.mark.parametrize("callee", TRANSPORTS)
@pytest.mark.parametrize("caller", TRANSPORTS)
async def test_a_call_comes_in_by_one_door_and_leaves_by_another(
    world: World, caller: str, callee: str
) -> None:
    daemon = await world.daemon(listen=world.doors())
    await woken_call(world, daemon, (caller, "127.0.0.1"), (callee, "127.0.0.1"))


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_phone_names_its_outbound_proxy_as_its_user_typed_it(
    world: World, transport: str
) -> None:
    """The domain, and over TLS any name in the certificate; JsSIP, Linphone and baresip do so."""
    daemon = await world.daemon(listen=world.doors())
    alice = await world.phone(daemon, "alice", transport)
    bob = await world.phone(daemon, "bob", transport)
    await bob.register()
    ip, port = daemon.at(transport)
    host = "localhost" if transport in ("TLS", "WSS") else ip
    for name in (world.domain, f"{host}:{port}"):
        parameter = "ws" if transport == "WSS" else transport.lower()
        route = f"Route: <sip:{name};transport={parameter};lr>"
        call = await alice.call("bob", headers=[route])
        answer, incoming = await in_time(call.final(), bob.rings_and_answers())
        assert incoming.invite.all("route") == []
        await in_time(call.hang_up(answer), incoming.hung_up())


async def test_a_call_goes_from_ipv6_to_ipv4_and_back(world: World, transport: str) -> None:
    daemon = await world.daemon(listen=world.doors())
    await woken_call(world, daemon, (transport, "::1"), (transport, "127.0.0.1"))
    await woken_call(world, daemon, (transport, "127.0.0.1"), (transport, "::1"))


@pytest.mark.parametrize("transport", ["UDP", "TCP"])
async def test_ipv4_and_ipv6_wildcards_share_a_port_and_name_the_address_that_was_reached(
    world: World, transport: str
) -> None:
    port = free_port()
    wildcards = [
        {"transport": transport.lower(), "address": address, "port": port}
        for address in ("0.0.0.0", "::")
    ]
    daemon = await world.start(listen=wildcards)
    daemon.addresses |= {(transport, ip): (ip, port) for ip in ("127.0.0.1", "::1")}
    await woken_call(world, daemon, (transport, "::1"), (transport, "127.0.0.1"))
    await woken_call(world, daemon, (transport, "127.0.0.1"), (transport, "::1"))


@pytest.mark.parametrize("transport", ["WS", "WSS"])
async def test_a_browser_names_itself_by_a_host_that_does_not_exist(
    world: World, transport: str
) -> None:
    """RFC 7118 §5: it cannot know its address; its connection is the only way to it."""
    daemon = await world.daemon(listen=world.doors())
    bob = await world.phone(daemon, "bob", transport)
    bob.wire.host = "df7jal23ls0d.invalid"
    assert (await bob.register()).response.status == 200
    alice = await world.phone(daemon, "alice", "UDP")
    call = await alice.call("bob")
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    assert incoming.invite.uri == "sip:bob@df7jal23ls0d.invalid;transport=ws"
    await in_time(call.hang_up(answer), incoming.hung_up())


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_phone_behind_nat_that_tells_only_its_inner_address_is_reached_where_it_is(
    world: World, transport: str
) -> None:
    daemon = await world.daemon(listen=world.doors())
    bob, alice = [await world.phone(daemon, user, transport) for user in ("bob", "alice")]
    bob.wire.host, alice.wire.host = "10.1.2.3:5060", "10.1.2.4:5060"
    result = await bob.register()
    assert result.response.status == 200
    assert f";rport={bob.wire.local[1]};received=127.0.0.1" in result.response["via"]
    call = await alice.call("bob")
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    assert incoming.invite.uri.startswith("sip:bob@10.1.2.3:5060")
    await in_time(incoming.hang_up(), call.hung_up())
    call = await alice.call("bob")
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    await in_time(call.hang_up(answer), incoming.hung_up())


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_phone_that_asks_for_no_rport_is_answered_where_it_is_all_the_same(
    world: World, transport: str
) -> None:
    daemon = await world.daemon(listen=world.doors())
    phone = await world.phone(daemon, "bob", transport)
    phone.wire.send(
        f"OPTIONS sip:{world.domain} SIP/2.0\r\n"
        f"Via: SIP/2.0/{transport} 10.1.2.3:5060;branch={new_branch()}\r\n"
        f"From: <sip:bob@{world.domain}>;tag=1\r\nTo: <sip:{world.domain}>\r\n"
        "Call-ID: no-rport\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
    )
    answer = await phone.wire.expect(200)
    assert "received=127.0.0.1" in answer["via"]


@pytest.mark.parametrize("transport", ["TCP", "TLS", "WS", "WSS"])
async def test_nobody_dials_out_to_a_phone_that_has_hung_up_its_connection(
    world: World, transport: str
) -> None:
    daemon = await world.daemon(listen=world.doors(), wake={"hold": 0.5})
    dialled = asyncio.Event()
    tempting = await asyncio.start_server(lambda *_: dialled.set(), "127.0.0.1", 0)
    bob = await world.phone(daemon, "bob", transport)
    bob.wire.host = host_port(tempting.sockets[0].getsockname())
    assert (await bob.register(x_push(apns_token()))).response.status == 200
    bob.kill()
    alice = await world.phone(daemon, "alice", transport)
    call = await alice.call("bob")
    await world.pushes.next()
    assert (await call.final()).status == 480
    assert not dialled.is_set()
    tempting.close()


@pytest.mark.parametrize(("caller", "callee"), [("TLS", "WSS"), ("WSS", "TLS")])
async def test_a_sips_call_stays_secure_on_every_hop(
    world: World, caller: str, callee: str
) -> None:
    """A device that is not reached over TLS is not called (RFC 3261 §26.2.2, RFC 5630 §3)."""
    daemon = await world.daemon(listen=world.doors())
    insecure = await world.phone(daemon, "bob", "TCP")
    secure = await world.phone(daemon, "bob", callee)
    for bob in (insecure, secure):
        assert (await bob.register()).response.status == 200
    alice = await world.phone(daemon, "alice", caller)
    call = OutCall(alice, f"sips:bob@{world.domain}", (), f"call-{secrets.token_hex(8)}")
    call.send_invite()
    await call.authorize(await call.expect(407))
    answer, incoming = await in_time(call.final(), secure.rings_and_answers())
    ours, hers = incoming.invite.all("record-route")
    for transport, route in ((callee, ours), (caller, hers)):
        parameter = {"TLS": "tcp", "WSS": "ws"}[transport]
        assert route.startswith("<sips:")
        assert route.endswith(f"@{host_port(daemon.at(transport))};transport={parameter};lr>")
    await in_time(call.hang_up(answer), incoming.hung_up())
    assert insecure.wire.count("INVITE") == 0


async def test_a_listener_behind_nat_names_its_public_address(world: World) -> None:
    listen = world.doors()
    for door in listen:
        door["advertise"] = f"{door['transport']}.example.net:4433"
    daemon = await world.daemon(listen=listen)
    bob = await world.phone(daemon, "bob", "WSS")
    await bob.register()
    alice = await world.phone(daemon, "alice", "TLS")
    call = await alice.call("bob")
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    assert incoming.invite["via"].startswith("SIP/2.0/WSS wss.example.net:4433;branch=")
    assert_recorded(answer, ("WSS", "wss.example.net:4433"), ("TLS", "tls.example.net:4433"))
    await in_time(incoming.hang_up(), call.hung_up())


# -- certificates --


def tls_listener(*certificates: TlsConfig) -> dict[str, object]:
    """A listener on loopback; the first certificate is the usual one."""
    usual, *others = [each.model_dump(mode="json") for each in certificates]
    return {"transport": "tls", "address": "127.0.0.1", "port": 0, "tls": usual, "sni": others}


async def names_shown(daemon: Daemon, context: ssl.SSLContext, name: str = "127.0.0.1") -> set[str]:
    """The names in the certificate that a new TLS connection gets."""
    _, writer = await asyncio.open_connection(*daemon.at("TLS"), ssl=context, server_hostname=name)
    certificate = writer.get_extra_info("peercert")
    writer.close()
    return {value for _, value in certificate["subjectAltName"]}


async def test_a_phone_gets_the_certificate_of_the_name_it_asks_for(
    world: World, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    certificates = [authority.issue(name) for name in ("a.example.com", "b.example.com")]
    daemon = await world.start(listen=[tls_listener(*certificates)])
    for name in ("a.example.com", "b.example.com"):
        assert await names_shown(daemon, authority.client(), name) == {name}


async def test_a_renewed_certificate_is_taken_up_by_sighup_and_no_call_is_lost(
    world: World, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    certificate = authority.issue("127.0.0.1", file="server", days=90)
    daemon = await world.start(listen=[tls_listener(certificate)])
    bob, alice = [
        await Phone.open(world.account(user), daemon.at("TLS"), "TLS", tls=authority.client())
        for user in ("bob", "alice")
    ]
    await bob.register()
    call = await alice.call("bob")
    incoming = await bob.incoming()

    authority.issue("127.0.0.1", "renewed.example.com", file="server", days=90)
    daemon.reload()
    await daemon.log_event("reloaded")
    assert "renewed.example.com" in await names_shown(daemon, authority.client())
    certificate.certificate.write_text("half written")
    daemon.reload()
    await daemon.log_event("reload_failed")
    assert "renewed.example.com" in await names_shown(daemon, authority.client())

    answer, _ = await in_time(call.final(), incoming.answer())
    await in_time(call.hang_up(answer), incoming.hung_up())
    for phone in (bob, alice):
        phone.kill()


async def test_a_certificate_that_runs_out_is_told_at_the_start_and_at_every_reload(
    world: World, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    good = authority.issue("good.example.com", days=90)
    stale = authority.issue("stale.example.com", days=0)
    daemon = await world.start(listen=[tls_listener(good, stale)])
    told = await daemon.log_event("certificate_expires")
    assert told["file"] == str(stale.certificate)
    assert told["level"] == "warning"
    daemon.reload()
    await daemon.log_event("reloaded")
    files = [r["file"] for r in daemon.records if r["event"] == "certificate_expires"]
    assert files == [str(stale.certificate)] * 2


async def test_a_fallback_is_reached_over_tls_when_its_authority_is_trusted(
    world: World, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    certificate = authority.issue("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.private_key)
    invites: asyncio.Queue[Msg] = asyncio.Queue()

    async def decline(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        invite = Msg((await reader.readuntil(b"\r\n\r\n")).decode())
        copied = "".join(
            f"{name}: {value}\r\n"
            for name, value in invite.headers
            if name in ("via", "from", "to", "call-id", "cseq")
        )
        writer.write(f"SIP/2.0 488 No\r\n{copied}Content-Length: 0\r\n\r\n".encode())
        invites.put_nowait(invite)
        await reader.read()
        writer.close()

    voicemail = await asyncio.start_server(decline, "127.0.0.1", 0, ssl=context)
    where = host_port(voicemail.sockets[0].getsockname())
    daemon = await world.start(
        sip={"ca_file": str(authority.file)},
        users={world.aor("bob"): {"fallback": f"sip:box@{where};transport=tls"}},
    )
    alice = await world.phone(daemon, "alice", "UDP")
    call = await alice.call("bob")
    (answer, invite) = await in_time(call.final(), invites.get())
    assert answer.status == 488
    assert invite["via"].startswith("SIP/2.0/TLS 127.0.0.1")
    voicemail.close()
