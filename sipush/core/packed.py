"""What is kept of many users in little memory: a bounded number of bytes, however many there are.

A dict takes some 150 bytes for an entry, its key and what is around its value; here it is ten.
"""

from __future__ import annotations

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
        """``room``: bytes in each bucket, which is gone through to find something, and copied."""
        self._buckets = [b""] * buckets
        "Entries one after the other, the newest last."
        self._room = room

    def get(self, key: str) -> bytes | None:
        """What was put for it last, if it is there still."""
        number = hash(key) & _BITS
        bucket = self._buckets[number % len(self._buckets)]
        start = bucket.find(number.to_bytes(_MARK, "little"))
        return None if start < 0 else bucket[start + _HEAD : _end(bucket, start)]

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
        bucket = self._buckets[number % len(self._buckets)]
        start = bucket.find(mark)
        if start >= 0:
            bucket = bucket[:start] + bucket[_end(bucket, start) :]
        if entry:
            bucket += mark + entry
        while len(bucket) > self._room:
            bucket = bucket[_end(bucket, 0) :]
        self._buckets[number % len(self._buckets)] = bucket

    def clear(self) -> None:
        """Forget all."""
        self._buckets = [b""] * len(self._buckets)


def _end(bucket: bytes, start: int) -> int:
    """Where the entry ends that starts there."""
    return start + _HEAD + int.from_bytes(bucket[start + _MARK : start + _HEAD], "little")
