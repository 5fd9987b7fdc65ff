"""``sipush demo`` from the outside: a process, its output and its exit status."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def demo(temporary: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sipush.cli", "demo"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONIOENCODING": "utf-8"},
    )


def test_the_demo_tells_the_whole_story_and_leaves_nothing_behind(tmp_path: Path) -> None:
    result = demo(tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    told = [
        "REGISTER + digest + X-Push",
        "kill -9",
        "INVITE + digest",
        "push over HTTP/2",
        "INVITE X-Push-Id",
        "180 Ringing",
        "200 OK (INVITE)",
        "ACK",
        "200 OK (BYE)",
    ]
    position = 0
    for text in told:
        position = result.stdout.find(text, position)
        assert position > 0, f"{text} is not told in its place:\n{result.stdout}"
    ports = set(re.findall(r"digest \+ X-Push \(port (\d+)\)", result.stdout))
    assert len(ports) == 2, "the phone came back from another port"
    for name in ("Push accepted", "Wake to INVITE", "Total"):
        assert re.search(rf"{name} +\d+\.\d ms", result.stdout)
    assert "\x1b[" not in result.stdout
    assert list(tmp_path.iterdir()) == []
