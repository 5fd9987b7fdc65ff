from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from sipush.server.steps import STEP
from sipush.server.tasks import Tasks


class Work:
    """Says what it has done."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.came = asyncio.get_running_loop().create_future()

    async def wait(self) -> None:
        self.done.append("began")
        try:
            self.done.append(await self.came)
            await asyncio.sleep(0)
            self.done.append("slept")
        except asyncio.CancelledError:
            self.done.append("cancelled")
            raise

    async def wait_twice(self) -> None:
        self.done.append(await self.came)
        await asyncio.get_running_loop().create_future()

    async def fail(self) -> None:
        await self.came
        raise RuntimeError("our bug")


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    tasks = Tasks()
    yield tasks
    await tasks.close()
    assert not tasks.running


async def test_what_is_started_begins_at_once_and_goes_on_when_it_can(tasks: Tasks) -> None:
    work = Work()
    tasks.start(work.wait())
    assert work.done == ["began"]
    assert tasks.running == 1
    work.came.set_result("came")
    await tasks.finish()
    assert work.done == ["began", "came", "slept"]
    assert not tasks.running


async def test_several_may_wait_for_the_same(tasks: Tasks) -> None:
    first, second = Work(), Work()
    second.came = first.came
    tasks.start(first.wait())
    tasks.start(second.wait())
    first.came.set_result("came")
    await tasks.finish()
    assert first.done == second.done == ["began", "came", "slept"]


async def take_steps(name: str, number: int, taken: list[str]) -> None:
    for step in range(number):
        taken.append(f"{name}{step}")
        await STEP
    taken.append(f"{name} ended")


async def test_what_is_started_together_takes_each_step_together(tasks: Tasks) -> None:
    taken = list[str]()
    tasks.start_together([take_steps(*each, taken) for each in (("a", 2), ("b", 1), ("c", 2))])
    assert taken == ["a0", "b0", "c0", "a1", "b ended", "c1", "a ended", "c ended"]


async def test_what_is_started_alone_takes_its_steps_at_once(tasks: Tasks) -> None:
    taken = list[str]()
    tasks.start(take_steps("a", 2, taken))
    assert taken == ["a0", "a1", "a ended"]


async def test_who_waits_or_fails_keeps_none_of_the_others_waiting(tasks: Tasks) -> None:
    taken, first, second = list[str](), Work(), Work()

    async def wait() -> None:
        await first.wait()
        await take_steps("a", 2, taken)

    second.came.set_result("came")
    with capture_logs() as log:
        tasks.start_together([wait(), second.fail(), take_steps("b", 1, taken)])
    assert [line["event"] for line in log] == ["internal_error"]
    assert taken == ["b0", "b ended"]
    first.came.set_result("came")
    await tasks.finish()
    assert taken[2:] == ["a0", "a1", "a ended"]


@pytest.mark.parametrize("spawned", [True, False])
async def test_what_fails_is_told(tasks: Tasks, spawned: bool) -> None:
    work = Work()
    with capture_logs() as log:
        (tasks.spawn if spawned else tasks.start)(work.fail())
        work.came.set_result("came")
        await tasks.finish()
    assert [(line["event"], str(line["exc_info"])) for line in log] == [
        ("internal_error", "our bug")
    ]


@pytest.mark.parametrize("spawned", [True, False])
async def test_what_waits_is_cancelled_at_the_end(tasks: Tasks, spawned: bool) -> None:
    work = Work()
    (tasks.spawn if spawned else tasks.start)(work.wait())
    await asyncio.sleep(0)
    await tasks.close()
    assert work.done == ["began", "cancelled"]
    assert not tasks.running


async def test_what_waits_anew_is_cancelled_too(tasks: Tasks) -> None:
    work = Work()
    tasks.start(work.wait_twice())
    work.came.set_result("came")
    await tasks.close()
    assert work.done == ["came"]
    assert not tasks.running
