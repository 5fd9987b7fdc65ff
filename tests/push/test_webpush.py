"""Web Push over real HTTP and TLS; Mozilla's ``http_ece`` is the browser."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import textwrap
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sipush.config import AppConfig, WebpushConfig
from sipush.core.bindings import Platform
from sipush.core.push_request import PushKind, PushRequest, PushResult
from sipush.demo.credentials import Credentials
from sipush.demo.push_service import DEFAULT_APP, Misbehaviour, PushService
from sipush.push.apps import build_apps, vapid_keys
from sipush.push.http_client import client_context
from sipush.push.message_encryption import encrypt
from sipush.push.webpush import MAX_SERVERS, WebpushProvider, vapid_token
from tests.subscription import Subscription

from .conftest import call

DOCUMENT = Path(__file__).parents[2] / "docs" / "push-services.md"


def base64url(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def provider_for(
    service: PushService, *, alpn: tuple[str, ...] = ("h2",), **changes: object
) -> WebpushProvider:
    config = WebpushConfig(**{**service.webpush_config().model_dump(), **changes})
    key = load_pem_private_key(config.key_file.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    tls = client_context(config.ca_file, *alpn)
    return WebpushProvider(config, key=key, profile="portsip", tls=tls)


@pytest.fixture
async def webpush(service: PushService) -> AsyncIterator[WebpushProvider]:
    provider = provider_for(service)
    yield provider
    await provider.close()


@pytest.fixture
def browser(service: PushService) -> Subscription:
    return Subscription(service)


def push_to(browser: Subscription, **changes: object) -> PushRequest:
    of_browser = {"call_token": browser.endpoint, "extra": browser.keys}
    return call(Platform.WEBPUSH, **{**of_browser, **changes})  # type: ignore[arg-type]


def test_rfc8291_appendix_a() -> None:
    key = int.from_bytes(base64url("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw"), "big")
    p256dh = (
        "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"
    )
    body = encrypt(
        b"When I grow up, I want to be a watermelon",
        base64url(p256dh),
        base64url("BTBZMqHH6r4Tts7J_aSIgg"),
        key=ec.derive_private_key(key, ec.SECP256R1()),
        salt=base64url("DGv6ra1nlYgDCS1FRnbzlw"),
    )
    assert urlsafe_b64encode(body).decode().rstrip("=") == (
        "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27ml"
        "mlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPT"
        "pK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
    )


def test_no_two_messages_are_encrypted_alike(browser: Subscription) -> None:
    keys = base64url(browser.p256dh), base64url(browser.auth)
    assert encrypt(b"x", *keys)[:16] != encrypt(b"x", *keys)[:16]


async def test_a_call_is_encrypted_urgent_and_lives_as_long_as_the_hold(
    webpush: WebpushProvider, service: PushService, browser: Subscription
) -> None:
    request = push_to(browser, hold=25.0, video=True)
    outcome = await webpush.send(request)
    assert (outcome.result, outcome.status) == (PushResult.ACCEPTED, 201)
    push = await service.next_push()
    assert service.violations == []
    assert push.token == browser.endpoint
    assert push.payload == {
        "msg_type": "video",
        "msg_title": "Alice",
        "msg_content": "Incoming video call: Alice",
        "send_from": "102",
        "send_to": "sip:105@example.com",
        "x-push-id": request.push_id,
    }
    assert 20 <= int(push.headers["ttl"]) <= 25
    assert push.headers["urgency"] == "high"


async def test_the_end_of_a_call_replaces_the_call_that_no_browser_has_fetched_yet(
    webpush: WebpushProvider, service: PushService, browser: Subscription
) -> None:
    request = push_to(browser)
    end = push_to(browser, kind=PushKind.CANCEL, push_id=request.push_id)
    for each in (request, end, push_to(browser)):
        await webpush.send(each)
    begun, ended, other = service.pushes_to(browser.endpoint)
    assert (begun.payload["msg_type"], ended.payload["msg_type"]) == ("audio", "cancel")
    assert begun.headers["topic"] == ended.headers["topic"] != other.headers["topic"]
    assert service.violations == []


async def test_a_message_is_cut_to_what_every_browser_takes(
    webpush: WebpushProvider, service: PushService, browser: Subscription
) -> None:
    message = push_to(
        browser, kind=PushKind.MESSAGE, push_id="17", text="é" * 5000, hold=90 * 86400.0
    )
    assert (await webpush.send(message)).result is PushResult.ACCEPTED
    push = await service.next_push()
    assert service.violations == []
    assert push.payload["msg_type"] == "im"
    assert set(push.payload["msg_content"]) == {"é"}
    assert (push.headers["ttl"], push.headers["topic"]) == (str(28 * 86400), "17")


async def test_without_keys_a_push_carries_nothing(
    webpush: WebpushProvider, service: PushService, browser: Subscription
) -> None:
    assert (await webpush.send(push_to(browser, extra={}))).result is PushResult.ACCEPTED
    push = await service.next_push()
    assert service.violations == []
    assert push.payload == {}
    assert "content-encoding" not in push.headers
    end = await webpush.send(push_to(browser, extra={}, kind=PushKind.CANCEL))
    assert (end.result, end.reason) == (PushResult.BAD_REQUEST, "NothingToSend")
    assert len(service.pushes) == 1


async def test_one_token_serves_a_service_for_hours_unless_the_clock_is_put_back(
    service: PushService, browser: Subscription
) -> None:
    config = service.webpush_config()
    key = load_pem_private_key(config.key_file.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    now = time.time()
    provider = WebpushProvider(
        config,
        key=key,
        profile="portsip",
        tls=client_context(config.ca_file, "h2"),
        clock=lambda: now,
    )
    await provider.send(push_to(browser))
    now += 10 * 3600
    await provider.send(push_to(browser))
    now += 2 * 3600
    await provider.send(push_to(browser))
    now -= 3600
    await provider.send(push_to(browser))
    await provider.close()
    first, again, renewed, put_back = [push.headers["authorization"] for push in service.pushes]
    assert first == again
    assert len({first, renewed, put_back}) == 3


def test_a_token_says_what_the_example_of_rfc8292_says() -> None:
    """Section 2.4, but for the signature, which is another each time."""
    key = ec.generate_private_key(ec.SECP256R1())
    token = vapid_token(key, "https://push.example.net", 1453523768, "mailto:push@example.com")
    header, claims, _ = token.split(".")
    assert json.loads(base64url(header)) == {"typ": "JWT", "alg": "ES256"}
    assert claims == (
        "eyJhdWQiOiJodHRwczovL3B1c2guZXhhbXBsZS5uZXQiLCJleHAiOjE0NTM1MjM3NjgsInN1YiI6Im1haWx0bzpw"
        "dXNoQGV4YW1wbGUuY29tIn0"
    )
    jwt.decode(
        token,
        key.public_key(),
        ["ES256"],
        audience="https://push.example.net",
        options={"verify_exp": False},
    )


@pytest.mark.parametrize("alpn", [(), ("http/1.1",)])
async def test_a_service_without_http2_is_spoken_to_in_http1(
    alpn: tuple[str, ...], service: PushService, browser: Subscription
) -> None:
    provider = provider_for(service, alpn=alpn)
    outcomes = await asyncio.gather(*(provider.send(push_to(browser)) for _ in range(8)))
    await provider.close()
    assert {outcome.result for outcome in outcomes} == {PushResult.ACCEPTED}
    assert service.violations == []


@pytest.mark.parametrize("status", [301, 307, 308])
async def test_a_redirect_is_not_followed(
    status: int, webpush: WebpushProvider, service: PushService, browser: Subscription
) -> None:
    service.misbehave(browser.endpoint, Misbehaviour(status))
    assert (await webpush.send(push_to(browser))).result is PushResult.BAD_REQUEST
    assert len(service.pushes) == 1


async def test_no_host_is_asked_that_the_operator_does_not_name(
    service: PushService, browser: Subscription
) -> None:
    provider = provider_for(service, hosts=["push.example.com"])
    outcome = await provider.send(push_to(browser))
    await provider.close()
    assert (outcome.result, outcome.reason) == (PushResult.BAD_REQUEST, "UnusableSubscription")
    assert service.connections_accepted == 0


async def test_keys_that_are_no_point_of_the_curve_cost_only_the_push(
    webpush: WebpushProvider, service: PushService, browser: Subscription
) -> None:
    keys = {"p256dh": "B" + "A" * 86, "auth": browser.auth}
    outcome = await webpush.send(push_to(browser, extra=keys))
    assert (outcome.result, outcome.reason) == (PushResult.BAD_REQUEST, "UnusableSubscription")
    assert service.pushes == []


async def test_a_subscription_made_for_another_key_is_an_alarm(
    service: PushService, browser: Subscription, tmp_path: Path
) -> None:
    other = Credentials.create(tmp_path).vapid_key_file
    provider = provider_for(service, key_file=other)
    outcome = await provider.send(push_to(browser))
    await provider.close()
    assert (outcome.result, outcome.reason) == (PushResult.CONFIG, "VapidPkHashMismatch")


async def test_services_that_are_long_unused_are_forgotten(
    service: PushService, browser: Subscription
) -> None:
    """A ``*`` in ``hosts`` lets a client name as many as it likes."""
    nobody = [f"127.0.0.1:{port}" for port in range(1, MAX_SERVERS + 1)]
    provider = provider_for(service, hosts=[service.address, *nobody])
    await provider.send(push_to(browser))
    for server in nobody:
        nowhere = push_to(browser, call_token=f"https://{server}/x")
        assert (await provider.send(nowhere)).result is PushResult.RETRYABLE
    await provider.send(push_to(browser))
    await provider.close()
    assert service.connections_accepted == 2
    assert len(service.pushes) == 2


async def test_a_foreign_ca_is_refused(
    service: PushService, browser: Subscription, foreign_ca: Path
) -> None:
    provider = provider_for(service, ca_file=foreign_ca)
    outcome = await provider.send(push_to(browser))
    await provider.close()
    assert (outcome.result, outcome.reason) == (PushResult.CONFIG, "certificate not trusted")
    assert service.pushes == []


def test_the_documented_commands_make_a_key_and_print_its_public_half(
    service: PushService, tmp_path: Path
) -> None:
    section = DOCUMENT.read_text().partition("## Web Push")[2]
    make, tell = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    subprocess.run(textwrap.dedent(make), shell=True, cwd=tmp_path, check=True)
    printed = subprocess.run(
        ["bash", "-o", "pipefail", "-c", textwrap.dedent(tell)],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    config = service.webpush_config().model_copy(update={"key_file": tmp_path / "vapid.pem"})
    apps = build_apps({DEFAULT_APP: AppConfig(webpush=config)})
    assert vapid_keys(apps) == {DEFAULT_APP: printed}
