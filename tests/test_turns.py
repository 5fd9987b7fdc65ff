"""Costly steps in turns."""

import asyncio
import time

import pytest

from sipush.turns import MOST, SHARE, SLICE, Turns

MANY = 50


async def test_a_step_is_taken_at_once_while_none_waits() -> None:
    taken: list[int] = []
    turns = Turns()
    turns.run(lambda: taken.append(1))
    assert taken == [1]
    await turns.wait()


async def test_many_steps_are_taken_in_order_and_others_come_in_between() -> None:
    taken: list[int] = []
    turns = Turns()
    for number in range(MANY):
        turns.run(lambda number=number: taken.append(number))
    assert len(taken) == 1
    while turns.waiting:
        before = len(taken)
        await asyncio.sleep(0)
        assert len(taken) - before <= MOST
    assert taken == list(range(MANY))


async def test_one_step_is_taken_in_a_turn_while_somebody_waits_else_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """How long a step takes is known when it has been taken; what one who waits will do is not."""
    monkeypatch.setattr("sipush.turns.SLICE", 5.0)
    turns = Turns()
    turns.run(lambda: None)
    turns.run(lambda: None)
    waiting = [asyncio.ensure_future(turns.wait()) for _ in range(2)]
    await asyncio.sleep(0)
    for _ in range(MOST + 3):
        turns.run(lambda: None)
    left = [turns.waiting]
    while turns.waiting:
        await asyncio.sleep(0)
        left.append(turns.waiting)
    assert left == [MOST + 5, MOST + 4, MOST + 3, 3, 0]
    assert all(each.done() for each in waiting)


async def test_while_other_work_is_long_more_go_on_in_each_turn() -> None:
    """Or a thousand REGISTERs would keep calls waiting, as a thousand calls once did REGISTERs."""
    turns = Turns()
    waiting = [asyncio.ensure_future(turns.wait()) for _ in range(MANY)]
    await asyncio.sleep(0)
    end = time.thread_time() + 3 * SHARE
    while time.thread_time() < end:
        pass
    before = turns.waiting
    await asyncio.sleep(0)
    assert 3 <= before - turns.waiting <= MOST
    for each in waiting:
        each.cancel()


async def test_those_who_wait_stay_behind_what_came_before() -> None:
    taken: list[str] = []
    turns = Turns()
    for _ in range(MANY):
        turns.run(lambda: taken.append("step"))
    await turns.wait()
    assert taken == ["step"] * MANY


async def test_one_who_is_cancelled_holds_nobody_up() -> None:
    turns = Turns()
    for _ in range(MANY):
        turns.run(lambda: None)
    gone = asyncio.ensure_future(turns.wait())
    await asyncio.sleep(0)
    assert gone.cancel()
    async with asyncio.timeout(5):
        await turns.wait()


async def test_slow_steps_end_a_turn_early_and_none_is_forgotten() -> None:
    """A turn that was late already, because the machine was busy, once took none, for ever."""
    taken: list[float] = []
    turns = Turns()
    loop = asyncio.get_running_loop()

    def slow() -> None:
        taken.append(loop.time())
        while loop.time() < taken[-1] + 2 * SLICE:
            pass

    for _ in range(MANY):
        turns.run(slow)
    assert len(taken) == 1
    await asyncio.sleep(0)
    assert len(taken) == 2
    async with asyncio.timeout(5):
        await turns.wait()
    assert len(taken) == MANY


async def test_a_step_that_raises_holds_nobody_up() -> None:
    reported: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    turns = Turns()
    await turns.wait()

    def bad() -> None:
        raise ValueError

    turns.run(bad)
    async with asyncio.timeout(5):
        await turns.wait()
    assert isinstance(reported[0]["exception"], ValueError)
