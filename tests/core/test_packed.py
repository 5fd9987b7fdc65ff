"""Many small values in a bounded number of bytes."""

from __future__ import annotations

from sipush.core.packed import MAX_VALUE, Packed


def test_what_was_put_last_is_there() -> None:
    packed = Packed(64, 1 << 14)
    for value in (b"old", b"", b"new"):
        packed.put("101@example.com", value)
        packed.put("ü\udce9", b"other")
        assert packed.get("101@example.com") == value
    assert packed.get("102@example.com") is None
    packed.remove("101@example.com")
    packed.remove("102@example.com")
    assert (packed.get("101@example.com"), packed.get("ü\udce9")) == (None, b"other")
    packed.put("101@example.com", b"again")
    packed.clear()
    assert packed.get("101@example.com") is None


def test_each_of_many_has_its_own() -> None:
    packed = Packed(64, 1 << 14)
    for n in range(5000):
        packed.put(str(n), b"%d" % n * (n % 7))
    for n in range(0, 5000, 3):
        packed.put(str(n), b"changed")
    for n in range(5000):
        assert packed.get(str(n)) == (b"changed" if n % 3 == 0 else b"%d" % n * (n % 7))


def test_of_too_many_those_put_longest_ago_are_forgotten() -> None:
    packed = Packed(1024, 64)
    for n in range(40_000):
        packed.put(str(n), bytes(20))
        packed.put("again", b"here")
    assert sum(packed._used) <= len(packed._bytes) == 1 << 16
    kept = [n for n in range(40_000) if packed.get(str(n)) is not None]
    assert 1000 < len(kept) < 2200
    assert kept[0] > 10_000
    assert packed.get("again") == b"here"


def test_what_is_too_long_is_not_kept_nor_what_was_there_before() -> None:
    packed = Packed(2, 1 << 20)
    for length in (MAX_VALUE, MAX_VALUE + 1):
        packed.put("101@example.com", bytes(length))
    assert packed.get("101@example.com") is None
    small = Packed(8, 64)
    small.put("101@example.com", bytes(100))
    assert small.get("101@example.com") is None
