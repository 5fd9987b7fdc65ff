"""Which subscriptions can be pushed to: the last table of docs/push-headers.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from sipush.core.web_push import (
    MAX_ENDPOINT,
    UnusableSubscriptionError,
    has_keys,
    read_subscription,
)

PAGE = Path(__file__).parents[2] / "docs" / "push-headers.md"
HOSTS = ("push.example", "*.push.test", "127.0.0.1:8443")
NOT_A_URL = "the subscription's endpoint is not an https URL"


def rows() -> list[list[str]]:
    lines = PAGE.read_text(encoding="utf-8").partition("| endpoint |")[2].splitlines()[2:]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


def fault(endpoint: str, **keys: str) -> str:
    try:
        read_subscription(endpoint, keys, HOSTS)
    except UnusableSubscriptionError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("endpoint", "p256dh", "auth", "text"), rows())
def test_each_subscription_is_read_or_refused_as_the_table_says(
    endpoint: str, p256dh: str, auth: str, text: str
) -> None:
    assert fault(endpoint, p256dh=p256dh, auth=auth) == text
    assert fault(endpoint, **{"pn-p256dh": p256dh, "pn-auth": auth}) == text


def test_the_table_is_there() -> None:
    assert len(rows()) > 20


def test_a_subscription_comes_apart_into_what_is_needed() -> None:
    endpoint, p256dh, auth, _ = rows()[0]
    read = read_subscription(endpoint, {"p256dh": p256dh, "auth": auth}, HOSTS)
    assert (read.origin, read.path) == ("https://push.example", "/s/aa11?v=2")
    assert (len(read.p256dh), read.p256dh[0], len(read.auth)) == (65, 4, 16)
    assert read_subscription("https://PUSH.example:443/A", {}, HOSTS).origin == read.origin


def test_an_endpoint_is_as_long_as_the_longest_and_no_longer() -> None:
    endpoint = "https://push.example/".ljust(MAX_ENDPOINT, "x")
    assert fault(endpoint) == ""
    assert fault(f"{endpoint}x") == NOT_A_URL


@pytest.mark.parametrize("odd", [" ", "\n", "\r\nHost: x", "é", '"', "<", "\\", "\x00"])
def test_nothing_gets_into_the_request_line(odd: str) -> None:
    assert fault(f"https://push.example/s{odd}x") == NOT_A_URL
    assert fault(f"https://push.example/s{odd}") == NOT_A_URL


def test_a_push_carries_something_where_there_are_keys() -> None:
    assert has_keys({"p256dh": "B", "auth": "a"})
    assert has_keys({"pn-p256dh": "B"})
    assert not has_keys({"pn-provider": "webpush"})
