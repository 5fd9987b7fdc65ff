from __future__ import annotations

import socket

import pytest

from sipush.config import ListenConfig
from sipush.errors import TransportError
from sipush.transport.listeners import Listeners
from tests.transport.authority import Authority
from tests.transport.conftest import Open
from tests.transport.support import DatagramPhone, Recorder, TcpPhone, register, soon


async def test_every_listener_tells_where_it_is(listen: Open, authority: Authority) -> None:
    plain = await listen("udp", "tcp", "ws")
    secure = await listen("tls", "wss", address="::1", tls=authority.issue("::1"))
    addresses = plain.addresses + secure.addresses
    assert [a.transport for a in addresses] == ["UDP", "TCP", "WS", "TLS", "WSS"]
    assert all(a.bound[1] for a in addresses)
    assert str(addresses[0]) == f"udp 127.0.0.1:{addresses[0].bound[1]}"
    assert str(addresses[3]) == f"tls [::1]:{addresses[3].bound[1]}"
    assert plain.families == {socket.AF_INET}
    assert secure.families == {socket.AF_INET6}


async def test_ipv4_and_ipv6_wildcards_stand_side_by_side(listen: Open) -> None:
    for transport in ("udp", "tcp"):
        first = await listen(transport, address="0.0.0.0")
        port = first.addresses[0].bound[1]
        second = await listen(transport, address="::", port=port)
        assert second.addresses[0].bound == ("::", port)


@pytest.mark.parametrize("transport", ["udp", "tcp", "ws"])
async def test_an_address_in_use_is_an_error_that_names_it(
    listen: Open, recorder: Recorder, transport: str
) -> None:
    port = (await listen(transport)).addresses[0].bound[1]
    config = ListenConfig.model_validate(
        {"transport": transport, "address": "127.0.0.1", "port": port}
    )
    with pytest.raises(
        TransportError, match=rf"^{transport} 127\.0\.0\.1:{port}: address already in use$"
    ):
        await Listeners([config]).open(recorder)


async def test_an_address_that_is_not_ours_is_an_error(listen: Open) -> None:
    with pytest.raises(TransportError, match=r"^udp 192\.0\.2\.77:0: cannot assign requested"):
        await listen("udp", address="192.0.2.77")


async def test_when_one_listener_cannot_be_opened_none_is(listen: Open, recorder: Recorder) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    taken = (await listen("udp")).addresses[0].bound[1]
    configs = [
        ListenConfig(transport="tcp", address="127.0.0.1", port=free),
        ListenConfig(transport="udp", address="127.0.0.1", port=taken),
    ]
    with pytest.raises(TransportError, match="udp"):
        await Listeners(configs).open(recorder)
    with pytest.raises(ConnectionRefusedError):
        await TcpPhone.open(("127.0.0.1", free))


@pytest.mark.parametrize(
    ("advertise", "sent_by"),
    [
        ("sip.example.com", "sip.example.com:{port}"),
        ("203.0.113.5:5080", "203.0.113.5:5080"),
        ("[2001:db8::5]", "[2001:db8::5]:{port}"),
        ("[2001:db8::5]:5080", "[2001:db8::5]:5080"),
    ],
)
async def test_flows_carry_what_the_listener_advertises(
    listen: Open, recorder: Recorder, advertise: str, sent_by: str
) -> None:
    listeners = await listen("udp", "tcp", advertise=advertise)
    udp, tcp = (address.bound for address in listeners.addresses)
    datagram_phone = await DatagramPhone.open()
    datagram_phone.transport.sendto(register(), udp)
    assert (await recorder.request())[0].sent_by == sent_by.format(port=udp[1])
    phone = await TcpPhone.open(tcp)
    phone.writer.write(register())
    assert (await recorder.request())[0].sent_by == sent_by.format(port=tcp[1])
    datagram_phone.transport.close()


async def test_what_names_one_of_our_listeners_is_ours(listen: Open) -> None:
    listeners = await listen("udp", advertise="sip.example.com:5060")
    port = listeners.addresses[0].bound[1]
    assert listeners.is_ours("127.0.0.1", port)
    assert listeners.is_ours("sip.example.com", 5060)
    assert listeners.is_ours("sip.example.com", None)
    assert not listeners.is_ours("sip.example.com", 5070)
    assert not listeners.is_ours("127.0.0.1", None)
    assert not listeners.is_ours("127.0.0.2", port)
    assert not listeners.is_ours("example.com", port)


async def test_what_a_certificate_names_is_the_listener_that_shows_it(
    listen: Open, authority: Authority
) -> None:
    secure = await listen("tls", tls=authority.issue("sip.example.com", "*.example.net"))
    plain = await listen("tcp")
    port = secure.addresses[0].bound[1]
    assert secure.is_ours("sip.example.com", port)
    assert secure.is_ours("eu.example.net", port)
    assert not secure.is_ours("sip.example.com", None)
    assert not secure.is_ours("example.com", port)
    assert not plain.is_ours("sip.example.com", plain.addresses[0].bound[1])


async def test_on_a_wildcard_every_address_of_this_machine_is_ours(listen: Open) -> None:
    listeners = await listen("tcp", address="0.0.0.0")
    port = listeners.addresses[0].bound[1]
    assert listeners.is_ours("127.0.0.1", port)
    assert listeners.is_ours("127.0.0.2", port)
    for other in ("192.0.2.77", "0.0.0.0", "::1", "localhost"):
        assert not listeners.is_ours(other, port), other


async def test_udp_to_a_server_leaves_from_the_listener_that_reaches_it(
    listen: Open, recorder: Recorder
) -> None:
    listeners = await listen("udp", address="0.0.0.0")
    server = await DatagramPhone.open()
    flow = await listeners.connect("udp", server.address)
    assert flow.local == ("127.0.0.1", listeners.addresses[0].bound[1])
    flow.send(b"INVITE ...")
    assert await soon(server.received.get()) == (b"INVITE ...", flow.local)
    server.transport.close()


@pytest.mark.parametrize(
    ("transport", "remote", "reason"),
    [
        ("udp", ("::1", 5060), r"udp \[::1\]:5060: no listener of its family"),
        ("ws", ("127.0.0.1", 80), r"WS 127\.0\.0\.1:80: not for outgoing flows"),
    ],
)
async def test_a_server_we_have_no_way_to_is_an_error(
    listen: Open, transport: str, remote: tuple[str, int], reason: str
) -> None:
    listeners = await listen("udp", "ws")
    with pytest.raises(TransportError, match=reason):
        await listeners.connect(transport, remote)


async def test_closing_before_opening_or_twice_is_harmless(listen: Open) -> None:
    unopened = Listeners([ListenConfig(transport="tcp", address="::1", port=0)])
    assert unopened.families == {socket.AF_INET6}
    await unopened.close()
    listeners = await listen("udp", "tcp", "ws")
    await listeners.close()
    await listeners.close()
