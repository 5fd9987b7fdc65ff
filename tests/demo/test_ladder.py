"""The call ladder as a person sees it."""

from __future__ import annotations

import pytest

from sipush.demo.ladder import MARGIN, SPACING, Kind, Ladder, Step

NAMES = ("alice", "sipush", "bob")


def ladder() -> Ladder:
    ladder = Ladder(NAMES)
    ladder.step(Step(1000.0, "alice", "alice", "begin"))
    return ladder


def column(index: int) -> int:
    return MARGIN + index * SPACING


def test_names_stand_over_their_lifelines() -> None:
    head = Ladder(NAMES).head()
    line = Ladder(NAMES).step(Step(0.0, "alice", "sipush", "INVITE"))
    for index, name in enumerate(NAMES):
        middle = head.index(name) + len(name) // 2
        assert middle == column(index)
    assert line[column(0)] == line[column(2)] == "│"


def test_times_count_from_the_first_step_in_milliseconds() -> None:
    assert ladder().step(Step(1000.0123, "alice", "sipush", "INVITE")).startswith("    12.3 ms ")


def test_an_arrow_points_from_source_to_target() -> None:
    right = ladder().step(Step(1001.0, "alice", "sipush", "INVITE"))
    assert right[column(0) + 1 : column(1)].startswith("─")
    assert right[column(0) + 1 : column(1)].endswith("▶")
    left = ladder().step(Step(1001.0, "sipush", "alice", "100"))
    assert left[column(0) + 1 : column(1)].startswith("◀")
    assert left[column(0) + 1 : column(1)].endswith("─")


def test_an_arrow_crosses_the_columns_between() -> None:
    line = ladder().step(Step(1001.0, "bob", "alice", "hello"))
    assert "│" not in line[column(0) + 1 : column(2)]


def test_a_text_too_long_for_its_arrow_is_cut() -> None:
    line = ladder().step(Step(1001.0, "alice", "sipush", "x" * 100))
    assert len(line) == column(2) + 1
    assert line[column(1)] == "│"


@pytest.mark.parametrize("name", NAMES)
def test_a_remark_stands_on_its_party_and_within_the_width(name: str) -> None:
    line = ladder().step(Step(1001.0, name, name, "killed by the system"))
    assert " killed by the system" in line
    assert len(line) <= column(2) + MARGIN


def test_colours_wrap_the_drawing_only() -> None:
    step = Step(1000.0, "alice", "sipush", "200 OK", Kind.GOOD)
    plain, coloured = Ladder(NAMES).step(step), Ladder(NAMES, colour=True).step(step)
    assert coloured.replace("\x1b[32m", "").replace("\x1b[0m", "") == plain
    assert coloured.index("\x1b[32m") == column(0) + 1
