"""FCM over real HTTP and TLS, with its OAuth token endpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sipush.config import FcmConfig
from sipush.core.bindings import Platform
from sipush.core.push_request import PushKind, PushResult
from sipush.demo.push_service import Misbehaviour, PushService
from sipush.push.fcm import FcmProvider, classify
from sipush.push.http_client import client_context

from .conftest import FCM_TOKEN, call
from .test_webhook import provider_for as webhook_for

pytestmark = pytest.mark.filterwarnings("ignore:Message.token is deprecated")


def provider_for(
    service: PushService, *, alpn: tuple[str, ...] = ("h2",), **changes: Path
) -> FcmProvider:
    config = FcmConfig(**{**service.fcm_config().model_dump(), **changes})
    account = json.loads(config.service_account_file.read_text())
    tls = client_context(config.ca_file, *alpn)
    return FcmProvider(config, account=account, profile="portsip", tls=tls)


@pytest.fixture
async def fcm(service: PushService) -> AsyncIterator[FcmProvider]:
    provider = provider_for(service)
    yield provider
    await provider.close()


@pytest.mark.parametrize(
    ("kind", "priority"),
    [(PushKind.REFRESH, "normal"), (PushKind.DIALOG, "high"), (PushKind.TEST, "high")],
)
async def test_a_refresh_is_not_urgent_unless_a_request_waits_for_it(
    kind: PushKind, priority: str, fcm: FcmProvider, service: PushService
) -> None:
    outcome = await fcm.send(call(Platform.FCM, kind=kind))
    assert outcome.result is PushResult.ACCEPTED
    push = await service.next_push(5)
    assert service.violations == []
    assert push.payload["android"]["priority"] == priority


async def test_a_call_is_data_only_of_high_priority_and_lives_as_long_as_the_hold(
    fcm: FcmProvider, service: PushService
) -> None:
    request = call(Platform.FCM, hold=25, video=True)
    outcome = await fcm.send(request)
    assert outcome.result is PushResult.ACCEPTED
    push = await service.next_push()
    assert service.violations == []
    assert push.token == FCM_TOKEN
    assert push.payload["android"] == {"priority": "high", "ttl": push.payload["android"]["ttl"]}
    assert 20 <= int(push.payload["android"]["ttl"].rstrip("s")) <= 25
    assert push.payload["data"]["msg_type"] == "video"
    assert push.payload["data"]["x-push-id"] == request.push_id
    assert "notification" not in push.payload


@pytest.mark.parametrize("alpn", [(), ("http/1.1",)])
async def test_a_server_without_http2_is_spoken_to_in_http1(
    alpn: tuple[str, ...], service: PushService
) -> None:
    provider = provider_for(service, alpn=alpn)
    outcomes = await asyncio.gather(*(provider.send(call(Platform.FCM)) for _ in range(8)))
    service.misbehave(FCM_TOKEN, Misbehaviour(status=404, reason="UNREGISTERED"))
    refused = await provider.send(call(Platform.FCM))
    await provider.close()
    assert {outcome.result for outcome in outcomes} == {PushResult.ACCEPTED}
    assert (refused.result, refused.reason) == (PushResult.TOKEN_DEAD, "UNREGISTERED")
    assert len(service.pushes) == 9
    assert service.violations == []


async def test_the_end_of_a_call_is_pushed_as_data(fcm: FcmProvider, service: PushService) -> None:
    await fcm.send(call(Platform.FCM, kind=PushKind.CANCEL))
    push = await service.next_push()
    assert push.payload["data"]["msg_type"] == "cancel"
    assert service.violations == []


async def test_a_device_without_a_token_is_not_pushed(
    fcm: FcmProvider, service: PushService
) -> None:
    outcome = await fcm.send(call(Platform.FCM, call_token=""))
    assert outcome.result is PushResult.BAD_REQUEST
    assert service.pushes == []


async def test_sends_at_a_cold_start_share_one_access_token(
    fcm: FcmProvider, service: PushService
) -> None:
    outcomes = await asyncio.gather(*(fcm.send(call(Platform.FCM)) for _ in range(16)))
    assert {o.result for o in outcomes} == {PushResult.ACCEPTED}
    assert service.tokens_issued == 1


async def test_a_slow_token_server_stops_nothing_else(
    fcm: FcmProvider, service: PushService
) -> None:
    service.options.token_delay = 1.0
    waiting = asyncio.ensure_future(fcm.send(call(Platform.FCM)))
    webhook = webhook_for(service)
    other = await webhook.send(call(Platform.WEBHOOK))
    await webhook.close()
    assert other.result is PushResult.ACCEPTED
    assert not waiting.done()
    assert (await waiting).result is PushResult.ACCEPTED


async def test_a_send_given_up_leaves_the_token_to_the_others(
    fcm: FcmProvider, service: PushService
) -> None:
    service.options.token_delay = 0.5
    first = asyncio.ensure_future(fcm.send(call(Platform.FCM)))
    second = asyncio.ensure_future(fcm.send(call(Platform.FCM)))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).result is PushResult.ACCEPTED
    assert service.tokens_issued == 1


async def test_a_refused_access_token_is_an_alarm(fcm: FcmProvider, service: PushService) -> None:
    service.options.token_status = 401
    outcome = await fcm.send(call(Platform.FCM))
    assert (outcome.result, outcome.reason) == (PushResult.CONFIG, "access token refused")
    service.options.token_status = 200
    assert (await fcm.send(call(Platform.FCM))).result is PushResult.ACCEPTED


async def test_a_token_about_to_expire_serves_while_its_server_is_down(
    fcm: FcmProvider, service: PushService
) -> None:
    service.options.token_lifetime = 100
    assert (await fcm.send(call(Platform.FCM))).result is PushResult.ACCEPTED
    service.options.token_status = 401
    assert (await fcm.send(call(Platform.FCM))).result is PushResult.ACCEPTED
    assert service.tokens_issued == 1


async def test_after_a_401_the_access_token_is_fetched_anew(
    fcm: FcmProvider, service: PushService
) -> None:
    service.misbehave(FCM_TOKEN, Misbehaviour(401, times=1, fcm_detail=False))
    assert (await fcm.send(call(Platform.FCM))).result is PushResult.CONFIG
    assert (await fcm.send(call(Platform.FCM))).result is PushResult.ACCEPTED
    assert service.tokens_issued == 2


async def test_a_foreign_ca_is_refused(service: PushService, foreign_ca: Path) -> None:
    provider = provider_for(service, ca_file=foreign_ca)
    outcome = await provider.send(call(Platform.FCM))
    await provider.close()
    assert (outcome.result, outcome.reason) == (PushResult.CONFIG, "certificate not trusted")
    assert service.pushes == []


@pytest.mark.parametrize(
    ("message", "result", "reason"),
    [
        (
            "The registration token is not a valid FCM registration token",
            PushResult.TOKEN_REFUSED,
            "INVALID_ARGUMENT message.token",
        ),
        ("Invalid data payload key: gcm", PushResult.BAD_REQUEST, "INVALID_ARGUMENT"),
        ("Android message is too big", PushResult.BAD_REQUEST, "INVALID_ARGUMENT"),
    ],
)
def test_a_400_speaks_of_the_token_only_where_it_says_so(
    message: str, result: PushResult, reason: str
) -> None:
    """As FCM words it, with an FcmError of INVALID_ARGUMENT in each case."""
    detail = {
        "@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError",
        "errorCode": "INVALID_ARGUMENT",
    }
    error = {"code": 400, "message": message, "status": "INVALID_ARGUMENT", "details": [detail]}
    outcome = classify(400, json.dumps({"error": error}).encode(), "")
    assert (outcome.result, outcome.reason) == (result, reason)


def test_a_body_that_is_no_answer_of_fcm_leaves_its_status() -> None:
    assert classify(503, b"[" * 8000, "").result is PushResult.RETRYABLE
