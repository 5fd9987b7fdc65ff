"""Draws a call as a ladder: one column per party, time running down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

SPACING = 24
"Characters between two columns."
MARGIN = 16
"Characters before the first column, where the times stand."


class Kind(Enum):
    """What a step is, told by its colour."""

    SIP = "36"
    PUSH = "35"
    GOOD = "32"
    BAD = "31"
    PLAIN = "0"


@dataclass(frozen=True, slots=True)
class Step:
    """One arrow, or, when it leads nowhere else, one remark about a party."""

    at_epoch: float
    "UNIX seconds."
    source: str
    target: str
    text: str
    kind: Kind = Kind.SIP


class Ladder:
    """Renders steps as lines of text, the first one at 0 ms. ``colour``: with ANSI colours."""

    def __init__(self, columns: Sequence[str], *, colour: bool = False) -> None:
        self._columns = tuple(columns)
        self._colour = colour
        self._start_epoch: float | None = None

    def head(self) -> str:
        """The names over their lifelines."""
        line = [" "] * self._width
        for name in self._columns:
            start = self._at(name) - len(name) // 2
            line[start : start + len(name)] = name
        return "".join(line).rstrip()

    def step(self, step: Step) -> str:
        """One line."""
        line = [" "] * self._width
        for name in self._columns:
            line[self._at(name)] = "│"
        if self._start_epoch is None:
            self._start_epoch = step.at_epoch
        time = f"{(step.at_epoch - self._start_epoch) * 1000:8.1f} ms"
        line[: len(time)] = time
        start, drawing = self._drawing(step)
        end = start + len(drawing)
        if self._colour:
            drawing = f"\x1b[{step.kind.value}m{drawing}\x1b[0m"
        return ("".join(line[:start]) + drawing + "".join(line[end:])).rstrip()

    def _drawing(self, step: Step) -> tuple[int, str]:
        """Where it begins, and the arrow or remark itself."""
        source, target = self._at(step.source), self._at(step.target)
        if source == target:
            text = f" {step.text} "
            return min(source - len(text) // 2, self._width - len(text)), text
        span = abs(target - source) - 1
        shaft = f" {step.text[: span - 5]} ".center(span - 1, "─")
        return min(source, target) + 1, shaft + "▶" if target > source else "◀" + shaft

    def _at(self, name: str) -> int:
        return MARGIN + self._columns.index(name) * SPACING

    @property
    def _width(self) -> int:
        return MARGIN + (len(self._columns) - 1) * SPACING + MARGIN
