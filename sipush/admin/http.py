"""The admin API and its page over HTTP (docs/admin.md), on the event loop that carries SIP.

Every answer is bounded, so that none keeps SIP waiting.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib import resources
from importlib.metadata import version
from typing import Any

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sipush.admin import views
from sipush.admin.access import Access
from sipush.admin.push_tests import PushTests, RefusedError
from sipush.core.bindings import Aor
from sipush.core.branch import BranchState
from sipush.errors import LocationError, TransportError
from sipush.log_lines import fingerprint
from sipush.push.dispatcher import Dispatcher
from sipush.server.forwarding import Forwarding
from sipush.server.proxy import Proxy
from sipush.server.tasks import Tasks
from sipush.transport.address import bind_socket, format_address, parse_address

MOST_USERS, MOST_CALLS, MOST_HELD = 100, 200, 200
"In one answer."
SEARCH_TIME = 1.0
"Seconds of looking for users; a store that takes longer is asked for one by name."
STORE_PATIENCE = 2.0
"Seconds in which a store that works has answered."
MOST_EVER = 10**15
MOST_CONNECTIONS = 64
HEAD_SIZE, BODY_SIZE = 16_384, 4096

log = structlog.get_logger()


class AdminServer:
    """Answers operators. ``access`` may be replaced while it runs."""

    def __init__(
        self,
        access: Access,
        proxy: Proxy,
        dispatcher: Dispatcher,
        is_ready: Callable[[], bool],
    ) -> None:
        """``is_ready``: whether the start is over."""
        self.access = access
        self.address = ""
        "host:port, once it is open."
        self._proxy = proxy
        self._is_ready = is_ready
        self._version = version("sipush")
        self._started_at = time.monotonic()
        self._tasks = Tasks()
        self._push_tests = PushTests(
            proxy.store, dispatcher, proxy.bucket, self._tasks, self._awaited_devices
        )
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    def open(self, listen: str) -> None:
        """Serve from now on. ``listen``: IP:port. Raises TransportError."""
        try:
            socket = bind_socket("TCP", parse_address(listen))
        except OSError as error:
            raise TransportError(f"admin {listen}: {error.strerror or error}") from error
        socket.listen(MOST_CONNECTIONS)
        self.address = format_address(socket.getsockname()[:2])
        config = uvicorn.Config(
            self._app(),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=HEAD_SIZE,
        )
        self._server = _Server(config)
        self._serving = self._tasks.spawn(self._server.serve([socket]))

    async def close(self) -> None:
        """Answer nobody any more."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await asyncio.wait([self._serving])
        await self._tasks.close()

    def _app(self) -> Starlette:
        page = _Page()
        return Starlette(
            routes=[
                Route("/", page.show),
                Route("/healthz", self._health),
                Route("/readyz", self._readiness),
                Route("/api/status", self._status),
                Route("/api/locations", self._locations),
                Route("/api/waking", self._waking),
                Route("/api/calls", self._calls),
                Route("/api/ladder", self._ladder),
                Route("/api/push-tests", self._show_tests, methods=["GET"]),
                Route("/api/push-tests", self._test, methods=["POST"]),
            ],
            middleware=[Middleware(_Gate, access=lambda: self.access, policy=page.policy)],
            exception_handlers={
                HTTPException: _refused,
                RefusedError: _not_tested,
                LocationError: _store_down,
                Exception: _failed,
            },
        )

    # -- health --

    async def _health(self, _: Request) -> Response:
        return _Json({"status": "alive"})

    async def _readiness(self, _: Request) -> Response:
        problem = await self._problem()
        if problem:
            return _error(503, problem)
        return _Json({"status": "ready"})

    async def _problem(self) -> str:
        """Why no calls should come here now; empty: they may."""
        if not self._is_ready():
            return "starting: not listening yet"
        if self._proxy.draining:
            return "draining: no new calls are taken"
        try:
            async with asyncio.timeout(STORE_PATIENCE):
                await self._proxy.store.lookup("readyz@invalid", time.time())
        except TimeoutError:
            return "the store does not answer"
        except LocationError as error:
            return f"the store cannot be used: {views.text(str(error))}"
        return ""

    async def _status(self, _: Request) -> Response:
        problem = await self._problem()
        return _Json(
            {
                "version": self._version,
                "up_for": round(time.monotonic() - self._started_at, 1),
                "ready": not problem,
                "problem": problem,
                "requests": self._proxy.active,
                "can_test": self.access.has_token,
            }
        )

    # -- who is registered --

    async def _locations(self, request: Request) -> Response:
        query, now = request.query_params, time.time()
        if name := query.get("aor"):
            aor = self._aor(name)
            user = await self._location(aor, now) | {"known": await self._is_known(aor)}
            return _Json({"users": [user], "next": None})
        limit = _number(query.get("limit"), "limit", MOST_USERS, 50)
        after = _unmarked(query.get("after", ""))
        wanted = query.get("state", "")
        if wanted not in ("", "registered", "asleep", "waking", "unreachable"):
            raise HTTPException(400, "state: allowed are registered, asleep, waking, unreachable")
        users: list[views.Json] = []
        last: Aor | None = None
        try:
            async with asyncio.timeout(SEARCH_TIME):
                async for aor in self._proxy.store.aors(after):
                    if len(users) >= limit:
                        return _Json({"users": users, "next": last and _mark(last)})
                    user = await self._location(aor, now)
                    if any(wanted in ("", each["state"]) for each in user["devices"]):
                        users.append(user)
                    last = aor
                    await asyncio.sleep(0)  # SQLite waits for nothing, and SIP goes first
        except TimeoutError:
            if last is None:
                raise HTTPException(
                    503, "the store takes too long to list its users: ask for one with aor="
                ) from None
            return _Json({"users": users, "next": _mark(last)})
        return _Json({"users": users, "next": None})

    async def _location(self, aor: Aor, now: float) -> views.Json:
        proxy = self._proxy
        found = await proxy.store.lookup(aor, now)
        return views.location(aor, found, now, proxy.is_live, self._awaited_devices())

    async def _is_known(self, aor: Aor) -> bool | None:
        """Whether there is such a user; None: another server would know."""
        if self._proxy.policy.registrar_of(aor):
            return None
        return await self._proxy.subscribers.get(aor) is not None

    def _aor(self, name: str) -> Aor:
        user, at, domain = name.rpartition("@")
        return f"{user}@{domain.lower()}" if at else f"{name}@{self._proxy.realm.domains[0]}"

    # -- who is being woken --

    def _held(self) -> Iterator[Forwarding]:
        return (each for each in self._proxy.forwardings if _is_held(each))

    def _awaited_devices(self) -> set[str]:
        return {
            fingerprint(branch.target.device)
            for forwarding in self._held()
            for branch in forwarding.context.branches
            if branch.state in _WAITING
        }

    async def _waking(self, _: Request) -> Response:
        held, now, now_epoch = list(self._held()), self._proxy.clock(), time.time()
        return _Json(
            {
                "count": len(held),
                "calls": [
                    views.held_call(
                        call_id=each.call_id,
                        caller=each.caller_aor,
                        callee=each.destinations[0] if each.destinations else each.request.uri,
                        waited=now_epoch - each.created_epoch,
                        branches=each.context.branches,
                        wake_ups=each.wake_ups,
                        now=now,
                    )
                    for each in held[:MOST_HELD]
                ],
            }
        )

    # -- calls --

    async def _calls(self, request: Request) -> Response:
        assert self._proxy.history is not None
        query = request.query_params
        limit = _number(query.get("limit"), "limit", MOST_CALLS, 50)
        user = query.get("user", "")
        ladders = (
            each
            for each in self._proxy.history.newest_first
            if user in each.from_uri or user in each.callee
        )
        return _Json(
            {"calls": [views.call(each) for each, _ in zip(ladders, range(limit), strict=False)]}
        )

    async def _ladder(self, request: Request) -> Response:
        history, query = self._proxy.history, request.query_params
        assert history is not None
        if (id_ := query.get("id")) is not None:
            kept = history.numbered(_number(id_, "id", MOST_EVER, 0))
        else:
            kept = history.get(query.get("call_id", ""))
        if kept is None:
            raise HTTPException(404, "no such call is remembered")
        return _Json(views.ladder(kept))

    # -- push tests --

    async def _show_tests(self, _: Request) -> Response:
        return _Json({"tests": [test.to_json() for test in self._push_tests.newest_first]})

    async def _test(self, request: Request) -> Response:
        fields = await _fields(request)
        aor, device, ring = fields.get("aor"), fields.get("device"), fields.get("ring", False)
        if not (isinstance(aor, str) and isinstance(device, str) and isinstance(ring, bool)):
            raise HTTPException(400, 'allowed: {"aor": "…", "device": "…", "ring": true or false}')
        test = await self._push_tests.run(self._aor(aor), device, ring=ring)
        return _Json(test.to_json())


_WAITING = (BranchState.WAKING, BranchState.PROBING)


def _is_held(forwarding: Forwarding) -> bool:
    """Whether it is a call that waits for a device to wake."""
    context = forwarding.context
    open_ = context.invite and not (context.answered or context.closed)
    return open_ and any(branch.state in _WAITING for branch in context.branches)


class _Server(uvicorn.Server):
    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """They are the daemon's."""
        return nullcontext()


class _Page:
    """The page, and the Content-Security-Policy under which it works."""

    def __init__(self) -> None:
        self._text = resources.files("sipush.admin").joinpath("page.html").read_text("utf-8")
        script, style = (_digest(_between(self._text, tag)) for tag in ("script", "style"))
        self.policy = (
            f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; "
            "require-trusted-types-for 'script'; trusted-types 'none'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    async def show(self, _: Request) -> Response:
        """Nothing of it is secret: what it shows it asks for with the token."""
        return HTMLResponse(self._text)


def _between(text: str, tag: str) -> str:
    return text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


class _Gate:
    """Lets in who may come in, and tells browsers what they may do with the answer."""

    def __init__(self, app: ASGIApp, access: Callable[[], Access], policy: str) -> None:
        self._app = app
        self._access = access
        self._headers = {
            "Content-Security-Policy": policy,
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        await (self._refusal(scope) or self._app)(scope, receive, guarded_send)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        headers, access = Headers(scope=scope), self._access()
        if not access.knows_host(headers.get("host", "")):
            return _error(421, "Host: not a name of this server (allowed: see admin.hosts)")
        if not scope["path"].startswith("/api/"):
            return None
        authorization = headers.get("authorization", "")
        looks = scope["method"] in ("GET", "HEAD")
        if access.may_look(authorization) if looks else access.may_act(authorization):
            return None
        if not access.has_token:
            return _error(403, "nobody may do that while admin.token_file is not set")
        if authorization:
            client = scope.get("client") or ("", 0)
            log.warning("admin_token_wrong", remote=client[0])
        response = _error(401, "Authorization: the token is missing or wrong")
        response.headers["WWW-Authenticate"] = "Bearer"
        return response


class _Json(JSONResponse):
    """In ASCII: SIP names need not be UTF-8."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode()


def _error(status: int, reason: str) -> _Json:
    return _Json({"error": {"status": status, "reason": reason}}, status)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _error(error.status_code, error.detail)
    response.headers.update(error.headers or {})
    return response


async def _not_tested(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return _error(error.status, error.reason)


async def _store_down(_: Request, error: Exception) -> Response:
    return _error(503, f"the store cannot be used: {views.text(str(error))}")


async def _failed(_: Request, error: Exception) -> Response:
    return _error(500, "internal error: the log tells more")


async def _fields(request: Request) -> dict[str, Any]:
    """The JSON object of a body. Raises HTTPException."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "Content-Type: allowed is application/json")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > BODY_SIZE:
            raise HTTPException(413, f"the body is longer than {BODY_SIZE} bytes")
    try:
        fields = json.loads(body)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise HTTPException(400, "the body is no JSON object")
    return fields


def _number(text: str | None, name: str, most: int, default: int) -> int:
    if text is None:
        return default
    if not re.fullmatch("[0-9]{1,15}", text) or not 1 <= int(text) <= most:
        raise HTTPException(400, f"{name}: allowed are 1 to {most}")
    return int(text)


def _mark(aor: Aor) -> str:
    """Where a list goes on: an AOR need not be UTF-8."""
    return aor.encode("utf-8", "surrogateescape").hex()


def _unmarked(mark: str) -> Aor:
    try:
        return bytes.fromhex(mark).decode("utf-8", "surrogateescape")
    except ValueError:
        raise HTTPException(400, "after: allowed is what an earlier answer had as next") from None
