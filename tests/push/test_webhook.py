"""The webhook over real HTTP and TLS; the receiver verifies signatures as the docs say."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sipush.config import WebhookConfig
from sipush.core.bindings import Platform
from sipush.core.push_request import PushKind, PushResult
from sipush.demo.push_service import Misbehaviour, PushService
from sipush.push.http_client import client_context
from sipush.push.webhook import WebhookProvider, signature

from .conftest import call

DOCUMENT = Path(__file__).parents[2] / "docs" / "push-services.md"


def provider_for(
    service: PushService, ca_file: Path | None = None, secret: bytes = b"whsec_only-for-tests"
) -> WebhookProvider:
    config = WebhookConfig(**service.webhook_config().model_dump())
    tls = client_context(ca_file or config.ca_file)
    return WebhookProvider(config, secret=secret, tls=tls)


@pytest.fixture
async def webhook(service: PushService) -> AsyncIterator[WebhookProvider]:
    provider = provider_for(service)
    yield provider
    await provider.close()


async def test_a_call_is_told_with_its_fields_and_signed(
    webhook: WebhookProvider, service: PushService
) -> None:
    request = call(Platform.WEBHOOK, created_epoch=1769860800.0)
    outcome = await webhook.send(request)
    assert outcome.result is PushResult.ACCEPTED
    push = await service.next_push()
    assert service.violations == []
    assert re.fullmatch("evt_[0-9a-f]{32}", push.payload.pop("id"))
    assert push.payload == {
        "type": "call.mobile_push_wakeup",
        "created_at": "2026-01-31T12:00:00.000Z",
        "account_id": "acct_demo",
        "data": {
            "call_id": request.push_id,
            "sip_call_id": request.call_id,
            "user_id": "105@example.com",
            "from_number": "102",
            "from_name": "Alice",
            "to_number": "105",
            "ringing_at": "2026-01-31T12:00:00.000Z",
        },
    }


@pytest.mark.parametrize(
    ("kind", "event"),
    [
        (PushKind.CANCEL, "call.mobile_push_cancelled"),
        (PushKind.MESSAGE, "message.mobile_push_wakeup"),
        (PushKind.REFRESH, "registration.mobile_push_wakeup"),
    ],
)
async def test_other_events_have_types_of_their_own(
    kind: PushKind, event: str, webhook: WebhookProvider, service: PushService
) -> None:
    await webhook.send(call(Platform.WEBHOOK, kind=kind))
    assert (await service.next_push()).payload["type"] == event


async def test_an_event_sent_again_keeps_its_id(
    webhook: WebhookProvider, service: PushService
) -> None:
    request = call(Platform.WEBHOOK)
    await webhook.send(request)
    await webhook.send(request)
    await webhook.send(call(Platform.WEBHOOK))
    first, again, other = [push.payload["id"] for push in service.pushes]
    assert first == again != other


async def test_a_redirect_is_not_followed(webhook: WebhookProvider, service: PushService) -> None:
    service.misbehave("105@example.com", Misbehaviour(302))
    assert (await webhook.send(call(Platform.WEBHOOK))).result is PushResult.CONFIG
    assert len(service.pushes) == 1


async def test_the_receiver_refuses_another_secret(service: PushService) -> None:
    provider = provider_for(service, secret=b"another-secret-altogether")
    outcome = await provider.send(call(Platform.WEBHOOK))
    await provider.close()
    assert (outcome.result, outcome.status) == (PushResult.CONFIG, 401)
    assert service.violations == ["webhook: signature: v1 does not sign <t>.<raw body>"]


async def test_a_foreign_ca_is_refused(service: PushService, foreign_ca: Path) -> None:
    provider = provider_for(service, ca_file=foreign_ca)
    outcome = await provider.send(call(Platform.WEBHOOK))
    await provider.close()
    assert (outcome.result, outcome.reason) == (PushResult.CONFIG, "certificate not trusted")
    assert service.pushes == []


def test_the_documented_verification_accepts_what_we_sign() -> None:
    sample = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert sample is not None
    names: dict[str, object] = {}
    exec(sample[1], names)  # the sample of our own document
    verify = names["verify"]
    assert callable(verify)
    now = int(time.time())
    assert verify(signature(b"secret", now, b"{}"), b"{}", b"secret")
    assert not verify(signature(b"secret", now, b"{}"), b"{ }", b"secret")
    assert not verify(signature(b"other", now, b"{}"), b"{}", b"secret")
    assert not verify(signature(b"secret", now - 301, b"{}"), b"{}", b"secret")
