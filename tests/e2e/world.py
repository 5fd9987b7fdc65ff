"""Everything one end-to-end test plays with: a daemon, a store, push services and phones."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.e2e.baresip import Baresip
from tests.e2e.daemon import APP, DOMAIN, Daemon, account, ha1, merged
from tests.e2e.process import Program, free_port
from tests.e2e.pushes import Pushes
from tests.e2e.sipp import Sipp
from tests.e2e.wire import Account, Phone

ASYNCSIP_PHONE = Path(__file__).with_name("asyncsip_phone.py")
USERS = ("alice", "bob", "carol")


def x_push(token: str, device_os: str = "ios", app_id: str = APP) -> str:
    """The push header of a PortSIP-like app."""
    return (
        f"device-os={device_os};device-uid={token};allow-call-push=true;"
        f"allow-message-push=true;app-id={app_id}"
    )


def apns_token() -> str:
    """A fresh APNs device token."""
    return secrets.token_hex(32)


class World:
    """Phones it made are killed when the test is over, daemons are stopped."""

    def __init__(self, directory: Path, store: dict[str, Any], pushes: Pushes) -> None:
        self.directory = directory
        self.store = store
        self.pushes = pushes
        self.daemons: list[Daemon] = []
        self._phones: list[Phone] = []
        self._programs: list[Sipp | Baresip | Program] = []

    def settings(self, **changes: Any) -> dict[str, Any]:
        """The usual configuration with ``changes``, table by table."""
        listen = [
            {"transport": transport, "address": "127.0.0.1", "port": 0}
            for transport in ("udp", "tcp")
        ]
        usual = {
            "sip": {"domains": [DOMAIN]},
            "listen": listen,
            "wake": {"hold": 8.0, "probe": 0.25},
            "store": self.store,
            "apps": {APP: self.pushes.app_settings(APP)},
            "users": {
                f"{user}@{DOMAIN}": {"ha1_md5": ha1(user), "ha1_sha256": ha1(user, "sha256")}
                for user in USERS
            },
            "log": {"format": "json", "level": "debug"},
        }
        return merged(usual, changes)

    async def start(self, **changes: Any) -> Daemon:
        """A running daemon with the usual configuration and ``changes``."""
        directory = self.directory / f"daemon-{len(self.daemons)}"
        directory.mkdir()
        daemon = Daemon(directory, self.settings(**changes))
        self.daemons.append(daemon)
        await daemon.start()
        return daemon

    async def phone(
        self,
        daemon: Daemon,
        user: str,
        transport: str = "UDP",
        *,
        instance: str = "",
        ip: str = "127.0.0.1",
        who: Account | None = None,
    ) -> Phone:
        """A text phone."""
        who = who or account(user)
        phone = await Phone.open(who, daemon[transport], transport, instance=instance, ip=ip)
        self._phones.append(phone)
        return phone

    async def registered(
        self, daemon: Daemon, user: str, transport: str, push: str, instance: str = ""
    ) -> Phone:
        """A text phone that has registered with a push header."""
        phone = await self.phone(daemon, user, transport, instance=instance)
        result = await phone.register(push)
        assert result.response.status == 200, result.response.text
        return phone

    async def sleeping(
        self, daemon: Daemon, user: str, transport: str, push: str, instance: str = ""
    ) -> None:
        """A phone that has registered with a push header and was killed."""
        (await self.registered(daemon, user, transport, push, instance)).kill()

    async def sipp(
        self,
        daemon: Daemon | None,
        user: str,
        scenario: str,
        transport: str = "UDP",
        *,
        answers: str = "",
        ip: str = "127.0.0.1",
        **keys: str,
    ) -> Sipp:
        """A SIPp process; without a daemon one that waits to be called."""
        phone = await Sipp.start(
            self.directory,
            scenario,
            daemon and daemon[transport],
            transport,
            account(user),
            keys=keys,
            answers=answers,
            ip=ip,
        )
        self._programs.append(phone)
        return phone

    async def baresip(self, daemon: Daemon, user: str, transport: str, **how: Any) -> Baresip:
        """A baresip process."""
        phone = await Baresip.start(
            self.directory, daemon[transport], transport, account(user), **how
        )
        self._programs.append(phone)
        return phone

    async def asyncsip(self, daemon: Daemon, user: str, push: str) -> Program:
        """An asyncsip process that has registered."""
        who, (ip, port) = account(user), daemon["UDP"]
        words: Sequence[Any] = (ip, port, user, who.password, DOMAIN, free_port(), push)
        phone = await Program.start(sys.executable, ASYNCSIP_PHONE, *map(str, words))
        self._programs.append(phone)
        return phone

    async def close(self) -> None:
        """End everything; what a daemon must never do fails the test here."""
        for phone in self._phones:
            phone.kill()
        await asyncio.gather(*(program.kill() for program in self._programs))
        for daemon in self.daemons:
            if daemon.program is not None and daemon.program.running:
                await daemon.kill()
        for daemon in self.daemons:
            faults = [line for line in daemon.log.all if "Traceback" in line]
            assert not faults, "\n".join(faults)
        self.pushes.assert_each_device_at_most_once_per_call()
