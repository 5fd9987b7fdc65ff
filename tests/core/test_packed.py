"""Many small values in a bounded number of bytes."""

from __future__ import annotations

import random

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
    packed = Packed(1 << 18, 1 << 18)
    for n in range(5000):
        packed.put(str(n), b"%d" % n * (n % 7))
    for n in range(0, 5000, 3):
        packed.put(str(n), b"changed")
    for n in range(5000):
        assert packed.get(str(n)) == (b"changed" if n % 3 == 0 else b"%d" % n * (n % 7))


def test_of_too_many_those_put_longest_ago_are_forgotten() -> None:
    packed = Packed(1 << 17, 1 << 16)
    for n in range(40_000):
        packed.put(str(n), bytes(20))
        packed.put("again", b"here")
    kept = [n for n in range(40_000) if packed.get(str(n)) is not None]
    assert (1 << 16) // 28 - 2 <= len(kept) <= (1 << 16) // 28
    assert kept == list(range(40_000 - len(kept), 40_000))
    assert packed.get("again") == b"here"
    assert len(packed._log) == 1 << 16


def test_where_there_are_more_keys_than_places_the_newest_have_them() -> None:
    packed = Packed(64, 1 << 16)
    for n in range(200):
        packed.put(str(n), b"%d" % n)
    kept = [n for n in range(200) if packed.get(str(n)) == b"%d" % n]
    assert 32 < len(kept) <= 64
    assert all(packed.get(str(n)) is None for n in range(200) if n not in kept)
    assert kept[-1] == 199


def test_what_is_put_again_and_again_takes_no_room_of_others() -> None:
    packed = Packed(64, 1 << 12)
    packed.put("seldom", b"once")
    for n in range(1000):
        packed.put("often", b"x" * (n % 9))
    assert packed.get("seldom") == b"once"
    assert packed.get("often") == b"x" * (999 % 9)


def test_what_is_put_again_now_and_then_is_there_all_the_time() -> None:
    packed = Packed(1 << 17, 1 << 12)
    for n in range(2000):
        if n % 30 == 0:  # some four times while all others pass
            packed.put("again", b"here")
        packed.put(str(n), bytes(20))
        assert packed.get("again") == b"here"


def test_what_is_put_is_what_comes_back_however_it_has_come_and_gone() -> None:
    chance = random.Random(7)
    packed, expected = Packed(256, 4096), dict[str, bytes]()
    found = 0
    for n in range(30_000):
        key = str(chance.randrange(60))
        if chance.random() < 0.1:
            packed.remove(key)
            expected.pop(key, None)
        else:
            expected[key] = b"%d." % n * chance.choice((0, 1, 3, 12, 200))
            packed.put(key, expected[key])
        asked = str(chance.randrange(60))
        if (there := packed.get(asked)) is not None:
            found += 1
            assert there == expected[asked]
    assert found > 5_000


def test_what_is_too_long_is_not_kept_nor_what_was_there_before() -> None:
    packed = Packed(8, 1 << 20)
    for length in (MAX_VALUE, MAX_VALUE + 1):
        packed.put("101@example.com", bytes(length))
    assert packed.get("101@example.com") is None
    small = Packed(8, 64)
    small.put("101@example.com", bytes(56))
    assert small.get("101@example.com") == bytes(56)
    small.put("101@example.com", bytes(57))
    assert small.get("101@example.com") is None
