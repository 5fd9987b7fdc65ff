"""Until when very many things count, in a table of a fixed size."""

from __future__ import annotations

from sipush.core.recent import Recent

NOW = 1000.0


def test_what_was_put_counts_until_then() -> None:
    recent = Recent(64)
    for key in ("a", "b", ("a", "b")):
        assert recent.until(hash(key)) == 0
        recent.put(hash(key), NOW + 0.5)
        assert recent.until(hash(key)) == 1000
    recent.put(hash("a"), NOW + 60)
    recent.forget(hash("b"))
    recent.forget(hash("c"))
    assert [recent.until(hash(key)) for key in ("a", "b")] == [1060, 0]


def test_any_number_is_taken() -> None:
    recent = Recent(64)
    numbers = [0, -1, 1, -(1 << 63), (1 << 63) - 1, -(1 << 31), 1 << 40]
    for until, number in enumerate(numbers, 1):
        recent.put(number, until)
        assert recent.until(number) == until


def test_most_are_known_when_the_table_is_half_full_and_none_that_was_not_put() -> None:
    recent = Recent(4096)
    for n in range(2048):
        recent.put(hash(("user", n)), NOW + n)
    known = [recent.until(hash(("user", n))) == 1000 + n for n in range(2048)]
    assert sum(known) > 0.93 * 2048
    assert not any(recent.until(hash(("other", n))) for n in range(20_000))


def test_the_newest_are_known_though_very_many_have_come() -> None:
    recent = Recent(4096)
    for n in range(100_000):
        recent.put(hash(n.to_bytes(4)), NOW + n)
    assert all(recent.until(hash(n.to_bytes(4))) for n in range(99_900, 100_000))
    assert not any(recent.until(hash(n.to_bytes(4))) for n in range(50_000))
