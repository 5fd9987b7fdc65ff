"""What must be known of transactions that are over, in little memory (RFC 3261 §17.1.2, §17.2.2).

Over UDP a non-INVITE transaction has nothing to do when it is completed but to repeat its response,
or not to hear one again. A server has tens of thousands of them at any time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sipush.server.timer_wheel import CallLater
from sipush.sip.transaction import TransactionKey

_GENERATIONS: Final = 4
"In the time that each of them is known for."
_PIECE: Final = 65_536
"""Bytes after which responses go to another piece of memory: a single one would be copied whenever
it outgrows its place."""
_BITS: Final = 17
"In which a position in a piece fits, and the length of a datagram."
_MASK: Final = (1 << _BITS) - 1


class _Generation:
    """What was completed within a while, and is forgotten in one step."""

    __slots__ = ("ends", "pieces", "places")

    def __init__(self, ends: float) -> None:
        self.ends = ends
        "Until when it takes in more."
        self.places: dict[int, int] = {}
        "By the hash of the key: the response's piece, where it begins, and how long it is."
        self.pieces = [bytearray()]


class Completed:
    """Completed transactions of one kind, each known for ``keep`` seconds or a quarter more.

    Keys are known by their hash of 64 bits, which nobody else can compute (Python's, of text).
    """

    def __init__(self, keep: float, clock: Callable[[], float], call_later: CallLater) -> None:
        self._keep = keep
        self._clock = clock
        self._call_later = call_later
        self._generations: list[_Generation] = []

    def add(self, key: TransactionKey, response: bytes = b"") -> None:
        """It is completed. ``response``: what it repeats, a datagram."""
        now = self._clock()
        if not self._generations or now >= self._generations[-1].ends:
            self._begin(now)
        newest = self._generations[-1]
        if len(newest.pieces[-1]) >= _PIECE:
            newest.pieces.append(bytearray())
        piece = newest.pieces[-1]
        place = (len(newest.pieces) - 1) << _BITS | len(piece)
        newest.places[hash(key)] = place << _BITS | len(response)
        piece += response

    def _begin(self, now: float) -> None:
        span = self._keep / _GENERATIONS
        self._generations.append(_Generation(now + span))
        self._call_later(span + self._keep, self._forget)

    def _forget(self) -> None:
        del self._generations[0]

    def get(self, key: TransactionKey) -> bytes | None:
        """The response that it repeats; None: it is not known, or no more."""
        number = hash(key)
        for generation in self._generations:
            place = generation.places.get(number)
            if place is not None:
                piece, begin = generation.pieces[place >> 2 * _BITS], place >> _BITS & _MASK
                return bytes(piece[begin : begin + (place & _MASK)])
        return None

    def __len__(self) -> int:
        return sum(len(generation.places) for generation in self._generations)
