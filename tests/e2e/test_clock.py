"""The clock jumps: what is under way does not care, and what is stored mends itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.daemon import in_time
from tests.e2e.world import World, apns_token, x_push

MINUTES = 60


@pytest.fixture
def store_type() -> str:
    """Every store is handed the time."""
    return "sqlite"


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that holds by how much the wall clock of daemons is wrong; their monotonic is not."""
    file = tmp_path / "clock"
    set_clock(file, 0)
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
    for name, value in {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }.items():
        monkeypatch.setenv(name, value)
    return file


def set_clock(file: Path, seconds: int) -> None:
    """Jump."""
    new = file.with_suffix(".new")
    new.write_text(f"{seconds:+d}\n")
    os.rename(new, file)


@pytest.mark.parametrize("jump", [40 * MINUTES, -40 * MINUTES])
async def test_a_held_call_completes_or_ends_when_it_would_have(
    world: World, clock: Path, jump: int
) -> None:
    daemon = await world.start(wake={"hold": 2})
    push = x_push(apns_token())
    alice = await world.phone(daemon, "alice", "TCP")
    for is_woken in (True, False):
        set_clock(clock, 0)
        await world.sleeping(daemon, "bob", "TCP", push)
        call = await alice.call("bob")
        await world.pushes.next()
        set_clock(clock, jump)
        if is_woken:
            bob = await world.registered(daemon, "bob", "TCP", push)
            answer, incoming = await in_time(call.final(), bob.rings_and_answers())
            await in_time(call.hang_up(answer), incoming.hung_up())
            bob.kill()
        else:
            assert (await call.final()).status == 480


@pytest.mark.parametrize("jump", [40 * MINUTES, -40 * MINUTES])
async def test_a_contact_that_a_jump_has_ended_is_back_with_the_next_register(
    world: World, clock: Path, jump: int
) -> None:
    daemon = await world.start()
    bob = await world.phone(daemon, "bob", "TCP")
    assert (await bob.register(expires=600)).response.status == 200
    set_clock(clock, jump)
    alice = await world.phone(daemon, "alice", "TCP")
    if jump > 0:
        call = await alice.call("bob")
        assert (await call.final()).status == 480
    assert (await bob.register(expires=600)).response.status == 200
    call = await alice.call("bob")
    answer, incoming = await in_time(call.final(), bob.rings_and_answers())
    await in_time(call.hang_up(answer), incoming.hung_up())
