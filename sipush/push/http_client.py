"""What all push services have in common as HTTP servers: TLS, always verified, and Retry-After."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from sipush.core.push_request import PushOutcome, PushResult
from sipush.push.provider import Begin, begin_now

CONNECT_TIMEOUT = 4.0
"Seconds until a connection must be open; a stalled handshake must not cost the call."
BODY_LIMIT = 8192
"Bytes of an answer's body that are kept."
BODY_TIME = 1.0
"Seconds that it may take."


@dataclass(frozen=True, slots=True)
class Answer:
    """What the service said."""

    status: int
    body: bytes
    retry_after: str


class Http1Client:
    """Posts over HTTP/1.1: to whom HTTP/2 is not asked for, or who does not speak it."""

    def __init__(self, tls: ssl.SSLContext, answer_timeout: float | None = None) -> None:
        self._client = httpx.AsyncClient(
            verify=tls,
            follow_redirects=False,
            trust_env=False,
            timeout=httpx.Timeout(answer_timeout, connect=CONNECT_TIMEOUT),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        )

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, begin: Begin | None = None
    ) -> Answer | PushOutcome:
        """The answer, or why there is none. Raises WithdrawnError."""

        async def trace(step: str, _: object) -> None:
            if step == "http11.send_request_headers.started":  # the connection is open
                await begin_now(begin)  # httpx sends in a later turn

        post = partial(self._client.stream, "POST", url, extensions={"trace": trace})
        try:
            async with post(content=body, headers=headers) as response:
                start = await _start_of_body(response)
                wait = response.headers.get("retry-after", "")
                return Answer(response.status_code, start, wait)
        except httpx.HTTPError as error:
            if distrusted(error):
                return PushOutcome(PushResult.CONFIG, "certificate not trusted")
            has_left = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            return PushOutcome(PushResult.RETRYABLE, type(error).__name__, has_left=has_left)

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()


async def _start_of_body(response: httpx.Response) -> bytes:
    """As much as came in time: the status has told nearly all we ask."""
    start = bytearray()
    with suppress(httpx.HTTPError, TimeoutError):
        async with asyncio.timeout(BODY_TIME):
            async for part in response.aiter_bytes():
                start += part
                if len(start) > BODY_LIMIT:
                    break
    return bytes(start[:BODY_LIMIT])


def client_context(ca_file: Path | None, *alpn: str) -> ssl.SSLContext:
    """A context that trusts ``ca_file`` instead of the system's CAs. Raises OSError."""
    context = ssl.create_default_context(cafile=ca_file)
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


def distrusted(error: BaseException | None) -> bool:
    """Whether the peer's certificate was the reason, anywhere down the chain of errors."""
    seen: set[int] = set()
    queue: list[object] = [error]
    while queue:
        cause = queue.pop()
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        seen.add(id(cause))
        queue += [cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args]
    return False


def retry_after(value: str) -> float:
    """Seconds a ``Retry-After`` asks for; 0 when it has none or is a date."""
    return float(value) if re.fullmatch(r"\d{1,6}", value) else 0.0


def word(value: object) -> str:
    """A service's reason, fit for a log: a single word, or nothing."""
    return value[:64] if isinstance(value, str) and re.fullmatch(r"\w{1,200}", value) else ""
