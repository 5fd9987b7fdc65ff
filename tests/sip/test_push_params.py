"""Every dialect of docs/push-headers.md becomes the same value."""

import re
from pathlib import Path

import pytest

from sipush.sip.fields import parse_name_addr
from sipush.sip.headers import Headers
from sipush.sip.push_params import (
    PushFault,
    PushParams,
    parse_push_headers,
    parse_push_uri_params,
    without_push_params,
)
from sipush.sip.uri import parse_sip_uri

PAGE = Path(__file__).parents[2] / "docs" / "push-headers.md"
TOKEN = "fMEP0vJqS0:APA91bHun4MxP5egoKMwt2KZFBaFUH-1RYqx_" + "Zx8-_aB" * 16 + ":9"


def rows(columns: int) -> list[list[str]]:
    """The body rows of the page's tables that have so many columns."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [
            cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip("|"))
        ]
        if line.startswith("|") and len(cells) == columns and "`" in line:
            found.append(cells)
    return found


def parse(wire: str) -> PushParams | PushFault | None:
    headers = Headers()
    for line in wire.strip("`").replace("<token>", TOKEN).split("`<br>`"):
        name, _, value = line.partition(":")
        headers.append(name, value.strip())
    contact = headers.get("contact")
    if contact is None:
        return parse_push_headers(headers)
    return parse_push_uri_params(parse_sip_uri(parse_name_addr(contact).uri).params)


DIALECTS = rows(10)
FAULTS = rows(2)


def test_the_tables_are_found() -> None:
    assert len(DIALECTS) >= 28
    assert len(FAULTS) >= 12
    assert len(TOKEN) == 162


@pytest.mark.parametrize("row", DIALECTS, ids=lambda row: row[0])
def test_each_dialect_says_what_the_table_says(row: list[str]) -> None:
    _, wire, provider, app_id, call, message, calls, messages, dialect, kept = row
    tokens = [cell.strip("`").replace("<token>", TOKEN) for cell in (call, message)]
    assert parse(wire) == PushParams(
        provider,
        app_id,
        *tokens,
        allow_call=calls == "yes",
        allow_message=messages == "yes",
        dialect=dialect,
        extra=dict(pair.split("=", 1) for pair in kept.split()),
    )


@pytest.mark.parametrize(("wire", "text"), FAULTS)
def test_each_unusable_header_names_its_fault(wire: str, text: str) -> None:
    fault = parse(wire)
    assert isinstance(fault, PushFault)
    assert fault.text == text


def test_a_request_without_push_asks_for_nothing() -> None:
    assert parse("`User-Agent: desk phone`") is None
    assert parse("`Contact: <sip:101@192.0.2.1;transport=tcp>`") is None


def test_push_is_off_only_when_both_consents_are_withdrawn() -> None:
    both = parse("`X-Push: allow-call-push=false;allow-message-push=False`")
    one = parse("`X-Push: device-os=ios;allow-call-push=false;allow-message-push=true`")
    assert isinstance(both, PushParams)
    assert isinstance(one, PushParams)
    assert (both.off, one.off) == (True, False)


def test_nothing_that_is_wrong_besides_keeps_push_on() -> None:
    flags = "allow-call-push=false;allow-message-push=false"
    params = parse(f"`X-Push: device-os=ios;device-uid=a b;{flags}`")
    assert isinstance(params, PushParams)
    assert params.off


@pytest.mark.parametrize(
    ("uri", "stripped"),
    [
        ("sip:101@h", "sip:101@h"),
        (
            "sip:101@h;transport=tcp;pn-provider=fcm;pn-prid=a:b;pn-param=p",
            "sip:101@h;transport=tcp",
        ),
        ("sip:101@h;PN-PRID=x;transport=tcp?Subject=y", "sip:101@h;transport=tcp?Subject=y"),
        ("sip:101@h;pn-provider;ob", "sip:101@h;ob"),
        ("sip:101@h;app-id=x;pn-type=apple;pn-tok=t;pn-silent=1", "sip:101@h"),
        ("sip:101@h;pn-purr=x;pn-prid=t", "sip:101@h;pn-purr=x"),
        ("sip:101@h;pn-purred=x", "sip:101@h"),
        ("sip:a;pn-prid=mine@h;pn-prid=t", "sip:a;pn-prid=mine@h"),
        ("sip:h;pn-prid=t", "sip:h"),
        ("sip:101@h;pn-provider=fcm;pn-prid=secr@et;ob", "sip:101@h;ob"),
        ("sip:101@h;pn-prid=sip:x@y", "sip:101@h"),
    ],
)
def test_nobody_else_sees_how_a_device_is_pushed(uri: str, stripped: str) -> None:
    assert without_push_params(uri) == stripped


def test_tokens_stay_out_of_tracebacks() -> None:
    params = parse("`X-Push: device-os=ios;device-uid=secret11;app-id=com.example.app`")
    fault = parse("`X-Push: device-os=ios;device-uid=sec ret11;app-id=com.example.app`")
    assert "secret11" not in repr(params)
    assert "ret11" not in repr(fault)


def test_phones_that_say_the_same_but_for_their_tokens_keep_their_own() -> None:
    header = "`X-Push: device-os=ios; device-uid={} ;allow-message-push=false;app-id=a.b;x=y`"
    for uid, call, message in (("aa11|bb22", "aa11", "bb22"), ("cc33", "cc33", ""), ("*", "*", "")):
        assert parse(header.format(uid)) == PushParams(
            "apns", "a.b", call, message, allow_message=False, extra={"x": "y"}
        )
    assert isinstance(parse(header.format("dd 44")), PushFault)


@pytest.mark.parametrize(
    ("said", "uid", "extra"),
    [
        ("device-uid=a1;device-uid=b2", "a1", {}),
        ("Device-UID = a1;device-uid=b2", "a1", {}),
        ("x-device-uid=a1", "", {"x-device-uid": "a1"}),
        ('x=";device-uid=a1;"', "", {"x": ";device-uid=a1;"}),
        ('device-uid="a;1"', "a;1", {}),
        ("device-uid=<a;1>", "<a;1>", {}),
        ('x=device-uid=a1"; y="b', "", {"x": 'device-uid=a1"; y="b'}),
        ("device-uid", "", {}),
        (f"device-uid=a1;x={'y' * 500}", "a1", {"x": "y" * 500}),
    ],
)
def test_a_token_is_found_wherever_it_may_stand(said: str, uid: str, extra: dict[str, str]) -> None:
    wire = f"`X-Push: device-os=android;app-id=a.b;{said}`"
    assert parse(wire) == PushParams("fcm", "a.b", uid, uid, extra=extra)
