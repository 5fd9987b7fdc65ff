"""APNs over real HTTP/2 and TLS."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import jwt
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import StreamEnded

from sipush.core.bindings import Platform
from sipush.core.push_request import PushKind, PushResult
from sipush.demo.http_server import Act
from sipush.demo.push_service import DEFAULT_APP, Misbehaviour, PushService
from sipush.push.apns import ApnsProvider, classify
from sipush.push.http_client import Answer, client_context

from .conftest import ALERT_TOKEN, VOIP_TOKEN, call


def provider_for(
    service: PushService, *servers: str, ca_file: Path | None = None, alpn: str = "h2"
) -> ApnsProvider:
    config = service.apns_config()
    return ApnsProvider(
        config,
        bundle_id=DEFAULT_APP,
        key=config.key_file.read_text(),
        profile="portsip",
        tls=client_context(ca_file or config.ca_file, alpn),
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


async def test_a_call_to_an_app_without_callkit_is_an_alert_to_its_message_token(
    apns: ApnsProvider, service: PushService
) -> None:
    await apns.send(call(Platform.APNS, call_token=""))
    push = await service.next_push()
    assert service.violations == []
    assert push.token == ALERT_TOKEN
    assert push.headers["apns-topic"] == DEFAULT_APP
    assert push.payload["aps"]["alert"] == {"title": "Alice", "body": "Incoming call"}


async def test_a_message_is_an_alert_with_its_text(
    apns: ApnsProvider, service: PushService
) -> None:
    request = call(Platform.APNS, kind=PushKind.MESSAGE, push_id="17", text="Lunch?")
    outcome = await apns.send(request)
    push = await service.next_push()
    assert outcome.result is PushResult.ACCEPTED
    assert service.violations == []
    assert push.headers["apns-push-type"] == "alert"
    assert push.payload["aps"]["alert"]["body"] == "Lunch?"
    assert push.payload["x-push-id"] == "17"


async def test_the_end_of_a_call_is_never_pushed(apns: ApnsProvider, service: PushService) -> None:
    outcome = await apns.send(call(Platform.APNS, kind=PushKind.CANCEL))
    assert outcome.result is PushResult.BAD_REQUEST
    assert service.pushes == []


async def test_a_token_that_would_leave_the_path_is_not_sent(
    apns: ApnsProvider, service: PushService
) -> None:
    outcome = await apns.send(call(Platform.APNS, call_token="../../admin?x="))
    reason = "the device-uid is no APNs token"  # in no word of Apple's, who was not asked
    assert (outcome.result, outcome.reason) == (PushResult.BAD_REQUEST, reason)
    assert service.pushes == []


async def test_two_devices_of_one_call_are_both_pushed(
    apns: ApnsProvider, service: PushService
) -> None:
    first = call(Platform.APNS, call_token="aa" * 32)
    second = call(Platform.APNS, call_token="bb" * 32, push_id=first.push_id)
    outcomes = await asyncio.gather(apns.send(first), apns.send(second))
    assert [o.result for o in outcomes] == [PushResult.ACCEPTED] * 2
    assert sorted(p.token for p in service.pushes) == ["aa" * 32, "bb" * 32]


async def test_fifty_sends_at_a_cold_start_all_arrive_once(
    apns: ApnsProvider, service: PushService
) -> None:
    requests = [call(Platform.APNS, call_token=f"{n:064x}") for n in range(50)]
    outcomes = await asyncio.gather(*(apns.send(r) for r in requests))
    assert {o.result for o in outcomes} == {PushResult.ACCEPTED}
    assert sorted(p.token for p in service.pushes) == [f"{n:064x}" for n in range(50)]
    assert service.violations == []
    assert service.connections_accepted == 1


async def test_cancelling_one_of_many_sends_disturbs_no_other(
    apns: ApnsProvider, service: PushService
) -> None:
    await apns.send(call(Platform.APNS))
    service.misbehave("aa" * 32, Misbehaviour(act=Act.SILENCE))
    victim = asyncio.ensure_future(apns.send(call(Platform.APNS, call_token="aa" * 32)))
    others = [call(Platform.APNS, call_token=f"{n:064x}") for n in range(50)]
    sends = asyncio.gather(*(apns.send(r) for r in others))
    await service.next_push()
    await service.next_push()
    victim.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await victim
    assert {o.result for o in await sends} == {PushResult.ACCEPTED}
    assert all(len(service.pushes_to(r.record.call_token)) == 1 for r in others)
    assert service.connections_accepted == 1


async def test_a_connection_outlives_more_error_bodies_than_its_window_holds(
    apns: ApnsProvider, service: PushService
) -> None:
    service.misbehave(VOIP_TOKEN, Misbehaviour(400, "x" * 4000))
    for _ in range(25):  # 100,000 bytes; the window is 65,535
        outcome = await apns.send(call(Platform.APNS))
        assert outcome.status == 400
    assert service.connections_accepted == 1


async def test_a_connection_gone_deaf_is_replaced(apns: ApnsProvider, service: PushService) -> None:
    service.misbehave(VOIP_TOKEN, Misbehaviour(act=Act.DEAF, times=1))
    lost = await apns.send(call(Platform.APNS))
    assert lost.result is PushResult.RETRYABLE
    found = await apns.send(call(Platform.APNS))
    assert found.result is PushResult.ACCEPTED
    assert service.connections_accepted == 2


async def test_a_connection_gone_deaf_after_another_answer_is_given_up(
    apns: ApnsProvider, service: PushService
) -> None:
    await apns.send(call(Platform.APNS))
    await service.next_push()
    service.misbehave("aa" * 32, Misbehaviour(act=Act.DEAF, delay=0.2))
    unheard = asyncio.ensure_future(apns.send(call(Platform.APNS, call_token="aa" * 32)))
    await service.next_push()
    assert (await apns.send(call(Platform.APNS))).result is PushResult.ACCEPTED
    outcome = await asyncio.wait_for(unheard, 10)
    assert (outcome.result, outcome.reason) == (PushResult.RETRYABLE, "no answer to ping")


async def test_a_service_that_takes_its_time_is_not_given_up(
    apns: ApnsProvider, service: PushService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers pings, of which each comes later than the one before."""
    monkeypatch.setattr("sipush.push.http2.QUIET", 0.01)
    service.misbehave(VOIP_TOKEN, Misbehaviour(delay=0.5))
    assert (await apns.send(call(Platform.APNS))).result is PushResult.ACCEPTED
    assert service.connections_accepted == 1


async def test_silence_for_the_only_granted_stream_opens_another_connection(
    apns: ApnsProvider, service: PushService
) -> None:
    service.options.http.stream_limit = 1
    service.misbehave("aa" * 32, Misbehaviour(act=Act.SILENCE))
    silent = asyncio.ensure_future(apns.send(call(Platform.APNS, call_token="aa" * 32)))
    await service.next_push()
    served = await apns.send(call(Platform.APNS))
    assert served.result is PushResult.ACCEPTED
    assert service.connections_accepted == 2
    silent.cancel()
    await asyncio.wait([silent])


async def test_all_connections_of_a_team_share_one_token(service: PushService) -> None:
    first, second = provider_for(service), provider_for(service)
    await first.send(call(Platform.APNS))
    await second.send(call(Platform.APNS))
    await first.close()
    await second.close()
    assert service.connections_accepted == 2
    assert len({push.headers["authorization"] for push in service.pushes}) == 1


async def test_a_foreign_ca_is_refused(service: PushService, foreign_ca: Path) -> None:
    provider = provider_for(service, ca_file=foreign_ca)
    outcome = await provider.send(call(Platform.APNS))
    assert (outcome.result, outcome.reason) == (PushResult.CONFIG, "certificate not trusted")
    assert service.pushes == []


async def test_a_certificate_for_another_name_is_refused(service: PushService) -> None:
    provider = provider_for(service, f"127.0.0.2:{service.port}")
    outcome = await provider.send(call(Platform.APNS))
    assert outcome.result is not PushResult.ACCEPTED
    assert service.pushes == []


async def test_a_server_without_http2_gets_nothing(service: PushService) -> None:
    provider = provider_for(service, alpn="http/1.1")
    outcome = await provider.send(call(Platform.APNS))
    assert (outcome.result, outcome.reason) == (
        PushResult.RETRYABLE,
        "the server does not speak HTTP/2",
    )
    assert service.pushes == []


async def test_nobody_listening_can_be_tried_again(service: PushService) -> None:
    provider = provider_for(service, "127.0.0.1:1")
    outcome = await provider.send(call(Platform.APNS))
    assert (outcome.result, outcome.reason) == (PushResult.RETRYABLE, "cannot connect")


async def test_a_clock_that_was_put_back_leaves_no_token_of_the_future(
    apns: ApnsProvider, service: PushService, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7200)
    await apns.send(call(Platform.APNS))
    monkeypatch.setattr(time, "time", lambda: now)
    await apns.send(call(Platform.APNS))
    issued = []
    for push in service.pushes:
        token = push.headers["authorization"].removeprefix("bearer ")
        issued.append(jwt.decode(token, options={"verify_signature": False})["iat"])
    assert issued == [int(now) + 7200, int(now)]


@pytest.mark.parametrize(
    "body",
    [b"[" * 8000, b'{"reason": "InternalServerError", "timestamp": 1' + b"0" * 400 + b"}"],
    ids=["nested", "huge"],
)
def test_a_body_that_is_no_answer_of_apns_leaves_its_status(body: bytes) -> None:
    assert classify(Answer(503, body, ""), 1.0).result is PushResult.RETRYABLE


@pytest.mark.parametrize(
    "headers", [((b":status", b"503"), (b"x", b"\xe4")), ((b":status", b"x"),)]
)
async def test_an_answer_that_is_no_http_is_a_lost_one(
    service: PushService, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        h2.initiate_connection()
        while data := await reader.read(65536):
            for event in h2.receive_data(data):
                if isinstance(event, StreamEnded):
                    h2.send_headers(event.stream_id, headers, end_stream=True)
            writer.write(h2.data_to_send())
        writer.close()

    surprises: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: surprises.append(what))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(service.credentials.certificate_file, service.credentials.private_key_file)
    tls.set_alpn_protocols(["h2"])
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    apns = provider_for(service, f"127.0.0.1:{port}")
    outcome = await apns.send(call(Platform.APNS))
    assert (outcome.result, outcome.reason) == (PushResult.RETRYABLE, "protocol error")
    await apns.close()
    server.close()
    assert surprises == []
