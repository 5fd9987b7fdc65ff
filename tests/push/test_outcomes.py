"""Every row of the table in docs/push-services.md, over the real wire."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sipush.config import AppConfig
from sipush.core.bindings import Platform
from sipush.core.push_request import PushResult
from sipush.demo.http_server import Act
from sipush.demo.push_service import DEFAULT_APP, Misbehaviour, PushService
from sipush.push.apps import build_apps
from sipush.push.dispatcher import Dispatcher
from tests.subscription import Subscription

from .conftest import FCM_TOKEN, VOIP_TOKEN, call
from .test_apns import provider_for

pytestmark = pytest.mark.filterwarnings("ignore:Message.token is deprecated")

DOCUMENT = Path(__file__).parents[2] / "docs" / "push-services.md"
ACTS = {
    "RST_STREAM": Act.RESET,
    "REFUSED_STREAM": Act.REFUSE,
    "GOAWAY": Act.GOAWAY,
    "connection cut": Act.DISCONNECT,
    "silence": Act.SILENCE,
}
CIRCUMSTANCES: dict[str, dict[str, Any]] = {
    # Timestamps count from the moment of the push.
    "": {},
    "dead since after the last REGISTER": {"timestamp": 60.0},
    "dead since before the last REGISTER": {"timestamp": -3600.0},
    "no timestamp": {},
    "both environments tried": {},
    "accepted by the other environment": {"times": 1},
    "there is no other environment": {},
    "no body": {"with_body": False},
    "split body": {"split": True},
    "only once": {"times": 1},
    "only once, its body never ends": {"act": Act.ENDLESS, "times": 1},
    "its body never ends": {"act": Act.ENDLESS},
    "connection cut in its body": {"act": Act.BREAK},
    "GOAWAY first, answer after": {"act": Act.GOAWAY_AFTER},
    "Retry-After fits the hold": {"retry_after": "1"},
    "no FcmError detail": {"fcm_detail": False},
    "of the token": {"field": "message.token"},
    "of another field": {"field": "message.data[0].key"},
}
TWO_ENVIRONMENTS = ("both environments tried", "accepted by the other environment")


@dataclass(frozen=True)
class Row:
    platform: Platform
    misbehaviour: Misbehaviour
    two_environments: bool
    result: PushResult
    requests: int


def rows() -> list[Any]:
    params = []
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 6 or cells[0] not in [platform.value for platform in Platform]:
            continue
        service, status, reason, circumstance, result, requests = cells
        script = dict(CIRCUMSTANCES[circumstance])
        if status == "-":
            script["act"] = ACTS[reason]
        else:
            script |= {"status": int(status), "reason": reason}
        row = Row(
            Platform(service),
            Misbehaviour(**script),
            circumstance in TWO_ENVIRONMENTS,
            PushResult[result],
            int(requests),
        )
        params.append(pytest.param(row, id=f"{service}-{status}-{reason}-{circumstance}"))
    return params


def from_now(misbehaviour: Misbehaviour) -> Misbehaviour:
    """With the timestamp as the service would give it."""
    if misbehaviour.timestamp is None:
        return misbehaviour
    return replace(misbehaviour, timestamp=time.time() + misbehaviour.timestamp)


TARGETS = {
    Platform.APNS: VOIP_TOKEN,
    Platform.FCM: FCM_TOKEN,
    Platform.WEBHOOK: "105@example.com",
}


@pytest.mark.parametrize("row", rows())
async def test_every_answer_means_what_the_table_says(row: Row, service: PushService) -> None:
    section = row.platform.value
    config = AppConfig(**{section: getattr(service, f"{section}_config")()})
    app = dict(build_apps({DEFAULT_APP: config})[DEFAULT_APP])
    if row.two_environments:
        app[Platform.APNS] = provider_for(service, service.address, f"localhost:{service.port}")
    for provider in app.values():
        provider.retry_delays = tuple(0.01 for _ in provider.retry_delays)
    dispatcher = Dispatcher({DEFAULT_APP: app})
    browser = Subscription(service)
    token = TARGETS.get(row.platform, browser.endpoint)
    of_record = {"call_token": token, "extra": browser.keys} if token == browser.endpoint else {}
    service.misbehave(token, from_now(row.misbehaviour))
    silent = row.misbehaviour.act is Act.SILENCE
    outcome = await dispatcher.send(call(row.platform, hold=3.0 if silent else 10.0, **of_record))
    await dispatcher.close()
    assert outcome.result is row.result
    assert len(service.pushes_to(token)) == row.requests
    assert service.violations == []


def test_the_table_is_there() -> None:
    assert len(rows()) > 60
