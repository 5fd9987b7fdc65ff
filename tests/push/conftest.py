"""A push service per test, one set of throwaway credentials per run."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest

from sipush.core.bindings import Platform, PushRecord
from sipush.core.push_request import PushKind, PushRequest
from sipush.demo.credentials import Credentials
from sipush.demo.push_service import DEFAULT_APP, PushService

VOIP_TOKEN = "fe1b" * 16
ALERT_TOKEN = "c9ed" * 16
FCM_TOKEN = "dXyZ:APA91b" + "x_-" * 60

_OF_RECORD = {field.name for field in fields(PushRecord)}


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return Credentials.create(tmp_path_factory.mktemp("credentials"))


@pytest.fixture
def service(credentials: Credentials) -> Iterator[PushService]:
    with PushService(credentials) as service:
        yield service


@pytest.fixture
def foreign_ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Credentials.create(tmp_path_factory.mktemp("foreign")).ca_file


def record(platform: Platform, **changes: object) -> PushRecord:
    tokens = {
        Platform.APNS: (VOIP_TOKEN, ALERT_TOKEN),
        Platform.FCM: (FCM_TOKEN, FCM_TOKEN),
        Platform.WEBPUSH: ("", ""),
        Platform.WEBHOOK: ("", ""),
    }[platform]
    plain = PushRecord(
        aor="105@example.com",
        device="instance:<urn:uuid:7d0c61b4-0e0f-4bcb-8a4d-2b6f0dcf6f6a>",
        platform=platform,
        app_id=DEFAULT_APP,
        call_token=tokens[0],
        message_token=tokens[1],
        updated_epoch=time.time(),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def call(platform: Platform, *, hold: float = 10.0, **changes: object) -> PushRequest:
    """A call push; changes of PushRecord's fields are told from PushRequest's by name."""
    of_record = {k: changes.pop(k) for k in list(changes) if k in _OF_RECORD}
    if "call_id" in of_record:
        changes["call_id"] = of_record.pop("call_id")
    now = time.time()
    plain = PushRequest(
        kind=PushKind.CALL,
        push_id=str(uuid.uuid4()),
        record=record(platform, **of_record),
        deadline_epoch=now + hold,
        created_epoch=now,
        call_id="a84b4c76e66710@pc33",
        from_user="102",
        from_name="Alice",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]
