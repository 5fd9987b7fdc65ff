"""What the admin API answers (docs/admin.md).

Every answer is bounded, so that none keeps SIP waiting.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any, TypeGuard

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sipush.admin import views
from sipush.admin.access import Access
from sipush.admin.push_tests import PushTests
from sipush.core.bindings import Aor
from sipush.core.branch import BranchState
from sipush.errors import LocationError, UnreadableError
from sipush.log_lines import fingerprint
from sipush.push.dispatcher import Dispatcher
from sipush.server.call_history import Ladder
from sipush.server.forwarding import Forwarding
from sipush.server.proxy import Proxy
from sipush.server.tasks import Tasks

MOST_USERS, MOST_CALLS, MOST_HELD = 100, 200, 50
"In one answer."
MOST_EVER = 10**15
SEARCH_TIME = 1.0
"Seconds of looking for users; a store that takes longer is asked for one by name."
STORE_PATIENCE = 2.0
"Seconds in which a store that works has answered."
BODY_SIZE = 4096
REQUEST_TIME = 5.0
"Seconds in which the head of a request, and then its body, must be here."
STATES = ("registered", "asleep", "waking", "unreachable")


class Api:
    """Answers from the state of the server. ``access`` may be replaced."""

    def __init__(
        self,
        access: Access,
        proxy: Proxy,
        dispatcher: Dispatcher,
        tasks: Tasks,
        is_ready: Callable[[], bool],
    ) -> None:
        """``is_ready``: whether the start is over."""
        self.access = access
        self._proxy = proxy
        self._is_ready = is_ready
        self._version = version("sipush")
        self._started_at = time.monotonic()
        self._push_tests = PushTests(
            proxy.store, dispatcher, proxy.bucket, tasks, self._awaited_devices
        )

    @property
    def routes(self) -> list[Route]:
        """For Starlette."""
        return [
            Route("/healthz", self._health),
            Route("/readyz", self._readiness),
            Route("/api/status", self._status),
            Route("/api/locations", self._locations),
            Route("/api/waking", self._waking),
            Route("/api/calls", self._calls),
            Route("/api/ladder", self._ladder),
            Route("/api/push-tests", self._show_tests, methods=["GET"]),
            Route("/api/push-tests", self._test, methods=["POST"]),
        ]

    # -- health --

    async def _health(self, _: Request) -> Response:
        return JsonResponse({"status": "alive"})

    async def _readiness(self, _: Request) -> Response:
        problem = await self._problem()
        if problem:
            return error(503, problem)
        return JsonResponse({"status": "ready"})

    async def _problem(self) -> str:
        """Why no calls should come here now; empty: they may."""
        if not self._is_ready():
            return "starting: not listening yet"
        if self._proxy.draining:
            return "draining: no new calls are taken"
        try:
            async with asyncio.timeout(STORE_PATIENCE):
                await self._proxy.store.lookup("readyz@invalid", time.time())
                await self._proxy.store.try_to_write()
        except TimeoutError:
            return "the store does not answer"
        except LocationError as fault:
            return f"the store cannot be used: {views.text(str(fault))}"
        return ""

    async def _status(self, _: Request) -> Response:
        problem = await self._problem()
        return JsonResponse(
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
        query, now, waking = request.query_params, time.time(), self._awaited_devices()
        if name := query.get("aor"):
            aor = self._aor(name)
            user = await self._location(aor, now, waking) | {"known": await self._is_known(aor)}
            return JsonResponse({"users": [user], "next": None})
        limit = _number(query.get("limit"), "limit", MOST_USERS, 50)
        after = _unmarked(query.get("after", ""))
        wanted = query.get("state", "")
        if wanted not in ("", *STATES):
            raise HTTPException(400, f"state: allowed are {', '.join(STATES)}")
        users: list[views.Json] = []
        last: Aor | None = None
        try:
            async with asyncio.timeout(SEARCH_TIME):
                async for aor in self._proxy.store.aors(after):
                    if len(users) >= limit:
                        return JsonResponse({"users": users, "next": last and _mark(last)})
                    user = await self._location(aor, now, waking)
                    shown = any(wanted in ("", each["state"]) for each in user["devices"])
                    if shown or user["problem"]:
                        users.append(user)
                    last = aor
                    await asyncio.sleep(0)  # SQLite waits for nothing, and SIP goes first
        except TimeoutError:
            if last is None:
                raise HTTPException(
                    503, "the store takes too long to list its users: ask for one with aor="
                ) from None
            return JsonResponse({"users": users, "next": _mark(last)})
        return JsonResponse({"users": users, "next": None})

    async def _location(self, aor: Aor, now: float, waking: set[str]) -> views.Json:
        try:
            found = await self._proxy.store.lookup(aor, now)
        except UnreadableError as fault:
            return views.unreadable(aor, str(fault))
        return views.location(aor, found, now, self._proxy.is_live, waking)

    async def _is_known(self, aor: Aor) -> bool | None:
        """Whether there is such a user; None: another server would know."""
        if self._proxy.policy.registrar_of(aor):
            return None
        return await self._proxy.subscribers.get(aor) is not None

    def _aor(self, name: str) -> Aor:
        name = re.sub("^sips?:", "", name, flags=re.IGNORECASE)
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
        return JsonResponse(
            {
                "count": len(held),
                "calls": [
                    views.held_call(
                        id_=fingerprint(each.tag),
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
        user, open_ = query.get("user", ""), self._open_ladders()
        ladders = (
            views.call(each, is_open=each in open_)
            for each in self._proxy.history.newest_first
            if user in each.from_uri or user in each.callee
        )
        return JsonResponse(
            {"calls": [each for each, _ in zip(ladders, range(limit), strict=False)]}
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
        return JsonResponse(views.ladder(kept, is_open=kept in self._open_ladders()))

    def _open_ladders(self) -> set[Ladder]:
        """Of calls that have got no final response yet, or not all that a peer forked."""
        forwardings = (each for each in self._proxy.forwardings if each.context.invite)
        ladders = (each.ladder for each in forwardings if not each.final)
        return {ladder for ladder in ladders if ladder is not None}

    # -- push tests --

    async def _show_tests(self, _: Request) -> Response:
        return JsonResponse({"tests": [test.to_json() for test in self._push_tests.newest_first]})

    async def _test(self, request: Request) -> Response:
        fields = await _fields(request)
        aor, device, ring = fields.get("aor"), fields.get("device"), fields.get("ring", False)
        if not (_is_text(aor) and _is_text(device) and isinstance(ring, bool)):
            raise HTTPException(400, 'allowed: {"aor": "…", "device": "…", "ring": true or false}')
        test = await self._push_tests.run(self._aor(aor), device, ring=ring)
        return JsonResponse(test.to_json())


_WAITING = (BranchState.WAKING, BranchState.PROBING)


def _is_held(forwarding: Forwarding) -> bool:
    """Whether it is a call that waits for a device to wake."""
    context = forwarding.context
    open_ = context.invite and not (context.answered or context.closed)
    return open_ and any(branch.state in _WAITING for branch in context.branches)


class JsonResponse(JSONResponse):
    """In ASCII: SIP names need not be UTF-8."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode()


def error(status: int, reason: str) -> JsonResponse:
    """Why something is not to be had."""
    return JsonResponse({"error": {"status": status, "reason": reason}}, status)


async def _fields(request: Request) -> dict[str, Any]:
    """The JSON object of a body. Raises HTTPException."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "Content-Type: allowed is application/json")
    body = b""
    try:
        async with asyncio.timeout(REQUEST_TIME):
            async for part in request.stream():
                body += part
                if len(body) > BODY_SIZE:
                    raise HTTPException(413, f"the body is longer than {BODY_SIZE} bytes")
    except TimeoutError:
        raise HTTPException(408, f"the body took longer than {REQUEST_TIME:g} s") from None
    except ClientDisconnect:  # nobody hears it
        raise HTTPException(400, "the body has no end") from None
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):  # what is nested too deeply
        fields = None
    if not isinstance(fields, dict):
        raise HTTPException(400, "the body is no JSON object")
    return fields


def _is_text(value: object) -> TypeGuard[str]:
    """Whether it is a string that a store can look for: JSON may hold half a character."""
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


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
