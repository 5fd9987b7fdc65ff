"""The server without sockets: datagrams in, datagrams out, on one event loop."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sipush.config import Config, load
from sipush.core.bindings import Platform
from sipush.core.push_request import PushOutcome, PushRequest, PushResult
from sipush.daemon import Daemon
from sipush.location.store import LocationStore
from sipush.push.dispatcher import Dispatcher
from sipush.push.provider import Begin, begin_now
from sipush.server.gate import GateKeeper
from sipush.server.held_calls import HeldCalls
from sipush.sip.message import parse_datagram
from sipush.transport.flow import Address, Flow
from sipush.turns import Turns
from tests.bench.servers import APP_ID, DOMAIN, PASSWORD, ha1

_numbers = itertools.count(1)
_NONCE = re.compile(rb'nonce="([^"]*)"')
_LINES = re.compile(rb"^(Via|Record-Route|From|To|Call-ID|CSeq): [^\r]*", re.MULTILINE)

HERE = f"""
[sip]
domains = ["{DOMAIN}"]
[[listen]]
transport = "udp"
address = "127.0.0.1"
[store]
type = "memory"
"""
USER = f'[users."u000001@{DOMAIN}"]\nha1_md5 = "{ha1(1)}"\n'
CALLERS = '[[peers]]\nname = "callers"\naddress = "127.0.0.1"\n'
_MORE = f"""
[log]
format = "json"
[apps."{APP_ID}".webhook]
url = "http://127.0.0.1:9/"
secret_file = "secret"
"""


@dataclass
class Wire:
    """A flow to one phone; what the server sends on it is kept."""

    number: int
    sent: list[bytes] = field(default_factory=list)
    transport: str = "UDP"
    local: Address = ("127.0.0.1", 5060)
    sent_by: str = "127.0.0.1:5060"
    closed: bool = False

    def __post_init__(self) -> None:
        self.remote: Address = ("127.0.0.1", 20_000 + self.number)
        self.name = f"udp/127.0.0.1:5060/127.0.0.1:{self.remote[1]}"

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def close(self) -> None:
        pass


class Wires:
    """All flows; stands where the listeners would."""

    addresses = ()
    families = frozenset[object]()

    def __init__(self) -> None:
        self.flows: dict[str, Wire] = {}

    def flow(self, name: str) -> Flow | None:
        return self.flows.get(name)

    async def connect(self, transport: str, remote: Address, server_name: str = "") -> Flow:
        """To where a test expects it."""
        raise NotImplementedError

    def is_ours(self, host: str, port: int | None) -> bool:
        return (host, port or 5060) == ("127.0.0.1", 5060)


def configuration(directory: Path) -> Config:
    """A server with one user and one app, its callers trusted."""
    (directory / "secret").write_text("0123456789abcdef\n")
    file = directory / "sipush.toml"
    file.write_text(HERE + CALLERS + _MORE + USER)
    return load(file)


class Pushed:
    """A push service that takes everything."""

    name = "webhook"
    max_in_flight = 100
    retry_delays = ()
    knows_repeats = False

    def __init__(self) -> None:
        self.requests: list[PushRequest] = []

    async def send(self, request: PushRequest, begin: Begin | None = None) -> PushOutcome:
        await begin_now(begin, partial(self.requests.append, request))
        return PushOutcome(PushResult.ACCEPTED)

    async def close(self) -> None:
        pass


class Server:
    """One server, a phone that registers, and a caller."""

    def __init__(
        self, config: Config, store: LocationStore | None = None, wires: Wires | None = None
    ) -> None:
        daemon = Daemon(Path(), config)
        if store is not None:
            daemon._store, daemon._held_calls = store, HeldCalls(store)
        self.pushed = Pushed()
        daemon._dispatcher = Dispatcher({APP_ID: {Platform.WEBHOOK: self.pushed}})
        self._wires = wires or Wires()
        daemon._listeners = self._wires  # type: ignore[assignment]
        daemon._build(bytes(32))
        self.receiver = GateKeeper(daemon._gate, daemon._layer, daemon._is_vital, Turns())
        held = daemon._held_calls
        self._tasks = (daemon._endpoint._tasks, daemon._proxy.tasks, held._tasks)
        self.proxy = daemon._proxy
        self._turns = daemon._proxy.turns
        self.phone, self.caller = self.wire(1), self.wire(2)
        self._nonce = b""
        self._count = 0

    def wire(self, number: int, kind: type[Wire] = Wire) -> Wire:
        """A new flow."""
        wire = kind(number)
        self._wires.flows[wire.name] = wire
        return wire

    async def send(self, wire: Wire, data: bytes) -> None:
        """A datagram arrives, and the server does all it can do about it."""
        self.receiver.messages_received([(wire, parse_datagram(data))])
        busy = True
        while busy:  # the turns of the loop are counted
            await asyncio.sleep(0)
            busy = bool(self._turns.waiting) or any(tasks.running for tasks in self._tasks)

    async def register(self) -> bytes:
        """REGISTER 401 REGISTER 200: the 200."""
        number = next(_numbers)
        await self.send(self.phone, _register(number, 1, ""))
        found = _NONCE.search(self.phone.sent[-1])
        assert found is not None
        self._nonce, self._count = found[1], 0
        await self.refresh(number)
        return self.phone.sent[-1]

    async def refresh(self, number: int | None = None) -> bytes:
        """REGISTER with the nonce at hand: what it was answered."""
        credentials = self.credentials()
        sequence = self._count + 1
        await self.send(self.phone, _register(number or next(_numbers), sequence, credentials))
        return self.phone.sent[-1]

    async def unregister(self) -> bytes:
        """REGISTER with Expires: 0: what it was answered."""
        credentials = self.credentials()
        register = _register(next(_numbers), self._count, credentials)
        await self.send(self.phone, register.replace(b"Expires: 3600", b"Expires: 0"))
        return self.phone.sent[-1]

    def credentials(self) -> str:
        """For one more REGISTER with the nonce at hand."""
        self._count += 1
        return authorization(self._nonce.decode(), self._count)

    async def call(self) -> bytes:
        """INVITE 180 200 ACK BYE 200: the last."""
        number = next(_numbers)
        await self.send(self.caller, invite(number))
        return await self._answered()

    async def wake(self) -> bytes:
        """INVITE, push, REGISTER, INVITE 180 200 ACK BYE 200: the last."""
        self.phone_leaves()
        await self.send(self.caller, invite(next(_numbers)))
        await self.phone_returns()
        return await self._answered()

    def phone_leaves(self) -> None:
        """Its flow is gone."""
        self._wires.flows.pop(self.phone.name, None)

    async def phone_returns(self) -> None:
        """Its flow is there again, and it registers."""
        self._wires.flows[self.phone.name] = self.phone
        await self.refresh()

    async def _answered(self) -> bytes:
        invite = self.phone.sent[-1]
        await self.send(self.phone, response(invite, "180 Ringing"))
        await self.send(self.phone, response(invite, "200 OK"))
        answer = self.caller.sent[-1]
        await self.send(self.caller, _in_dialog(answer, "ACK", 1))
        await self.send(self.caller, _in_dialog(answer, "BYE", 2))
        await self.send(self.phone, response(self.phone.sent[-1], "200 OK"))
        return self.caller.sent[-1]

    async def message(self) -> bytes:
        """MESSAGE 200 through the proxy: the 200."""
        await self.send(self.caller, _message(next(_numbers)))
        await self.send(self.phone, response(self.phone.sent[-1], "200 OK"))
        return self.caller.sent[-1]


def _head(method: str, uri: str, wire: int, number: int) -> str:
    return (
        f"{method} {uri} SIP/2.0\r\n"
        f"Via: SIP/2.0/UDP 127.0.0.1:{20_000 + wire};branch=z9hG4bKb{next(_numbers)};rport\r\n"
        f"Max-Forwards: 70\r\nCall-ID: bench-{number}\r\n"
    )


def _register(number: int, sequence: int, credentials: str) -> bytes:
    push = f"device-os=ios;device-uid={'5a' * 32};allow-call-push=true;allow-message-push=true"
    return (
        _head("REGISTER", f"sip:{DOMAIN}", 1, number)
        + f'From: "User 1" <sip:u000001@{DOMAIN}>;tag=f{number}\r\n'
        f"To: <sip:u000001@{DOMAIN}>\r\nCSeq: {sequence} REGISTER\r\n"
        "Contact: <sip:u000001@127.0.0.1:20001>\r\nExpires: 3600\r\nUser-Agent: bench\r\n"
        f"Allow: INVITE, ACK, CANCEL, BYE, MESSAGE\r\n{credentials}"
        f"X-Push: {push};app-id={APP_ID}\r\nContent-Length: 0\r\n\r\n"
    ).encode()


def register_from(wire: int, credentials: str) -> bytes:
    """The REGISTER of another device of the same user, which is not woken."""
    text = _register(next(_numbers), 1, credentials).replace(b"X-Push", b"X-None")
    return text.replace(b"127.0.0.1:20001", b"127.0.0.1:%d" % (20_000 + wire))


def authorization(nonce: str, count: int) -> str:
    def md5(text: str) -> str:
        return hashlib.md5(text.encode()).hexdigest()

    uri = f"sip:{DOMAIN}"
    secret = md5(f"u000001:{DOMAIN}:{PASSWORD}")
    proof = f"{secret}:{nonce}:{count:08x}:c:auth:{md5(f'REGISTER:{uri}')}"
    return (
        f'Authorization: Digest username="u000001", realm="{DOMAIN}", nonce="{nonce}",'
        f' uri="{uri}", response="{md5(proof)}", algorithm=MD5, qop=auth, nc={count:08x},'
        ' cnonce="c"\r\n'
    )


def invite(number: int) -> bytes:
    body = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=audio 40000 RTP/AVP 0\r\n"
    return (
        _head("INVITE", f"sip:u000001@{DOMAIN}", 2, number)
        + f"From: <sip:u000002@{DOMAIN}>;tag=c{number}\r\nTo: <sip:u000001@{DOMAIN}>\r\n"
        "CSeq: 1 INVITE\r\nContact: <sip:u000002@127.0.0.1:20002>\r\n"
        f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def _message(number: int) -> bytes:
    return (
        _head("MESSAGE", f"sip:u000001@{DOMAIN}", 2, number)
        + f"From: <sip:u000002@{DOMAIN}>;tag=c{number}\r\nTo: <sip:u000001@{DOMAIN}>\r\n"
        "CSeq: 1 MESSAGE\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi"
    ).encode()


def response(request: bytes, status: str) -> bytes:
    """What the phone answers to a request that it got."""
    lines = [match[0] for match in _LINES.finditer(request)]
    lines = [
        line + b";tag=callee" if line.startswith(b"To:") and b";tag=" not in line else line
        for line in lines
    ]
    contact = b"Contact: <sip:u000001@127.0.0.1:20001>"
    head = [b"SIP/2.0 " + status.encode(), *lines, contact, b"Content-Length: 0"]
    return b"\r\n".join(head) + b"\r\n\r\n"


def _in_dialog(answer: bytes, method: str, sequence: int) -> bytes:
    lines = [match[0].decode() for match in _LINES.finditer(answer)]
    routes = [line.partition(": ")[2] for line in lines if line.startswith("Record-Route")]
    kept = [line for line in lines if line.startswith(("From", "To", "Call-ID"))]
    return (
        f"{method} sip:u000001@127.0.0.1:20001 SIP/2.0\r\n"
        f"Via: SIP/2.0/UDP 127.0.0.1:20002;branch=z9hG4bKb{next(_numbers)};rport\r\n"
        + "".join(f"Route: {route}\r\n" for route in reversed(routes))
        + "".join(f"{line}\r\n" for line in kept)
        + f"CSeq: {sequence} {method}\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n"
    ).encode()
