"""What a person reads first."""

from __future__ import annotations

from pathlib import Path

from sipush.banner import banner


def test_a_newcomer_is_told_how_to_go_on() -> None:
    text = banner(
        Path("config/sipush.toml"),
        program="sipush",
        domains=["localhost"],
        doors=["udp/0.0.0.0:5060", "tcp/0.0.0.0:5060"],
        store="sqlite run/sipush.db",
        users=[],
        apps={},
        address="192.0.2.5",
    )
    assert text.splitlines() == [
        "sipush serves localhost",
        "  listens on  udp/0.0.0.0:5060, tcp/0.0.0.0:5060",
        "  stores in   sqlite run/sipush.db",
        "  extensions  none yet: sipush user add 101 --generate --config config/sipush.toml",
        "  apps        none yet: no phone is pushed (docs/getting-started.md)",
        "  softphone   user 101, its password, server 192.0.2.5:5060 over UDP",
    ]


def test_what_is_there_is_named() -> None:
    text = banner(
        Path("x"),
        program="sipush",
        domains=["a.example", "b.example"],
        doors=["tls/[2001:db8::1]:5061"],
        store="memory",
        users=["7@a.example"],
        apps={"com.x": {"fcm", "apns"}},
        address="192.0.2.5",
    )
    assert "sipush serves a.example, b.example" in text
    assert "com.x (apns, fcm)" in text
    assert "user 7, its password, server [2001:db8::1]:5061 over TLS" in text
