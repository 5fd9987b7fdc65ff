"""What was parsed, kept for texts that come again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

Result = TypeVar("Result")

LONGEST: Final = 500
"Characters of what is kept: strangers write headers that fill a store of them."
USUAL: Final = 1024
"""Results kept: what comes again mostly does so while a call is set up, or with the answer to a
challenge. More would be memory for each phone that has registered."""


class Memo(Generic[Result]):
    """As ``functools.lru_cache``, compiled in half the time.

    When it is full all is forgotten: of what comes again, much is back at once.
    """

    __slots__ = ("_known", "_make", "_size")

    def __init__(self, make: Callable[[str], Result], size: int = USUAL) -> None:
        """``make`` may raise, which is not kept; ``size``: the most results that are."""
        self._make = make
        self._size = size
        self._known: dict[str, Result] = {}

    def get(self, text: str) -> Result:
        """``make(text)``, shared by all who ask: not to be changed."""
        known = self._known
        if text not in known:
            made = self._make(text)
            if len(text) > LONGEST:
                return made
            if len(known) >= self._size:
                known.clear()
            known[text] = made
        return known[text]
