"""What an operation costs a server: CPU time and memory by the kernel's books."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Pids = Mapping[str, int]
"""The processes of a server by label: ``server``, and ``redis`` when it has one."""


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its descendants."""
    return sum(_cpu_seconds(each) for each in _family(pid))


def memory_kb(pid: int) -> int:
    """Proportional set size of a process and its descendants: shared pages count once."""
    return sum(_pss(each) for each in _family(pid))


def drive(
    pids: Pids, command: Sequence[str | Path], at: Callable[[str], None] = lambda word: None
) -> dict[str, Any]:
    """Run a load generator of ``rig/`` with ``--sync``; its result, with the CPU per operation.

    Only what is used between its words PRIMED and DONE counts. ``at`` is called at each word.
    """
    before: dict[str, float] = {}
    used: dict[str, float] = {}
    line = ""
    with subprocess.Popen(
        [*map(str, command), "--sync"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                break
            at(line.strip())
            now = {label: cpu_seconds(pid) for label, pid in pids.items()}
            if line.strip() == "PRIMED":
                before = now
            elif line.strip() == "DONE":
                used = {label: now[label] - before[label] for label in pids}
            process.stdin.write("\n")
            process.stdin.flush()
    if not line.startswith("{"):
        raise RuntimeError(f"{command[0]}: status {process.returncode}, and no result")
    result: dict[str, Any] = json.loads(line)
    operations = result.get("ok", result.get("calls")) or 1
    for label, seconds in used.items():
        result[f"cpu_us_{label}"] = seconds * 1e6 / operations
    result["cpu_us"] = sum(used.values()) * 1e6 / operations
    return result


def _family(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (parent := _parent(int(name))) is not None:
            children.setdefault(parent, []).append(int(name))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return found


def _parent(pid: int) -> int | None:
    """None when it has gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def _cpu_seconds(pid: int) -> float:
    """By its clock, of which ``/proc/PID/stat`` has hundredths of a second."""
    clock = ~pid << 3 | 2  # as by clock_getcpuclockid(3)
    try:
        return time.clock_gettime(clock)
    except OSError:
        return 0.0


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
