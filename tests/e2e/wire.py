"""SIP as plain text over plain sockets, for tests that care about every byte and millisecond.

Not a line is shared with the server: strings, ``hashlib`` and asyncio sockets only. Nothing is
retransmitted and nothing is answered unless the test says so.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import re
import secrets
import socket
import ssl
import struct
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

PATIENCE = 10.0
"Seconds within which everything a test waits for must happen."

SDP = (
    "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    "m=audio 40000 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n"
)

FINAL = range(200, 700)
"Any final response."

Kind = str | int | range
"A method, a status, or some statuses."

_COMPACT = {
    "v": "via",
    "f": "from",
    "t": "to",
    "i": "call-id",
    "m": "contact",
    "l": "content-length",
    "c": "content-type",
    "k": "supported",
}
_COUNTER = itertools.count(1)


class Msg:
    """One message as it came: ``status`` is 0 for a request, ``method`` CSeq's for a response."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = time.perf_counter()
        head, _, self.body = text.partition("\r\n\r\n")
        self.start, *lines = re.sub(r"\r\n[ \t]+", " ", head).split("\r\n")
        self.headers = [
            (_COMPACT.get(name.strip().lower(), name.strip().lower()), value.strip())
            for name, _, value in (line.partition(":") for line in lines)
        ]
        parts = self.start.split(" ", 2)
        self.status = int(parts[1]) if parts[0] == "SIP/2.0" else 0
        self.method = self["cseq"].split()[-1] if self.status else parts[0]
        self.uri = "" if self.status else parts[1]

    def __getitem__(self, name: str) -> str:
        """The first value of a header (lower-case long name), or an empty string."""
        return next((value for key, value in self.headers if key == name), "")

    def all(self, name: str) -> list[str]:
        """All values of a header, split at commas outside of quotes and angle brackets."""
        values = (value for key, value in self.headers if key == name)
        pattern = r'(?:"(?:[^"\\]|\\.)*"|<[^>]*>|[^,"<])+'
        return [part.strip() for value in values for part in re.findall(pattern, value)]

    def tag(self, name: str) -> str:
        """The tag of From or To, or an empty string."""
        match = re.search(r";\s*tag=([^;\s]+)", self[name].rpartition(">")[2])
        return match[1] if match else ""

    @property
    def contact(self) -> str:
        """The URI of the first Contact."""
        match = re.search(r"<([^>]*)>", self["contact"])
        return match[1] if match else self["contact"].partition(";")[0]

    def __repr__(self) -> str:
        return f"<{self.start}>"


def digest_answer(
    challenge: str, user: str, password: str, method: str, uri: str, count: int = 1
) -> str:
    """The credentials for a Digest challenge (RFC 7616 §3.4), qop=auth when offered."""
    given = {
        name.lower(): quoted or plain
        for name, quoted, plain in re.findall(r'(\w+)=(?:"([^"]*)"|([^\s,]+))', challenge)
    }
    algorithm = given.get("algorithm", "MD5")
    new = hashlib.sha256 if algorithm.upper() == "SHA-256" else hashlib.md5

    def digest(text: str) -> str:
        return new(text.encode()).hexdigest()

    ha1 = digest(f"{user}:{given['realm']}:{password}")
    ha2 = digest(f"{method}:{uri}")
    realm, nonce = given["realm"], given["nonce"]
    answer = (
        f'Digest username="{user}", realm="{realm}", nonce="{nonce}", '
        f'uri="{uri}", algorithm={algorithm}'
    )
    if opaque := given.get("opaque"):
        answer += f', opaque="{opaque}"'
    if "qop" not in given:
        return f'{answer}, response="{digest(f"{ha1}:{nonce}:{ha2}")}"'
    cnonce, nc = secrets.token_hex(8), f"{count:08x}"
    response = digest(f"{ha1}:{nonce}:{nc}:{cnonce}:auth:{ha2}")
    return f'{answer}, response="{response}", qop=auth, nc={nc}, cnonce="{cnonce}"'


class Wire:
    """One socket to the server: what comes is kept in ``seen`` and handed to ``expect`` once."""

    def __init__(self, transport: str, server: tuple[str, int]) -> None:
        self.transport = transport.upper()
        self.server = server
        self.local = ("", 0)
        self.host = ""
        "What it calls itself in Via and Contact, if not its address."
        self.seen: list[Msg] = []
        "Everything that came, in order."
        self.closed = asyncio.Event()
        "The server closed the connection."
        self._unread: list[Msg] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._io: Any = None

    @classmethod
    async def open(
        cls,
        transport: str,
        server: tuple[str, int],
        ip: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        inside: AbstractContextManager[None] | None = None,
    ) -> Wire:
        """Bind an address of ours and ``port`` (0: any), connect unless it is UDP.

        ``tls``: how the server is verified, for TLS and WSS; ``inside``: where the socket is made.
        """
        wire = cls(transport, server)
        loop = asyncio.get_running_loop()
        kind = socket.SOCK_DGRAM if wire.transport == "UDP" else socket.SOCK_STREAM
        with inside or nullcontext():
            sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, kind)
        sock.setblocking(False)
        if kind is socket.SOCK_STREAM:  # asyncio does it only where the protocol was named
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((ip, port))
        if wire.transport == "UDP":
            wire._io, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(wire), sock=sock)
        else:
            stream = _WebSocket if wire.transport in ("WS", "WSS") else _Stream
            secure = tls if wire.transport in ("TLS", "WSS") else None
            await loop.sock_connect(sock, server)
            wire._io, protocol = await loop.create_connection(
                lambda: stream(wire),
                sock=sock,
                ssl=secure,
                server_hostname=server[0] if secure else None,
            )
            await protocol.opened(wire._io)
        wire.local = wire._io.get_extra_info("sockname")[:2]
        return wire

    @property
    def host_port(self) -> str:
        """Our end, for Via and Contact."""
        if self.host:
            return self.host
        ip, port = self.local
        return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"

    def send(self, text: str | bytes) -> None:
        """Send it as it is."""
        data = text.encode() if isinstance(text, str) else text
        assert self._io is not None, "the phone is dead"
        if self.transport == "UDP":
            self._io.sendto(data, self.server)
        elif self.transport in ("WS", "WSS"):
            self._io.write(_frame(data))
        else:
            self._io.write(data)

    def share_port(self) -> None:
        """Have another socket listen at the port of this connection."""
        sock = self._io.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def close(self, *, reset: bool = False) -> None:
        """Close the socket as the kernel does for a killed process; ``reset``: TCP RST, not FIN."""
        if self._io is None:
            return
        if reset:
            sock = self._io.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._io.abort()
        self._io = None

    def arrived(self, msg: Msg) -> None:
        """Called by the socket."""
        self.seen.append(msg)
        self._unread.append(msg)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    def forget(self) -> None:
        """What came so far counts as lost."""
        self._unread.clear()

    def count(self, what: Kind) -> int:
        """How many messages of this kind ever came."""
        return sum(_is(msg, what) for msg in self.seen)

    async def expect(
        self, *kinds: Kind, method: str = "", call_id: str = "", patience: float = PATIENCE
    ) -> Msg:
        """The next unread message that is one of ``kinds`` (a method or a status); others stay.

        ``method`` restricts responses to one CSeq method. Fails with what came instead.
        """
        async with asyncio.timeout(patience) as limit:
            try:
                while True:
                    for msg in self._unread:
                        if (
                            any(_is(msg, kind) for kind in kinds)
                            and method in ("", msg.method)
                            and call_id in ("", msg["call-id"])
                        ):
                            self._unread.remove(msg)
                            return msg
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiters.append(waiter)
                    await waiter
            except asyncio.CancelledError:
                if limit.expired():
                    came = "; ".join(msg.start for msg in self.seen[-30:]) or "nothing"
                    raise AssertionError(f"expected {kinds}, came: {came}") from None
                raise

    async def options(self) -> Msg:
        """Ask the server for its capabilities: a round trip that changes nothing."""
        return await self._ask("OPTIONS")

    async def heard(self) -> Msg:
        """A round trip behind all that was sent before: calls, and CANCELs of none, come last."""
        return await self._ask("CANCEL")

    async def _ask(self, method: str) -> Msg:
        n = next(_COUNTER)
        host = "[::1]" if ":" in self.server[0] else self.server[0]
        uri = f"sip:{host}:{self.server[1]}"
        call_id = f"{method.lower()}-{n}-{secrets.token_hex(4)}"
        self.send(
            f"{method} {uri} SIP/2.0\r\n"
            f"Via: SIP/2.0/{self.transport} {self.host_port};branch={new_branch()};rport\r\n"
            f"Max-Forwards: 70\r\nFrom: <sip:tester@localhost>;tag=o{n}\r\nTo: <{uri}>\r\n"
            f"Call-ID: {call_id}\r\nCSeq: 1 {method}\r\nContent-Length: 0\r\n\r\n"
        )
        return await self.expect(FINAL, method=method, call_id=call_id)


def _is(msg: Msg, kind: Kind) -> bool:
    match kind:
        case str():
            return not msg.status and msg.method == kind
        case int():
            return msg.status == kind
        case range():
            return msg.status in kind


def new_branch() -> str:
    """A fresh Via branch."""
    return "z9hG4bK" + secrets.token_hex(8)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    def datagram_received(self, data: bytes, addr: object) -> None:
        if data.strip():
            self.wire.arrived(Msg(data.decode("utf-8", "surrogateescape")))

    def error_received(self, exc: Exception) -> None:
        pass  # the server is being restarted: the test resends


class _Stream(asyncio.Protocol):
    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.buffer = b""

    async def opened(self, io: asyncio.Transport) -> None:
        pass

    def data_received(self, data: bytes) -> None:
        self.buffer = (self.buffer + data).lstrip(b"\r\n")
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].decode("utf-8", "surrogateescape")
            length = re.search(r"\r\n(?:content-length|l)[ \t]*:[ \t]*(\d+)", head, re.I)
            size = end + 4 + int(length[1] if length else 0)
            if len(self.buffer) < size:
                return
            self.wire.arrived(Msg(self.buffer[:size].decode("utf-8", "surrogateescape")))
            self.buffer = self.buffer[size:].lstrip(b"\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        self.wire.closed.set()


class _WebSocket(_Stream):
    """A client of RFC 7118, with no more of RFC 6455 than that needs."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire)
        self.accepted = asyncio.get_running_loop().create_future()

    async def opened(self, io: asyncio.Transport) -> None:
        """Shake hands."""
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        io.write(
            (
                f"GET / HTTP/1.1\r\nHost: {self.wire.server[0]}\r\nUpgrade: websocket\r\n"
                f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: sip\r\n\r\n"
            ).encode()
        )
        async with asyncio.timeout(PATIENCE):
            head = await self.accepted
        assert head.startswith(b"HTTP/1.1 101 "), head
        assert b"Sec-WebSocket-Protocol: sip" in head, head

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.accepted.done():
            head, end, rest = self.buffer.partition(b"\r\n\r\n")
            if end:
                self.buffer = rest
                self.accepted.set_result(head)
        while self.accepted.done() and (frame := _first_frame(self.buffer)):
            opcode, payload, self.buffer = frame
            if opcode in (1, 2) and payload.strip():
                self.wire.arrived(Msg(payload.decode("utf-8", "surrogateescape")))


def _frame(data: bytes) -> bytes:
    """A whole text message, masked with zeros (RFC 6455 §5.2)."""
    size = len(data)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return b"\x81" + length + bytes(4) + data


def _first_frame(data: bytes) -> tuple[int, bytes, bytes] | None:
    """Opcode, payload and what comes after, once the frame is whole."""
    if len(data) < 4:
        return None
    start, size = 2, data[1]
    if size == 126:
        start, size = 4, int.from_bytes(data[2:4], "big")
    if len(data) < start + size:
        return None
    return data[0] & 15, data[start : start + size], data[start + size :]


@dataclass(slots=True)
class Account:
    """A user of the server under test."""

    user: str
    password: str
    domain: str

    @property
    def in_uri(self) -> str:
        """The user as a URI has it."""
        return self.user.replace(" ", "%20")

    @property
    def aor(self) -> str:
        """``user@domain``, as in a URI."""
        return f"{self.in_uri}@{self.domain}"


@dataclass(slots=True)
class Registered:
    """How a REGISTER went."""

    response: Msg
    sent_at: float
    "``time.perf_counter()`` when the REGISTER that was accepted (or refused) left."


@dataclass
class Phone:
    """A phone made of text: registers, calls and answers exactly as the test tells it."""

    account: Account
    wire: Wire
    instance: str = ""
    "``urn:uuid:…`` for +sip.instance, or empty."
    register_id: str = field(default_factory=lambda: f"reg-{secrets.token_hex(6)}")
    contact_params: str = ""
    "Appended to the Contact URI."
    display_name: str = ""
    "In From of calls, instead of the user's name."
    register_for: str = ""
    "Somebody else's AOR in To, or empty."
    cseq: int = 0
    challenge: str = ""
    nonce_count: int = 0
    last_register: str = ""
    "As sent, for a phone that has heard no answer."

    @classmethod
    async def open(
        cls,
        account: Account,
        server: tuple[str, int],
        transport: str = "UDP",
        *,
        instance: str = "",
        ip: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
    ) -> Phone:
        """A phone with a socket of its own."""
        return cls(account, await Wire.open(transport, server, ip, tls=tls), instance)

    @property
    def contact_uri(self) -> str:
        """What it puts in Contact."""
        transport = self.wire.transport.lower().replace("wss", "ws")  # RFC 7118 §5.2
        param = "" if transport == "udp" else f";transport={transport}"
        return f"sip:{self.account.in_uri}@{self.wire.host_port}{param}{self.contact_params}"

    def kill(self, *, reset: bool = False) -> None:
        """The process is gone: the kernel closes its socket."""
        self.wire.close(reset=reset)

    async def register(
        self,
        x_push: str = "",
        *,
        expires: int = 600,
        contact: str | None = None,
        headers: Sequence[str] = (),
    ) -> Registered:
        """REGISTER, answering one challenge. ``contact``: the header value instead of ours."""
        self.cseq += 1
        extra = [*headers, *([f"X-Push: {x_push}"] if x_push else [])]
        authorization = self._authorize("REGISTER") if self.challenge else ""
        sent_at, response = await self._send_register(authorization, expires, contact, extra)
        if response.status == 401:
            self.challenge, self.nonce_count = _challenge(response, "www-authenticate"), 0
            self.cseq += 1
            authorization = self._authorize("REGISTER")
            sent_at, response = await self._send_register(authorization, expires, contact, extra)
        return Registered(response, sent_at)

    async def resend_register(self) -> Msg:
        """The last REGISTER once more, as Timer E would; its final response."""
        self.wire.send(self.last_register)
        return await self.wire.expect(FINAL, method="REGISTER")

    def _authorize(self, method: str) -> str:
        self.nonce_count += 1
        who, uri = self.account, f"sip:{self.account.domain}"
        return digest_answer(self.challenge, who.user, who.password, method, uri, self.nonce_count)

    async def _send_register(
        self, authorization: str, expires: int, contact: str | None, extra: Iterable[str]
    ) -> tuple[float, Msg]:
        if contact is None:
            instance = f';+sip.instance="<{self.instance}>"' if self.instance else ""
            contact = f"<{self.contact_uri}>{instance}"
        lines = [
            f"REGISTER sip:{self.account.domain} SIP/2.0",
            f"Via: SIP/2.0/{self.wire.transport} {self.wire.host_port};branch={new_branch()};rport",
            "Max-Forwards: 70",
            f"From: <sip:{self.account.aor}>;tag={secrets.token_hex(4)}",
            f"To: <sip:{self.register_for or self.account.aor}>",
            f"Call-ID: {self.register_id}",
            f"CSeq: {self.cseq} REGISTER",
            *([f"Contact: {contact}"] if contact else []),
            f"Expires: {expires}",
            *([f"Authorization: {authorization}"] if authorization else []),
            *extra,
            "Content-Length: 0",
        ]
        self.last_register = "\r\n".join(lines) + "\r\n\r\n"
        sent_at = time.perf_counter()
        self.wire.send(self.last_register)
        return sent_at, await self.wire.expect(FINAL, method="REGISTER")

    async def call(
        self,
        user: str,
        *,
        challenged: bool = True,
        domain: str = "",
        headers: Sequence[str] = (),
        call_id: str = "",
    ) -> OutCall:
        """INVITE ``user``; when ``challenged``, wait for that and send it again with digest."""
        uri = f"sip:{user}@{domain or self.account.domain}"
        call = OutCall(self, uri, tuple(headers), call_id or f"call-{secrets.token_hex(8)}")
        call.send_invite()
        if challenged:
            await call.authorize(await call.expect(401, 407))
        return call

    async def incoming(self, patience: float = PATIENCE, call_id: str = "") -> InCall:
        """The next INVITE that comes."""
        return InCall(self, await self.wire.expect("INVITE", call_id=call_id, patience=patience))

    async def rings_and_answers(self, call_id: str = "") -> InCall:
        """Take the next INVITE: 180, 200, and the ACK has come.

        ``call_id``: of this call; over UDP the INVITE of one before may have come twice.
        """
        call = await self.incoming(call_id=call_id)
        call.reply(180)
        await call.answer()
        return call


@dataclass
class OutCall:
    """A call we make."""

    phone: Phone
    uri: str
    headers: tuple[str, ...]
    call_id: str
    cseq: int = 0
    branch: str = ""
    authorization: str = ""
    signs_in_by: str = ""
    "The header that ``authorization`` goes into."
    tag: str = field(default_factory=lambda: secrets.token_hex(4))
    sent_at: float = 0.0

    def _request(
        self, method: str, uri: str, branch: str, to_tag: str = "", *lines: str, body: str = ""
    ) -> str:
        wire, account = self.phone.wire, self.phone.account
        return "\r\n".join(
            [
                f"{method} {uri} SIP/2.0",
                f"Via: SIP/2.0/{wire.transport} {wire.host_port};branch={branch};rport",
                "Max-Forwards: 70",
                f'From: "{self.phone.display_name or account.user}" '
                f"<sip:{account.aor}>;tag={self.tag}",
                f"To: <{self.uri}>{f';tag={to_tag}' if to_tag else ''}",
                f"Call-ID: {self.call_id}",
                f"CSeq: {self.cseq} {method}",
                f"Contact: <{self.phone.contact_uri}>",
                *lines,
                f"Content-Length: {len(body)}",
                "",
                body,
            ]
        )

    def send_invite(self) -> None:
        """A new INVITE transaction."""
        self.cseq += 1
        self.branch = new_branch()
        self.resend_invite()

    def resend_invite(self) -> None:
        """The same INVITE once more, as Timer A would."""
        credentials = [f"{self.signs_in_by}: {self.authorization}"] if self.authorization else []
        lines = [*credentials, *self.headers, "Content-Type: application/sdp"]
        self.sent_at = time.perf_counter()
        self.phone.wire.send(self._request("INVITE", self.uri, self.branch, "", *lines, body=SDP))

    async def expect(self, *kinds: Kind, patience: float = PATIENCE) -> Msg:
        """The next message of this call that is one of ``kinds``."""
        method = "" if isinstance(kinds[0], str) else "INVITE"
        return await self.phone.wire.expect(
            *kinds, method=method, call_id=self.call_id, patience=patience
        )

    async def authorize(self, refusal: Msg) -> None:
        """Answer a 407, or the 401 of a PBX, with a new INVITE."""
        self._ack_failure(refusal)
        account = self.phone.account
        asks, self.signs_in_by = _CHALLENGES[refusal.status]
        challenge = _challenge(refusal, asks)
        self.authorization = digest_answer(
            challenge, account.user, account.password, "INVITE", self.uri
        )
        self.send_invite()

    async def final(self, patience: float = PATIENCE) -> Msg:
        """The final response, acknowledged."""
        response = await self.expect(FINAL, patience=patience)
        if response.status < 300:
            self._send_in_dialog(response, response.contact, "ACK")
        else:
            self._ack_failure(response)
        return response

    def _ack_failure(self, response: Msg) -> None:
        self.phone.wire.send(self._request("ACK", self.uri, self.branch, response.tag("to")))

    def _send_in_dialog(self, answer: Msg, target: str, method: str, body: str = "") -> None:
        content = ["Content-Type: application/sdp"] if body else []
        routes = [f"Route: {value}" for value in reversed(answer.all("record-route"))]
        tag, branch = answer.tag("to"), new_branch()
        self.phone.wire.send(
            self._request(method, target, branch, tag, *routes, *content, body=body)
        )

    async def request(
        self, answer: Msg, method: str, body: str = "", patience: float = PATIENCE
    ) -> Msg:
        """A request inside the dialog, and its final response; that of an INVITE acknowledged.

        ``answer``: the 200 that ``final`` gave.
        """
        self.cseq += 1
        self._send_in_dialog(answer, answer.contact, method, body)
        response = await self.phone.wire.expect(
            FINAL, method=method, call_id=self.call_id, patience=patience
        )
        if method == "INVITE":
            self._send_in_dialog(answer, response.contact, "ACK")
        return response

    async def hang_up(self, answer: Msg) -> Msg:
        """BYE, and its answer. ``answer``: the 200 that ``final`` gave."""
        return await self.request(answer, "BYE")

    async def requested(self, method: str, body: str = "") -> Msg:
        """The callee's next request of this kind, answered."""
        request = await self.expect(method)
        content = ["Content-Type: application/sdp"] if body else []
        InCall(self.phone, request).reply(200, *content, request=request, body=body)
        return request

    async def hung_up(self) -> Msg:
        """The callee's BYE, answered."""
        return await self.requested("BYE")

    async def cancel(self, *lines: str) -> Msg:
        """CANCEL, and its answer."""
        self.phone.wire.send(self._request("CANCEL", self.uri, self.branch, "", *lines))
        return await self.phone.wire.expect(FINAL, method="CANCEL", call_id=self.call_id)


@dataclass
class InCall:
    """A call that came to us."""

    phone: Phone
    invite: Msg
    tag: str = field(default_factory=lambda: secrets.token_hex(4))
    cseq: int = 0

    @property
    def push_id(self) -> str:
        """X-Push-Id, or an empty string."""
        return self.invite["x-push-id"]

    def reply(self, status: int, *lines: str, request: Msg | None = None, body: str = "") -> None:
        """Answer the INVITE, or another request of the call."""
        request = request or self.invite
        copied = [
            f"{name}: {value}"
            for name, value in request.headers
            if name in ("via", "from", "call-id", "cseq", "record-route")
        ]
        to = request["to"] if request.tag("to") else f"{request['to']};tag={self.tag}"
        self.phone.wire.send(
            "\r\n".join(
                [
                    f"SIP/2.0 {status} Whatever",
                    *copied,
                    f"To: {to}",
                    f"Contact: <{self.phone.contact_uri}>",
                    *lines,
                    f"Content-Length: {len(body)}",
                    "",
                    body,
                ]
            )
        )

    async def answer(self) -> Msg:
        """200 with SDP; returns the ACK."""
        self.reply(200, "Content-Type: application/sdp", body=SDP)
        return await self.expect("ACK")

    async def expect(self, *kinds: Kind, patience: float = PATIENCE) -> Msg:
        """The next message of this call that is one of ``kinds``."""
        return await self.phone.wire.expect(
            *kinds, call_id=self.invite["call-id"], patience=patience
        )

    async def refuse(self, status: int, *lines: str) -> None:
        """A failure response and its ACK."""
        self.reply(status, *lines)
        await self.expect("ACK")

    async def requested(self, method: str, body: str = "") -> Msg:
        """The caller's next request of this kind inside the dialog, answered."""
        request = await self.expect(method)
        content = ["Content-Type: application/sdp"] if body else []
        self.reply(200, *content, request=request, body=body)
        return request

    async def hung_up(self) -> Msg:
        """The BYE, answered."""
        return await self.requested("BYE")

    async def request(self, method: str, body: str = "") -> Msg:
        """A request inside the dialog, and its final response; that of an INVITE acknowledged."""
        self.cseq += 1
        call_id = self.invite["call-id"]
        self._send_in_dialog(self.invite.contact, method, body)
        response = await self.phone.wire.expect(FINAL, method=method, call_id=call_id)
        if method == "INVITE":
            self._send_in_dialog(response.contact, "ACK")
        return response

    def _send_in_dialog(self, target: str, method: str, body: str = "") -> None:
        invite, wire = self.invite, self.phone.wire
        wire.send(
            "\r\n".join(
                [
                    f"{method} {target} SIP/2.0",
                    f"Via: SIP/2.0/{wire.transport} {wire.host_port};branch={new_branch()};rport",
                    "Max-Forwards: 70",
                    f"From: {invite['to']};tag={self.tag}",
                    f"To: {invite['from']}",
                    f"Call-ID: {invite['call-id']}",
                    f"CSeq: {self.cseq} {method}",
                    f"Contact: <{self.phone.contact_uri}>",
                    *(f"Route: {value}" for value in invite.all("record-route")),
                    *(["Content-Type: application/sdp"] if body else []),
                    f"Content-Length: {len(body)}",
                    "",
                    body,
                ]
            )
        )

    async def hang_up(self) -> Msg:
        """BYE, and its answer."""
        return await self.request("BYE")

    async def cancelled(self) -> Msg:
        """The CANCEL: 200 to it, 487 to the INVITE, and its ACK has come."""
        cancel = await self.expect("CANCEL")
        self.reply(200, request=cancel)
        await self.refuse(487)
        return cancel


_CHALLENGES = {
    401: ("www-authenticate", "Authorization"),
    407: ("proxy-authenticate", "Proxy-Authorization"),
}


def _challenge(response: Msg, header: str) -> str:
    """The challenge to answer, of those in ``header``: the topmost, as RFC 8760 §2.4 says."""
    value = response[header]
    assert value.startswith("Digest "), f"{response} carries no challenge in {header}"
    return value
