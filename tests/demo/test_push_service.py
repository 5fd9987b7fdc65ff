"""The local push service refuses what Apple and Google refuse."""

from __future__ import annotations

import ssl
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from sipush.demo.credentials import KEY_ID, PROJECT_ID, TEAM_ID, Credentials
from sipush.demo.push_service import ACCESS_TOKEN, DEFAULT_APP, PushService

TOKEN = "fe1b" * 16


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return Credentials.create(tmp_path_factory.mktemp("credentials"))


@pytest.fixture
def service(credentials: Credentials) -> Iterator[PushService]:
    with PushService(credentials) as service:
        yield service


def provider_token(service: PushService, key: Any = None, **claims: Any) -> str:
    kid = claims.pop("kid", KEY_ID)
    claims = {"iss": TEAM_ID, "iat": int(time.time()), **claims}
    pem = key or service.credentials.apns_key_file.read_text()
    return "bearer " + jwt.encode(claims, pem, "ES256", headers={"kid": kid})


def apns_headers(service: PushService) -> dict[str, str]:
    return {
        "authorization": provider_token(service),
        "apns-id": str(uuid.uuid4()),
        "apns-topic": f"{DEFAULT_APP}.voip",
        "apns-push-type": "voip",
        "apns-priority": "10",
        "apns-expiration": str(int(time.time()) + 30),
    }


async def post(service: PushService, path: str, http2: bool = True, **what: Any) -> httpx.Response:
    tls = ssl.create_default_context(cafile=service.credentials.ca_file)
    async with httpx.AsyncClient(verify=tls, http2=http2, trust_env=False) as client:
        return await client.post(f"{service.url}{path}", **what)


async def test_a_correct_push_is_accepted(service: PushService) -> None:
    headers = apns_headers(service)
    answer = await post(service, f"/3/device/{TOKEN}", headers=headers, json={"x": "1"})
    assert answer.status_code == 200
    assert answer.headers["apns-id"] == headers["apns-id"]
    assert service.violations == []


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"apns-topic": DEFAULT_APP}, 400, "BadTopic"),
        ({"apns-topic": "com.other.voip"}, 400, "BadTopic"),
        ({"apns-topic": ""}, 400, "MissingTopic"),
        ({"apns-push-type": "background"}, 400, "InvalidPushType"),
        ({"apns-priority": "5"}, 400, "BadPriority"),
        ({"apns-expiration": "1"}, 400, "BadExpirationDate"),
        ({"apns-expiration": "soon"}, 400, "BadExpirationDate"),
        ({"apns-id": "17"}, 400, "BadMessageId"),
        ({"apns-collapse-id": "x" * 65}, 400, "BadCollapseId"),
        ({"authorization": ""}, 403, "MissingProviderToken"),
        ({"authorization": "bearer x.y.z"}, 403, "InvalidProviderToken"),
    ],
)
async def test_wrong_headers_are_refused_by_name(
    change: dict[str, str], status: int, reason: str, service: PushService
) -> None:
    headers = apns_headers(service) | change
    answer = await post(service, f"/3/device/{TOKEN}", headers=headers, json={"x": "1"})
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert len(service.violations) == 1


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"iss": "OTHERTEAM1"}, "InvalidProviderToken"),
        ({"kid": "OTHERKEY12"}, "InvalidProviderToken"),
        ({"iat": 1}, "ExpiredProviderToken"),
        ({"key": ec.generate_private_key(ec.SECP256R1())}, "InvalidProviderToken"),
    ],
)
async def test_a_wrong_provider_token_is_refused(
    claims: dict[str, Any], reason: str, service: PushService
) -> None:
    headers = apns_headers(service) | {"authorization": provider_token(service, **claims)}
    answer = await post(service, f"/3/device/{TOKEN}", headers=headers, json={"x": "1"})
    assert (answer.status_code, answer.json()["reason"]) == (403, reason)


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "PayloadEmpty"),
        (b"[1]", 400, "PayloadEmpty"),
        (b'{"x":"' + b"y" * 5120 + b'"}', 413, "PayloadTooLarge"),
    ],
)
async def test_a_wrong_payload_is_refused(
    body: bytes, status: int, reason: str, service: PushService
) -> None:
    headers = apns_headers(service)
    answer = await post(service, f"/3/device/{TOKEN}", headers=headers, content=body)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)


async def test_apns_is_not_served_over_http1(service: PushService) -> None:
    headers = apns_headers(service)
    answer = await post(service, f"/3/device/{TOKEN}", False, headers=headers, json={"x": "1"})
    assert answer.status_code == 400
    assert service.violations == ["apns: BadRequest: APNs is HTTP/2 only (ALPN h2)"]


async def test_a_token_that_is_not_hex_is_refused(service: PushService) -> None:
    answer = await post(
        service, "/3/device/not-hex", headers=apns_headers(service), json={"x": "1"}
    )
    assert (answer.status_code, answer.json()["reason"]) == (400, "BadDeviceToken")


MESSAGE = {"token": "t", "data": {"a": "1"}, "android": {"priority": "high", "ttl": "30s"}}


@pytest.mark.parametrize(
    ("change", "authorization", "status"),
    [
        ({}, ACCESS_TOKEN, 200),
        ({}, "forged", 401),
        ({"data": {"a": 1}}, ACCESS_TOKEN, 400),
        ({"data": {"a": "x" * 4096}}, ACCESS_TOKEN, 400),
        ({"notification": {"title": "x"}}, ACCESS_TOKEN, 400),
        ({"android": {"priority": "normal", "ttl": "30s"}}, ACCESS_TOKEN, 400),
        ({"android": {"priority": "high", "ttl": "30"}}, ACCESS_TOKEN, 400),
        ({"token": ""}, ACCESS_TOKEN, 400),
    ],
)
async def test_fcm_messages_are_checked(
    change: dict[str, Any], authorization: str, status: int, service: PushService
) -> None:
    answer = await post(
        service,
        f"/v1/projects/{PROJECT_ID}/messages:send",
        headers={"authorization": f"Bearer {authorization}"},
        json={"message": MESSAGE | change},
    )
    assert answer.status_code == status
    assert bool(service.violations) == (status != 200)


async def test_a_forged_assertion_buys_no_access_token(service: PushService) -> None:
    grant = "urn:ietf:params:oauth:grant-type:jwt-bearer"
    form = {"grant_type": grant, "assertion": "x.y.z"}
    answer = await post(service, "/token", data=form)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")
    assert service.tokens_issued == 0


async def test_waiting_for_a_push_that_does_not_come_times_out(service: PushService) -> None:
    with pytest.raises(TimeoutError):
        await service.next_push(within=0.05)
