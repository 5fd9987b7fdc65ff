"""What is kept of many users in little memory: the same number of bytes, however many there are.

A dict takes some 150 bytes for an entry, its key and what is around its value; here it is ten.
"""

from __future__ import annotations

from array import array
from typing import Final

_MARK: Final = 8
_HEAD: Final = _MARK + 2
"Bytes before a value: the hash of its key, and its length."
MAX_VALUE: Final = 0xFFFF
_BITS: Final = (1 << 64) - 1


class Packed:
    """Bytes by key. Where there is no more room, those put longest ago are forgotten.

    Keys are known by their hash of 64 bits, which nobody else can compute (Python's, of text). That
    two of a million have the same is as likely as one in thirty million.
    """

    def __init__(self, buckets: int, room: int) -> None:
        """``room``: bytes in each bucket, which is gone through to find something."""
        # Written to at once: else each of the first users would take memory of its own.
        self._bytes = bytearray(b"\0") * (buckets * room)
        "The buckets one after the other, and in them the entries, the newest last."
        self._used = array("I", [0]) * buckets
        "Bytes of each bucket that are entries."
        self._room = room

    def get(self, key: str) -> bytes | None:
        """What was put for it last, if it is there still."""
        number = hash(key) & _BITS
        place = number % len(self._used)
        begin, mark = place * self._room, number.to_bytes(_MARK, "little")
        start = self._bytes.find(mark, begin, begin + self._used[place])
        return None if start < 0 else bytes(self._bytes[start + _HEAD : _end(self._bytes, start)])

    def put(self, key: str, value: bytes) -> None:
        """Keep it instead of what is there, unless it is longer than MAX_VALUE or a bucket."""
        entry = b""
        if len(value) <= MAX_VALUE:
            entry = len(value).to_bytes(2, "little") + value
        self._replace(key, entry)

    def remove(self, key: str) -> None:
        """Forget it."""
        self._replace(key, b"")

    def _replace(self, key: str, entry: bytes) -> None:
        """``entry``: length and value, or empty."""
        number = hash(key) & _BITS
        mark = number.to_bytes(_MARK, "little")
        place = number % len(self._used)
        begin = place * self._room
        bucket = self._bytes[begin : begin + self._used[place]]
        start = bucket.find(mark)
        if start >= 0:
            del bucket[start : _end(bucket, start)]
        if entry:
            bucket += mark + entry
        while len(bucket) > self._room:
            del bucket[: _end(bucket, 0)]
        self._bytes[begin : begin + len(bucket)] = bucket
        self._used[place] = len(bucket)

    def clear(self) -> None:
        """Forget all."""
        self._used = array("I", [0]) * len(self._used)


def _end(bucket: bytearray, start: int) -> int:
    """Where the entry ends that starts there."""
    return start + _HEAD + int.from_bytes(bucket[start + _MARK : start + _HEAD], "little")
