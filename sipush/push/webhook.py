"""The webhook ``call.mobile_push_wakeup``: the app's operator wakes the device."""

from __future__ import annotations

import hashlib
import hmac
import ssl
import time
import uuid
from collections.abc import Callable
from contextlib import suppress

import httpx

from sipush.config import WebhookConfig
from sipush.core.push_payload import webhook_event
from sipush.core.push_request import PushOutcome, PushRequest, PushResult
from sipush.push.http_client import CONNECT_TIMEOUT, distrusted, retry_after

SIGNATURE_HEADER = "X-Sipush-Signature"
ANSWER_TIMEOUT = 5.0
"Seconds until a receiver must have answered; the same event is then sent again."
BODY_LIMIT = 8192
"Bytes of an answer that are worth reading to keep its connection."


class WebhookProvider:
    """One app's operator. An event keeps its ``id`` however often it is sent."""

    name = "webhook"
    max_in_flight = 50
    retry_delays: tuple[float, ...] = (0.5, 1, 2, 4, 8)

    def __init__(
        self,
        config: WebhookConfig,
        *,
        secret: bytes,
        tls: ssl.SSLContext,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._secret = secret
        self._clock = clock
        self._client = httpx.AsyncClient(
            verify=tls,
            follow_redirects=False,
            trust_env=False,
            timeout=httpx.Timeout(ANSWER_TIMEOUT, connect=CONNECT_TIMEOUT),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        )

    async def send(self, request: PushRequest) -> PushOutcome:
        """Deliver one event, signed now."""
        body = webhook_event(request, _event_id(request), self._config.account_id)
        headers = {
            "content-type": "application/json",
            SIGNATURE_HEADER: signature(self._secret, int(self._clock()), body),
        }
        post = self._client.stream("POST", self._config.url, content=body, headers=headers)
        try:
            async with post as response:
                if int(response.headers.get("content-length", BODY_LIMIT)) < BODY_LIMIT:
                    with suppress(httpx.HTTPError):  # the status has told all we ask
                        await response.aread()  # then the connection can serve the next event
                return _outcome(response)
        except httpx.HTTPError as error:
            if distrusted(error):
                return PushOutcome(PushResult.CONFIG, "certificate not trusted")
            return PushOutcome(PushResult.RETRYABLE, type(error).__name__)

    async def close(self) -> None:
        """Close connections."""
        await self._client.aclose()


def signature(secret: bytes, timestamp: int, body: bytes) -> str:
    """``t=<unix>,v1=<hex>``: HMAC-SHA256 over ``<t>.<body>``."""
    mac = hmac.new(secret, f"{timestamp}.".encode() + body, hashlib.sha256)
    return f"t={timestamp},v1={mac.hexdigest()}"


def _event_id(request: PushRequest) -> str:
    name = f"{request.kind.value}#{request.push_id}#{request.record.aor}#{request.record.device}"
    return f"evt_{uuid.uuid5(uuid.NAMESPACE_URL, name).hex}"


def _outcome(response: httpx.Response) -> PushOutcome:
    status = response.status_code
    wait = retry_after(response.headers.get("retry-after", ""))
    return PushOutcome(_result(status), status=status, retry_after=wait)


def _result(status: int) -> PushResult:
    if 200 <= status < 300:
        return PushResult.ACCEPTED
    if status in (408, 425) or status >= 500:
        return PushResult.RETRYABLE
    if status == 429:
        return PushResult.THROTTLED
    return PushResult.BAD_REQUEST if status in (400, 413, 422) else PushResult.CONFIG
