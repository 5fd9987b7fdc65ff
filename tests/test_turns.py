"""Costly steps in turns."""

import asyncio

from sipush.turns import SLICE, STEPS, Turns


async def test_a_step_is_taken_at_once_while_few_are() -> None:
    taken: list[int] = []
    turns = Turns()
    turns.run(lambda: taken.append(1))
    await turns.wait()
    assert taken == [1]


async def test_many_steps_are_taken_in_order_and_others_come_in_between() -> None:
    taken: list[int] = []
    turns = Turns()
    for number in range(10 * STEPS):
        turns.run(lambda number=number: taken.append(number))
    assert len(taken) == STEPS
    before = len(taken)
    while turns.waiting:
        await asyncio.sleep(0)
        assert len(taken) - before <= STEPS
        before = len(taken)
    assert taken == list(range(10 * STEPS))


async def test_those_who_wait_stay_behind_what_came_before() -> None:
    taken: list[str] = []
    turns = Turns()
    for _ in range(2 * STEPS):
        turns.run(lambda: taken.append("step"))
    await turns.wait()
    assert taken == ["step"] * 2 * STEPS


async def test_one_who_is_cancelled_holds_nobody_up() -> None:
    turns = Turns()
    for _ in range(3 * STEPS):
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

    for _ in range(2 * STEPS):
        turns.run(slow)
    assert len(taken) == STEPS
    await asyncio.sleep(0)
    assert len(taken) == STEPS + 1
    async with asyncio.timeout(5):
        await turns.wait()
    assert len(taken) == 2 * STEPS


async def test_a_step_that_raises_holds_nobody_up() -> None:
    reported: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    turns = Turns()
    for _ in range(STEPS):
        await turns.wait()

    def bad() -> None:
        raise ValueError

    turns.run(bad)
    async with asyncio.timeout(5):
        await turns.wait()
    assert isinstance(reported[0]["exception"], ValueError)
