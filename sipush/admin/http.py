"""The admin API and its page over HTTP (docs/admin.md), on the event loop that carries SIP."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import resources

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from sipush.admin import views
from sipush.admin.access import Access
from sipush.admin.api import REQUEST_TIME, Api, error
from sipush.admin.push_tests import RefusedError
from sipush.errors import LocationError, TransportError
from sipush.push.dispatcher import Dispatcher
from sipush.server.proxy import Proxy
from sipush.server.tasks import Tasks
from sipush.transport.address import bind_socket, format_address, parse_address

MOST_CONNECTIONS = 64
HEAD_SIZE = 16_384

log = structlog.get_logger()


class AdminServer:
    """Answers operators."""

    def __init__(
        self,
        access: Access,
        proxy: Proxy,
        dispatcher: Dispatcher,
        is_ready: Callable[[], bool],
    ) -> None:
        """``is_ready``: whether the start is over."""
        self.listen = ""
        "What it was asked to listen on."
        self.address = ""
        "host:port, once it is open."
        self._tasks = Tasks()
        self._api = Api(access, proxy, dispatcher, self._tasks, is_ready)
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    def open(self, listen: str) -> None:
        """Serve from now on. ``listen``: IP:port. Raises TransportError."""
        try:
            socket = bind_socket("TCP", parse_address(listen))
        except OSError as error:
            raise TransportError(f"admin {listen}: {error.strerror or error}") from error
        socket.listen(MOST_CONNECTIONS)
        self.listen = listen
        self.address = format_address(socket.getsockname()[:2])
        config = uvicorn.Config(
            self._app(),
            http=_Connection,
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

    def replace(self, access: Access) -> None:
        """Who gets in from now on."""
        self._api.access = access

    def _app(self) -> Starlette:
        page = _Page()
        return Starlette(
            routes=[Route("/", page.show), *self._api.routes],
            middleware=[Middleware(_Gate, access=lambda: self._api.access, policy=page.policy)],
            exception_handlers={
                HTTPException: _refused,
                RefusedError: _not_tested,
                LocationError: _store_down,
                Exception: _failed,
            },
        )


class _Server(uvicorn.Server):
    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """They are the daemon's."""
        return nullcontext()


class _Connection(H11Protocol):
    """One that has a request ready in time, again and again, or is closed: uvicorn would wait."""

    _timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def on_response_complete(self) -> None:
        self._timer.cancel()
        self._wait()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        # While a request is being answered it only means that no further one is taken.
        self._timer = self.loop.call_later(REQUEST_TIME, self.shutdown)


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
            return error(421, "Host: not a name of this server (allowed: see admin.hosts)")
        if not scope["path"].startswith("/api/"):
            return None
        authorization = headers.get("authorization", "")
        looks = scope["method"] in ("GET", "HEAD")
        if access.may_look(authorization) if looks else access.may_act(authorization):
            return None
        if not access.has_token:
            return error(403, "nobody may do that while admin.token_file is not set")
        if authorization:
            client = scope.get("client") or ("", 0)
            log.warning("admin_token_wrong", remote=client[0])
        response = error(401, "Authorization: the token is missing or wrong")
        response.headers["WWW-Authenticate"] = "Bearer"
        return response


async def _refused(_: Request, raised: Exception) -> Response:
    assert isinstance(raised, HTTPException)
    response = error(raised.status_code, raised.detail)
    response.headers.update(raised.headers or {})
    return response


async def _not_tested(_: Request, raised: Exception) -> Response:
    assert isinstance(raised, RefusedError)
    return error(raised.status, raised.reason)


async def _store_down(_: Request, raised: Exception) -> Response:
    return error(503, f"the store cannot be used: {views.text(str(raised))}")


async def _failed(_: Request, raised: Exception) -> Response:
    return error(500, "internal error: the log tells more")
