"""``make soak``: run it, print what it found, and fail when that is not nothing."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.soak.soak import Soak


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--workers", type=int, default=8, help="callers at once")
    parser.add_argument("--fault-every", type=float, default=20.0, help="seconds")
    parser.add_argument("--seed", type=int, default=1, help="of what is chosen by chance")
    parser.add_argument("--report", type=Path, default=Path("soak"), help="without .txt, .svg")
    given = parser.parse_args()
    with TemporaryDirectory(prefix="sipush-soak-") as directory:
        soak = Soak(
            seconds=given.minutes * 60,
            workers=given.workers,
            fault_every=given.fault_every,
            settle=True,
            directory=Path(directory),
            seed=given.seed,
        )
        findings = asyncio.run(soak.run())
    text = findings.text()
    given.report.with_suffix(".txt").write_text(text)
    given.report.with_suffix(".svg").write_text(findings.svg())
    sys.stdout.write(text)
    return 0 if findings.faultless else 1


if __name__ == "__main__":
    sys.exit(main())
