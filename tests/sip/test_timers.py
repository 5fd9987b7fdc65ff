import pytest

from sipush.sip.timers import Timer, Timers


@pytest.mark.parametrize(
    ("timer", "delays"),
    [
        (Timer.A, [0.5, 1, 2, 4, 8]),
        (Timer.E, [0.5, 1, 2, 4, 4]),
        (Timer.G, [0.5, 1, 2, 4, 4]),
        (Timer.B, [32, 32]),
        (Timer.J, [32]),
        (Timer.I, [5]),
        (Timer.K, [5]),
    ],
)
def test_timers_run_as_long_as_table_4_says(timer: Timer, delays: list[float]) -> None:
    assert [Timers().delay(timer, repeats) for repeats in range(len(delays))] == delays


def test_every_timer_shrinks_with_t1_t2_and_t4() -> None:
    short = Timers(t1=0.01, t2=0.04, t4=0.05)
    assert all(short.delay(timer) <= 0.64 for timer in Timer)
