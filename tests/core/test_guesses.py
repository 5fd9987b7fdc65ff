"""Guesses at one user's password from many addresses."""

from __future__ import annotations

import pytest

from sipush.core import guesses as module
from sipush.core.bindings import Binding, Location, Platform, PushRecord
from sipush.core.guesses import FAMILIAR_FOR, Guesses, is_own_device
from sipush.sip.headers import Headers
from sipush.sip.message import Request

BOB, NOW = "bob@example.com", 1000.0
HOME, ELSEWHERE = "192.0.2.1", "203.0.113.9"
INSTANCE = "urn:uuid:5f1c22ab-0a9e-4d31-9c04-000000000001"
TOKEN = "AB" * 32


def guessed(allowed: int = 4, window: float = 100, times: int = 4) -> Guesses:
    """After as many failures, each from another address."""
    guesses = Guesses(allowed, window)
    for n in range(times):
        guesses.failed(BOB, f"198.51.100.{n}", NOW)
    return guesses


def test_below_the_limit_every_password_is_looked_at() -> None:
    assert guessed(times=3).wait(BOB, ELSEWHERE, NOW) == 0


def test_beyond_it_one_is_looked_at_each_time_the_window_earns_one_back() -> None:
    guesses = guessed()
    assert guesses.wait(BOB, ELSEWHERE, NOW) == 25
    assert guesses.wait(BOB, ELSEWHERE, NOW + 10) == 15
    assert guesses.wait(BOB, ELSEWHERE, NOW + 25) == 0
    guesses.failed(BOB, ELSEWHERE, NOW + 25)
    assert guesses.wait(BOB, ELSEWHERE, NOW + 25) == 25


def test_nobody_saves_up_more_than_the_limit() -> None:
    guesses = guessed()
    later = NOW + 1e6
    looked_at = 0
    while not guesses.wait(BOB, ELSEWHERE, later):
        guesses.failed(BOB, ELSEWHERE, later)
        looked_at += 1
    assert looked_at == 4


def test_it_is_told_once_in_a_window() -> None:
    guesses = Guesses(2, 100)
    told = [guesses.failed(BOB, ELSEWHERE, NOW + n * 10) for n in range(21)]
    assert [n for n, each in enumerate(told) if each] == [1, 11]


def test_where_the_user_signed_in_before_nothing_is_slowed_nor_counted() -> None:
    guesses = guessed(times=3)
    guesses.signed_in(BOB, HOME, NOW)
    for _ in range(50):
        assert not guesses.failed(BOB, HOME, NOW)
    assert guesses.wait(BOB, ELSEWHERE, NOW) == 0
    guesses.failed(BOB, ELSEWHERE, NOW)
    assert guesses.wait(BOB, ELSEWHERE, NOW) > 0
    assert guesses.wait(BOB, HOME, NOW) == 0


def test_a_source_is_familiar_to_the_user_who_signed_in_only_and_not_for_ever() -> None:
    guesses = guessed()
    guesses.signed_in("eve@example.com", ELSEWHERE, NOW)
    guesses.signed_in(BOB, HOME, NOW)
    assert guesses.wait(BOB, ELSEWHERE, NOW) > 0
    for _ in range(4):
        guesses.failed(BOB, ELSEWHERE, NOW + FAMILIAR_FOR)
    assert guesses.wait(BOB, HOME, NOW + FAMILIAR_FOR) > 0


def test_a_source_that_is_used_stays_familiar() -> None:
    guesses = Guesses(1, 100)
    for n in range(10):
        guesses.signed_in(BOB, HOME, NOW + n * 0.45 * FAMILIAR_FOR)
    last = NOW + 9 * 0.45 * FAMILIAR_FOR
    guesses.failed(BOB, ELSEWHERE, last + 1)
    assert guesses.wait(BOB, HOME, last + 1) == 0


def test_without_a_limit_nobody_is_slowed() -> None:
    assert guessed(allowed=0, times=1000).wait(BOB, ELSEWHERE, NOW) == 0


def test_memory_is_bounded_and_what_goes_first_is_what_matters_least(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_GUESSED", 20)
    guesses = Guesses(2, 100)
    for n in range(500):
        guesses.failed(f"nobody{n}@example.com", ELSEWHERE, NOW + n)
        guesses.signed_in(f"user{n}@example.com", HOME, NOW + n)
        assert len(guesses) <= 20
    assert guesses.wait("nobody499@example.com", ELSEWHERE, NOW + 499) == 0
    guesses.failed("nobody499@example.com", ELSEWHERE, NOW + 499)
    assert guesses.wait("nobody499@example.com", ELSEWHERE, NOW + 499) > 0
    guesses.failed("user499@example.com", ELSEWHERE, NOW + 499)
    guesses.failed("user499@example.com", ELSEWHERE, NOW + 499)
    assert guesses.wait("user499@example.com", HOME, NOW + 499) == 0


def location(device: str, token: str = "") -> Location:
    flow = f"udp/198.51.100.1:5060/{HOME}:5060"
    binding = Binding(BOB, device, "sip:bob@a", "a", 2e9, "c", 1, flow)
    record = PushRecord(BOB, device, Platform.APNS, "app", call_token=token)
    return Location((binding,), (record,) if token else ())


def register(contact: str, push: str = "") -> Request:
    headers = Headers()
    headers.append("Contact", contact)
    if push:
        headers.append("X-Push", push)
    return Request("REGISTER", "sip:example.com", headers)


@pytest.mark.parametrize(
    ("request_", "address", "own"),
    [
        (register("<sip:bob@b>"), HOME, True),
        (register("<sip:bob@b>"), ELSEWHERE, False),
        (register(f'<sip:bob@b>;+sip.instance="<{INSTANCE.upper()}>"'), ELSEWHERE, True),
        (register('<sip:bob@b>;+sip.instance="<urn:uuid:other>"'), ELSEWHERE, False),
        (register("<sip:bob@b>", f"device-uid={TOKEN.lower()}|x"), ELSEWHERE, True),
        (register(f"<sip:bob@b;pn-prid={TOKEN}>"), ELSEWHERE, True),
        (register("<sip:bob@b>", "device-uid=" + "CD" * 32), ELSEWHERE, False),
    ],
)
def test_a_device_of_the_user_is_told_by_its_place_instance_or_token(
    request_: Request, address: str, own: bool
) -> None:
    assert is_own_device(request_, address, location(f"instance:{INSTANCE};1", TOKEN)) is own


@pytest.mark.parametrize("device", ["instance:1", "token:ab", "contact:sip:bob@192.0.2.1:5060"])
def test_what_anybody_may_guess_tells_no_device(device: str) -> None:
    spoken = register(f"<sip:bob@192.0.2.1:5060>;+sip.instance={device}", f"device-uid={device}")
    assert not is_own_device(spoken, ELSEWHERE, location(device))
