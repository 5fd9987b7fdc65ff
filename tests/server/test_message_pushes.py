"""The push of a stored message, and what is done while its service is away."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from sipush.core.bindings import Platform, PushRecord, Registration
from sipush.core.push_request import PushKind, PushOutcome, PushRequest, PushResult
from sipush.core.stored_message import StoredMessage, to_store
from sipush.location.memory import MemoryStore
from sipush.push.dispatcher import Dispatcher
from sipush.push.provider import Begin, begin_now
from sipush.server import message_pushes
from sipush.server.message_pushes import LONGEST, PAUSES, MessagePushes
from sipush.server.tasks import Tasks
from tests.sip.messages import request

AOR, DEVICE, APP = "bob@example.com", "token:t", "my-project"
NOW = time.time()
RECORD = PushRecord(AOR, DEVICE, Platform.FCM, APP, "t", "t", expires_epoch=NOW + 99999)


class Service:
    """A push service that answers as it is told, then that it has taken the push."""

    name = "fcm"
    max_in_flight = 10
    retry_delays: tuple[float, ...] = ()

    def __init__(self, *outcomes: PushOutcome | PushResult, refuses: bool = False) -> None:
        self.outcomes = list(outcomes)
        self.refuses = refuses
        self.requests: list[PushRequest] = []

    async def send(self, request: PushRequest, begin: Begin | None = None) -> PushOutcome:
        self.requests.append(request)
        if not self.refuses:
            await begin_now(begin)
        outcome = self.outcomes.pop(0) if self.outcomes else PushResult.ACCEPTED
        return outcome if isinstance(outcome, PushOutcome) else PushOutcome(outcome, status=503)

    async def close(self) -> None:
        pass


class Timer:
    """What is due later, as the test wants it."""

    def __init__(self, pause: float, call: Callable[[], None]) -> None:
        self.pause = pause
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Bob:
    """A user whose device is pushed about one message."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.store = MemoryStore()
        self.tasks = Tasks()
        self.timers: list[Timer] = []
        dispatcher = Dispatcher({APP: {Platform.FCM: service}})
        self.pushes = MessagePushes(self.store, dispatcher, self.tasks, self._call_later)

    def _call_later(self, pause: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(pause, call))
        return self.timers[-1]

    async def register(self, *records: PushRecord) -> None:
        await self.store.bind(Registration(AOR, "c", len(records), time.time(), 10, push=records))

    async def get(self, *, seconds: float = 9999.0, age: float = 0.0) -> StoredMessage:
        """A message is stored and pushed."""
        headers = ["Content-Type: text/plain"]
        message = request("MESSAGE", extra=headers, body=b"hello")
        receipt = await self.store.put_message(to_store(message, AOR, NOW - age, seconds), 10)
        assert receipt is not None
        (stored,) = await self.store.messages(AOR, NOW)
        self.pushes.push(stored, RECORD)
        await self.tasks.finish()
        return stored

    async def time_passes(self) -> None:
        """Until the next try."""
        self.timers.pop(0).call()
        await self.tasks.finish()


async def bob(service: Service) -> Bob:
    user = Bob(service)
    await user.register(RECORD)
    return user


@pytest.mark.parametrize("result", [PushResult.RETRYABLE, PushResult.THROTTLED])
async def test_a_push_that_failed_for_the_moment_is_tried_again_with_the_same_number(
    result: PushResult,
) -> None:
    user = await bob(Service(result, result))
    message = await user.get()
    await user.time_passes()
    await user.time_passes()
    assert user.timers == []
    first, second, third = user.service.requests
    assert first == second == third
    assert (first.kind, first.push_id, first.text) == (PushKind.MESSAGE, str(message.id), "hello")
    assert first.deadline_epoch == message.expires_epoch


@pytest.mark.parametrize(
    ("outcome", "again"),
    [
        (PushOutcome(PushResult.RETRYABLE, "connection lost"), False),
        (PushOutcome(PushResult.RETRYABLE, "cannot connect", has_left=False), True),
    ],
)
async def test_only_what_cannot_have_arrived_is_tried_again(
    outcome: PushOutcome, again: bool
) -> None:
    user = await bob(Service(outcome))
    await user.get()
    assert bool(user.timers) is again


async def test_the_pauses_grow_to_a_quarter_of_an_hour_and_end_after_some_hours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    user = await bob(Service(*[PushResult.RETRYABLE] * 99))
    await user.get(seconds=2 * LONGEST)
    pauses = []
    while user.timers:
        pauses.append(user.timers[0].pause)
        passed = NOW + sum(pauses)
        monkeypatch.setattr(time, "time", lambda passed=passed: passed)
        await user.time_passes()
    for pause, expected in zip(pauses, PAUSES, strict=False):
        assert 0.5 * expected <= pause <= 1.5 * expected
    assert all(0.5 * PAUSES[-1] <= pause <= 1.5 * PAUSES[-1] for pause in pauses[len(PAUSES) :])
    assert LONGEST - 1.5 * PAUSES[-1] <= sum(pauses) <= LONGEST


async def test_a_service_that_says_when_is_not_asked_before() -> None:
    user = await bob(Service(PushOutcome(PushResult.THROTTLED, retry_after=600.0)))
    await user.get()
    assert user.timers[0].pause == 600.0


@pytest.mark.parametrize(
    "result",
    [PushResult.ACCEPTED, PushResult.TOKEN_DEAD, PushResult.CONFIG, PushResult.BAD_REQUEST],
)
async def test_what_is_final_is_not_tried_again(result: PushResult) -> None:
    user = await bob(Service(result))
    await user.get()
    assert user.timers == []
    records = (await user.store.lookup(AOR, NOW)).push_records
    assert bool(records) == (result is not PushResult.TOKEN_DEAD)


@pytest.mark.parametrize("never_left", [True, False])
async def test_a_push_without_an_answer_is_tried_again_only_if_it_cannot_have_arrived(
    never_left: bool,
) -> None:
    user = await bob(Service(PushResult.TIMED_OUT, refuses=never_left))
    await user.get()
    assert len(user.timers) == never_left


async def test_a_message_that_has_been_delivered_meanwhile_is_not_pushed() -> None:
    user = await bob(Service(PushResult.RETRYABLE))
    message = await user.get()
    await user.store.remove_message(message, NOW)
    await user.time_passes()
    assert len(user.service.requests) == 1
    assert len(user.pushes) == 0


async def test_a_device_with_another_token_is_pushed_there_and_one_that_is_gone_is_not() -> None:
    user = await bob(Service(PushResult.RETRYABLE, PushResult.RETRYABLE))
    await user.get()
    new = PushRecord(AOR, DEVICE, Platform.FCM, APP, "new", "new", expires_epoch=NOW + 9999)
    await user.store.bind(Registration(AOR, "c", 2, NOW, 10, push=(new,)))
    await user.time_passes()
    assert user.service.requests[-1].record.message_token == "new"
    await user.store.remove_push_record(new)
    await user.time_passes()
    assert len(user.service.requests) == 2


@pytest.mark.parametrize(("seconds", "age"), [(10.0, 0.0), (2 * LONGEST, LONGEST)])
async def test_what_would_come_too_late_is_given_up(seconds: float, age: float) -> None:
    user = await bob(Service(PushResult.RETRYABLE))
    await user.get(seconds=seconds, age=age)
    assert user.timers == []


async def test_one_try_waits_for_a_message_and_device_however_often_it_is_pushed() -> None:
    user = await bob(Service(PushResult.RETRYABLE, PushResult.RETRYABLE))
    message = await user.get()
    user.pushes.push(message, RECORD)
    await user.tasks.finish()
    assert len(user.timers) == len(user.pushes) == 1


async def test_only_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_pushes, "MOST", 0)
    user = await bob(Service(PushResult.RETRYABLE))
    await user.get()
    assert user.timers == []


async def test_nothing_is_tried_any_more_once_it_is_closed() -> None:
    user = await bob(Service(PushResult.RETRYABLE))
    await user.get()
    user.pushes.close()
    assert user.timers[0].cancelled
    assert len(user.pushes) == user.tasks.running == 0
