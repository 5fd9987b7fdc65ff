"""Who waits for which user and which flow."""

from __future__ import annotations

from sipush.core.bindings import Location
from sipush.server.push_bucket import PushBucket

AOR = "bob@example.com"
FLOW = "tcp/192.0.2.9:5060/192.0.2.1:4000/x-1"


def test_every_waiter_hears_of_a_registration_until_it_stops_waiting() -> None:
    bucket, heard = PushBucket(), []
    first = lambda aor, location, devices: heard.append("first")  # noqa: E731
    second = lambda aor, location, devices: heard.append("second")  # noqa: E731
    bucket.watch(AOR, first)
    bucket.watch(AOR, second)
    bucket.refreshed(AOR, Location(), {"d"})
    bucket.unwatch(AOR, first)
    bucket.refreshed(AOR, Location(), {"d"})
    bucket.unwatch(AOR, second)
    bucket.refreshed(AOR, Location(), {"d"})
    assert heard == ["first", "second", "second"]
    assert not bucket.is_watched(AOR)


def test_a_sign_of_life_reaches_those_who_wait_on_that_flow_only() -> None:
    bucket = PushBucket()
    heard: list[str] = []
    bucket.watch_flow(FLOW, heard.append)
    bucket.flow_active("tcp/another")
    bucket.flow_active(FLOW)
    bucket.unwatch_flow(FLOW, heard.append)
    bucket.unwatch_flow(FLOW, heard.append)
    bucket.flow_active(FLOW)
    assert heard == [FLOW]


def test_a_waiter_that_fails_keeps_the_news_from_nobody() -> None:
    bucket = PushBucket()
    heard: list[str] = []

    def fails(*news: object) -> None:
        raise ValueError

    for waiter in (fails, lambda aor, location, devices: heard.append(aor)):
        bucket.watch(AOR, waiter)
    for active in (fails, heard.append):
        bucket.watch_flow(FLOW, active)
    bucket.refreshed(AOR, Location(), {"d"})
    bucket.flow_active(FLOW)
    assert heard == [AOR, FLOW]


def test_a_waiter_may_stop_waiting_while_it_is_told() -> None:
    bucket = PushBucket()
    heard: list[str] = []

    def once(name: str) -> None:
        heard.append(name)
        bucket.unwatch_flow(name, once)

    bucket.watch_flow(FLOW, once)
    bucket.watch_flow(FLOW, heard.append)
    bucket.flow_active(FLOW)
    bucket.flow_active(FLOW)
    assert heard == [FLOW] * 3
