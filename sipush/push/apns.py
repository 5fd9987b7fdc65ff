"""Apple Push Notification service: token authentication over HTTP/2, with aioapns' pool."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
import uuid
from collections.abc import Callable
from functools import lru_cache
from typing import cast

from aioapns.connection import APNsKeyConnectionPool, JWTAuthorizationHeaderProvider
from aioapns.exceptions import ConnectionError as ApnsConnectionError

from sipush.config import ApnsConfig
from sipush.core.push_payload import ApnsPush, Profile, apns_push
from sipush.core.push_request import NOTHING_TO_SEND, PushKind, PushOutcome, PushRequest, PushResult
from sipush.push.http2 import MAX_CONNECTIONS, Header, Http2Client, Http2Connection
from sipush.push.http_client import Answer, retry_after, word
from sipush.push.provider import Begin

PRODUCTION = "api.push.apple.com"
SANDBOX = "api.sandbox.push.apple.com"
_TOKEN = re.compile(r"[0-9A-Fa-f]{1,200}")
"It becomes part of the path, and whoever registers chooses it."
_BAD_TOKEN = "BadDeviceToken"
CLOCK_STEP = 60.0
"Seconds by which no clock goes back that is only being kept right."
_CONFIG_REASONS = frozenset(
    {
        "BadCertificate",
        "BadCertificateEnvironment",
        "BadTopic",
        "DeviceTokenNotForTopic",
        "InvalidPushType",
        "MissingTopic",
        "TopicDisallowed",
        "UnrelatedKeyIdInToken",
    }
)
"Reasons of a 400 that speak of our settings, not of this push."


class ApnsProvider:
    """One app's way to APNs. Connections and their token are kept for as long as Apple allows."""

    name = "apns"
    max_in_flight = 50
    "A thousand at once would stall the event loop, and SIP with it, for over half a second."
    retry_delays: tuple[float, ...] = (0.2, 1.0, 2.0, 4.0)
    knows_repeats = False

    def __init__(
        self,
        config: ApnsConfig,
        *,
        bundle_id: str,
        key: str,
        profile: Profile,
        tls: ssl.SSLContext,
        servers: tuple[str, ...] = (),
    ) -> None:
        """``key`` is the PEM text. ``servers``: host:port of the environment and of the other one;
        empty for Apple's, or for ``config.server`` alone."""
        self._config = config
        self._bundle_id = bundle_id
        self._key = key
        self._profile = profile
        self._tls = tls
        self._servers = servers or _servers(config)
        self._pools: dict[str, APNsKeyConnectionPool] = {}
        self._clients: dict[str, Http2Client] = {}

    async def send(self, request: PushRequest, begin: Begin | None = None) -> PushOutcome:
        """Deliver one push; a token foreign to the environment is tried in the other one."""
        push = apns_push(self._profile, request)
        if push is None:
            return PushOutcome(PushResult.BAD_REQUEST, NOTHING_TO_SEND)
        if not _TOKEN.fullmatch(push.token):
            return PushOutcome(PushResult.BAD_REQUEST, "the device-uid is no APNs token")
        outcome = await self._send_to(self._servers[0], push, request, begin)
        if outcome.result is not PushResult.TOKEN_REFUSED or len(self._servers) == 1:
            return outcome
        other = await self._send_to(self._servers[1], push, request, begin)
        return outcome if other.result is PushResult.CONFIG else other

    async def close(self) -> None:
        """Close every connection."""
        for pool in self._pools.values():
            pool.close()

    async def _send_to(
        self, server: str, push: ApnsPush, request: PushRequest, begin: Begin | None
    ) -> PushOutcome:
        headers = self._headers(server, push, request)
        answer = await self._client(server).post(headers, push.payload, push.token, begin)
        if isinstance(answer, PushOutcome):
            return answer
        return classify(answer, request.record.updated_epoch)

    def _client(self, server: str) -> Http2Client:
        client = self._clients.get(server)
        if client is None:
            pool = self._pools[server] = self._new_pool(server)
            client = self._clients[server] = Http2Client(_Connections(pool))
        return client

    def _new_pool(self, server: str) -> APNsKeyConnectionPool:
        host, port = host_and_port(server)
        pool = APNsKeyConnectionPool(
            key=self._key,
            key_id=self._config.key_id,
            team_id=self._config.team_id,
            topic=self._bundle_id,
            max_connections=MAX_CONNECTIONS,
            max_connection_attempts=1,
            ssl_context=self._tls,
        )
        pool.protocol_class = type(
            "ApnsConnection", (ApnsConnection,), {"APNS_SERVER": host, "APNS_PORT": port}
        )
        return pool

    def _authorization(self) -> str:
        return _team_token(self._key, self._config.key_id, self._config.team_id).get_header()

    def _headers(self, server: str, push: ApnsPush, request: PushRequest) -> list[Header]:
        headers = [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", server),
            (":path", f"/3/device/{push.token}"),
            ("authorization", self._authorization()),
            ("apns-id", _apns_id(request)),
            ("apns-topic", f"{self._bundle_id}.voip" if push.voip else self._bundle_id),
            ("apns-push-type", "voip" if push.voip else "alert"),
            ("apns-priority", "10"),
            ("apns-expiration", str(max(0, int(request.deadline_epoch)))),
        ]
        if not push.voip:  # a repeated alert replaces the first
            headers.append(("apns-collapse-id", request.push_id[:64]))
        return headers


class ApnsConnection(Http2Connection):
    """A connection as aioapns' pool expects it: constructor, ``is_busy``, ``close``."""

    APNS_SERVER = ""
    APNS_PORT = 443

    def __init__(
        self,
        topic: str,
        loop: asyncio.AbstractEventLoop,
        on_connection_lost: Callable[[Http2Connection], None],
        auth_provider: object,
    ) -> None:
        super().__init__(loop, on_connection_lost)


class _Connections:
    """aioapns' pool as ``Http2Client`` wants it."""

    def __init__(self, pool: APNsKeyConnectionPool) -> None:
        self._pool = pool

    async def acquire(self) -> ApnsConnection:
        """One that others use too. Raises OSError."""
        connections = cast(list[ApnsConnection], self._pool.connections)
        connections[:] = [each for each in connections if not each.closed]
        try:
            return cast(ApnsConnection, await self._pool.acquire())
        except ApnsConnectionError as error:
            raise OSError("cannot connect") from error

    async def connect(self) -> ApnsConnection:
        """A new one, which nobody else will use. Raises OSError."""
        return cast(ApnsConnection, await self._pool.create_connection())


def classify(answer: Answer, registered_epoch: float) -> PushOutcome:
    """What APNs' answer means, the device having last registered at ``registered_epoch``."""
    reason, dead_since = _body(answer.body)
    result = _result(answer.status, reason)
    if answer.status == 410 and (dead_since is None or dead_since <= registered_epoch):
        result = PushResult.BAD_REQUEST  # the device has registered this token again since
    return PushOutcome(result, reason, answer.status, retry_after(answer.retry_after))


def _result(status: int, reason: str) -> PushResult:
    match status:
        case 200:
            return PushResult.ACCEPTED
        case 410:
            return PushResult.TOKEN_DEAD
        case 429:
            return PushResult.THROTTLED
        case 403 | 404 | 405:
            return PushResult.CONFIG
        case 400 if reason in _CONFIG_REASONS:
            return PushResult.CONFIG
        case 400 if reason == _BAD_TOKEN:
            return PushResult.TOKEN_REFUSED
        case _:
            return PushResult.RETRYABLE if status >= 500 else PushResult.BAD_REQUEST


def _body(body: bytes) -> tuple[str, float | None]:
    """Reason and, in UNIX seconds, timestamp of an answer."""
    try:
        fields = json.loads(body)
        reason, milliseconds = fields.get("reason"), fields.get("timestamp")
        since = float(milliseconds) / 1000 if isinstance(milliseconds, int | float) else None
    except (ValueError, AttributeError, OverflowError, RecursionError):
        return "", None
    return word(reason), since


def _apns_id(request: PushRequest) -> str:
    """The same for every try of one push; the call's own UUID for calls."""
    if request.kind is PushKind.CALL:
        return request.push_id
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{request.record.device}#{request.push_id}"))


def _servers(config: ApnsConfig) -> tuple[str, ...]:
    if config.server:
        return (config.server,)
    return (PRODUCTION, SANDBOX) if config.environment == "production" else (SANDBOX, PRODUCTION)


def host_and_port(server: str) -> tuple[str, int]:
    """The two halves of host[:port], IPv6 in brackets. Raises ValueError."""
    host, colon, port = server.rpartition(":")
    if not colon or server.endswith("]"):
        return server.strip("[]"), 443
    return host.strip("[]"), int(port)


class _TeamToken(JWTAuthorizationHeaderProvider):
    """Made anew every 30 minutes, and when the clock was put back: it would be of the future."""

    _used_at = 0.0

    def get_header(self) -> str:
        now = time.time()
        if now < self._used_at - CLOCK_STEP:
            super().__init__(self.key, self.key_id, self.team_id)
        self._used_at = now
        header: str = super().get_header()  # type: ignore[no-untyped-call]
        return header


@lru_cache(maxsize=64)
def _team_token(key: str, key_id: str, team_id: str) -> _TeamToken:
    """One token per team and key, however many apps, connections and reloads share it: Apple
    refuses teams that renew theirs more often than every 20 minutes."""
    return _TeamToken(key=key, key_id=key_id, team_id=team_id)
