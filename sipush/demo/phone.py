"""A small SIP phone over TCP: enough to show a call, nothing to depend on.

``python -m sipush.demo.phone`` runs one as a process of its own, so that it can really be killed;
it takes its settings as JSON on stdin and tells what happens as JSON lines on stdout.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from sipush.errors import MessageError
from sipush.sip.digest import Algorithm, Credentials, compute_ha1, compute_response
from sipush.sip.fields import parse_name_addr
from sipush.sip.framing import KeepAlive, StreamFramer
from sipush.sip.grammar import parse_params, split_outside, unquote_string
from sipush.sip.headers import Headers
from sipush.sip.message import BRANCH_COOKIE, Request, Response, make_response
from sipush.sip.status import Status

SDP = (
    b"v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=sipush demo\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    b"m=audio 40000 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n"
)


@dataclass(frozen=True, slots=True)
class Account:
    """Who the phone is, and its server."""

    user: str
    domain: str
    password: str
    server_port: int
    "On 127.0.0.1."
    push_header: str = ""
    "The X-Push value it registers with, or empty."

    @property
    def aor(self) -> str:
        """``user@domain``."""
        return f"{self.user}@{self.domain}"


@dataclass(frozen=True, slots=True)
class Event:
    """One message the phone sent or received."""

    at_epoch: float
    sent: bool
    name: str
    "Method, or status code and reason phrase."
    method: str
    "Method of the request, or of the request it answers."
    port: int
    "The phone's own."
    push_id: str = ""
    "X-Push-Id of an INVITE."
    authorized: bool = False
    "Whether a request carries credentials."


Report = Callable[[Event], None]


class Phone:
    """One connection to the server. Nobody else may read from it while a method waits."""

    def __init__(
        self, account: Account, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.account = account
        self.report: Report = lambda event: None
        self._reader = reader
        self._writer = writer
        self._port: int = writer.get_extra_info("sockname")[1]
        self._framer = StreamFramer()
        self._received: list[Request | Response] = []
        self._call_id = f"{secrets.token_hex(8)}@127.0.0.1"
        self._tag = secrets.token_hex(4)
        self._cseq = 0

    @classmethod
    async def connect(cls, account: Account, report: Report) -> Phone:
        """Open the connection, from a port of the system's choice."""
        reader, writer = await asyncio.open_connection("127.0.0.1", account.server_port)
        phone = cls(account, reader, writer)
        phone.report = report
        return phone

    async def close(self) -> None:
        """Hang up the connection."""
        self._writer.close()
        await self._writer.wait_closed()

    async def register(self) -> Response:
        """REGISTER with the push header, answering one challenge; the final response."""
        extra = [("Contact", f"<{self._contact}>"), ("Expires", "600")]
        if self.account.push_header:
            extra.append(("X-Push", self.account.push_header))
        uri = f"sip:{self.account.domain}"
        to = f"<sip:{self.account.aor}>"
        return await self._request(self._make("REGISTER", uri, to, extra), "Authorization")

    async def call(self, user: str) -> Response:
        """INVITE, answering one challenge; the final response, acknowledged when it is a 200."""
        uri = f"sip:{user}@{self.account.domain}"
        invite = self._make("INVITE", uri, f"<{uri}>", [("Contact", f"<{self._contact}>")])
        invite.set_body(SDP, "application/sdp")
        final = await self._request(invite, "Proxy-Authorization")
        if final.status == Status.OK:
            self._send(self._in_dialog(final, "ACK"))
        return final

    async def hang_up(self, answer: Response) -> Response:
        """BYE to the call that ``answer`` opened; its final response."""
        self._send(self._in_dialog(answer, "BYE"))
        return await self._final("BYE")

    async def take_call(self) -> None:
        """Wait for an INVITE; ring, answer, and stay until the caller hangs up."""
        invite = await self._requested("INVITE")
        self._answer(invite, Status.RINGING)
        self._answer(invite, Status.OK, SDP)
        await self._requested("ACK")
        self._answer(await self._requested("BYE"), Status.OK)

    # -- messages --

    @property
    def _contact(self) -> str:
        return f"sip:{self.account.user}@127.0.0.1:{self._port};transport=tcp"

    def _make(
        self, method: str, uri: str, to: str, extra: Sequence[tuple[str, str]] = ()
    ) -> Request:
        if method != "ACK":
            self._cseq += 1
        branch = BRANCH_COOKIE + secrets.token_hex(8)
        headers = Headers()
        for name, value in [
            ("Via", f"SIP/2.0/TCP 127.0.0.1:{self._port};branch={branch};rport"),
            ("Max-Forwards", "70"),
            ("From", f'"{self.account.user.title()}" <sip:{self.account.aor}>;tag={self._tag}'),
            ("To", to),
            ("Call-ID", self._call_id),
            ("CSeq", f"{self._cseq} {method}"),
            *extra,
            ("Content-Length", "0"),
        ]:
            headers.append(name, value)
        return Request(method, uri, headers)

    def _in_dialog(self, answer: Response, method: str) -> Request:
        contact = parse_name_addr(answer.headers.values("contact")[0]).uri
        routes = [("Route", value) for value in reversed(answer.headers.values("record-route"))]
        return self._make(method, contact, answer.headers.get("to") or "", routes)

    async def _request(self, request: Request, credentials_header: str) -> Response:
        """Send; on a challenge acknowledge it if need be, and send again with credentials."""
        self._send(request)
        final = await self._final(request.method)
        if final.status not in (Status.UNAUTHORIZED, Status.PROXY_AUTHENTICATION_REQUIRED):
            return final
        if request.method == "INVITE":
            self._send(self._ack_refusal(request, final))
        self._cseq += 1
        again = request.copy()
        via = again.top_via
        via.params["branch"] = BRANCH_COOKIE + secrets.token_hex(8)
        again.headers.set("Via", str(via))
        again.headers.set("CSeq", f"{self._cseq} {request.method}")
        again.headers.append(credentials_header, self._credentials(request, final))
        self._send(again)
        return await self._final(request.method)

    def _ack_refusal(self, invite: Request, final: Response) -> Request:
        """The ACK of a refused INVITE belongs to its transaction (RFC 3261 §17.1.1.3)."""
        ack = self._make("ACK", invite.uri, final.headers.get("to") or "")
        ack.headers.set("Via", invite.headers.get("via") or "")
        return ack

    def _credentials(self, request: Request, refusal: Response) -> str:
        name = "www-authenticate" if request.method == "REGISTER" else "proxy-authenticate"
        _, _, challenge = (refusal.headers.get(name) or "").partition(" ")
        params = parse_params(";".join(split_outside(challenge, ",")))
        given = {key: unquote_string(value or "") for key, value in params.items()}
        algorithm = Algorithm(given.get("algorithm", "MD5"))
        c = Credentials(
            username=self.account.user,
            realm=given["realm"],
            nonce=given["nonce"],
            uri=request.uri,
            response="",
            algorithm=algorithm,
            qop="auth",
            nc="00000001",
            cnonce=secrets.token_hex(8),
        )
        ha1 = compute_ha1(algorithm, c.username, c.realm, self.account.password)
        response = compute_response(c, ha1, request.method)
        return (
            f'Digest username="{c.username}", realm="{c.realm}", nonce="{c.nonce}", '
            f'uri="{c.uri}", response="{response}", algorithm={algorithm.value}, qop=auth, '
            f'nc={c.nc}, cnonce="{c.cnonce}"'
        )

    def _answer(self, request: Request, status: Status, sdp: bytes = b"") -> None:
        response = make_response(request, status, to_tag=self._tag)
        response.headers.extend(request.headers.lines("record-route"))
        response.headers.append("Contact", f"<{self._contact}>")
        if sdp:
            response.set_body(sdp, "application/sdp")
        self._send(response)

    # -- the wire --

    def _send(self, message: Request | Response) -> None:
        self._tell(message, sent=True)
        self._writer.write(message.to_bytes())

    async def _final(self, method: str) -> Response:
        while True:
            message = await self._receive()
            if (
                isinstance(message, Response)
                and message.cseq.method == method
                and message.status >= Status.OK
            ):
                return message

    async def _requested(self, method: str) -> Request:
        while True:
            message = await self._receive()
            if isinstance(message, Request) and message.method == method:
                return message

    async def _receive(self) -> Request | Response:
        """The next message. Raises ConnectionError when the server has gone."""
        while not self._received:
            data = await self._reader.read(65536)
            if not data:
                raise ConnectionError("the server closed the connection")
            for frame in self._framer.feed(data):
                if isinstance(frame, MessageError):
                    raise frame
                if not isinstance(frame, KeepAlive):
                    self._received.append(frame)
                    self._tell(frame, sent=False)
        return self._received.pop(0)

    def _tell(self, message: Request | Response, *, sent: bool) -> None:
        name, push_id, authorized = "", "", False
        match message:
            case Request():
                name = message.method
                push_id = message.headers.get("x-push-id") or ""
                authorized = any("authorization" in header for header, _ in message.headers)
            case Response():
                name = f"{message.status} {message.reason}"
        method = message.cseq.method
        self.report(Event(time.time(), sent, name, method, self._port, push_id, authorized))


async def _run(account: Account) -> None:
    def report(event: Event) -> None:
        print(json.dumps(asdict(event)), flush=True)

    phone = await Phone.connect(account, report)
    await phone.register()
    await phone.take_call()
    await phone.close()


if __name__ == "__main__":
    asyncio.run(_run(Account(**json.loads(sys.stdin.readline()))))
