"""What a push says."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipush.core.bindings import Platform, PushRecord
from sipush.core.push_payload import (
    ALERT_LIMIT,
    FCM_LIMIT,
    VOIP_LIMIT,
    WEB_PUSH_LIMIT,
    PayloadTooLargeError,
    apns_push,
    clean,
    fcm_data,
    template_problems,
    web_push_message,
    webhook_event,
)
from sipush.core.push_request import PushKind, PushRequest

UUID = "7d0c61b4-0e0f-4bcb-8a4d-2b6f0dcf6f6a"


def request(
    kind: PushKind = PushKind.CALL, call_token: str = "fe1b", **changes: Any
) -> PushRequest:
    values: dict[str, Any] = {
        "kind": kind,
        "push_id": UUID,
        "record": PushRecord(
            "105@example.com", "token:fe1b", Platform.APNS, "com.x", call_token, "c9ed"
        ),
        "deadline_epoch": 1030.0,
        "created_epoch": 1000.0,
        "call_id": "a84b@pc33",
        "from_user": "102",
        "from_name": "Alice",
    }
    return PushRequest(**{**values, **changes})


def voip(profile: Any, of: PushRequest) -> dict[str, Any]:
    push = apns_push(profile, of)
    assert push is not None
    payload: dict[str, Any] = json.loads(push.payload)
    return payload


def test_a_portsip_call_has_portsips_keys() -> None:
    assert voip("portsip", request()) == {
        "msg_type": "audio",
        "msg_title": "Alice",
        "msg_content": "Incoming call: Alice",
        "send_from": "102",
        "send_to": "sip:105@example.com",
        "x-push-id": UUID,
    }


def test_a_video_call_says_so() -> None:
    assert voip("portsip", request(video=True))["msg_type"] == "video"


def test_a_caller_without_a_name_is_shown_by_number() -> None:
    assert voip("portsip", request(from_name=""))["msg_title"] == "102"


def test_a_portsip_message_is_an_alert_with_its_text_type_and_ids() -> None:
    of = request(PushKind.MESSAGE, push_id="17", text="Lunch?", mime_type="text/plain")
    push = apns_push("portsip", of)
    assert push is not None
    assert (push.token, push.voip) == ("c9ed", False)
    payload = json.loads(push.payload)
    assert payload["aps"]["alert"] == {"title": "Alice", "body": "Lunch?"}
    assert (payload["msg_type"], payload["msg_content"]) == ("im", "Lunch?")
    assert payload["message_id"] == payload["x-push-id"] == "17"
    assert payload["mime_type"] == "text/plain"


def test_a_dialstack_call_has_dialstacks_keys() -> None:
    keys = {"call_id": UUID, "from_number": "102", "from_name": "Alice", "to_number": "105"}
    assert voip("dialstack", request()) == keys
    assert fcm_data("dialstack", request()) == {**keys, "type": "call.mobile_push_wakeup"}


@pytest.mark.parametrize("kind", [PushKind.CALL, PushKind.CANCEL])
@pytest.mark.parametrize("profile", ["portsip", "dialstack", {"who": "{from_name}"}])
def test_a_browser_is_told_what_an_android_app_is_told(profile: Any, kind: PushKind) -> None:
    assert json.loads(web_push_message(profile, request(kind))) == fcm_data(profile, request(kind))


def test_a_browser_is_sent_as_much_of_a_text_as_every_browser_takes() -> None:
    message = web_push_message("portsip", request(PushKind.MESSAGE, text="x" * 5000))
    assert len(message) == WEB_PUSH_LIMIT


def test_an_own_template_has_its_keys_and_no_others() -> None:
    template = {"uuid": "{push_id}", "who": "{from_name} <{from_user}>", "fixed": "{{x}}"}
    assert voip(template, request()) == {"uuid": UUID, "who": "Alice <102>", "fixed": "{x}"}


@pytest.mark.parametrize(
    "text",
    ["{token}", "{from_user.x}", "{from_user[0]}", "{from_user!r}", "{from_user:>9}", "{}", "{"],
)
def test_a_template_may_name_only_known_fields(text: str) -> None:
    (problem,) = template_problems({"key": text})
    assert problem.startswith("key: ")


@pytest.mark.parametrize(
    "key", ["aps", "from", "google.x", "googlex", "gcm", "gcm.x", "notification"]
)
def test_a_template_keeps_off_the_services_own_keys(key: str) -> None:
    (problem,) = template_problems({key: "x"})
    assert problem == f"{key}: the push services keep this key for themselves"


def test_a_call_without_a_voip_token_is_an_alert_to_the_message_token() -> None:
    push = apns_push("portsip", request(call_token=""))
    assert push is not None
    assert (push.token, push.voip) == ("c9ed", False)
    assert json.loads(push.payload)["aps"]["alert"]["body"] == "Incoming call"


def test_the_end_of_a_call_is_not_for_apns() -> None:
    assert apns_push("portsip", request(PushKind.CANCEL)) is None
    assert fcm_data("portsip", request(PushKind.CANCEL))["msg_type"] == "cancel"


@pytest.mark.parametrize("kind", [PushKind.REFRESH, PushKind.DIALOG])
def test_a_push_that_only_asks_to_register_shows_nothing_and_never_goes_to_apple(
    kind: PushKind,
) -> None:
    silent = request(kind, from_user="", from_name="")
    assert apns_push("portsip", silent) is None
    data = fcm_data("portsip", silent)
    assert (data["msg_type"], data["msg_title"], data["msg_content"]) == ("refresh", "", "")
    assert fcm_data("dialstack", silent)["type"] == "registration.mobile_push_wakeup"


def test_a_test_rings_nobody_and_is_shown_where_a_push_must_be() -> None:
    test = request(PushKind.TEST, from_user="", from_name="")
    push = apns_push("portsip", test)
    assert push is not None
    assert (push.token, push.voip) == ("c9ed", False)
    payload = json.loads(push.payload)
    alert = {"title": "Push test", "body": "105 can be reached"}
    assert payload["aps"] == {"alert": alert, "sound": "default"}
    data = fcm_data("portsip", test)
    for shown in (payload, data):
        fields = (shown["msg_type"], shown["msg_title"], shown["msg_content"])
        assert fields == ("refresh", "Push test", "105 can be reached")
    assert json.loads(web_push_message("portsip", test)) == data
    assert fcm_data("dialstack", test)["type"] == "registration.mobile_push_wakeup"


def test_a_test_is_never_sent_to_a_voip_token() -> None:
    voip_only = PushRecord("105@example.com", "token:fe1b", Platform.APNS, "com.x", "fe1b", "")
    assert apns_push("portsip", request(PushKind.TEST, record=voip_only)) is None


@pytest.mark.parametrize(
    "hostile",
    ["A\r\nX-Evil: 1", "A\x00B", "A\x1b[2JB", "A\u2028B", "\u202eecilA", "A\ud800B", "A\x85B"],
)
def test_names_lose_what_could_act(hostile: str) -> None:
    payloads: list[Callable[[], bytes]] = [
        lambda: json.dumps(voip("portsip", request(from_name=hostile))).encode(),
        lambda: json.dumps(fcm_data("dialstack", request(from_name=hostile))).encode(),
        lambda: webhook_event(request(from_name=hostile), "evt_1", "acct"),
    ]
    for payload in payloads:
        text = json.dumps(json.loads(payload()), ensure_ascii=False)
        assert not any(c in text for c in "\r\n\x00\x1b\u2028\u202e\ud800\x85\\")


def test_emoji_and_accents_stay() -> None:
    assert clean("Zoë 👩‍👧 李") == "Zoë 👩‍👧 李"


def test_a_text_keeps_its_lines() -> None:
    of = request(PushKind.MESSAGE, text="one\ntwo\x07")
    assert voip("portsip", of)["msg_content"] == "one\ntwo"


@given(st.text(), st.text(), st.integers(0, 3000), st.sampled_from(list(PushKind)))
def test_every_payload_is_json_within_the_limits(
    name: str, text: str, repeat: int, kind: PushKind
) -> None:
    of = request(kind, from_name=name, text=text * repeat)
    push = apns_push("portsip", of)
    if push is not None:
        assert len(push.payload) <= (VOIP_LIMIT if push.voip else ALERT_LIMIT)
        json.loads(push.payload.decode())
    data = fcm_data("portsip", of)
    assert all(isinstance(value, str) for value in data.values())
    assert len(json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()) <= FCM_LIMIT


def test_a_long_text_is_cut_between_characters_as_late_as_possible() -> None:
    push = apns_push("portsip", request(PushKind.MESSAGE, text="ü" * 5000))
    assert push is not None
    assert ALERT_LIMIT - 4 < len(push.payload) <= ALERT_LIMIT
    assert set(json.loads(push.payload)["aps"]["alert"]["body"]) == {"ü"}


def test_a_payload_too_large_without_its_text_is_an_error() -> None:
    with pytest.raises(PayloadTooLargeError):
        apns_push("portsip", request(from_user="1" * 6000))
