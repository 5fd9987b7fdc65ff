"""linphonec phones (Debian: linphone-cli): RFC 8599 as an IETF phone speaks it, with real media."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.process import Program
from tests.e2e.wire import Account
from tests.servers.ports import free_port

_CONFIG = """\
[sip]
bind_address=127.0.0.1
use_ipv6=0
sip_port={ports[0]}
sip_tcp_port={ports[1]}
sip_tls_port={ports[2]}
root_ca={ca_file}
default_proxy=0
[rtp]
bind_address=127.0.0.1
audio_rtp_port={ports[3]}
[misc]
uuid={instance}
[auth_info_0]
username={account.user}
passwd={account.password}
realm={account.domain}
domain={account.domain}
[proxy_0]
reg_proxy=<sip:{server};transport={transport}>
reg_route=<sip:{server};transport={transport}>
reg_identity=sip:{account.aor}
contact_uri_parameters={push}
reg_expires=600
reg_sendregister=1
publish=0
push_notification_allowed=0
"""
_NO_SOUND_CARD = b"""\
soundcard use files
play /usr/share/sounds/linphone/hello8000.wav
"""
_COUNTER = itertools.count(1)


@dataclass
class Linphone:
    """One linphonec process with one account, which answers every call."""

    program: Program

    @classmethod
    async def start(
        cls,
        directory: Path,
        server: tuple[str, int],
        transport: str,
        account: Account,
        ca_file: Path,
        *,
        instance: str,
        push: str = "",
    ) -> Linphone:
        """Start one. ``push``: parameters of its Contact URI; ``instance``: a UUID."""
        work = directory / f"linphone-{next(_COUNTER)}-{account.user}"
        (work / ".local/share/linphone").mkdir(parents=True)
        host = "localhost" if transport == "TLS" else server[0]  # it checks the certificate's name
        (work / "config").write_text(
            _CONFIG.format(
                ports=[free_port() for _ in range(4)],
                ca_file=ca_file,
                instance=instance,
                account=account,
                server=f"{host}:{server[1]}",
                transport=transport.lower(),
                push=push,
            )
        )
        program = await Program.start(
            *("linphonec", "-a", "-c", work / "config"),
            directory=work,
            environment={"HOME": str(work)},
            typing=True,
        )
        assert program.process.stdin is not None
        program.process.stdin.write(_NO_SOUND_CARD)
        return cls(program)

    async def connected(self) -> None:
        """It has taken a call, and the media of both sides is set up."""
        await self.program.output.find(
            lambda line: "Media streams established" in line, "linphonec's call"
        )

    async def hung_up(self) -> None:
        """The other side has ended the call."""
        await self.program.output.find(lambda line: " ended (" in line, "the end of its call")

    async def kill(self) -> None:
        """SIGKILL."""
        await self.program.kill()
