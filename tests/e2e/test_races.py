"""Races around a held call, by the dozen: every caller gets one final response, whatever happens.

Each run is a schedule made from a seed (``races.py``). More of them, and others:

    SIPUSH_RACES=200 SIPUSH_SEED=1000 .venv/bin/pytest tests/e2e/test_races.py
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from typing import Any

import pytest

from tests.e2e.daemon import Daemon
from tests.e2e.races import HOLD, NO_ANSWER, Race, Schedule, users
from tests.e2e.world import World

AT_ONCE = 25
"Schedules on one daemon."
DRAIN = 45.0
"Seconds: a stop waits for what was sent to a phone that was killed, as long as it is repeated."


@pytest.fixture
def schedules() -> list[Schedule]:
    """Those of this run."""
    count = int(os.environ.get("SIPUSH_RACES", "10"))
    first = int(os.environ.get("SIPUSH_SEED", "0"))
    return [Schedule.of(seed) for seed in range(first, first + count)]


# As long as the server lives, it makes no difference to a race where things are stored.
@pytest.mark.parametrize("store_type", ["sqlite"], indirect=True)
async def test_every_race_ends_as_it_must(world: World, schedules: list[Schedule]) -> None:
    for first in range(0, len(schedules), AT_ONCE):
        await run(world, schedules[first : first + AT_ONCE])


async def test_every_race_ends_as_it_must_though_the_server_dies_meanwhile(
    world: World, schedules: list[Schedule]
) -> None:
    for first in range(0, len(schedules), AT_ONCE):
        await run(world, schedules[first : first + AT_ONCE], restarts=2)


async def run(world: World, schedules: list[Schedule], restarts: int = 0) -> None:
    daemon = await world.start(**settings(world, len(schedules), restarts))
    races = [Race(world, daemon, n, each, restarts > 0) for n, each in enumerate(schedules)]
    try:
        await asyncio.gather(*(race.prepare() for race in races))
        down: list[tuple[float, float]] = []
        for race in races:
            race.down = down
        dying = die(daemon, restarts, random.Random(schedules[0].seed), down)
        await asyncio.gather(dying, *(race.run() for race in races))
        assert not [race.story for race in races if race.faults], "\n".join(
            race.story for race in races if race.faults
        )
        await nothing_is_left(daemon)
        await every_device_is_known(daemon, races)
    finally:
        for race in races:
            race.end()
    daemon.terminate()
    assert await daemon.ended(DRAIN) == 0


async def die(
    daemon: Daemon, times: int, chance: random.Random, down: list[tuple[float, float]]
) -> None:
    """Some kill -9; ``down`` is told when."""
    loop = asyncio.get_running_loop()
    for _ in range(times):
        await asyncio.sleep(chance.uniform(0.2, 2.0))
        killed_at = loop.time()
        await daemon.restart_after_kill()
        down.append((killed_at, loop.time()))


async def nothing_is_left(daemon: Daemon) -> None:
    """No request is under way any more."""
    assert daemon.program is not None
    state = {"requests": 1}
    for _ in range(150):  # a BYE waits for its phone for up to 10 s
        if not state["requests"]:
            break
        await asyncio.sleep(0.1)
        said = len(daemon.log.all)
        daemon.program.signal(signal.SIGUSR1)
        state = await daemon.log_event("state", start=said)
    assert state["requests"] == 0, state


async def every_device_is_known(daemon: Daemon, races: list[Race]) -> None:
    """Its binding and its push record are listed, once."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sipush.cli", "bindings", "--config", str(daemon.config)),
        stdout=asyncio.subprocess.PIPE,
    )
    listed, _ = await process.communicate()
    lines = listed.decode().splitlines()
    devices = sum(len(race.devices) for race in races)
    assert sum(line.startswith("  awake") for line in lines) == devices, listed.decode()
    assert sum("push: " in line for line in lines) == devices, listed.decode()


def settings(world: World, count: int, restarts: int) -> dict[str, Any]:
    """Of a daemon for so many schedules, all from one address."""
    hold = 2 * HOLD if restarts else HOLD
    return {
        "users": users(world.domain, count),
        "wake": {"hold": hold, "probe": 0.4, "no_answer": NO_ANSWER},
        "limits": {"stranger_rate": 100_000, "stranger_burst": 100_000, "failed_sign_ins": 0},
    }
