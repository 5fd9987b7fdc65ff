"""The webhook ``call.mobile_push_wakeup``: the app's operator wakes the device."""

from __future__ import annotations

import hashlib
import hmac
import ssl
import time
import uuid
from collections.abc import Callable

from sipush.config import WebhookConfig
from sipush.core.push_payload import webhook_event
from sipush.core.push_request import PushOutcome, PushRequest, PushResult
from sipush.push.http_client import Answer, Http1Client, retry_after
from sipush.push.provider import Begin

SIGNATURE_HEADER = "X-Sipush-Signature"
ANSWER_TIMEOUT = 5.0
"Seconds until a receiver must have answered; the same event is then sent again."


class WebhookProvider:
    """One app's operator. An event keeps its ``id`` however often it is sent."""

    name = "webhook"
    max_in_flight = 50
    retry_delays: tuple[float, ...] = (0.5, 1, 2, 4, 8)
    knows_repeats = True

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
        self._client = Http1Client(tls, ANSWER_TIMEOUT)

    async def send(self, request: PushRequest, begin: Begin | None = None) -> PushOutcome:
        """Deliver one event, signed now."""
        body = webhook_event(request, _event_id(request), self._config.account_id)
        headers = {
            "content-type": "application/json",
            SIGNATURE_HEADER: signature(self._secret, int(self._clock()), body),
        }
        answer = await self._client.post(self._config.url, headers, body, begin)
        return answer if isinstance(answer, PushOutcome) else _outcome(answer)

    async def close(self) -> None:
        """Close connections."""
        await self._client.close()


def signature(secret: bytes, timestamp: int, body: bytes) -> str:
    """``t=<unix>,v1=<hex>``: HMAC-SHA256 over ``<t>.<body>``."""
    mac = hmac.new(secret, f"{timestamp}.".encode() + body, hashlib.sha256)
    return f"t={timestamp},v1={mac.hexdigest()}"


def _event_id(request: PushRequest) -> str:
    name = f"{request.kind.value}#{request.push_id}#{request.record.aor}#{request.record.device}"
    return f"evt_{uuid.uuid5(uuid.NAMESPACE_URL, name).hex}"


def _outcome(answer: Answer) -> PushOutcome:
    wait = retry_after(answer.retry_after)
    return PushOutcome(_result(answer.status), status=answer.status, retry_after=wait)


def _result(status: int) -> PushResult:
    if 200 <= status < 300:
        return PushResult.ACCEPTED
    if status in (408, 425) or status >= 500:
        return PushResult.RETRYABLE
    if status == 429:
        return PushResult.THROTTLED
    return PushResult.BAD_REQUEST if status in (400, 413, 422) else PushResult.CONFIG
