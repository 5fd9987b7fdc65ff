"""A push service on this machine: APNs, FCM, Web Push and a webhook receiver, which check what they
get.

It speaks the real protocols over TLS, answers what the real services would answer, remembers
every violation, and misbehaves when told to. It runs in a thread of its own, because one of its
clients asks for a token synchronously. ``sipush demo`` and the tests push to it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

from sipush.config import ApnsConfig, AppConfig, FcmConfig, WebhookConfig, WebpushConfig
from sipush.demo.credentials import KEY_ID, PROJECT_ID, TEAM_ID, Credentials
from sipush.demo.http_server import (
    Act,
    HttpReply,
    HttpRequest,
    HttpServer,
    HttpServerOptions,
)
from sipush.demo.push_checks import (
    ApnsChecks,
    FcmChecks,
    Violation,
    WebpushChecks,
    check_webhook,
    read_json,
)

DEFAULT_APP = "com.example.softphone"
SIGNATURE_HEADER = "x-sipush-signature"
ACCESS_TOKEN = "ya29.only-for-tests"
Decrypt = Callable[[bytes], bytes]
_PUSH_RESOURCES = "/wpush/v2/"
_RPC_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


@dataclass(frozen=True, slots=True)
class ReceivedPush:
    """One request that reached the service, good or bad."""

    service: str
    "``apns``, ``fcm``, ``webpush`` or ``webhook``."
    token: str
    "The device's token; for Web Push the endpoint; for a webhook the ``user_id``."
    headers: dict[str, str]
    payload: dict[str, Any]
    "APNs: the body; FCM: ``message``; Web Push: what the browser decrypts; webhook: the event."
    received_epoch: float
    violations: tuple[Violation, ...]
    status: int
    "What it was answered; 0 when it got no answer."

    @property
    def accepted(self) -> bool:
        """Whether the device will be woken."""
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Misbehaviour:
    """How requests for one token are treated."""

    status: int = 200
    reason: str = ""
    "APNs ``reason``; FCM ``errorCode``."
    timestamp: float | None = None
    "APNs 410: UNIX seconds since when the token is dead."
    fcm_detail: bool = True
    "Whether an FCM error carries an ``FcmError`` detail."
    field: str = ""
    "What an FCM error complains of (``message.token``), in a ``BadRequest`` detail."
    with_body: bool = True
    retry_after: str = ""
    act: Act = Act.ANSWER
    delay: float = 0.0
    split: bool = False
    times: int | None = None
    "How many requests it lasts for; None: all."


@dataclass(slots=True)
class ServiceOptions:
    """How the service as a whole behaves; may be changed while it runs."""

    http: HttpServerOptions = field(default_factory=HttpServerOptions)
    token_delay: float = 0.0
    "Seconds the OAuth endpoint thinks."
    token_status: int = 200
    token_lifetime: int = 3599
    "Seconds; clients think of a new one 225 s earlier."


class PushService:
    """The service. ``with PushService(credentials) as service: … await service.next_push()``."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        app_ids: tuple[str, ...] = (DEFAULT_APP,),
        on_push: Callable[[ReceivedPush], None] | None = None,
    ) -> None:
        """``on_push`` is called in the service's own thread."""
        self.credentials = credentials
        self.options = ServiceOptions()
        self.pushes: list[ReceivedPush] = []
        "Everything received, in order."
        self.violations: list[str] = []
        self.tokens_issued = 0
        "OAuth access tokens handed out."
        self.port = 0
        self._app_ids = app_ids
        self._on_push = on_push
        self._misbehaviours: dict[str, Misbehaviour] = {}
        self._browsers: dict[str, Decrypt] = {}
        "By endpoint."
        self._lock = threading.Lock()
        self._unread: deque[ReceivedPush] = deque()
        self._readers: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="push-service", daemon=True)
        self._message_ids = itertools.count(1)

    # Life

    def start(self) -> None:
        """Listen on a free port of 127.0.0.1."""
        self._apns = ApnsChecks(self.credentials, set(self._app_ids))
        self._fcm = FcmChecks(self.credentials, ACCESS_TOKEN)
        self._secret = self.credentials.webhook_secret_file.read_bytes().splitlines()[0]
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(self.credentials.certificate_file, self.credentials.private_key_file)
        tls.set_alpn_protocols(["h2", "http/1.1"])
        self._server = HttpServer(tls, self._handle, self._complain, self.options.http)
        self._thread.start()
        listening = asyncio.run_coroutine_threadsafe(self._server.start("127.0.0.1", 0), self._loop)
        self.port = listening.result(10)
        self._webpush = WebpushChecks(self.credentials.application_server_key, self.url)
        self.credentials.write_service_account(self.token_uri)

    def stop(self) -> None:
        """Cut every connection and end the thread."""
        asyncio.run_coroutine_threadsafe(self._server.close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __enter__(self) -> PushService:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    # For clients

    @property
    def address(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """https://host:port."""
        return f"https://{self.address}"

    @property
    def token_uri(self) -> str:
        """The OAuth endpoint."""
        return f"{self.url}/token"

    @property
    def connections_accepted(self) -> int:
        """TCP connections so far."""
        return self._server.connections_accepted

    def apns_config(self) -> ApnsConfig:
        """``[apps."…".apns]`` for this service."""
        return ApnsConfig(
            key_file=self.credentials.apns_key_file,
            key_id=KEY_ID,
            team_id=TEAM_ID,
            server=self.address,
            ca_file=self.credentials.ca_file,
        )

    def fcm_config(self) -> FcmConfig:
        """``[apps."…".fcm]`` for this service."""
        return FcmConfig(
            service_account_file=self.credentials.service_account_file,
            server=self.url,
            ca_file=self.credentials.ca_file,
        )

    def webpush_config(self) -> WebpushConfig:
        """``[apps."…".webpush]`` for this service."""
        return WebpushConfig(
            key_file=self.credentials.vapid_key_file,
            subject="mailto:ops@example.com",
            hosts=[self.address],
            ca_file=self.credentials.ca_file,
        )

    def webhook_config(self) -> WebhookConfig:
        """``[apps."…".webhook]`` for this service."""
        return WebhookConfig(
            url=f"{self.url}/webhook",
            secret_file=self.credentials.webhook_secret_file,
            account_id="acct_demo",
            ca_file=self.credentials.ca_file,
        )

    def app_config(self, *, webhook: bool = False) -> AppConfig:
        """One app that pushes to this service by APNs, FCM and Web Push, and others by webhook."""
        return AppConfig(
            apns=self.apns_config(),
            fcm=self.fcm_config(),
            webpush=self.webpush_config(),
            webhook=self.webhook_config() if webhook else None,
        )

    # For scripts

    def subscribe(self, name: str, decrypt: Decrypt) -> str:
        """The endpoint of a browser's new subscription (RFC 8030 §4).

        It is given every body pushed there, and raises ValueError when that was not for it.
        """
        endpoint = f"{self.url}{_PUSH_RESOURCES}{name}"
        with self._lock:
            self._browsers[endpoint] = decrypt
        return endpoint

    def misbehave(self, token: str, misbehaviour: Misbehaviour) -> None:
        """Treat requests for this token so from now on."""
        with self._lock:
            self._misbehaviours[token] = misbehaviour

    def pushes_to(self, token: str) -> list[ReceivedPush]:
        """Everything received for one token, in order."""
        with self._lock:
            return [push for push in self.pushes if push.token == token]

    async def next_push(self, within: float = 10.0) -> ReceivedPush:
        """The next push nobody has taken yet. Raises TimeoutError."""
        arrived = asyncio.Event()
        reader = (asyncio.get_running_loop(), arrived)
        async with asyncio.timeout(within):
            with self._lock:
                self._readers.append(reader)
            try:
                while (push := self._take()) is None:
                    await arrived.wait()
                    arrived.clear()
            finally:
                with self._lock:
                    self._readers.remove(reader)
        return push

    def _take(self) -> ReceivedPush | None:
        with self._lock:
            return self._unread.popleft() if self._unread else None

    # The service's own thread

    def _handle(self, request: HttpRequest) -> HttpReply:
        if request.path.startswith("/3/device/"):
            return self._handle_apns(request)
        if request.path == "/token":
            return self._handle_token(request)
        if request.path.startswith("/v1/projects/"):
            return self._handle_fcm(request)
        if request.path.startswith(_PUSH_RESOURCES):
            return self._handle_webpush(request)
        if request.path == "/webhook":
            return self._handle_webhook(request)
        self._complain(f"unknown path {request.path}")
        return HttpReply(404)

    def _handle_apns(self, request: HttpRequest) -> HttpReply:
        token = request.path.rpartition("/")[2]
        violations, payload = self._apns.check(request), read_json(request.body)
        answer = self._answer("apns", token, request, payload=payload, violations=violations)
        body = b""
        if answer.status != 200 and answer.with_body:
            fields: dict[str, Any] = {"reason": answer.reason}
            if answer.timestamp is not None:
                fields["timestamp"] = int(answer.timestamp * 1000)
            body = json.dumps(fields).encode()
        reply = _reply(answer, body)
        reply.headers["apns-id"] = request.headers.get("apns-id", "")
        authorized = not any(v.status == 403 for v in violations)
        return replace(reply, raise_stream_limit=authorized)

    def _handle_token(self, request: HttpRequest) -> HttpReply:
        violations = self._fcm.check_assertion(request, self.token_uri)
        self._complain_of("token", violations)
        if violations:
            refusal = {"error": violations[0].reason, "error_description": violations[0].detail}
            return HttpReply(400, dict(_JSON), json.dumps(refusal).encode())
        if self.options.token_status != 200:
            body = json.dumps({"error": "unauthorized_client"}).encode()
            return HttpReply(
                self.options.token_status, dict(_JSON), body, delay=self.options.token_delay
            )
        self.tokens_issued += 1
        grant = {
            "access_token": ACCESS_TOKEN,
            "token_type": "Bearer",
            "expires_in": self.options.token_lifetime,
        }
        return HttpReply(
            200, dict(_JSON), json.dumps(grant).encode(), delay=self.options.token_delay
        )

    def _handle_fcm(self, request: HttpRequest) -> HttpReply:
        message = read_json(request.body).get("message", {})
        token = str(message.get("token", ""))
        violations = self._fcm.check(request)
        answer = self._answer("fcm", token, request, payload=message, violations=violations)
        if answer.status == 200:
            name = f"projects/{PROJECT_ID}/messages/{next(self._message_ids)}"
            body = json.dumps({"name": name}).encode()
        else:
            body = _fcm_error(answer)
        reply = _reply(answer, body)
        reply.headers.update(_JSON)
        return reply

    def _handle_webpush(self, request: HttpRequest) -> HttpReply:
        endpoint = f"{self.url}{request.path}"
        with self._lock:
            decrypt = self._browsers.get(endpoint)
        if decrypt is None:  # as one that has expired
            return HttpReply(410)
        violations, payload = self._webpush.check(request), {}
        if request.body:
            try:
                payload = read_json(decrypt(request.body))
            except ValueError as error:
                violations.append(Violation(400, "undecipherable", str(error)))
        answer = self._answer(
            "webpush",
            endpoint,
            request,
            payload=payload,
            violations=violations,
            usual=Misbehaviour(201),
        )
        body = json.dumps({"reason": answer.reason}).encode() if answer.reason else b""
        reply = _reply(answer, body)
        reply.headers["location"] = f"{self.url}/message/{next(self._message_ids)}"
        return reply

    def _handle_webhook(self, request: HttpRequest) -> HttpReply:
        event = read_json(request.body)
        user = str(event.get("data", {}).get("user_id", ""))
        violations = check_webhook(request, self._secret, SIGNATURE_HEADER)
        answer = self._answer("webhook", user, request, payload=event, violations=violations)
        return _reply(answer, b"")

    def _answer(
        self,
        service: str,
        token: str,
        request: HttpRequest,
        *,
        payload: dict[str, Any],
        violations: list[Violation],
        usual: Misbehaviour = Misbehaviour(),
    ) -> Misbehaviour:
        """How a push is treated; it is remembered with all that is wrong with it."""
        answer = self._misbehaviour(token, usual)
        if violations:
            answer = Misbehaviour(violations[0].status, violations[0].reason, fcm_detail=False)
        self._record(
            ReceivedPush(
                service=service,
                token=token,
                headers=request.headers,
                payload=payload,
                received_epoch=time.time(),
                violations=tuple(violations),
                status=answer.status if answer.act in _ANSWERED else 0,
            )
        )
        return answer

    def _misbehaviour(self, token: str, usual: Misbehaviour) -> Misbehaviour:
        with self._lock:
            answer = self._misbehaviours.get(token, usual)
            if answer.times is not None:
                if answer.times <= 1:
                    del self._misbehaviours[token]
                else:
                    self._misbehaviours[token] = replace(answer, times=answer.times - 1)
            return answer

    def _record(self, push: ReceivedPush) -> None:
        self._complain_of(push.service, push.violations)
        with self._lock:
            self.pushes.append(push)
            self._unread.append(push)
            for loop, arrived in self._readers:
                loop.call_soon_threadsafe(arrived.set)
        if self._on_push is not None:
            self._on_push(push)

    def _complain_of(self, service: str, violations: Iterable[Violation]) -> None:
        for violation in violations:
            self._complain(f"{service}: {violation.reason}: {violation.detail}")

    def _complain(self, text: str) -> None:
        with self._lock:
            self.violations.append(text)


_ANSWERED = (Act.ANSWER, Act.GOAWAY_AFTER, Act.ENDLESS, Act.BREAK)
"Acts in which the client gets a status."

_JSON = {"content-type": "application/json; charset=UTF-8"}


def _reply(answer: Misbehaviour, body: bytes) -> HttpReply:
    headers = {"retry-after": answer.retry_after} if answer.retry_after else {}
    return HttpReply(
        answer.status,
        headers,
        body if answer.with_body else b"",
        act=answer.act,
        delay=answer.delay,
        split=answer.split,
    )


def _fcm_error(answer: Misbehaviour) -> bytes:
    error: dict[str, Any] = {
        "code": answer.status,
        "message": "scripted",
        "status": _RPC_STATUS.get(answer.status, "UNKNOWN"),
    }
    if answer.fcm_detail:
        detail = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
        error["details"] = [{"@type": detail, "errorCode": answer.reason}]
    if answer.field:
        violation = {"field": answer.field, "description": "scripted"}
        detail = "type.googleapis.com/google.rpc.BadRequest"
        error.setdefault("details", []).append({"@type": detail, "fieldViolations": [violation]})
    return json.dumps({"error": error}).encode()
