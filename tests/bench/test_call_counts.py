"""A regression check that no other load on the machine can disturb: how many functions are called.

The limits are what was needed when they were last set, and a tenth. Whoever goes above one has
made the hot path longer; whoever goes well below lowers it.
"""

import json
import subprocess
import sys

import pytest

LIMITS = {"register": 860, "refresh": 500, "call": 2630, "message": 730, "wake": 4520}


@pytest.fixture(scope="module")
def counts() -> dict[str, int]:
    command = [sys.executable, "-m", "tests.bench.call_counts"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", LIMITS)
def test_an_operation_takes_no_more_calls_than_before(counts: dict[str, int], name: str) -> None:
    assert counts[name] <= LIMITS[name]
