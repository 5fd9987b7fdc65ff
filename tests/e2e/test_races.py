"""Races around a held call, by the dozen: every caller gets one final response, whatever happens.

Each run is a schedule made from a seed (``races.py``). More of them, and others:

    SIPUSH_RACES=200 SIPUSH_SEED=1000 .venv/bin/pytest tests/e2e/test_races.py
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from tests.e2e.daemon import PBX, Daemon
from tests.e2e.emergency_races import EmergencyRace, centre_at, make_noise
from tests.e2e.group_races import GroupRace, group_settings, members
from tests.e2e.races import HOLD, NO_ANSWER, Lives, Race, users
from tests.e2e.schedules import EmergencySchedule, GroupSchedule, Schedule
from tests.e2e.world import World
from tests.servers.ports import free_port

COUNT = int(os.environ.get("SIPUSH_RACES", "10"))
AT_ONCE = 25
"Schedules on one daemon."
pytestmark = pytest.mark.timeout(120 * math.ceil(COUNT / AT_ONCE))
DRAIN = 45.0
"Seconds: a stop waits for what was sent to a phone that was killed, as long as it is repeated."


@pytest.fixture
def seeds() -> list[range]:
    """Those of this run, by daemon."""
    first = int(os.environ.get("SIPUSH_SEED", "0"))
    starts = range(first, first + COUNT, AT_ONCE)
    return [range(start, min(start + AT_ONCE, first + COUNT)) for start in starts]


# As long as the server lives, it makes no difference to a race where things are stored.
@pytest.mark.parametrize("store_type", ["sqlite"], indirect=True)
async def test_every_race_ends_as_it_must(world: World, seeds: list[range]) -> None:
    for some in seeds:
        await run(world, some)


async def test_every_race_ends_as_it_must_though_the_server_dies_meanwhile(
    world: World, seeds: list[range]
) -> None:
    for some in seeds:
        await run(world, some, restarts=2)


async def run(world: World, seeds: range, restarts: int = 0) -> None:
    """Race a call to a user for each seed, and one to a ring group for every other."""
    schedules = [Schedule.of(seed) for seed in seeds]
    groups = {
        len(schedules) + n: (GroupSchedule.of(seed), free_port(PBX))
        for n, seed in enumerate(seeds[::2])
    }
    world.begin_empty()
    daemon = await world.start(**settings(world.domain, len(schedules), groups, restarts))
    lives = Lives([daemon.log])
    races = [
        *(Race(world, daemon, n, each, lives, restarts > 0) for n, each in enumerate(schedules)),
        *(
            GroupRace(world, daemon, n, each, lives, restarts > 0, box_port=port)
            for n, (each, port) in groups.items()
        ),
    ]
    await run_all(world, daemon, races, lives, die(daemon, restarts, seeds[0], lives, races))


async def run_all(
    world: World,
    daemon: Daemon,
    races: Sequence[Race],
    lives: Lives,
    dying: Coroutine[Any, Any, None],
) -> None:
    """All at once, while the server lives or dies."""
    lives.is_up.set()
    try:
        await asyncio.gather(*(race.prepare() for race in races))
        await asyncio.gather(dying, *(race.run() for race in races))
        assert not [race.story for race in races if race.faults], "\n".join(
            race.story for race in races if race.faults
        )
        await daemon.has_no_requests()
        await every_device_is_known(daemon, races)
    finally:
        for race in races:
            race.end()
        for number, log in enumerate(lives.logs):
            (world.directory / f"server-{number}.log").write_text("\n".join(log.all))
    daemon.terminate()
    assert await daemon.ended(DRAIN) == 0


async def test_whoever_calls_for_help_is_heard_above_the_crowd_though_the_server_dies_meanwhile(
    world: World, seeds: list[range]
) -> None:
    for some in seeds:
        await call_for_help(world, some)


async def call_for_help(world: World, seeds: range) -> None:
    """An emergency call and a callback for each seed, while strangers flood the server."""
    port = free_port(PBX)
    crowded = {
        "limits": {"stranger_rate": 20, "stranger_burst": 200, "failed_sign_ins": 0},
        "emergency": {"numbers": ["112", "911"], "route": [f"sip:psap@{PBX}:{port}"]},
    }
    world.begin_empty()
    daemon = await world.start(**settings(world.domain, len(seeds), {}, 2) | crowded)
    lives, centre = Lives([daemon.log]), centre_at(port, daemon)
    centre.server_is_up = lives.is_up
    await centre.open()
    races = [
        EmergencyRace(world, daemon, n, EmergencySchedule.of(seed), lives, True, centre=centre)
        for n, seed in enumerate(seeds)
    ]
    noise = asyncio.create_task(make_noise(daemon))
    try:
        await run_all(world, daemon, races, lives, die(daemon, 2, seeds[0], lives, races))
        assert not [fault for fault in centre.faults if "ACK of its 200" not in fault]
    finally:
        noise.cancel()
        centre.end()


async def die(daemon: Daemon, times: int, seed: int, lives: Lives, races: Sequence[Race]) -> None:
    """Some kill -9; ``races`` look at what is left each time."""
    loop, chance = asyncio.get_running_loop(), random.Random(seed)
    for _ in range(times):
        await asyncio.sleep(chance.uniform(0.2, 2.0))
        killed_at = loop.time()
        lives.is_up.clear()
        await daemon.kill()
        async with daemon.opened_store() as store:
            for race in races:
                await race.find_what_was_lost(store)
        await daemon.start()
        lives.is_up.set()
        lives.logs.append(daemon.log)
        lives.down.append((killed_at, loop.time()))
    lives.is_safe.set()


async def every_device_is_known(daemon: Daemon, races: Sequence[Race]) -> None:
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


def settings(
    domain: str, count: int, groups: dict[int, tuple[GroupSchedule, int]], restarts: int
) -> dict[str, Any]:
    """Of a daemon for so many schedules, all from one address, and ``groups`` by number."""
    people = users(domain, range(count)) | users(domain, groups, "caller")
    for number, (schedule, port) in groups.items():
        people |= members(number, schedule.group, domain, port)
    return {
        "users": people,
        "groups": {
            f"callee-{number}@{domain}": group_settings(number, schedule.group, domain, port)
            for number, (schedule, port) in groups.items()
        },
        "wake": {"hold": 2 * HOLD if restarts else HOLD, "probe": 0.4, "no_answer": NO_ANSWER},
        "limits": {"stranger_rate": 100_000, "stranger_burst": 100_000, "failed_sign_ins": 0},
    }
