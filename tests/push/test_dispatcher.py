"""The dispatcher: which service, how often, how long, and what is logged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from sipush.admin.views import device_id
from sipush.config import AppConfig
from sipush.core.bindings import Platform
from sipush.core.push_request import PushKind, PushOutcome, PushRequest, PushResult
from sipush.demo.http_server import Act
from sipush.demo.push_service import DEFAULT_APP, Misbehaviour, PushService
from sipush.push import quarantine
from sipush.push.apps import build_apps
from sipush.push.dispatcher import Dispatcher
from sipush.push.provider import Begin, Leave, begin_now
from tests.subscription import Subscription

from .conftest import ALERT_TOKEN, FCM_TOKEN, VOIP_TOKEN, call

pytestmark = pytest.mark.filterwarnings("ignore:Message.token is deprecated")


@pytest.fixture
async def dispatcher(service: PushService) -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher(build_apps({DEFAULT_APP: service.app_config(webhook=True)}))
    yield dispatcher
    await dispatcher.close()


@dataclass
class ScriptedProvider:
    """A service of our own: another implementation of the port."""

    outcomes: list[PushOutcome] = field(default_factory=list)
    name: str = "scripted"
    max_in_flight: int = 2
    retry_delays: tuple[float, ...] = (0.0,)
    knows_repeats: bool = False
    sent: list[PushRequest] = field(default_factory=list)
    hold: asyncio.Event | None = None
    began: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, request: PushRequest, begin: Begin | None = None) -> PushOutcome:
        await begin_now(begin)
        if self.closed.is_set():
            raise RuntimeError("closed")
        self.sent.append(request)
        self.began.set()
        if self.hold is not None:
            await self.hold.wait()
        if not self.outcomes:
            raise RuntimeError(f"cannot push {request.record.call_token}")
        return self.outcomes.pop(0)

    async def close(self) -> None:
        self.closed.set()


def call_by(platform: Platform, service: PushService, hold: float = 10) -> PushRequest:
    if platform is Platform.WEBPUSH:
        return call(platform, hold=hold, call_token=Subscription(service).endpoint)
    return call(platform, hold=hold)


@pytest.mark.parametrize("platform", list(Platform))
async def test_a_push_goes_to_the_service_of_its_platform(
    platform: Platform, dispatcher: Dispatcher, service: PushService
) -> None:
    outcome = await dispatcher.send(call_by(platform, service))
    assert outcome.result is PushResult.ACCEPTED
    assert (await service.next_push()).service == platform.value


@pytest.mark.parametrize("platform", [Platform.APNS, Platform.FCM, Platform.WEBPUSH])
async def test_what_no_service_would_take_is_not_sent(
    platform: Platform, service: PushService
) -> None:
    template = {"text": "x" * 6000}
    config = service.app_config().model_copy(update={"payload": template})
    dispatcher = Dispatcher(build_apps({DEFAULT_APP: config}))
    outcome = await dispatcher.send(call_by(platform, service))
    await dispatcher.close()
    assert (outcome.result, outcome.reason) == (PushResult.BAD_REQUEST, "PayloadTooLarge")
    assert service.pushes == []


async def test_a_push_begins_when_it_can_be_sent_at_once(
    dispatcher: Dispatcher, service: PushService
) -> None:
    tokens_issued = []

    async def begin(leave: Leave) -> bool:
        tokens_issued.append(service.tokens_issued)
        return True

    outcome = await dispatcher.send(call(Platform.FCM), begin)
    assert outcome.result is PushResult.ACCEPTED
    assert tokens_issued == [1]


async def test_a_push_begins_when_a_stream_is_free_which_is_then_its_own(
    dispatcher: Dispatcher, service: PushService
) -> None:
    service.options.http.stream_limit = 1
    connections_accepted = []
    second_begun = asyncio.Event()

    async def begin_first(leave: Leave) -> bool:
        connections_accepted.append(service.connections_accepted)
        await second_begun.wait()
        return True

    async def begin_second(leave: Leave) -> bool:
        connections_accepted.append(service.connections_accepted)
        second_begun.set()
        return True

    outcomes = await asyncio.gather(
        dispatcher.send(call(Platform.APNS), begin_first),
        dispatcher.send(call(Platform.APNS), begin_second),
    )
    assert [outcome.result for outcome in outcomes] == [PushResult.ACCEPTED] * 2
    assert connections_accepted == [1, 2]


@pytest.mark.parametrize("platform", [Platform.APNS, Platform.FCM])
async def test_a_push_leaves_while_it_begins(
    platform: Platform, dispatcher: Dispatcher, service: PushService
) -> None:
    arrived = []

    async def begin(leave: Leave) -> bool:
        leave()
        arrived.append(await service.next_push())
        return True

    outcome = await dispatcher.send(call(platform), begin)
    assert outcome.result is PushResult.ACCEPTED
    assert service.pushes == arrived


async def test_a_webhook_event_begins_when_its_connection_is_open(service: PushService) -> None:
    config = service.app_config(webhook=True).model_copy(update={"apns": None})
    dispatcher = Dispatcher(build_apps({DEFAULT_APP: config}))
    connections_accepted = []

    async def begin(leave: Leave) -> bool:
        connections_accepted.append(service.connections_accepted)
        return len(connections_accepted) < 2

    first = await dispatcher.send(call(Platform.APNS), begin)
    second = await dispatcher.send(call(Platform.APNS), begin)
    third = await dispatcher.send(call(Platform.APNS))
    await dispatcher.close()
    assert first.result is third.result is PushResult.ACCEPTED
    assert second == PushOutcome(PushResult.WITHDRAWN)
    assert connections_accepted == [1, 1]
    assert len(service.pushes) == 2


@pytest.mark.parametrize("platform", [Platform.APNS, Platform.FCM])
async def test_a_push_to_a_service_that_is_not_there_has_not_begun(
    platform: Platform, service: PushService
) -> None:
    apns = service.apns_config().model_copy(update={"server": "127.0.0.1:1"})
    fcm = service.fcm_config().model_copy(update={"server": "https://127.0.0.1:1"})
    dispatcher = Dispatcher(build_apps({DEFAULT_APP: AppConfig(apns=apns, fcm=fcm)}))
    begun = 0

    async def begin(leave: Leave) -> bool:
        nonlocal begun
        begun += 1
        return True

    outcome = await dispatcher.send(call(platform), begin)
    await dispatcher.close()
    assert (outcome.result, outcome.reason) == (PushResult.RETRYABLE, "cannot connect")
    assert begun == 0


async def test_a_platform_without_a_service_goes_to_the_webhook(service: PushService) -> None:
    config = service.app_config(webhook=True).model_copy(update={"apns": None})
    dispatcher = Dispatcher(build_apps({DEFAULT_APP: config}))
    await dispatcher.send(call(Platform.APNS))
    await dispatcher.close()
    assert (await service.next_push()).service == "webhook"


@pytest.mark.parametrize("app_id", ["com.example.unknown", "COM.EXAMPLE.SOFTPHONE"])
async def test_an_unknown_app_is_an_alarm_and_not_a_lost_token(
    app_id: str, dispatcher: Dispatcher
) -> None:
    outcome = await dispatcher.send(call(Platform.APNS, app_id=app_id))
    assert outcome.result is PushResult.CONFIG


async def test_nothing_is_sent_after_the_deadline(
    dispatcher: Dispatcher, service: PushService
) -> None:
    outcome = await dispatcher.send(call(Platform.APNS, hold=-1))
    assert outcome.result is PushResult.TIMED_OUT
    assert service.pushes == []


@pytest.mark.parametrize(
    ("platform", "token"), [(Platform.APNS, VOIP_TOKEN), (Platform.FCM, FCM_TOKEN)]
)
async def test_a_retry_that_would_come_too_late_is_not_waited_for(
    platform: Platform, token: str, dispatcher: Dispatcher, service: PushService
) -> None:
    service.misbehave(token, Misbehaviour(503, retry_after="60"))
    outcome = await dispatcher.send(call(platform))
    assert outcome.result is PushResult.RETRYABLE
    assert len(service.pushes_to(token)) == 1


@pytest.mark.parametrize(("platform", "silent"), [(Platform.APNS, 60), (Platform.FCM, 60)])
async def test_more_silent_devices_than_may_be_in_flight_delay_no_other(
    platform: Platform, silent: int, dispatcher: Dispatcher, service: PushService
) -> None:
    tokens = [f"{n:064x}" for n in range(silent)]
    for token in tokens:
        service.misbehave(token, Misbehaviour(act=Act.SILENCE))
    stuck = [
        asyncio.ensure_future(dispatcher.send(call(platform, call_token=t, hold=20)))
        for t in tokens
    ]
    outcome = await dispatcher.send(call(platform, hold=20))
    assert outcome.result is PushResult.ACCEPTED
    assert not any(send.done() for send in stuck)
    for send in stuck:
        send.cancel()
    await asyncio.wait(stuck)


@pytest.mark.parametrize("act", [Act.RESET, Act.REFUSE, Act.GOAWAY, Act.DISCONNECT])
async def test_a_device_that_ends_the_connection_costs_no_other_its_push(
    act: Act, dispatcher: Dispatcher, service: PushService
) -> None:
    service.misbehave(VOIP_TOKEN, Misbehaviour(act=act, times=1))
    tokens = [VOIP_TOKEN, *(f"{n:064x}" for n in range(50))]
    outcomes = await asyncio.gather(
        *(dispatcher.send(call(Platform.APNS, call_token=token)) for token in tokens)
    )
    assert {outcome.result for outcome in outcomes} == {PushResult.ACCEPTED}
    assert all(len(service.pushes_to(token)) <= 2 for token in tokens)


@pytest.mark.parametrize(
    ("platform", "killer"), [(Platform.APNS, VOIP_TOKEN), (Platform.FCM, FCM_TOKEN)]
)
@pytest.mark.parametrize("act", [Act.GOAWAY, Act.DISCONNECT])
async def test_a_device_that_ends_every_connection_costs_no_other_its_push(
    act: Act, platform: Platform, killer: str, dispatcher: Dispatcher, service: PushService
) -> None:
    """Once 39 of 51 were lost: what was tried again met the same device on the new connection.

    The service's GOAWAY also disowns requests that it has counted already.
    """
    service.misbehave(killer, Misbehaviour(act=act))
    tokens = [f"{n:064x}" for n in range(50)]
    sends = [
        asyncio.ensure_future(dispatcher.send(call(platform, call_token=token)))
        for token in (*tokens[:25], killer, *tokens[25:])
    ]
    results = [(await send).result for send in sends]
    assert results.pop(25) is PushResult.RETRYABLE
    assert set(results) == {PushResult.ACCEPTED}
    most = 3 if act is Act.GOAWAY else 2
    assert all(len(service.pushes_to(token)) <= most for token in tokens)


async def test_a_device_whose_push_was_lost_has_a_connection_to_itself_until_one_is_answered(
    dispatcher: Dispatcher, service: PushService
) -> None:
    service.misbehave(VOIP_TOKEN, Misbehaviour(act=Act.DISCONNECT))
    assert (await dispatcher.send(call(Platform.APNS))).result is PushResult.RETRYABLE
    other = call(Platform.APNS, call_token=ALERT_TOKEN)
    assert (await dispatcher.send(other)).result is PushResult.ACCEPTED
    connections = service.connections_accepted
    service.misbehave(VOIP_TOKEN, Misbehaviour(act=Act.DISCONNECT, times=1))
    assert (await dispatcher.send(call(Platform.APNS))).result is PushResult.ACCEPTED
    assert service.connections_accepted == connections + 2
    for request in (call(Platform.APNS), other):
        assert (await dispatcher.send(request)).result is PushResult.ACCEPTED
    assert service.connections_accepted == connections + 2


@pytest.mark.parametrize("platform", list(Platform))
async def test_a_stalled_handshake_ends_with_the_hold(
    platform: Platform, dispatcher: Dispatcher, service: PushService
) -> None:
    service.options.http.tls_delay = 60
    outcome = await dispatcher.send(call_by(platform, service, hold=1))
    assert outcome.result is PushResult.TIMED_OUT
    assert service.pushes == []


async def test_a_handshake_stalled_once_does_not_cost_the_call(
    dispatcher: Dispatcher, service: PushService
) -> None:
    service.options.http.tls_delay = 60
    service.options.http.slow_handshakes = 1
    outcome = await dispatcher.send(call(Platform.APNS))
    assert outcome.result is PushResult.ACCEPTED
    assert len(service.pushes) == 1


async def test_a_bug_in_a_provider_costs_one_push_and_tells_no_token() -> None:
    dispatcher = Dispatcher({DEFAULT_APP: {Platform.APNS: ScriptedProvider()}})
    with capture_logs() as logs:
        outcome = await dispatcher.send(call(Platform.APNS))
    assert outcome.result is PushResult.BAD_REQUEST
    assert [entry["event"] for entry in logs] == ["push_failed", "push_finished"]
    assert VOIP_TOKEN not in json.dumps(logs)


async def test_a_cancelled_send_gives_its_place_back() -> None:
    provider = ScriptedProvider(hold=asyncio.Event(), max_in_flight=1)
    dispatcher = Dispatcher({DEFAULT_APP: {Platform.APNS: provider}})
    first = asyncio.ensure_future(dispatcher.send(call(Platform.APNS)))
    await provider.began.wait()
    first.cancel()
    await asyncio.wait([first])
    provider.outcomes = [PushOutcome(PushResult.ACCEPTED)]
    assert provider.hold is not None
    provider.hold.set()
    assert (await dispatcher.send(call(Platform.APNS))).result is PushResult.ACCEPTED


THROTTLED = PushOutcome(PushResult.THROTTLED, "TooManyRequests", 429, retry_after=0.01)
UNANSWERED = PushOutcome(PushResult.RETRYABLE, "transport")
UNSENT = PushOutcome(PushResult.RETRYABLE, "cannot connect", has_left=False)
FAILED = PushOutcome(PushResult.RETRYABLE, "InternalServerError", 500)
ACCEPTED = PushOutcome(PushResult.ACCEPTED)


@pytest.mark.parametrize(
    ("outcomes", "wanted", "result", "tries"),
    [
        ([ACCEPTED], [False], PushResult.WITHDRAWN, 0),
        ([THROTTLED, ACCEPTED], [True, False], PushResult.WITHDRAWN, 1),
        ([THROTTLED, ACCEPTED], [True, True], PushResult.ACCEPTED, 2),
        # It may have arrived: whoever asked for it must go on as if it had.
        ([UNANSWERED, ACCEPTED], [True, False], PushResult.TIMED_OUT, 1),
        ([UNSENT, ACCEPTED], [True, False], PushResult.WITHDRAWN, 1),
    ],
)
async def test_a_push_that_nobody_wants_any_more_is_not_sent_or_not_again(
    outcomes: list[PushOutcome], wanted: list[bool], result: PushResult, tries: int
) -> None:
    provider = ScriptedProvider(list(outcomes))
    dispatcher = Dispatcher({DEFAULT_APP: {Platform.APNS: provider}})

    async def begin(leave: Leave) -> bool:
        return wanted.pop(0)

    outcome = await dispatcher.send(call(Platform.APNS), begin)
    assert (outcome.result, len(provider.sent)) == (result, tries)
    assert wanted == []


@pytest.mark.parametrize(
    ("outcomes", "knows_repeats", "result", "tries"),
    [
        ([UNSENT, FAILED, UNSENT, ACCEPTED], False, PushResult.ACCEPTED, 4),
        ([UNANSWERED, UNANSWERED, ACCEPTED], False, PushResult.RETRYABLE, 2),
        ([UNSENT, UNANSWERED, ACCEPTED], False, PushResult.RETRYABLE, 2),
        ([UNANSWERED, UNSENT, ACCEPTED], False, PushResult.RETRYABLE, 2),
        ([THROTTLED, THROTTLED, ACCEPTED], False, PushResult.THROTTLED, 2),
        ([UNANSWERED, THROTTLED, UNANSWERED, ACCEPTED], True, PushResult.ACCEPTED, 4),
    ],
)
async def test_only_what_cannot_have_arrived_is_tried_more_than_twice(
    outcomes: list[PushOutcome], knows_repeats: bool, result: PushResult, tries: int
) -> None:
    """Or what the service knows to be a repetition."""
    provider = ScriptedProvider(list(outcomes), retry_delays=(0.0,) * 4)
    provider.knows_repeats = knows_repeats
    dispatcher = Dispatcher({DEFAULT_APP: {Platform.APNS: provider}})
    outcome = await dispatcher.send(call(Platform.APNS))
    assert (outcome.result, len(provider.sent)) == (result, tries)


REFUSED = PushOutcome(PushResult.TOKEN_REFUSED, "BadDeviceToken", 400)
MOMENT = 1_700_000_000.0


class Quarantined:
    """A device whose token was refused at MOMENT, and what is pushed to it then."""

    def __init__(self) -> None:
        self.now = MOMENT
        self.provider = ScriptedProvider([REFUSED, ACCEPTED])
        self.apps = {DEFAULT_APP: {Platform.APNS: self.provider}}
        self.dispatcher = Dispatcher(self.apps, clock=lambda: self.now)

    async def push(self, **changes: object) -> PushResult:
        changes = {"updated_epoch": MOMENT - 60, **changes}
        request = call(Platform.APNS, deadline_epoch=self.now + 10, **changes)
        return (await self.dispatcher.send(request)).result


@pytest.fixture
async def quarantined() -> Quarantined:
    device = Quarantined()
    with capture_logs() as logs:
        assert await device.push() is PushResult.TOKEN_REFUSED
    assert [(line["event"], line["log_level"]) for line in logs] == [("push_finished", "error")]
    return device


async def test_a_token_that_was_refused_is_let_alone_for_a_while(quarantined: Quarantined) -> None:
    quarantined.now += quarantine.LASTS - 1
    with capture_logs() as logs:
        assert await quarantined.push() is PushResult.TOKEN_REFUSED
    assert [line["log_level"] for line in logs] == ["warning"]
    assert len(quarantined.provider.sent) == 1
    quarantined.now += 1
    assert await quarantined.push() is PushResult.ACCEPTED


@pytest.mark.parametrize(
    "changes",
    [
        {"updated_epoch": MOMENT + 1},
        {"call_token": "aa" * 32},
        {"kind": PushKind.MESSAGE},
    ],
    ids=["the device has registered", "another token", "the token for messages"],
)
async def test_only_that_token_is_let_alone(
    quarantined: Quarantined, changes: dict[str, object]
) -> None:
    assert await quarantined.push(**changes) is PushResult.ACCEPTED


async def test_new_settings_end_all_quarantine(quarantined: Quarantined) -> None:
    quarantined.dispatcher.replace({DEFAULT_APP: {Platform.APNS: ScriptedProvider([ACCEPTED])}})
    assert await quarantined.push() is PushResult.ACCEPTED


async def test_what_old_settings_brought_is_no_reason_for_quarantine() -> None:
    old = ScriptedProvider([REFUSED], hold=asyncio.Event())
    dispatcher = Dispatcher({DEFAULT_APP: {Platform.APNS: old}})
    request = call(Platform.APNS)
    under_way = asyncio.ensure_future(dispatcher.send(request))
    await old.began.wait()
    dispatcher.replace({DEFAULT_APP: {Platform.APNS: ScriptedProvider([ACCEPTED])}})
    assert old.hold is not None
    old.hold.set()
    assert (await under_way).result is PushResult.TOKEN_REFUSED
    assert (await dispatcher.send(request)).result is PushResult.ACCEPTED


async def test_no_more_tokens_are_in_quarantine_than_may_be(
    quarantined: Quarantined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "MAX_TOKENS", 1)
    quarantined.provider.outcomes = [REFUSED, ACCEPTED]
    assert await quarantined.push(call_token="aa" * 32) is PushResult.TOKEN_REFUSED
    assert await quarantined.push() is PushResult.ACCEPTED


async def test_a_push_that_waits_for_its_turn_can_be_withdrawn() -> None:
    provider = ScriptedProvider([ACCEPTED, ACCEPTED], hold=asyncio.Event(), max_in_flight=1)
    dispatcher = Dispatcher({DEFAULT_APP: {Platform.APNS: provider}})
    first = asyncio.ensure_future(dispatcher.send(call(Platform.APNS)))
    await provider.began.wait()
    over = asyncio.Event()

    async def begin(leave: Leave) -> bool:
        return not over.is_set()

    second = asyncio.ensure_future(dispatcher.send(call(Platform.APNS), begin))
    over.set()
    assert provider.hold is not None
    provider.hold.set()
    assert (await first).result is PushResult.ACCEPTED
    assert (await second).result is PushResult.WITHDRAWN
    assert len(provider.sent) == 1


async def test_replaced_services_finish_their_sends_before_they_close() -> None:
    accepted = PushOutcome(PushResult.ACCEPTED)
    old = ScriptedProvider([accepted], hold=asyncio.Event())
    new = ScriptedProvider([accepted])
    dispatcher = Dispatcher({DEFAULT_APP: {Platform.APNS: old}})
    under_way = asyncio.ensure_future(dispatcher.send(call(Platform.APNS)))
    await old.began.wait()
    dispatcher.replace({DEFAULT_APP: {Platform.APNS: new}})
    assert (await dispatcher.send(call(Platform.APNS))).result is PushResult.ACCEPTED
    assert len(new.sent) == 1
    assert not old.closed.is_set()
    assert old.hold is not None
    old.hold.set()
    assert (await under_way).result is PushResult.ACCEPTED
    await asyncio.wait_for(old.closed.wait(), 5)
    await dispatcher.close()
    await dispatcher.close()
    assert new.closed.is_set()


async def test_a_replaced_service_stays_open_between_two_tries() -> None:
    old = ScriptedProvider([FAILED, ACCEPTED], retry_delays=(0.2,))
    dispatcher = Dispatcher({DEFAULT_APP: {Platform.APNS: old}})
    under_way = asyncio.ensure_future(dispatcher.send(call(Platform.APNS)))
    await old.began.wait()
    dispatcher.replace({})
    assert (await under_way).result is PushResult.ACCEPTED
    await asyncio.wait_for(old.closed.wait(), 5)


async def test_closing_ends_services_that_were_still_to_close() -> None:
    old = ScriptedProvider(hold=asyncio.Event())
    dispatcher = Dispatcher({DEFAULT_APP: {Platform.APNS: old}})
    under_way = asyncio.ensure_future(dispatcher.send(call(Platform.APNS)))
    await old.began.wait()
    dispatcher.replace({})
    await dispatcher.close()
    assert old.closed.is_set()
    under_way.cancel()
    await asyncio.wait([under_way])


@pytest.mark.parametrize("platform", list(Platform))
async def test_every_outcome_is_one_line_without_tokens(
    platform: Platform, dispatcher: Dispatcher, service: PushService
) -> None:
    request = call_by(platform, service)
    with capture_logs() as logs:
        await dispatcher.send(request)
    (line,) = logs
    assert line["push_id"] == request.push_id
    assert line["call_id"] == request.call_id
    assert line["device"] == device_id(request.record.aor, request.record.device)
    assert line["result"] == "accepted"
    assert line.keys() >= {"app_id", "platform", "device", "reason", "status", "duration"}
    record = request.record
    for token in (record.call_token or VOIP_TOKEN, ALERT_TOKEN, FCM_TOKEN, record.device):
        assert token not in json.dumps(logs)
