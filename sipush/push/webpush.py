"""Web Push (RFC 8030): encrypted for one browser (RFC 8291), signed for its service (RFC 8292)."""

from __future__ import annotations

import json
import ssl
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from sipush.config import WebpushConfig
from sipush.core.push_payload import Profile, web_push_message
from sipush.core.push_request import NOTHING_TO_SEND, PushKind, PushOutcome, PushRequest, PushResult
from sipush.core.web_push import read_subscription
from sipush.push.http2 import HttpsServer
from sipush.push.http_client import Answer, retry_after, word
from sipush.push.message_encryption import encrypt, point
from sipush.push.provider import Begin

MAX_TTL = 28 * 86400
"What the strictest of the services, Google's, takes."
TOKEN_LIFETIME = 12 * 3600
"Seconds; RFC 8292 §2 allows twice as much."
TOKEN_RENEWAL = 3600
"Seconds before its end that a token is made anew: the service's clock is not ours."
MAX_SERVERS = 64
"Push services that are remembered: a ``*`` in ``hosts`` may stand for any number."


class WebpushProvider:
    """One app's way to the browsers of its users."""

    name = "webpush"
    max_in_flight = 50
    retry_delays: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    knows_repeats = False

    def __init__(
        self,
        config: WebpushConfig,
        *,
        key: ec.EllipticCurvePrivateKey,
        profile: Profile,
        tls: ssl.SSLContext,
        clock: Callable[[], float] = time.time,
    ) -> None:
        public_key = urlsafe_b64encode(point(key.public_key()))
        self.application_server_key = public_key.decode().rstrip("=")
        "What the page gives to ``pushManager.subscribe``."
        self._config = config
        self._key = key
        self._profile = profile
        self._tls = tls
        self._clock = clock
        self._servers: dict[str, _Server] = {}
        "By origin, the one used last at the end."

    async def send(self, request: PushRequest, begin: Begin | None = None) -> PushOutcome:
        """Deliver one push message; without keys one that carries nothing."""
        record, message = request.record, web_push_message(self._profile, request)
        try:
            # Anew each time: the operator may have taken a host out of the configuration.
            to = read_subscription(record.call_token, record.extra, self._config.hosts)
            body = encrypt(message, to.p256dh, to.auth) if to.p256dh else b""
        except ValueError:  # UnusableSubscriptionError is one, like a key that is no point
            return PushOutcome(PushResult.BAD_REQUEST, "UnusableSubscription")
        # The page takes a push that carries nothing for a call or a message.
        if not body and request.kind not in (PushKind.CALL, PushKind.MESSAGE):
            return PushOutcome(PushResult.BAD_REQUEST, NOTHING_TO_SEND)
        server = await self._server(to.origin)
        headers = self._headers(server, request)
        if body:
            headers |= {
                "content-encoding": "aes128gcm",
                "content-type": "application/octet-stream",
            }
        answer = await server.https.post(to.path, headers, body, record.call_token, begin)
        return answer if isinstance(answer, PushOutcome) else classify(answer)

    async def close(self) -> None:
        """Close every connection."""
        for server in self._servers.values():
            await server.https.close()

    def _headers(self, server: _Server, request: PushRequest) -> dict[str, str]:
        now = self._clock()
        left = server.token_expires_at - now
        if not TOKEN_RENEWAL <= left <= TOKEN_LIFETIME:  # more: the clock has been put back
            server.token_expires_at = now + TOKEN_LIFETIME
            token = vapid_token(
                self._key, server.origin, int(server.token_expires_at), self._config.subject
            )
            server.authorization = f"vapid t={token}, k={self.application_server_key}"
        # Microsoft's takes no 0 unless a header of its own says so too.
        rest = min(max(1.0, request.deadline_epoch - now), MAX_TTL)
        return {
            "authorization": server.authorization,
            "ttl": str(int(rest)),
            "urgency": "high",
            # A later push of the same call replaces this one: the 32 hex digits of its UUID.
            "topic": request.push_id.replace("-", ""),
        }

    async def _server(self, origin: str) -> _Server:
        server = self._servers.pop(origin, None) or _Server(origin, HttpsServer(origin, self._tls))
        self._servers[origin] = server
        if len(self._servers) > MAX_SERVERS:
            await self._servers.pop(next(iter(self._servers))).https.close()
        return server


@dataclass(slots=True)
class _Server:
    origin: str
    https: HttpsServer
    authorization: str = ""
    token_expires_at: float = 0.0


def vapid_token(key: ec.EllipticCurvePrivateKey, origin: str, expires: int, subject: str) -> str:
    """Who we are, for one push service (RFC 8292 §2)."""
    return jwt.encode({"aud": origin, "exp": expires, "sub": subject}, key, "ES256")


def classify(answer: Answer) -> PushOutcome:
    """What a push service's answer means."""
    wait = retry_after(answer.retry_after)
    return PushOutcome(_result(answer.status), _reason(answer.body), answer.status, wait)


def _result(status: int) -> PushResult:
    if 200 <= status < 300:  # 202: a receipt was asked for, in vain (RFC 8030 §5.1)
        return PushResult.ACCEPTED
    if status >= 500:
        return PushResult.RETRYABLE
    match status:
        case 404 | 410:
            return PushResult.TOKEN_DEAD
        case 429 | 406:  # the latter is Microsoft's
            return PushResult.THROTTLED
        case 401 | 403:
            return PushResult.CONFIG
        case _:
            return PushResult.BAD_REQUEST


def _reason(body: bytes) -> str:
    """As Apple tells it."""
    try:
        return word(json.loads(body)["reason"])
    except (ValueError, LookupError, TypeError):
        return ""
