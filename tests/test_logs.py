"""What reaches the log, and what never does."""

import asyncio
import io
import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from sipush import log_lines, logs
from sipush.config import LogConfig
from sipush.sip.status import Status

APNS_TOKEN = "fe1b" * 15 + "c9ed"
FCM_TOKEN = "dQw4w9WgXcQ:APA91b" + "x_-9" * 35


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def start(
    level: Literal["debug", "info", "warning", "error"] = "info",
    log_format: Literal["auto", "console", "json"] = "auto",
    stream: io.StringIO | None = None,
) -> io.StringIO:
    stream = stream or io.StringIO()
    logs.configure(LogConfig(level=level, format=log_format), stream)
    return stream


def log_one(**facts: Any) -> dict[str, Any]:
    stream = start()
    structlog.get_logger().info("event", **facts)
    line: dict[str, Any] = json.loads(stream.getvalue())
    return line


def test_without_a_terminal_every_line_is_json_with_utc_time() -> None:
    line = log_one(call_id="a84b4c76e66710")
    assert line["event"] == "event"
    assert line["level"] == "info"
    assert line["call_id"] == "a84b4c76e66710"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line["timestamp"])


async def test_lines_are_made_when_the_turn_is_over_with_the_time_of_what_they_tell() -> None:
    made = 0

    class Fact:
        def __str__(self) -> str:
            nonlocal made
            made += 1
            return "a fact"

    stream = start()
    structlog.get_logger().info("told", fact=Fact())
    after = datetime.now(UTC)
    assert made == 0
    await asyncio.sleep(0)
    assert made == 1
    line = json.loads(stream.getvalue())
    assert line["fact"] == "a fact"
    assert datetime.fromisoformat(line["timestamp"]) <= after


def test_on_a_terminal_people_read_it() -> None:
    stream = start(stream=Terminal())
    structlog.get_logger().info("device woken", aor="101@localhost")
    assert "device woken" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_the_format_can_be_chosen() -> None:
    stream = start(log_format="json", stream=Terminal())
    structlog.get_logger().info("device woken")
    assert json.loads(stream.getvalue())["event"] == "device woken"


def test_what_is_below_the_level_is_not_written() -> None:
    stream = start("warning")
    structlog.get_logger().info("unheard")
    structlog.get_logger().warning("heard")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["heard"]


def test_libraries_are_heard_from_warning_on() -> None:
    stream = start("debug")
    logging.getLogger("httpx").info("HTTP Request: POST https://example.com")
    logging.getLogger("httpx").warning("trouble with %s", "h2")
    (line,) = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (line["library"], line["level"], line["event"]) == (
        "httpx",
        "warning",
        "trouble with h2",
    )


@pytest.mark.parametrize(
    "key",
    [
        "token",
        "call_token",
        "message_token",
        "authorization",
        "Proxy-Authorization",
        "password",
        "secret",
        "ha1_md5",
        "ha1_sha256",
        "pn_prid",
        "response",
        "jwt",
        "auth",
        "pn-auth",
    ],
)
def test_a_secret_key_keeps_its_value_to_itself(key: str) -> None:
    assert log_one(**{key: "s3cret value"})[key] == log_lines.REDACTED


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"pushed {APNS_TOKEN}", APNS_TOKEN),
        (f"pushed {FCM_TOKEN}", FCM_TOKEN),
        (f"X-Push: device-os=ios;device-uid={APNS_TOKEN}|{APNS_TOKEN[::-1]};a=b", "fe1b"),
        ("X-Push: device-os=android;device-uid=short-tok|second;allow-call-push=true", "second"),
        ("X-Push: device-os=ios;device-uid=first | second;allow-call-push=true", "second"),
        ("X-Push: device-os=ios;device-uid= | second;allow-call-push=true", "second"),
        ("X-Push: device-os=ios;device-uid=first  |;allow-call-push=true", "first"),
        ('X-Push: device-os=android;device-uid="first;second";app-id=a', "second"),
        ("Contact: <sip:1@h;pn-provider=apns;pn-prid=abc:voip&def:remote>", "abc"),
        ("Contact: <sip:1@h;pn-provider=fcm;pn-prid=secr@et>", "et>"),
        ("Contact: <sip:1@h;pn-provider=fcm;pn%2Dprid=aa11>", "aa11"),
        ("X-Push: device-os=web;p256dh=BCVx;auth=BTBZMqHH6r4T;app-id=com.example.web", "BTBZMq"),
        ("Contact: <sip:1@h;pn-prid=https:%2F%2Fpush.example%2Faa11;pn-auth=BTBZMqHH>", "aa11"),
        ("Contact: <sip:1@h;pn-prid=https:%2F%2Fpush.example%2Faa11;pn-auth=BTBZMqHH>", "BTBZMq"),
        ('device-uid="https://push.example/s/aa11?v=2";p256dh=BCVx', "aa11"),
        ('Authorization: Digest username="101", nonce="n", response="0f1e2d"\r\nTo: x', "0f1e2d"),
        ('Proxy-Authorization: Digest response="0f1e2d", username="101"', "0f1e2d"),
        ('{"Authorization": "Bearer abc.def"}', "abc.def"),
        ("bearer eyJhbGciOi.eyJpc3MiOi.MEUCIQ", "eyJhbGciOi"),
        ("redis://user:hunter2@db/0 refused", "hunter2"),
        ("sip:101:hunter2@example.com", "hunter2"),
        ("SIPS:+49.30;x=1:hunter2@h", "hunter2"),
        ("sip::hunter2@example.com", "hunter2"),
        ('"Bob" <sip:101@a>, <sip:101:hunter2@192.0.2.7:5062;transport=tcp>;expires=60', "hunter2"),
        ("INVITE sip:101:hu'nt&=+$,%40er2@example.com", "er2"),
        (f"sip:101:{'hunter2' * 10}@example.com", "hunter2"),
    ],
)
def test_a_secret_in_a_text_is_taken_out(text: str, secret: str) -> None:
    line = log_one(detail=text, nested={"a": [text]}, raw=text.encode())
    assert secret not in json.dumps(line)
    assert log_lines.REDACTED in line["detail"]


PIECES = [
    *("Auth", "orization", "bearer", "basic", "digest", "response", "device-uid", "pn-prid"),
    *("pn-tok", "password", "access_token", "ha1_md5", "eyJ", ".", ":", "=", "//", "@", '"'),
    *("|", "x", "sip", "7", " ", "\n", "pn%2D", "prid"),
]


@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join))
def test_of_short_texts_none_is_passed_over_that_holds_a_secret(text: str) -> None:
    searched = log_lines.SECRET_TEXT.sub(
        lambda match: (match["label"] or "") + log_lines.REDACTED, text
    )
    assert log_lines.redact_text(text) == searched


def test_the_rest_of_the_text_stays_readable() -> None:
    text = 'REGISTER sip:a SIP/2.0\r\nAuthorization: Digest username="101"\r\nTo: <sip:101@a>'
    detail = log_one(detail=text)["detail"]
    assert detail.startswith("REGISTER sip:a SIP/2.0\r\n")
    assert detail.endswith("\r\nTo: <sip:101@a>")


def test_a_secret_in_a_traceback_is_taken_out() -> None:
    stream = start()
    try:
        raise ValueError(f"bad device {APNS_TOKEN}")
    except ValueError:
        structlog.get_logger().exception("push failed")
    assert "ValueError: bad device [redacted]" in stream.getvalue()
    assert APNS_TOKEN not in stream.getvalue()


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "a-",
        "eyJ-",
        "-eyJ",
        "a:",
        "a.",
        "a://b:",
        "0f",
        "bearer ",
        " ",
        " |",
        "| ",
        "device-uid=",
        "auth=,",
        "sip:",
        "sip:a:b,",
    ],
)
def test_what_a_stranger_writes_is_searched_in_one_go(unit: str) -> None:
    """A Call-ID of 60 kB that begins like a token at each character once took 45 s a line."""
    text = unit * (200_000 // len(unit)) + FCM_TOKEN
    assert FCM_TOKEN not in log_lines.redact_text(text)
    assert FCM_TOKEN not in log_lines.redact_text(f"device-uid={text}")
    assert FCM_TOKEN not in log_lines.redact_text(f"bearer {text}")
    assert FCM_TOKEN not in log_lines.redact_text(f'authorization: digest {text}"')


@pytest.mark.parametrize("before", [10, 1990, 3950, 60_000])
def test_of_a_long_text_the_beginning_is_logged_and_no_part_of_a_secret(before: int) -> None:
    text = "long " * (before // 5) + APNS_TOKEN + " long" * 12_000
    detail = log_one(detail=text)["detail"]
    assert detail[:10] == text[:10]
    assert len(detail) <= 2001
    assert detail.endswith("…")
    assert APNS_TOKEN[:8] not in detail


@pytest.mark.parametrize(
    "facts",
    [
        {"call_id": "a84b4c76e66710@pc33.atlanta.com"},
        {"contact": "sip:101@192.0.2.7:5062;transport=tcp;ob"},
        {"contact": "sip:192.0.2.7:5062;transport=tcp"},
        {"routes": "sip:192.0.2.7:5062, sip:101@example.com"},
        {"instance": "urn:uuid:00000000-0000-1000-8000-AABBCCDDEEFF"},
        {"flow": "udp/192.0.2.1:5060/192.0.2.7:33044"},
        {"push_id": "6ba7b810-9dad-11d1-80b4-00c04fd430c8"},
        {"status": 200, "ratio": 0.5, "held": True, "reason": None},
        {"token_hash": "0a1b2c3d"},
    ],
)
def test_what_is_no_secret_is_logged_as_it_is(facts: dict[str, Any]) -> None:
    line = log_one(**facts)
    assert {key: line[key] for key in facts} == facts


def test_a_key_that_is_no_text_becomes_one() -> None:
    assert log_one(tries={1: "sent", None: 2})["tries"] == {"1": "sent", "null": 2}


def test_a_fingerprint_tells_tokens_apart_and_no_more() -> None:
    assert log_lines.fingerprint(APNS_TOKEN) != log_lines.fingerprint(FCM_TOKEN)
    assert len(log_lines.fingerprint(FCM_TOKEN)) == 8


def test_a_status_is_its_number() -> None:
    shown = {}
    for log_format in ("console", "json"):
        stream = start(log_format=log_format)
        structlog.get_logger().info("event", status=Status.NOT_FOUND)
        shown[log_format] = stream.getvalue()
    assert "status=404\n" in shown["console"]
    assert '"status":404,' in shown["json"]


STEERING = "a\x1b[31m\x07\x7f\x9b31m\u202e\u2028\udcff\U000e0001ü😀"
SHOWN = "a\\u001b[31m\\u0007\\u007f\\u009b31m\\u202e\\u2028\\udcff\\udb40\\udc01ü😀"


def test_nothing_that_steers_a_terminal_is_written() -> None:
    assert log_lines.printable(STEERING) == SHOWN
    for log_format in ("console", "json"):
        stream = start(log_format=log_format)
        structlog.get_logger().info("event", aor=STEERING)
        (line,) = stream.getvalue().splitlines()
        assert SHOWN in line
    assert json.loads(line)["aor"] == STEERING


def test_one_event_is_one_line_whatever_it_says() -> None:
    for log_format in ("console", "json"):
        stream = start(log_format=log_format)
        structlog.get_logger().info("event", aor='x"\r\n{"source": "192.0.2.1", "event": "banned"}')
        assert len(stream.getvalue().splitlines()) == 1
