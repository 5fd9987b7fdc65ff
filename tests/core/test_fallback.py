"""Why a call falls back, against its table."""

from __future__ import annotations

import pytest

from sipush.core.fallback import Cause, cause_of, for_every_cause
from tests.core.test_response_context import TABLE


def rows() -> list[tuple[str, ...]]:
    text = TABLE.read_text().partition("## Why a call falls back")[2]
    lines = [line.strip("| \n") for line in text.splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.split("|")) for line in lines[2:]]


@pytest.mark.parametrize(("final", "rang", "cause"), rows())
def test_each_row_of_the_table(final: str, rang: str, cause: str) -> None:
    expected = None if cause == "-" else Cause(cause)
    assert cause_of(int(final), rang=rang == "yes") is expected


def test_every_cause_is_in_the_table() -> None:
    assert {row[2] for row in rows()} == {"-", *(cause.value for cause in Cause)}


def test_one_uri_serves_every_cause() -> None:
    assert for_every_cause("sip:vm@pbx") == dict.fromkeys(Cause, "sip:vm@pbx")
    assert for_every_cause("") == {}
