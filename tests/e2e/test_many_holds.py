"""Many calls held at once, and the server killed in the middle of it.

SIPUSH_HOLDS=1000 .venv/bin/pytest tests/e2e/test_many_holds.py
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter

import pytest

from sipush.server.held_calls import BEGINNING
from tests.e2e.daemon import PBX, Daemon, account
from tests.e2e.races import users
from tests.e2e.robots import Caller, CallerPlan, Device, Network, Robot, RobotWire, Stance
from tests.e2e.wire import Msg
from tests.e2e.world import World, fcm_token, x_push


@pytest.fixture
def holds() -> int:
    """How many."""
    return int(os.environ.get("SIPUSH_HOLDS", "60"))


class Crowd:
    """Robots that share one socket."""

    def __init__(self, robots: dict[str, Robot]) -> None:
        self.network = Network(random.Random(0))
        self._robots = robots
        "Callees by user, callers by Call-ID."

    async def open(self, daemon: Daemon, ip: str) -> None:
        """A new socket for all."""
        wire = await RobotWire.open("UDP", daemon.at("UDP"), ip)
        assert isinstance(wire, RobotWire)
        wire.robot = self  # type: ignore[assignment]
        self.wire = wire
        for robot in self._robots.values():
            robot.wire = wire

    def came(self, wire: RobotWire, msg: Msg) -> None:
        """Called by the socket."""
        user = msg["to"].partition("sip:")[2].partition("@")[0]
        robot = self._robots.get(msg["call-id"]) or self._robots.get(user)
        if robot is not None:
            robot.came(wire, msg)


@pytest.mark.timeout(240)
async def test_calls_held_at_once_outlive_the_server(world: World, holds: int) -> None:
    daemon = await world.start(
        users=users(world.domain, range(holds)),
        wake={"hold": max(25.0, holds / 15), "probe": 0.4},
        limits={"stranger_rate": 1_000_000, "stranger_burst": 1_000_000, "failed_sign_ins": 0},
    )
    perfect, server = Network(random.Random(0)), daemon.at("UDP")
    devices: dict[str, Device] = {}
    for number in range(holds):
        token, who = fcm_token(), account(f"callee-{number}", world.domain)
        push = x_push(token, "android")
        devices[token] = Device(who, server, "UDP", perfect, push, f"urn:x:{number}", Stance())
    callees = Crowd({device.account.user: device for device in devices.values()})
    await callees.open(daemon, "127.0.0.1")
    for some in batches(list(devices.values()), 50):
        await asyncio.gather(*(device.register() for device in some))
    callees.wire.close()  # they are killed, all of them
    await callees.open(daemon, "127.0.0.1")

    who = account("200", world.domain)
    callers = [Caller(who, server, "UDP", perfect) for _ in range(holds)]
    pbx = Crowd({caller.call_id: caller for caller in callers})
    await pbx.open(daemon, PBX)
    killed = asyncio.Event()
    waking = asyncio.create_task(wake(world, devices, holds // 4, killed))
    calls = [
        asyncio.create_task(caller.call(f"callee-{number}", CallerPlan()))
        for number, caller in enumerate(callers)
    ]
    await killed.wait()
    await daemon.restart_after_kill()
    async with asyncio.timeout(140.0):
        await asyncio.gather(*calls)
    waking.cancel()

    pushed = Counter(push.token for push in world.pushes.all if not push.cancels)
    assert max(pushed.values()) == 1
    assert [len(caller.finals) for caller in callers] == [1] * holds
    finals = Counter(caller.finals[0].status for caller in callers)
    assert set(finals) <= {200, 480}, finals
    assert finals[200] == len(pushed), "a device was pushed, and its caller not answered"
    # Those whose begin was out of its hands, and whose bytes were not yet.
    assert holds - len(pushed) <= BEGINNING, finals
    for robot in (*callers, *devices.values()):
        assert not robot.faults, robot.faults
        robot.end()


def batches(devices: list[Device], size: int) -> list[list[Device]]:
    """So many at a time."""
    return [devices[start : start + size] for start in range(0, len(devices), size)]


async def wake(
    world: World, devices: dict[str, Device], number: int, killed: asyncio.Event
) -> None:
    """Every device that is pushed registers; after ``number`` of them the server is killed."""
    count = 0
    while True:
        push = await world.pushes.next(patience=140.0)
        if push.cancels:
            continue
        device = devices[push.token]
        device.spawn(device.register())
        count += 1
        if count == number:
            killed.set()
