"""Everything one end-to-end test plays with: a daemon, a store, push services and phones."""

from __future__ import annotations

import asyncio
import copy
import secrets
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sipush.demo.credentials import Credentials
from tests.e2e.baresip import Baresip
from tests.e2e.daemon import APP, Daemon, account, ha1, merged
from tests.e2e.linphone import Linphone
from tests.e2e.process import Program
from tests.e2e.pushes import Pushes
from tests.e2e.shared import SharedDaemons, settings
from tests.e2e.sipp import Sipp
from tests.e2e.wire import Account, Phone
from tests.servers.ports import free_port

DOORS = {"udp": False, "tcp": False, "tls": True, "ws": False, "wss": True}
"Every transport, and whether it has a certificate."
ASYNCSIP_PHONE = Path(__file__).with_name("asyncsip_phone.py")


def x_push(token: str, device_os: str = "ios", app_id: str = APP) -> str:
    """The push header of a PortSIP-like app."""
    return (
        f"device-os={device_os};device-uid={token};allow-call-push=true;"
        f"allow-message-push=true;app-id={app_id}"
    )


def apns_token() -> str:
    """A fresh APNs device token."""
    return secrets.token_hex(32)


def fcm_token() -> str:
    """A fresh FCM registration token, as long and odd as they are."""
    return f"{secrets.token_urlsafe(16)}:{secrets.token_urlsafe(100)}_-x"


class World:
    """Phones it made are killed when the test is over, daemons of its own are stopped."""

    def __init__(self, directory: Path, store_type: str, shared: SharedDaemons) -> None:
        self.directory = directory
        self.domain = shared.new_domain()
        self._store_type = store_type
        self._shared = shared
        self.begin_empty()
        self.pushes = Pushes(shared.push_log, self.domain)
        self._borrowed: dict[str, tuple[Daemon, int]] = {}
        "And the length of its log before."
        self._own: list[Daemon] = []
        self._phones: list[Phone] = []
        self._programs: list[Sipp | Baresip | Linphone | Program] = []

    def begin_empty(self) -> None:
        """What daemons of this test alone store from now on, no earlier one knows."""
        self.store = self._shared.stores.empty(self._store_type)

    def account(self, user: str) -> Account:
        """A user of this test."""
        return account(user, self.domain)

    def aor(self, user: str) -> str:
        """``user@domain``."""
        return f"{user}@{self.domain}"

    def ha1(self, user: str) -> str:
        """``ha1_md5`` of a user of this test."""
        return ha1(user, self.domain)

    @property
    def credentials(self) -> Credentials:
        """Of the push services; also a certificate for listeners on loopback, and its CA."""
        return self._shared.push_log.service.credentials

    @property
    def tls(self) -> ssl.SSLContext:
        """How phones verify a daemon."""
        return ssl.create_default_context(cafile=self.credentials.ca_file)

    def doors(self) -> list[dict[str, Any]]:
        """``listen`` with every transport on IPv4 and IPv6."""
        tls = {
            "certificate": self.credentials.certificate_file,
            "private_key": self.credentials.private_key_file,
        }
        return [
            {"transport": transport, "address": address, "port": 0}
            | ({"tls": {name: str(path) for name, path in tls.items()}} if secure else {})
            for address in ("127.0.0.1", "::1")
            for transport, secure in DOORS.items()
        ]

    async def daemon(self, **changes: Any) -> Daemon:
        """A running daemon with the usual configuration and ``changes``; never to be stopped."""
        daemon = await self._shared.get(self._store_type, changes)
        self._borrowed.setdefault(str(changes), (daemon, len(daemon.log.all)))
        return daemon

    async def start(self, **changes: Any) -> Daemon:
        """The same, of this test alone: to be killed, reloaded or drained."""
        directory = self.directory / f"daemon-{len(self._own)}"
        directory.mkdir()
        usual = settings(self.store, self._shared.push_log, [self.domain])
        daemon = Daemon(directory, copy.deepcopy(merged(usual, changes)))
        self._own.append(daemon)
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
        who, server = who or self.account(user), daemon.at(transport, ip)
        phone = await Phone.open(who, server, transport, instance=instance, ip=ip, tls=self.tls)
        return self.adopt(phone)

    def adopt(self, phone: Phone) -> Phone:
        """Kill it with the others when the test is over."""
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
            daemon and daemon.at(transport),
            transport,
            self.account(user),
            keys=keys,
            answers=answers,
            ip=ip,
        )
        self._programs.append(phone)
        return phone

    async def baresip(
        self,
        daemon: Daemon,
        user: str,
        transport: str,
        *,
        server: tuple[str, int] | None = None,
        **how: Any,
    ) -> Baresip:
        """A baresip process."""
        server, who = server or daemon.at(transport), self.account(user)
        ca_file = self.credentials.ca_file
        phone = await Baresip.start(self.directory, server, transport, who, ca_file, **how)
        self._programs.append(phone)
        return phone

    async def linphone(
        self, daemon: Daemon, user: str, transport: str, *, instance: str, push: str
    ) -> Linphone:
        """A linphonec process that registers with ``push`` in its Contact URI."""
        server, who, ca_file = daemon.at(transport), self.account(user), self.credentials.ca_file
        phone = await Linphone.start(
            self.directory, server, transport, who, ca_file, instance=instance, push=push
        )
        self._programs.append(phone)
        return phone

    async def asyncsip(self, daemon: Daemon, user: str, push: str) -> Program:
        """An asyncsip process that has registered."""
        who, (ip, port) = self.account(user), daemon.at("UDP")
        words: Sequence[Any] = (ip, port, user, who.password, who.domain, free_port(), push)
        phone = await Program.start(sys.executable, ASYNCSIP_PHONE, *map(str, words))
        self._programs.append(phone)
        return phone

    async def close(self) -> None:
        """End everything; what a daemon must never do fails the test here."""
        for phone in self._phones:
            phone.kill()
        await asyncio.gather(*(program.kill() for program in self._programs))
        for daemon in self._own:
            if daemon.running:
                await daemon.kill()
            daemon.assert_no_traceback()
        for daemon, log_length in self._borrowed.values():
            assert daemon.running, f"the shared daemon has ended:\n{daemon.log.all[-25:]}"
            daemon.assert_no_traceback(log_length)
        self.pushes.assert_each_device_at_most_once_per_call()
