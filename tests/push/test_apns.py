"""APNs over real HTTP/2 and TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sipush.core.bindings import Platform
from sipush.core.push_request import PushResult
from sipush.demo.push_service import DEFAULT_APP, PushService
from sipush.push.apns import ApnsProvider
from sipush.push.http_client import client_context

from .conftest import VOIP_TOKEN, call


def provider_for(service: PushService, *servers: str) -> ApnsProvider:
    config = service.apns_config()
    return ApnsProvider(
        config,
        bundle_id=DEFAULT_APP,
        key=config.key_file.read_text(),
        profile="portsip",
        tls=client_context(config.ca_file, "h2"),
        servers=servers,
    )


@pytest.fixture
async def apns(service: PushService) -> AsyncIterator[ApnsProvider]:
    provider = provider_for(service)
    yield provider
    await provider.close()


async def test_a_call_goes_to_the_voip_token_as_apple_documents_it(
    apns: ApnsProvider, service: PushService
) -> None:
    request = call(Platform.APNS)
    outcome = await apns.send(request)
    assert outcome.result is PushResult.ACCEPTED
    push = await service.next_push()
    assert service.violations == []
    assert push.token == VOIP_TOKEN
    assert push.headers["apns-topic"] == f"{DEFAULT_APP}.voip"
    assert push.headers["apns-push-type"] == "voip"
    assert push.headers["apns-id"] == request.push_id
    assert push.headers["apns-expiration"] == str(int(request.deadline_epoch))
    assert push.payload["x-push-id"] == request.push_id


async def test_fifty_sends_at_a_cold_start_all_arrive_once(
    apns: ApnsProvider, service: PushService
) -> None:
    requests = [call(Platform.APNS, call_token=f"{n:064x}") for n in range(50)]
    outcomes = await asyncio.gather(*(apns.send(r) for r in requests))
    assert {o.result for o in outcomes} == {PushResult.ACCEPTED}
    assert sorted(p.token for p in service.pushes) == [f"{n:064x}" for n in range(50)]
    assert service.violations == []
    assert service.connections_accepted == 1
