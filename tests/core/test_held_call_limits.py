"""How many calls wait at a time, of whom and for whom."""

from sipush.core.held_call_limits import HeldCallLimits
from sipush.core.rejection import Rejection
from sipush.sip.status import Status


def status(refusal: Rejection | None) -> Status | None:
    return None if refusal is None else refusal.status


def test_a_caller_and_a_callee_have_limits_of_their_own() -> None:
    limits = HeldCallLimits(per_caller=1, per_callee=2)
    limits.hold("alice", "bob", set())
    assert status(limits.refusal("alice", "carol")) is Status.SERVICE_UNAVAILABLE
    assert limits.refusal("dave", "bob") is None
    limits.hold("dave", "bob", set())
    assert status(limits.refusal("erin", "bob")) is Status.BUSY_HERE
    assert limits.refusal("erin", "alice") is None


def test_a_peer_calls_for_many_and_counts_for_the_callee_only() -> None:
    limits = HeldCallLimits(per_caller=1, per_callee=3)
    for _ in range(3):
        assert limits.refusal("", "bob") is None
        limits.hold("", "bob", set())
    assert status(limits.refusal("", "bob")) is Status.BUSY_HERE
    assert limits.refusal("", "carol") is None


def test_a_call_counts_once_however_many_devices_it_waits_for() -> None:
    limits = HeldCallLimits(per_caller=2, per_callee=2)
    counted: set[str] = set()
    for callee in ("bob", "bob", "carol"):
        limits.hold("alice", callee, counted)
    for callee in ("bob", "carol"):
        assert limits.refusal("alice", callee) is None


def test_what_is_over_is_forgotten_once() -> None:
    limits = HeldCallLimits(per_caller=1, per_callee=1)
    first: set[str] = set()
    second: set[str] = set()
    limits.hold("alice", "bob", first)
    limits.hold("dave", "bob", second)
    limits.release(first)
    limits.release(first)
    assert limits.refusal("alice", "carol") is None
    assert status(limits.refusal("erin", "bob")) is Status.BUSY_HERE
    limits.release(second)
    assert limits.refusal("erin", "bob") is None
