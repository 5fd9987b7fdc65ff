from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from sipush.server.timer_wheel import TimerWheel
from sipush.sip.timers import Timer
from tests.server.wire import VirtualClock

RESOLUTION = 0.01


class Recorder:
    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.fired: list[float] = []

    def timer_fired(self, timer: Timer) -> None:
        self.fired.append(self.clock.now)


@given(st.lists(st.floats(0, 40), max_size=30))
def test_every_timer_fires_once_never_early_and_at_most_one_resolution_late(
    delays: list[float],
) -> None:
    clock = VirtualClock()
    wheel = TimerWheel(clock.time, clock.call_later, RESOLUTION)
    alarms = [(delay, Recorder(clock)) for delay in delays]
    for delay, alarm in alarms:
        wheel.set(delay, alarm, Timer.J)
    clock.advance(50)
    for delay, alarm in alarms:
        (at,) = alarm.fired
        assert delay - 1e-9 <= at <= delay + 2 * RESOLUTION


def test_many_timers_of_one_moment_cost_one_loop_timer() -> None:
    clock = VirtualClock()
    wheel = TimerWheel(clock.time, clock.call_later, RESOLUTION)
    alarm = Recorder(clock)
    for _ in range(1000):
        wheel.set(32, alarm, Timer.J)
    assert clock.armed == 1
    clock.advance(33)
    assert len(alarm.fired) == 1000
    assert clock.armed == 0


def test_a_timer_may_set_the_next_one() -> None:
    clock = VirtualClock()
    wheel = TimerWheel(clock.time, clock.call_later, RESOLUTION)

    class Repeating(Recorder):
        def timer_fired(self, timer: Timer) -> None:
            super().timer_fired(timer)
            wheel.set(1, self, timer)

    repeating = Repeating(clock)
    wheel.set(1, repeating, Timer.A)
    clock.advance(3.5)
    assert [round(at) for at in repeating.fired] == [1, 2, 3]


def test_a_sooner_timer_is_not_kept_waiting_by_a_later_one() -> None:
    clock = VirtualClock()
    wheel = TimerWheel(clock.time, clock.call_later, RESOLUTION)
    late, soon = Recorder(clock), Recorder(clock)
    wheel.set(10, late, Timer.B)
    wheel.set(1, soon, Timer.A)
    clock.advance(1.1)
    assert (len(soon.fired), len(late.fired)) == (1, 0)
    clock.advance(10)
    assert (len(soon.fired), len(late.fired)) == (1, 1)


class Broken:
    def timer_fired(self, timer: Timer) -> None:
        raise ValueError(timer)


def test_a_bug_behind_one_timer_costs_no_other_timer() -> None:
    clock = VirtualClock()
    wheel = TimerWheel(clock.time, clock.call_later, RESOLUTION)
    alarm = Recorder(clock)
    for delay in (1, 2):
        wheel.set(delay, Broken(), Timer.J)
        wheel.set(delay, alarm, Timer.J)
    with capture_logs() as logs:
        clock.advance(3)
    assert len(alarm.fired) == 2
    assert [line["event"] for line in logs] == ["timer_failed"] * 2


def test_a_call_comes_later_unless_it_is_cancelled() -> None:
    clock = VirtualClock()
    wheel = TimerWheel(clock.time, clock.call_later, RESOLUTION)
    calls: list[str] = []
    wheel.call_later(1, lambda: calls.append("first"))
    wheel.call_later(1, lambda: calls.append("cancelled")).cancel()
    wheel.call_later(2, lambda: calls.append("second"))
    clock.advance(1.5)
    assert calls == ["first"]
    clock.advance(1)
    assert calls == ["first", "second"]
