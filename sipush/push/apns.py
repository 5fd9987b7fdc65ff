"""Apple Push Notification service: token authentication over HTTP/2, with aioapns' pool."""

from __future__ import annotations

import asyncio
import json
import random
import re
import ssl
import uuid
from functools import lru_cache
from typing import cast

from aioapns.connection import APNsKeyConnectionPool, JWTAuthorizationHeaderProvider
from aioapns.exceptions import ConnectionError as ApnsConnectionError

from sipush.config import ApnsConfig
from sipush.core.push_payload import ApnsPush, PayloadTooLargeError, Profile, apns_push
from sipush.core.push_request import PushKind, PushOutcome, PushRequest, PushResult
from sipush.push.apns_connection import Answer, ApnsConnection, StreamLostError
from sipush.push.http_client import CONNECT_TIMEOUT, distrusted, retry_after, word

PRODUCTION = "api.push.apple.com"
SANDBOX = "api.sandbox.push.apple.com"
_TOKEN = re.compile(r"[0-9A-Fa-f]{1,200}")
"It becomes part of the path, and whoever registers chooses it."
_BAD_TOKEN = "BadDeviceToken"
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


REFUSED_PAUSES = (0.05, 0.2)
"Seconds before a push that was refused or overtaken by a GOAWAY is sent again, more or less."


class ApnsProvider:
    """One app's way to APNs. Connections and their token are kept for as long as Apple allows."""

    name = "apns"
    max_in_flight = 50
    "A thousand at once would stall the event loop, and SIP with it, for over half a second."
    retry_delays: tuple[float, ...] = (0.2,)

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

    async def send(self, request: PushRequest) -> PushOutcome:
        """Deliver one push; a token foreign to the environment is tried in the other one."""
        try:
            push = apns_push(self._profile, request)
        except PayloadTooLargeError:
            return PushOutcome(PushResult.BAD_REQUEST, "PayloadTooLarge")
        if push is None:
            return PushOutcome(PushResult.BAD_REQUEST, "NothingToSend")
        if not _TOKEN.fullmatch(push.token):
            return PushOutcome(PushResult.BAD_REQUEST, _BAD_TOKEN)
        outcome = await self._send_to(self._servers[0], push, request)
        if outcome.reason != _BAD_TOKEN or len(self._servers) == 1:
            return outcome
        other = await self._send_to(self._servers[1], push, request)
        if other.reason == _BAD_TOKEN:
            return PushOutcome(PushResult.TOKEN_DEAD, _BAD_TOKEN, other.status)
        return other if other.result is PushResult.ACCEPTED else outcome

    async def close(self) -> None:
        """Close every connection."""
        for pool in self._pools.values():
            pool.close()

    async def _send_to(self, server: str, push: ApnsPush, request: PushRequest) -> PushOutcome:
        """Ask anew for what the service has not even looked at: that repeats nothing."""
        for pause in REFUSED_PAUSES:
            try:
                return await self._ask(server, push, request)
            except StreamLostError as error:
                if not error.unprocessed:
                    return PushOutcome(PushResult.RETRYABLE, str(error))
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
        try:
            return await self._ask(server, push, request)
        except StreamLostError as error:
            return PushOutcome(PushResult.RETRYABLE, str(error))

    async def _ask(self, server: str, push: ApnsPush, request: PushRequest) -> PushOutcome:
        """Raises StreamLostError."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                connection = await self._connection(server)
        except TimeoutError:
            return PushOutcome(PushResult.RETRYABLE, "connect timed out")
        except ApnsConnectionError as error:
            if distrusted(error):
                return PushOutcome(PushResult.CONFIG, "certificate not trusted")
            return PushOutcome(PushResult.RETRYABLE, "cannot connect")
        answer = await connection.post(self._headers(server, push, request), push.payload)
        return classify(answer, request.record.updated_epoch)

    async def _connection(self, server: str) -> ApnsConnection:
        pool = self._pools.get(server)
        if pool is None:
            pool = self._pools[server] = self._new_pool(server)
        connections = cast(list[ApnsConnection], pool.connections)
        connections[:] = [c for c in connections if not c.closed]
        return cast(ApnsConnection, await pool.acquire())

    def _new_pool(self, server: str) -> APNsKeyConnectionPool:
        host, port = host_and_port(server)
        pool = APNsKeyConnectionPool(
            key=self._key,
            key_id=self._config.key_id,
            team_id=self._config.team_id,
            topic=self._bundle_id,
            max_connections=4,
            max_connection_attempts=1,
            ssl_context=self._tls,
        )
        pool.protocol_class = type(
            "ApnsConnection", (ApnsConnection,), {"APNS_SERVER": host, "APNS_PORT": port}
        )
        return pool

    def _authorization(self) -> str:
        provider = _token_provider(self._key, self._config.key_id, self._config.team_id)
        header: str = provider.get_header()  # type: ignore[no-untyped-call]
        return header

    def _headers(self, server: str, push: ApnsPush, request: PushRequest) -> list[tuple[str, str]]:
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


def classify(answer: Answer, registered_epoch: float) -> PushOutcome:
    """What APNs' answer means, the device having last registered at ``registered_epoch``."""
    reason, dead_since = _body(answer.body)
    result = _result(answer.status, reason)
    if answer.status == 410 and (dead_since is None or dead_since <= registered_epoch):
        result = PushResult.BAD_REQUEST  # the device has registered this token again since
    return PushOutcome(
        result,
        reason,
        answer.status,
        retry_after=retry_after(answer.retry_after),
        dead_since_epoch=dead_since if answer.status == 410 else None,
    )


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
        case _:
            return PushResult.RETRYABLE if status >= 500 else PushResult.BAD_REQUEST


def _body(body: bytes) -> tuple[str, float | None]:
    """Reason and, in UNIX seconds, timestamp of an answer."""
    try:
        fields = json.loads(body)
        reason, milliseconds = fields.get("reason"), fields.get("timestamp")
    except (ValueError, AttributeError):
        return "", None
    since = milliseconds / 1000 if isinstance(milliseconds, int | float) else None
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


@lru_cache(maxsize=64)
def _token_provider(key: str, key_id: str, team_id: str) -> JWTAuthorizationHeaderProvider:
    """One token per team and key, however many apps, connections and reloads share it: Apple
    refuses teams that renew theirs more often than every 20 minutes. Renewed every 30."""
    return JWTAuthorizationHeaderProvider(key=key, key_id=key_id, team_id=team_id)
