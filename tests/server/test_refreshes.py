"""Who is pushed before its binding expires."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from sipush.core.bindings import Binding, Platform, PushRecord, Registration
from sipush.core.push_request import PushKind, PushOutcome, PushRequest, PushResult
from sipush.errors import LocationError
from sipush.location.memory import MemoryStore
from sipush.push.dispatcher import Dispatcher
from sipush.push.provider import Begin, begin_now
from sipush.server.refreshes import Taken, push_due, push_refresh
from tests.server.stores import FallibleStore

AOR, DEVICE, APP = "bob@example.com", "token:t", "my-project"
NOW = time.time()
BINDING = Binding(AOR, DEVICE, "sip:bob@h", "sip:bob@h", NOW + 600, "c", 1, "udp/a/b")
RECORD = PushRecord(AOR, DEVICE, Platform.FCM, APP, "t", "t", expires_epoch=NOW + 9999)
ASKED = Registration(AOR, "c", 1, NOW, 10, (BINDING,), push=(RECORD,))


class Service:
    """A push service that answers at once."""

    name = "fcm"
    max_in_flight = 10
    retry_delays: tuple[float, ...] = ()
    knows_repeats: bool = False

    def __init__(self, result: PushResult = PushResult.ACCEPTED) -> None:
        self.result = result
        self.requests: list[PushRequest] = []

    async def send(self, request: PushRequest, begin: Begin | None = None) -> PushOutcome:
        await begin_now(begin)
        self.requests.append(request)
        return PushOutcome(self.result)

    async def close(self) -> None:
        pass


async def pushed(service: Service, store: MemoryStore, left: float) -> list[PushRequest]:
    """What is pushed when the binding has ``left`` seconds left."""
    dispatcher = Dispatcher({APP: {Platform.FCM: service}})
    await push_refresh(store, dispatcher, AOR, DEVICE, NOW + 600 - left)
    return service.requests


async def test_a_binding_about_to_expire_has_its_device_pushed_and_never_after() -> None:
    store = MemoryStore()
    await store.bind(ASKED)
    (request,) = await pushed(Service(), store, 149)
    assert (request.kind, request.record) == (PushKind.REFRESH, RECORD)
    assert request.deadline_epoch == BINDING.expires_epoch
    assert request.to_uri == "sip:bob@example.com"


@pytest.mark.parametrize("left", [151, 0, -1])
async def test_a_device_that_has_refreshed_or_expired_is_left_alone(left: float) -> None:
    store = MemoryStore()
    await store.bind(ASKED)
    assert await pushed(Service(), store, left) == []


@pytest.mark.parametrize(
    "gone", [{"bind": (), "unbind_all": True}, {"push": (), "push_off": ((DEVICE, ""),)}]
)
async def test_a_device_that_is_gone_is_left_alone(gone: dict[str, object]) -> None:
    store = MemoryStore()
    await store.bind(ASKED)
    await store.bind(replace(ASKED, cseq=ASKED.cseq + 1, **gone))  # type: ignore[arg-type]
    assert await pushed(Service(), store, 100) == []


async def test_a_token_found_dead_by_a_refresh_is_removed() -> None:
    store = MemoryStore()
    await store.bind(ASKED)
    with capture_logs() as lines:
        await pushed(Service(PushResult.TOKEN_DEAD), store, 100)
    assert (await store.lookup(AOR, NOW)).push_records == ()
    told = [line for line in lines if line["event"] == "push_record_removed"]
    assert [(line["aor"], line["removed"]) for line in told] == [(AOR, True)]


class Falling(FallibleStore):
    """A store that hands out what is due, and then says nothing more."""

    async def take_refreshes(self, now_epoch: float) -> list[tuple[str, str]]:
        due = await self.unchanged.take_refreshes(now_epoch)
        self.down = self.down or bool(due)
        return due


@pytest.mark.parametrize("left", [100, -1])
async def test_what_was_taken_from_a_store_that_failed_then_is_pushed_when_it_is_back(
    left: float,
) -> None:
    store, service = Falling(), Service()
    dispatcher = Dispatcher({APP: {Platform.FCM: service}})
    end = time.time() + left
    binding = replace(BINDING, expires_epoch=end)
    await store.unchanged.bind(replace(ASKED, bind=(binding,), refreshes=((DEVICE, NOW - 1),)))
    taken: Taken = {}

    async def look() -> None:
        await push_due(store, dispatcher, lambda aor: None, taken)

    for _ in range(2):
        with pytest.raises(LocationError):
            await look()
        assert service.requests == []
    store.down = False
    await look()
    assert [request.record for request in service.requests] == ([RECORD] if left > 0 else [])
    await look()
    assert len(service.requests) == (left > 0)
    assert taken == {}


async def test_a_device_whose_binding_is_over_meanwhile_is_given_up() -> None:
    store, service = FallibleStore(), Service()
    store.down = True
    taken: Taken = {(AOR, DEVICE): NOW - 1}
    dispatcher = Dispatcher({APP: {Platform.FCM: service}})
    await push_due(store, dispatcher, lambda aor: None, taken)
    assert taken == {}
