"""A short run of the fuzzer; ``make fuzz`` is the long one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.target import one_input

RUNS = 1500
SECONDS = 60
"At most."
HERE = Path(__file__).parent
SEEDS = (HERE / "corpus", HERE.parent / "sip" / "rfc4475")


@pytest.mark.parametrize(
    "path",
    [path for folder in SEEDS for path in sorted(folder.iterdir()) if path.suffix != ".md"],
    ids=lambda path: path.name,
)
def test_an_input_of_the_corpus_does_no_harm(path: Path) -> None:
    one_input(path.read_bytes())


def test_no_input_that_the_fuzzer_finds_does_harm(tmp_path: Path) -> None:
    found = tmp_path / "found"
    found.mkdir()
    options = [f"-runs={RUNS}", f"-max_total_time={SECONDS}", "-max_len=16384", "-timeout=5"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.fuzz",
            *options,
            "-rss_limit_mb=2048",
            f"-artifact_prefix={tmp_path}/",
            found,
        ]
        + [str(folder) for folder in SEEDS],
        capture_output=True,
        text=True,
        timeout=SECONDS + 50,
        check=False,
        cwd=HERE.parents[1],
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs is not None, done.stderr[-3000:]
    assert int(runs[1]) > 100
    assert list(found.iterdir()), "no input led anywhere new: is the code instrumented?"
