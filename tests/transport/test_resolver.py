from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from sipush.errors import TransportError
from sipush.server.tasks import Tasks
from sipush.transport.resolver import Resolver

IPV4 = (socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("192.0.2.1", 0))
IPV6 = (socket.AF_INET6, socket.SOCK_DGRAM, 17, "", ("2001:db8::1", 0, 0, 0))


class NameServer:
    """Stands in for the system's resolver."""

    def __init__(self) -> None:
        self.answers: list[object] = [IPV6, IPV4]
        self.asked: list[object] = []
        self.silent = False
        self.released = threading.Event()

    def getaddrinfo(self, host: object, *_: object) -> list[object]:
        self.asked.append(host)
        if self.silent:
            self.released.wait()
        if not self.answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.answers


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> NameServer:
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server.getaddrinfo)
    return server


@pytest.mark.parametrize(
    ("host", "port", "transport", "address"),
    [
        ("192.0.2.7", 5080, "UDP", ("192.0.2.7", 5080)),
        ("192.0.2.7", None, "udp", ("192.0.2.7", 5060)),
        ("2001:db8::7", None, "TLS", ("2001:db8::7", 5061)),
    ],
)
async def test_an_ip_address_is_its_own_answer(
    name_server: NameServer, host: str, port: int | None, transport: str, address: tuple[str, int]
) -> None:
    assert await Resolver().resolve(host, port, transport) == address
    assert name_server.asked == []


@pytest.mark.parametrize("port", [None, 5060])
async def test_a_transport_that_nobody_knows_leads_nowhere(
    name_server: NameServer, port: int | None
) -> None:
    with pytest.raises(TransportError, match="no such transport: SCTP"):
        await Resolver().resolve("pbx.example.com", port, "SCTP")
    assert name_server.asked == []


async def test_a_name_is_asked_for_once_and_the_system_s_first_choice_is_taken(
    name_server: NameServer,
) -> None:
    resolver = Resolver()
    assert await resolver.resolve("pbx.example.com", 5080, "tcp") == ("2001:db8::1", 5080)
    assert await resolver.resolve("pbx.example.com", None, "udp") == ("2001:db8::1", 5060)
    assert name_server.asked == ["pbx.example.com"]


async def test_a_request_that_has_not_waited_before_may_ask(name_server: NameServer) -> None:
    resolver, answer = Resolver(), asyncio.get_running_loop().create_future()

    async def ask() -> None:
        answer.set_result(await resolver.resolve("pbx.example.com", None, "udp"))

    # As a datagram starts it: outside of every task.
    asyncio.get_running_loop().call_soon(Tasks().start, ask())
    assert await asyncio.wait_for(answer, 5) == ("2001:db8::1", 5060)


async def test_an_old_answer_is_asked_for_anew(name_server: NameServer) -> None:
    resolver = Resolver(lifetime=0)
    await resolver.resolve("pbx.example.com", None, "udp")
    name_server.answers = [IPV4]
    assert (await resolver.resolve("pbx.example.com", None, "udp"))[0] == "192.0.2.1"


async def test_an_address_of_a_family_we_have_no_socket_for_is_not_taken(
    name_server: NameServer,
) -> None:
    resolver = Resolver(families={socket.AF_INET})
    assert (await resolver.resolve("pbx.example.com", None, "udp"))[0] == "192.0.2.1"
    name_server.answers = [IPV6]
    with pytest.raises(TransportError, match=r"six\.example\.com: no address of a family"):
        await resolver.resolve("six.example.com", None, "udp")


async def test_a_name_that_nobody_knows_is_an_error_that_names_it(name_server: NameServer) -> None:
    name_server.answers = []
    with pytest.raises(TransportError, match=r"^pbx\.example\.com: Name or service not known$"):
        await Resolver().resolve("pbx.example.com", None, "udp")


async def test_a_name_that_cannot_be_one_is_an_error() -> None:
    with pytest.raises(TransportError):
        await Resolver().resolve("a" * 64 + ".example.com", None, "udp")


async def test_a_silent_name_server_is_not_waited_for_and_the_old_answer_goes_on(
    name_server: NameServer,
) -> None:
    resolver = Resolver(lifetime=0, timeout=0.2)
    known = await resolver.resolve("pbx.example.com", None, "udp")
    name_server.silent = True
    try:
        assert await resolver.resolve("pbx.example.com", None, "udp") == known
        with pytest.raises(TransportError, match="name server does not answer"):
            await resolver.resolve("sip.example.com", None, "udp")
    finally:
        name_server.released.set()  # the loop waits for its threads


async def test_a_silent_name_server_is_asked_once_however_many_wait(
    name_server: NameServer,
) -> None:
    name_server.silent = True
    resolver = Resolver(timeout=0.1)
    lookups = (resolver.resolve("pbx.example.com", 5080, "udp") for _ in range(20))
    outcomes = await asyncio.gather(*lookups, return_exceptions=True)
    name_server.released.set()
    assert {type(outcome) for outcome in outcomes} == {TransportError}
    assert name_server.asked == ["pbx.example.com"]
