import pytest

from sipush.server.completed import Completed
from tests.server.wire import VirtualClock

KEEP = 32.0


def completed() -> tuple[Completed, VirtualClock]:
    clock = VirtualClock()
    return Completed(KEEP, clock.time, clock.call_later), clock


def test_each_has_its_own_response_whichever_time_it_is_of() -> None:
    table, clock = completed()
    for number in range(30):
        table.add(f"key {number}", b"response %d" % number)
        clock.advance(1)
    found = [table.get(f"key {number}") for number in range(30)]
    assert found == [b"response %d" % number for number in range(30)]
    assert table.get("another key") is None
    assert len(table) == 30


@pytest.mark.parametrize("after", [0, 1, 7.9, 8, 100])
def test_none_is_forgotten_too_early_nor_much_too_late(after: float) -> None:
    """However long after the first of its generation it comes."""
    table, clock = completed()
    table.add("the first")
    clock.advance(after)
    table.add("key", b"response")
    clock.advance(KEEP - 0.1)
    assert table.get("key") == b"response"
    clock.advance(KEEP / 4 + 0.2)
    assert table.get("key") is None


def test_when_all_is_forgotten_nothing_is_left_and_nothing_waited_for() -> None:
    table, clock = completed()
    for _ in range(3):
        table.add("key")
        clock.advance(20)
    clock.advance(KEEP)
    assert (len(table), clock.armed) == (0, 0)


def test_of_many_each_is_its_own_in_whichever_piece_of_memory() -> None:
    table, _ = completed()
    responses = {f"key {number}": b"%d " % number * 200 for number in range(1000)}
    for key, response in responses.items():
        table.add(key, response)
    assert {key: table.get(key) for key in responses} == responses


def test_the_largest_datagram_is_kept_whole() -> None:
    table, _ = completed()
    table.add("small", b"1")
    table.add("large", bytes(65507))
    table.add("nothing")
    assert table.get("large") == bytes(65507)
    assert (table.get("small"), table.get("nothing")) == (b"1", b"")
