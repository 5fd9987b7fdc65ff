"""Until when something counts, of very many things, in a table that takes the same room always."""

from __future__ import annotations

from array import array
from typing import Final

_WAYS: Final = 4
"Places that a thing may have."
_MARK: Final = (1 << 32) - 1


class Recent:
    """Seconds by the hash of what they are about, as ``hash`` computes it, which nobody else can.

    It is approximate. Where more than ``_WAYS`` want the same places, the one that ends first is
    forgotten: one in thirty things when the table is half full, one in ten when as many have come
    as there are places. And what was never put seems to be there once in a thousand million times:
    32 bits of its hash are compared, with four others.
    """

    def __init__(self, places: int) -> None:
        """``places``: of eight bytes, a multiple of four."""
        self._sets = places // _WAYS
        # Written to at once: of memory that is touched here and there, the first thousand things
        # would take a page each.
        self._marks = array("I", [0]) * places
        self._untils = array("I", [0]) * places

    def until(self, number: int) -> int:
        """Until when it counts; 0: it is not there."""
        first, mark = number % self._sets * _WAYS, number >> 31 & _MARK
        for place in range(first, first + _WAYS):
            if self._marks[place] == mark:
                return self._untils[place]
        return 0

    def forget(self, number: int) -> None:
        """It counts no more."""
        if self.until(number):
            self.put(number, 0)

    def put(self, number: int, until: float) -> None:
        """It counts until then, in whole seconds."""
        first, mark = number % self._sets * _WAYS, number >> 31 & _MARK
        untils, chosen = self._untils, first
        for place in range(first, first + _WAYS):
            if self._marks[place] == mark:
                chosen = place
                break
            if untils[place] < untils[chosen]:
                chosen = place
        self._marks[chosen], untils[chosen] = mark, int(until)
