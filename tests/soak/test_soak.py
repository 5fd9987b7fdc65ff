"""Ten seconds of ``make soak``."""

from __future__ import annotations

from pathlib import Path

from tests.soak.soak import Soak


async def test_ten_seconds_of_everything_with_a_crash_in_between_lose_nothing(
    tmp_path: Path,
) -> None:
    soak = Soak(seconds=10, workers=4, fault_every=3.0, settle=False, directory=tmp_path, seed=1)
    findings = await soak.run()
    assert findings.faultless, findings.text()
    assert {name for _, _, name in findings.diary.faults} >= {"daemon killed"}
    assert sum(findings.diary.done.values()) > 20
    assert findings.svg().count("<circle") > 20
