"""Firebase Cloud Messaging, HTTP v1, with firebase-admin.

``messaging.send`` runs in threads: the asynchronous variant fetches its access token on the event
loop and leaks a stream per retry (docs/decisions/push-clients.md). The token is fetched here, once
for all sends, and retries are the dispatcher's.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import firebase_admin
import requests
from firebase_admin import messaging
from firebase_admin.exceptions import FirebaseError
from google.auth import credentials as google_credentials
from google.auth.credentials import TokenState
from google.auth.exceptions import GoogleAuthError, RefreshError, TransportError
from google.auth.transport.requests import Request as TokenRequest
from google.oauth2 import service_account
from requests.adapters import HTTPAdapter

from sipush.config import FcmConfig
from sipush.core.push_payload import PayloadTooLargeError, Profile, fcm_data
from sipush.core.push_request import PushKind, PushOutcome, PushRequest, PushResult
from sipush.push.http_client import CONNECT_TIMEOUT, distrusted, retry_after, word

READ_TIMEOUT = 30.0
"Seconds after which the thread of a send nobody waits for any more ends."
TOKEN_TIMEOUT = 10.0
MAX_TTL = 28 * 86400
"What FCM stores a message for at most."

_SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
_FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
_app_numbers = itertools.count(1)
"firebase-admin keeps its apps by name; a reload has the old and the new one at once."

T = TypeVar("T")


class FcmProvider:
    """One app's way to FCM."""

    name = "fcm"
    max_in_flight = 16
    "Each is a thread; more of them busy at once make the event loop, and SIP with it, stutter."
    retry_delays: tuple[float, ...] = (0.5,)

    def __init__(
        self,
        config: FcmConfig,
        *,
        account: Mapping[str, Any],
        profile: Profile,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``account`` is the service account as parsed. Raises ValueError when it is unusable."""
        self._config = config
        self._project = str(account["project_id"])
        self._profile = profile
        self._clock = clock
        self._account = service_account.Credentials.from_service_account_info(  # type: ignore[no-untyped-call]
            account, scopes=[_SCOPE]
        )
        self._bearer = _Bearer()  # type: ignore[no-untyped-call]
        self._refreshing: asyncio.Task[None] | None = None
        self._app: firebase_admin.App | None = None
        self._session: requests.Session | None = None

    async def send(self, request: PushRequest) -> PushOutcome:
        """Deliver one push. A cancelled send's thread ends by itself, its answer unread."""
        if not request.record.call_token:
            return PushOutcome(PushResult.BAD_REQUEST, "NothingToSend")
        try:
            message = self._message(request)
        except PayloadTooLargeError:
            return PushOutcome(PushResult.BAD_REQUEST, "PayloadTooLarge")
        try:
            await self._have_access_token()
        except GoogleAuthError as error:
            return _token_refused(error)
        outcome = await _in_thread(partial(self._post, message))
        if outcome.status == 401:
            self._account.token = None
        return outcome

    async def close(self) -> None:
        """Close connections. Sends under way may still end well."""
        app, self._app = self._app, None
        if app is not None and self._session is not None:
            self._session.close()
            await _in_thread(partial(firebase_admin.delete_app, app))

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
            self._refreshing = asyncio.create_task(self._refresh())
            self._refreshing.add_done_callback(self._refreshed)
        if state is TokenState.INVALID:
            await asyncio.shield(self._refreshing)

    async def _refresh(self) -> None:
        await _in_thread(self._fetch_access_token)

    def _refreshed(self, task: asyncio.Task[None]) -> None:
        self._refreshing = None
        if not task.cancelled():
            task.exception()  # those who waited have seen it

    # In threads

    def _fetch_access_token(self) -> None:
        if self._app is None:
            self._app = self._new_app()
        with requests.Session() as session:
            self._trust(session)
            self._account.refresh(partial(TokenRequest(session), timeout=TOKEN_TIMEOUT))
        self._bearer.token = self._account.token

    def _new_app(self) -> firebase_admin.App:
        """firebase-admin's app, without the library's own retries (5 sends in 7 s, whatever the
        call has left), and sending to ``config.server``. Neither can be set in public."""
        app = firebase_admin.initialize_app(
            self._bearer,
            {"projectId": self._project, "httpTimeout": (CONNECT_TIMEOUT, READ_TIMEOUT)},
            name=f"sipush-{next(_app_numbers)}",
        )
        service = messaging._get_messaging_service(app)
        if self._config.server:
            path = f"/v1/projects/{self._project}/messages:send"
            service._fcm_url = self._config.server.rstrip("/") + path
        self._session = service._client.session
        self._trust(self._session)
        return app

    def _trust(self, session: requests.Session) -> None:
        session.adapters.clear()
        session.mount("https://", HTTPAdapter(pool_maxsize=2 * self.max_in_flight, max_retries=0))
        if self._config.ca_file is not None:
            session.verify = str(self._config.ca_file)
            session.trust_env = False  # REQUESTS_CA_BUNDLE would win over it

    def _post(self, message: messaging.Message) -> PushOutcome:
        started = time.monotonic()
        try:
            messaging.send(message, app=self._app)
        except FirebaseError as error:
            if error.http_response is None:
                return _unanswered(error, time.monotonic() - started)
            response = error.http_response
            return classify(
                response.status_code, response.content, response.headers.get("retry-after", "")
            )
        except GoogleAuthError:  # _Bearer: asked for another token than ours
            return PushOutcome(PushResult.CONFIG, "UNAUTHENTICATED", 401)
        return PushOutcome(PushResult.ACCEPTED, status=200)


class _Bearer(google_credentials.Credentials):
    """What firebase-admin sees of our credentials: the token at hand, and no way to another.

    Its own refresh would block every sending thread at once, on a session that knows neither our
    CA nor the time a call has left.
    """

    def before_request(
        self, request: object, method: str, url: str, headers: dict[str, str]
    ) -> None:
        headers["authorization"] = f"Bearer {self.token}"

    def refresh(self, request: object) -> None:
        raise RefreshError("the access token was not accepted")  # type: ignore[no-untyped-call]


def classify(status: int, body: bytes, wait: str) -> PushOutcome:
    """What FCM's refusal means; ``wait`` is its Retry-After."""
    reason, detail = _error(body)
    return PushOutcome(_result(status, reason, detail), detail or reason, status, retry_after(wait))


def _result(status: int, reason: str, detail: str) -> PushResult:
    """``detail`` is the code of an FcmError: only that speaks of the token."""
    if detail == "UNREGISTERED" or (status == 400 and detail == "INVALID_ARGUMENT"):
        return PushResult.TOKEN_DEAD
    if status == 429 or detail == "QUOTA_EXCEEDED":
        return PushResult.THROTTLED
    if status >= 500:
        return PushResult.RETRYABLE
    return PushResult.BAD_REQUEST if status == 400 else PushResult.CONFIG


def _error(body: bytes) -> tuple[str, str]:
    """The status and the FcmError code of an error body, empty where it has none."""
    try:
        error = json.loads(body)["error"]
        details = error.get("details", [])
        codes = [d.get("errorCode") for d in details if d.get("@type") == _FCM_ERROR]
        return word(error.get("status")), word(codes[0]) if codes else ""
    except (ValueError, LookupError, TypeError, AttributeError):
        return "", ""


def _unanswered(error: FirebaseError, seconds: float) -> PushOutcome:
    if distrusted(error):
        return PushOutcome(PushResult.CONFIG, "certificate not trusted")
    silent = isinstance(error.cause, requests.exceptions.ReadTimeout)
    if silent and seconds >= READ_TIMEOUT:  # sooner: the handshake stalled, nothing was sent
        return PushOutcome(PushResult.TIMED_OUT, "no answer")
    return PushOutcome(PushResult.RETRYABLE, "transport")


def _token_refused(error: GoogleAuthError) -> PushOutcome:
    if distrusted(error):
        return PushOutcome(PushResult.CONFIG, "certificate not trusted")
    if isinstance(error, TransportError) or error.retryable:
        return PushOutcome(PushResult.RETRYABLE, "no access token")
    return PushOutcome(PushResult.CONFIG, "access token refused")


async def _in_thread(function: Callable[[], T]) -> T:
    """Run in a daemon thread of its own: a stuck one delays neither others nor the exit."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def deliver(value: T | None, error: BaseException | None) -> None:
        if result.done():  # cancelled
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)  # type: ignore[arg-type]

    def run() -> None:
        try:
            outcome = (function(), None)
        except BaseException as error:  # delivered to who waits
            outcome = (None, error)  # type: ignore[assignment]
        if not loop.is_closed():
            loop.call_soon_threadsafe(deliver, *outcome)

    threading.Thread(target=run, name="fcm", daemon=True).start()
    return await result
