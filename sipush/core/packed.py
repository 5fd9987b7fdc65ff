"""What is kept of many users in little memory: the same number of bytes, however many there are.

A dict takes some 150 bytes for an entry, its key and what is around its value; here it is 20.
"""

from __future__ import annotations

from array import array
from typing import Final

MAX_VALUE: Final = 0xFFF8
_WAYS: Final = 8
"Places that a key may have, whose marks are one line of the processor's caches."
_MARK: Final = 8
_HEAD: Final = 4
"Bytes before a value: those there are for it, and its length."
_BITS: Final = (1 << 62) - 1


class Packed:
    """Bytes by key. Where there is no more room, those put longest ago are forgotten.

    Keys are known by 62 bits of their hash, which nobody else can compute (Python's, of text). That
    two of a million have the same is as likely as one in nine million.

    Values lie behind each other, as in a log of which the newest ``room`` bytes are there; one that
    is put again stays where it is if it can. Nothing is moved, and nothing searched but marks.
    """

    def __init__(self, places: int, room: int) -> None:
        """``places``: of keys, 16 bytes each, a multiple of eight; ``room``: bytes for values."""
        self._sets = places // _WAYS
        # Written to at once: else each of the first users would take memory of its own.
        self._marks = bytearray(b"\0") * (places * _MARK)
        self._begins = array("Q", [0]) * places
        "By place: where in the log the entry begins."
        self._room = room
        self._log = bytearray(b"\0") * room
        self._end = room
        "Of the log, as if nothing of it had been overwritten: 0 is too long ago."

    def get(self, key: str) -> bytes | None:
        """What was put for it last, if it is there still."""
        place = self._find(hash(key) & _BITS)
        begin = self._begins[place] if place >= 0 else 0
        if begin <= self._end - self._room:  # forgotten, or overwritten
            return None
        at = begin % self._room
        start = at + _HEAD
        return bytes(self._log[start : start + _number(self._log, at + 2)])

    def put(self, key: str, value: bytes) -> None:
        """Keep it instead of what is there, unless it is longer than MAX_VALUE or the room."""
        number, length = hash(key) & _BITS, len(value)
        place = self._find(number)
        size = -(-length // 8) * 8  # the next one is perhaps a digit longer
        if size > MAX_VALUE or size + _HEAD > self._room:
            self.remove(key)
            return
        if place < 0:
            place = self._oldest(number)
            start = place * _MARK
            self._marks[start : start + _MARK] = number.to_bytes(_MARK, "little")
        elif self._begins[place] > self._end - self._room // 2:
            at = self._begins[place] % self._room
            there = _number(self._log, at)
            if length <= there:
                self._write(at, there, value)
                return
        at = self._end % self._room
        if at + _HEAD + size > self._room:
            self._end += self._room - at
            at = 0
        self._begins[place] = self._end
        self._write(at, size, value)
        self._end += _HEAD + size

    def remove(self, key: str) -> None:
        """Forget it."""
        place = self._find(hash(key) & _BITS)
        if place >= 0:
            self._begins[place] = 0

    def clear(self) -> None:
        """Forget all."""
        self._begins = array("Q", [0]) * len(self._begins)

    def _find(self, number: int) -> int:
        """The place of that key, though it may be forgotten; -1: it has none."""
        start = number % self._sets * (_WAYS * _MARK)
        mark = number.to_bytes(_MARK, "little")
        found = self._marks.find(mark, start, start + _WAYS * _MARK)
        return -1 if found < 0 or found % _MARK else found // _MARK

    def _oldest(self, number: int) -> int:
        """Of the places that a key may have, the one that has been free or was put longest ago."""
        first = number % self._sets * _WAYS
        places = range(first, first + _WAYS)
        return min(places, key=self._begins.__getitem__)

    def _write(self, at: int, size: int, value: bytes) -> None:
        head = size.to_bytes(2, "little") + len(value).to_bytes(2, "little")
        self._log[at : at + _HEAD + len(value)] = head + value


def _number(log: bytearray, at: int) -> int:
    return log[at] | log[at + 1] << 8
