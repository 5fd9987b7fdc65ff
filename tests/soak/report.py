"""What a soak found, as a table and a plot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from statistics import quantiles

from tests.soak.load import Diary

COLOURS = ("#1b7f79", "#c0392b", "#2c3e9e", "#b9770e")
SLICES = 12
"Rows of the table."
WIDTH, HEIGHT, LEFT, GAP = 900, 160, 60, 50


@dataclass(frozen=True, slots=True)
class State:
    """What the daemon was seen to hold."""

    at: float
    rss: int
    "KiB."
    files: int


@dataclass
class Findings:
    """All of it."""

    seconds: float
    diary: Diary
    states: list[State] = field(default_factory=list)
    left_over: dict[str, int] = field(default_factory=dict)
    "What the daemon still held when all was over and should have gone."
    server_states: dict[str, int] = field(default_factory=dict)
    "The server transactions among it: method and state."
    second_pushes: int = 0
    violations: int = 0
    "Rules of the push services that were broken."
    tracebacks: int = 0
    blocked: list[str] = field(default_factory=list)
    "What the watchdog said."

    @property
    def faultless(self) -> bool:
        """Whether nothing went wrong that no fault explains."""
        lost = any(not trouble.disturbed for trouble in self.diary.troubles)
        return not (
            lost or self.left_over or self.second_pushes or self.violations or self.tracebacks
        )

    def text(self) -> str:
        """For a terminal."""
        return "\n".join([*self._summary(), "", *self._over_time(), "", *self._troubles()]) + "\n"

    def _summary(self) -> Iterator[str]:
        diary = self.diary
        played = sum(diary.done.values())
        yield f"{played} scenarios in {self.seconds:.0f} s: " + ", ".join(
            f"{count} {name}" for name, count in sorted(diary.done.items())
        )
        yield "faults: " + (
            ", ".join(f"{name} {begin:.0f}-{end:.0f} s" for begin, end, name in diary.faults)
            or "none"
        )
        disturbed = sum(trouble.disturbed for trouble in diary.troubles)
        yield f"failed although nothing was wrong: {len(diary.troubles) - disturbed}"
        yield f"failed during a fault: {disturbed}"
        yield f"second pushes: {self.second_pushes}, broken push rules: {self.violations}"
        yield f"tracebacks: {self.tracebacks}, event loop blocked: {len(self.blocked)} times"
        yield "left over at the end: " + (
            ", ".join(f"{count} {name}" for name, count in self.left_over.items()) or "nothing"
        )
        if self.left_over:
            states = (f"{count} {name}" for name, count in self.server_states.items())
            yield f"server transactions at the end: {', '.join(states) or 'none'}"

    def _over_time(self) -> Iterator[str]:
        names = sorted({sample.what for sample in self.diary.samples})
        yield "milliseconds, median/99th percentile"
        yield "from s " + "".join(f"{name:>20}" for name in names) + "   RSS MiB  files"
        width = self.seconds / SLICES
        for number in range(SLICES):
            begin = number * width
            cells = (_median_and_worst(self._seconds(name, begin, width)) for name in names)
            states = [s for s in self.states if begin <= s.at < begin + width]
            state = f"{states[-1].rss / 1024:10.1f}{states[-1].files:7}" if states else ""
            yield f"{begin:6.0f} " + "".join(f"{cell:>20}" for cell in cells) + state

    def _seconds(self, name: str, begin: float, width: float) -> list[float]:
        return [
            sample.seconds
            for sample in self.diary.samples
            if sample.what == name and begin <= sample.at < begin + width
        ]

    def _troubles(self) -> Iterator[str]:
        kinds = Counter((t.disturbed, t.scenario, t.what) for t in self.diary.troubles)
        for (disturbed, scenario, what), count in sorted(kinds.items()):
            when = "during a fault" if disturbed else "FOR NO REASON"
            yield f"{when}: {count} x {scenario}: {what}"
        yield from self.blocked[:10]

    def svg(self) -> str:
        """Latencies over time, each a dot, and the daemon's memory; faults are grey."""
        names = sorted({sample.what for sample in self.diary.samples})
        plots = [
            (
                f"{name}, ms",
                [(s.at, s.seconds * 1000) for s in self.diary.samples if s.what == name],
            )
            for name in names
        ]
        plots.append(("memory of the daemon, MiB", [(s.at, s.rss / 1024) for s in self.states]))
        height = GAP + len(plots) * (HEIGHT + GAP)
        panels = "\n".join(
            self._panel(number, title, points) for number, (title, points) in enumerate(plots)
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {height}"'
            f' font-family="sans-serif" font-size="12">\n{panels}\n</svg>\n'
        )

    def _panel(self, number: int, title: str, points: Sequence[tuple[float, float]]) -> str:
        top = GAP + number * (HEIGHT + GAP)
        most = max((value for _, value in points), default=1.0) or 1.0
        scale = WIDTH / self.seconds
        faults = (
            f'<rect x="{LEFT + begin * scale:.1f}" y="{top}" height="{HEIGHT}" fill="#ddd"'
            f' width="{max(1.0, (end - begin) * scale):.1f}"><title>{escape(name)}</title></rect>'
            for begin, end, name in self.diary.faults
        )
        dots = (
            f'<circle cx="{LEFT + at * scale:.1f}" r="1.2" fill="{COLOURS[number % len(COLOURS)]}"'
            f' cy="{top + HEIGHT - value / most * HEIGHT:.1f}"/>'
            for at, value in points
        )
        return "\n".join(
            [
                *faults,
                f'<rect x="{LEFT}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none"'
                ' stroke="#888"/>',
                f'<text x="{LEFT}" y="{top - 6}">{escape(title)}</text>',
                f'<text x="{LEFT - 6}" y="{top + 10}" text-anchor="end">{most:.4g}</text>',
                f'<text x="{LEFT - 6}" y="{top + HEIGHT}" text-anchor="end">0</text>',
                f'<text x="{LEFT + WIDTH}" y="{top + HEIGHT + 16}" text-anchor="end">'
                f"{self.seconds:.0f} s</text>",
                *dots,
            ]
        )


def _median_and_worst(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    cuts = quantiles(seconds, n=100) if len(seconds) > 1 else [seconds[0]] * 99
    return f"{cuts[49] * 1000:.1f}/{cuts[98] * 1000:.1f}"
