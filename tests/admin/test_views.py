"""What operators see."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipush.admin import views
from sipush.core.bindings import Binding, Location, Platform, PushRecord
from sipush.core.branch import BranchState
from sipush.core.push_request import PushOutcome, PushResult
from sipush.core.response_context import ResponseContext
from sipush.core.target_set import Target, TargetSet
from sipush.core.wake_up import WakeUp, WakeUpOutcome
from sipush.server.call_history import HALF, CallHistory, Ladder
from tests.sip.messages import request

AOR = "bob@example.com"
TOKEN = "ab" * 32
PHONE = "instance:<urn:uuid:00000000-0000-0000-0000-000000000001>"
NOW = 10_000.0


def binding(device: str = PHONE, contact: str = "sip:bob@192.0.2.1", **changes: Any) -> Binding:
    values: dict[str, Any] = {
        "expires_epoch": NOW + 60,
        "call_id": "c",
        "cseq": 1,
        "flow": "tcp/192.0.2.9:5060/192.0.2.1:4000/x-1",
        "registered_epoch": NOW - 5,
    }
    return Binding(AOR, device, contact, contact, **values | changes)


def record(device: str = PHONE, platform: Platform = Platform.FCM, **changes: Any) -> PushRecord:
    tokens = {"call_token": TOKEN, "message_token": TOKEN}
    times = {"updated_epoch": NOW - 7, "expires_epoch": NOW + 700}
    return PushRecord(AOR, device, platform, "com.x", **tokens | times | changes)


def shown(location: Location, *, live: bool = True, waking: tuple[str, ...] = ()) -> Any:
    view = views.location(AOR, location, NOW, lambda _: live, waking)
    assert TOKEN not in json.dumps(view)
    return view["devices"]


def test_a_device_with_a_contact_that_leads_somewhere_is_registered() -> None:
    (device,) = shown(Location((binding(),), (record(),)))
    assert device["state"] == "registered"
    assert device["name"] == "<urn:uuid:00000000-0000-0000-0000-000000000001>"
    assert device["contacts"][0]["registered_ago"] == 5
    assert device["contacts"][0]["expires_in"] == 60
    assert (device["push"]["age"], device["push"]["expires_in"]) == (7, 700)


def test_a_device_with_a_push_record_and_nothing_else_that_leads_to_it_is_asleep() -> None:
    for location in (Location((), (record(),)), Location((binding(),), (record(),))):
        (device,) = shown(location, live=False)
        assert device["state"] == "asleep"
        (device,) = shown(location, live=False, waking=(device["id"],))
        assert device["state"] == "waking"


def test_a_device_whose_contact_is_silent_is_waking_while_a_call_waits_for_it() -> None:
    location = Location((binding(),), (record(),))
    (device,) = shown(location, waking=(views.device_id(AOR, PHONE),))
    assert device["state"] == "waking"


def test_a_device_that_no_push_reaches_either_is_unreachable() -> None:
    (device,) = shown(Location((binding(),)), live=False)
    assert (device["state"], device["push"]) == ("unreachable", None)


def test_two_flows_of_one_device_are_one_device() -> None:
    flows = (binding(f"{PHONE};1"), binding(f"{PHONE};2", "sip:bob@192.0.2.2"))
    (device,) = shown(Location(flows, (record(f"{PHONE};1"),)))
    assert len(device["contacts"]) == 2


def test_tokens_are_in_no_name_and_no_contact() -> None:
    contact = f"sip:bob@192.0.2.1;pn-provider=fcm;pn-prid={TOKEN};pn-param=x"
    devices = shown(Location((binding(f"token:{TOKEN}", contact),), (record(f"token:{TOKEN}"),)))
    assert len(devices) == 1


def test_an_ios_device_without_an_alert_token_can_only_be_rung() -> None:
    for message_token, rings_only in (("", True), (TOKEN, False)):
        found = record(platform=Platform.APNS, message_token=message_token)
        (device,) = shown(Location((), (found,)))
        assert device["push"]["rings_only"] is rings_only


def test_a_call_that_waits_tells_of_each_device() -> None:
    context = ResponseContext(probe=1.5, timer_c=180)
    asleep = Target(f"{AOR} {PHONE}", aor=AOR, key=PHONE, push=record(), hold=30)
    context.start(TargetSet.of(asleep), 100.0)
    wake_up = WakeUp(record(), 101.0)
    for push, words in (
        (None, "is being sent"),
        (PushOutcome(PushResult.CONFIG), views.RESULTS[PushResult.CONFIG]),
    ):
        wake_up.push = push
        call = views.held_call(
            id_="5f1c22ab",
            call_id="c",
            caller="",
            callee=AOR,
            waited=4.04,
            branches=context.branches,
            wake_ups={asleep.device: wake_up},
            now=104.0,
        )
        assert (call["id"], call["caller"], call["waited"]) == ("5f1c22ab", "a peer", 4.0)
        assert call["devices"] == [
            {
                "id": views.device_id(AOR, PHONE),
                "aor": AOR,
                "state": "being woken",
                "status": None,
                "waits_for": 26.0,
                "pushed_ago": 3.0,
                "push": words,
                "woke": False,
            }
        ]


def test_every_outcome_has_words() -> None:
    assert set(views.RESULTS) == set(PushResult)
    assert set(views.WAKE_UPS) == set(WakeUpOutcome)
    assert set(views.BRANCHES) == set(BranchState)


# -- ladders --


def ladder_of(*steps: tuple[str, str, dict[str, object]], **changed: str) -> Ladder:
    """An INVITE has come, and then ``steps``: (method, event, facts)."""
    invite = request("INVITE", **changed)
    kept = CallHistory(10).arrived(invite, "udp/x")
    assert kept is not None
    for method, event, facts in steps:
        kept.add(event, request(method), facts)
    return kept


def test_a_password_in_a_uri_is_shown_to_nobody() -> None:
    uri = "sip:bob:hunter2@example.com"
    invite = request("INVITE", uri, from_="<sip:alice:hunter2@example.com>;tag=a1", to=f"<{uri}>")
    kept = CallHistory(10).arrived(invite, "udp/x")
    assert kept is not None
    kept.add("falling_back", invite, {"to": uri})
    assert "hunter2" not in json.dumps(views.ladder(kept))


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        ([], ("under way", None)),
        ([("refused", {"status": 407})], ("refused", 407)),
        ([("refused", {"status": 407}), ("arrived", {"uri": "sip:b"})], ("under way", None)),
        ([("answered", {"status": 200})], ("answered", 200)),
        ([("failed", {"status": 401}), ("arrived", {"uri": "sip:b"})], ("under way", None)),
        ([("failed", {"status": 486})], ("failed", 486)),
        ([("failed", {"status": 480}), ("answered", {"status": 200})], ("answered", 200)),
        ([("refused", {"status": 404}), ("answered", {"status": 200})], ("answered", 200)),
        ([("answered", {"status": 200}), ("failed", {"status": 480})], ("answered", 200)),
        ([("call_resumed", {"status": None})], ("under way", None)),
        ([("call_resumed", {"status": 480})], ("failed", 480)),
        ([("call_resumed", {"status": 200})], ("answered", 200)),
    ],
)
def test_the_state_of_a_call(steps: Any, state: Any) -> None:
    kept = ladder_of(*(("INVITE", event, facts) for event, facts in steps))
    call = views.call(kept)
    assert (call["state"], call["status"]) == state


def test_a_bye_ends_a_call() -> None:
    kept = ladder_of(("INVITE", "answered", {"status": 200}), ("BYE", "arrived", {"uri": "sip:b"}))
    assert views.call(kept)["state"] == "ended"


def test_every_step_is_drawn_and_none_tells_a_secret() -> None:
    facts: dict[str, dict[str, object]] = {
        "routed": {"uri": "sip:b", "targets": 1},
        "told": {"status": 180},
        "answered": {"status": 200, "after": 1.0},
        "failed": {"status": 999, "after": 1.0},
        "refused": {"status": 0},
        "forwarded": {"branch": 0, "flow": "f", "uri": f"sip:b@h;pn-prid={TOKEN}"},
        "response": {"branch": 0, "status": 486},
        "cancel_received": {},
        "cancelled": {"branch": 0, "cause": "caller"},
        "hung_up": {"branch": 0},
        "device_registered": {"device": "00000000"},
        "push_sent": {"device": "00000000", "service": "apns"},
        "push_finished": {
            "device": "0",
            "service": "fcm",
            "result": "config",
            "reason": "NotFound",
        },
        "contact_failed": {"branch": 0, "failure": "timeout"},
        "next_hop_unreachable": {"target": "sip:b", "reason": "refused"},
        "falling_back": {"to": "sip:vm", "status": 480, "cause": "unreachable"},
        "push_record_removed": {"aor": AOR, "removed": True},
        "wake_up": {"outcome": "answered", "device": "00000000"},
        "call_resumed": {"aors": (AOR,), "status": 480},
        "emergency_call": {"uri": "urn:service:sos", "caller": "unknown"},
    }
    kept = ladder_of(*(("INVITE", event, each) for event, each in facts.items()))
    view = views.ladder(kept)
    assert TOKEN not in json.dumps(view)
    assert [step["event"] for step in view["steps"][1:]] == list(facts)
    columns = {"caller", "sipush", "push", "phone"}
    assert {step["source"] for step in view["steps"]} == columns
    assert {step["target"] for step in view["steps"]} == columns
    assert all(step["text"] for step in view["steps"])


def test_a_gap_in_a_long_call_is_told_where_it_is() -> None:
    refreshes = [("UPDATE", "arrived", {"uri": "sip:b"})] * (3 * HALF)
    kept = ladder_of(("INVITE", "answered", {"status": 200}), *refreshes, ("BYE", "arrived", {}))
    steps = views.ladder(kept)["steps"]
    assert steps[HALF]["text"] == f"{HALF + 3} steps are left out here"
    assert [step["text"] for step in steps if step["text"] != "UPDATE"] == [
        "INVITE sip:bob@example.com",
        "200 OK",
        f"{HALF + 3} steps are left out here",
        "BYE",
    ]
    assert views.call(kept)["state"] == "ended"


def test_each_event_of_a_call_that_the_server_tells_is_among_them() -> None:
    """So that a new one is thought of here."""
    source = Path(views.__file__).parent.parent / "server"
    told: set[str] = set()
    for name in ("forwarding", "waking", "proxy"):
        text = (source / f"{name}.py").read_text()
        told |= set(re.findall(r'(?:forwarding|self)\.(?:tell|step|warn|_note)\(\s*"(\w+)"', text))
    assert told
    drawn = set(re.findall(r'"(\w+)"', Path(views.__file__).read_text().partition("def _arrow")[2]))
    remarks = {
        *("emergency_call", "fallback_failed", "not_hung_up", "push_record_not_removed"),
    }
    assert told - drawn - remarks == set()


@given(st.text(), st.text())
def test_what_strangers_write_can_be_shown(name: str, uri: str) -> None:
    kept = ladder_of(("INVITE", "forwarded", {"uri": uri, "flow": name}))
    for text in (views.text(name), json.dumps(views.ladder(kept))):
        assert text.isprintable()
