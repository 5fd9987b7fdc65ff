"""What a person who starts the server by hand wants to read first."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path


def banner(
    path: Path,
    *,
    program: str,
    domains: Sequence[str],
    doors: Sequence[str],
    store: str,
    users: Sequence[str],
    apps: Mapping[str, Collection[str]],
    address: str,
) -> str:
    """A few lines.

    ``program``: how to call sipush from here;
    ``doors``: ``udp/0.0.0.0:5060``; ``apps``: app-id to its services; ``address``: this machine's.
    """
    add_user = f"none yet: {program} user add 101 --generate --config {path}"
    known = [f"{app_id} ({', '.join(sorted(services))})" for app_id, services in apps.items()]
    user = users[0].partition("@")[0] if users else "101"
    server, transport = _best_door(doors, address)
    rows = [
        ("listens on", ", ".join(doors)),
        ("stores in", store),
        ("extensions", ", ".join(users) or add_user),
        ("apps", ", ".join(known) or "none yet: no phone is pushed (docs/getting-started.md)"),
        ("softphone", f"user {user}, its password, server {server} over {transport}"),
    ]
    lines = [f"sipush serves {', '.join(domains)}"]
    return "\n".join([*lines, *(f"  {name:<11} {text}" for name, text in rows)])


def _best_door(doors: Sequence[str], address: str) -> tuple[str, str]:
    """(host:port a phone is told, transport): the first door, a wildcard as ``address``."""
    transport, _, where = doors[0].partition("/")
    host, _, port = where.rpartition(":")
    host = {"0.0.0.0": address, "[::]": address}.get(host, host)
    return f"{host}:{port}", transport.upper()
