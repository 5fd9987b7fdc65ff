"""Firebase Cloud Messaging, HTTP v1: messages by firebase-admin, sent over HTTP/2 where possible.

Its own ``send`` runs in threads, and its asynchronous one leaks a stream per retry
(docs/decisions/push-clients.md). The access token is fetched here, once for all sends, and retries
are the dispatcher's.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any
from urllib.parse import quote

import requests
from firebase_admin import messaging
from google.auth.credentials import TokenState
from google.auth.exceptions import GoogleAuthError, TransportError
from google.auth.transport.requests import Request as TokenRequest
from google.oauth2 import service_account

from sipush.config import FcmConfig
from sipush.core.push_payload import Profile, fcm_data
from sipush.core.push_request import NOTHING_TO_SEND, PushKind, PushOutcome, PushRequest, PushResult
from sipush.push.http2 import HttpsServer
from sipush.push.http_client import distrusted, retry_after, word
from sipush.push.provider import Begin

TOKEN_TIMEOUT = 10.0
MAX_TTL = 28 * 86400
"What FCM stores a message for at most."

_SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
_SERVER = "https://fcm.googleapis.com"
_FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
_TOKEN_FIELD = "message.token"


class FcmProvider:
    """One app's way to FCM."""

    name = "fcm"
    max_in_flight = 50
    "A thousand at once would stall the event loop, and SIP with it, for over half a second."
    retry_delays: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    knows_repeats = False

    def __init__(
        self,
        config: FcmConfig,
        *,
        account: Mapping[str, Any],
        profile: Profile,
        tls: ssl.SSLContext,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``account`` is the service account as parsed. Raises ValueError when it is unusable."""
        self._config = config
        project = quote(str(account["project_id"]))
        self._profile = profile
        self._clock = clock
        self._account = service_account.Credentials.from_service_account_info(  # type: ignore[no-untyped-call]
            account, scopes=[_SCOPE]
        )
        self._refreshing: asyncio.Task[None] | None = None
        self._path = f"/v1/projects/{project}/messages:send"
        self._server = HttpsServer((config.server or _SERVER).rstrip("/"), tls)

    async def send(self, request: PushRequest, begin: Begin | None = None) -> PushOutcome:
        """Deliver one push."""
        token = request.record.call_token
        if not token:
            return PushOutcome(PushResult.BAD_REQUEST, NOTHING_TO_SEND)
        message = self._message(request)
        try:
            await self._have_access_token()
        except GoogleAuthError as error:
            return _token_refused(error)
        headers = {
            "authorization": f"Bearer {self._account.token}",
            "content-type": "application/json",
        }
        body = f'{{"message": {message}}}'.encode()
        answer = await self._server.post(self._path, headers, body, token, begin)
        if isinstance(answer, PushOutcome):
            return answer
        if answer.status == 401:
            self._account.token = None
        return classify(answer.status, answer.body, answer.retry_after)

    async def close(self) -> None:
        """Close every connection."""
        await self._server.close()

    def _message(self, request: PushRequest) -> messaging.Message:
        rest = min(max(0.0, request.deadline_epoch - self._clock()), MAX_TTL)
        # Google slows down apps whose high-priority messages show the user nothing.
        priority = "normal" if request.kind is PushKind.REFRESH else "high"
        android = messaging.AndroidConfig(priority=priority, ttl=timedelta(seconds=int(rest)))
        return messaging.Message(
            token=request.record.call_token,
            data=fcm_data(self._profile, request),
            android=android,
        )

    async def _have_access_token(self) -> None:
        """One fetch serves everybody who waits, and goes on when one of them is cancelled.

        A token about to expire is still used, so that a token server in trouble costs no call.
        """
        state = self._account.token_state
        if state is TokenState.FRESH:
            return
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(_in_thread(self._fetch_access_token))
            self._refreshing.add_done_callback(self._refreshed)
        if state is TokenState.INVALID:
            await asyncio.shield(self._refreshing)

    def _refreshed(self, task: asyncio.Task[None]) -> None:
        self._refreshing = None
        if not task.cancelled():
            task.exception()  # those who waited have seen it

    def _fetch_access_token(self) -> None:
        with requests.Session() as session:
            if self._config.ca_file is not None:
                session.verify = str(self._config.ca_file)
                session.trust_env = False  # REQUESTS_CA_BUNDLE would win over it
            self._account.refresh(partial(TokenRequest(session), timeout=TOKEN_TIMEOUT))


def classify(status: int, body: bytes, wait: str) -> PushOutcome:
    """What FCM's answer means; ``wait`` is its Retry-After."""
    if status == 200:
        return PushOutcome(PushResult.ACCEPTED, status=200)
    reason, detail, field = _error(body)
    told = f"{detail or reason} {field}".strip()
    return PushOutcome(_result(status, detail, field), told, status, retry_after(wait))


def _result(status: int, detail: str, field: str) -> PushResult:
    """``detail`` is the code of an FcmError: only that speaks of the token."""
    if detail == "UNREGISTERED":
        return PushResult.TOKEN_DEAD
    if status == 400:
        return PushResult.TOKEN_REFUSED if field == _TOKEN_FIELD else PushResult.BAD_REQUEST
    if status == 429 or detail == "QUOTA_EXCEEDED":
        return PushResult.THROTTLED
    return PushResult.RETRYABLE if status >= 500 else PushResult.CONFIG


def _error(body: bytes) -> tuple[str, str, str]:
    """The status, the FcmError code and the field at fault of an error body, empty for none.

    Of a token FCM often says only in words that it is none.
    """
    reason = detail = field = ""
    try:
        error = json.loads(body)["error"]
        reason = word(error.get("status"))
        field = _TOKEN_FIELD if "registration token" in error.get("message", "").lower() else ""
        for each in error.get("details", []):
            if each.get("@type") == _FCM_ERROR:
                detail = word(each.get("errorCode"))
            for violation in each.get("fieldViolations", []):
                field = _field(violation.get("field")) or field
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    return reason, detail, field


def _field(value: object) -> str:
    """Fit for a log: ``message.data[0].key``."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w.\[\]]{1,64}", value) else ""


def _token_refused(error: GoogleAuthError) -> PushOutcome:
    if distrusted(error):
        return PushOutcome(PushResult.CONFIG, "certificate not trusted")
    if isinstance(error, TransportError) or error.retryable:
        return PushOutcome(PushResult.RETRYABLE, "no access token", has_left=False)
    return PushOutcome(PushResult.CONFIG, "access token refused")


async def _in_thread(function: Callable[[], None]) -> None:
    """Run in a daemon thread of its own: a stuck one delays neither others nor the exit."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def deliver(error: BaseException | None) -> None:
        if done.done():  # cancelled
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(None)

    def run() -> None:
        failure: BaseException | None = None
        try:
            function()
        except BaseException as error:  # delivered to who waits
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(deliver, failure)

    threading.Thread(target=run, name="fcm", daemon=True).start()
    await done
