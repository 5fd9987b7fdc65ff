"""baresip phones (Debian: baresip-core): real calls with real RTP, driven over ctrl_tcp."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import uuid
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.nat import PRIVATE, Nat
from tests.e2e.process import Lines, Program
from tests.e2e.wire import PATIENCE, Account
from tests.servers.ports import free_port

# Without stdio.so, which spins when stdin is not a terminal. Tones come from aubridge, which
# needs no sound card.
_CONFIG = """\
poll_method epoll
sip_listen {ip}:{sip_port}
net_interface {interface}
sip_cafile {ca_file}
ctrl_tcp_listen {ip}:{control_port}
audio_player aubridge,nil
audio_source ausine,440
ausrc_srate 48000
ausrc_channels 2
audio_alert aubridge,nil
rtp_ports {rtp_port}-{rtp_end}
rtp_stats yes
module_path {modules}
module g711.so
module aubridge.so
module ausine.so
module ice.so
module dtls_srtp.so
rtcp_mux {rtcp_mux}
module_tmp uuid.so
module_tmp account.so
module_app ctrl_tcp.so
module_app menu.so
"""
_COUNTER = itertools.count(1)


def modules() -> Path:
    """Where Debian put baresip's modules."""
    found = [*Path("/usr/lib").glob("baresip/modules"), *Path("/usr/lib").glob("*/baresip/modules")]
    assert found, "baresip is not installed (apt install baresip-core)"
    return found[0]


@dataclass
class Baresip:
    """One baresip process with one account."""

    program: Program
    control: asyncio.StreamWriter
    events: Lines
    "What it reports: one JSON object a line."
    _reading: asyncio.Task[None]

    @classmethod
    async def start(
        cls,
        directory: Path,
        server: tuple[str, int],
        transport: str,
        account: Account,
        ca_file: Path,
        *,
        instance: str = "",
        answer: bool = True,
        register: bool = True,
        webrtc: bool = False,
        nat: Nat | None = None,
    ) -> Baresip:
        """Start one phone. ``instance``: its UUID, which it shows as +sip.instance.

        ``webrtc``: its media is what browsers speak. ``nat``: it is behind that one.
        """
        ip = PRIVATE if nat else "127.0.0.1"
        work = directory / f"baresip-{next(_COUNTER)}-{account.user}"
        work.mkdir()
        with nat.inside() if nat else nullcontext():
            sip_port, control_port, rtp_port = free_port(), free_port(), free_port()
        (work / "config").write_text(
            _CONFIG.format(
                ip=ip,
                interface="eth0" if nat else ip,
                sip_port=sip_port,
                ca_file=ca_file,
                control_port=control_port,
                rtp_port=rtp_port,
                rtp_end=rtp_port + 10,
                modules=modules(),
                rtcp_mux="yes" if webrtc else "no",
            )
        )
        (work / "uuid").write_text(instance or str(uuid.uuid4()))
        (work / "accounts").write_text(
            f"<sip:{account.aor};transport={transport.lower()}>;auth_user={account.user};"
            f"auth_pass={account.password};"
            f'outbound="sip:{server[0]}:{server[1]};transport={transport.lower()}";'
            f"regint={600 if register else 0};answermode={'auto' if answer else 'manual'}"
            f"{';medianat=ice;mediaenc=dtls_srtp' if webrtc else ''}\n"
        )
        command = [*(nat.command if nat else ()), "baresip", "-f", str(work)]
        program = await Program.start(*command, directory=work)
        await program.output.find(lambda line: "baresip is ready" in line, "baresip's readiness")
        with nat.inside() if nat else nullcontext():
            control = socket.socket()
        control.setblocking(False)
        await asyncio.get_running_loop().sock_connect(control, (ip, control_port))
        reader, writer = await asyncio.open_connection(sock=control)
        events = Lines()
        return cls(program, writer, events, asyncio.create_task(_netstrings(reader, events)))

    def command(self, name: str, params: str = "") -> None:
        """Tell it what to do (``dial``, ``hangup``, …)."""
        text = json.dumps({"command": name, "params": params, "token": name}).encode()
        self.control.write(b"%d:%b," % (len(text), text))

    async def event(self, kind: str, patience: float = PATIENCE) -> dict[str, Any]:
        """The first event of this type (``CALL_ESTABLISHED``, ``CALL_CLOSED``, …)."""
        line = await self.events.find(
            lambda line: json.loads(line).get("type") == kind, f"baresip's {kind}", patience
        )
        event: dict[str, Any] = json.loads(line)
        return event

    async def registered(self, patience: float = PATIENCE) -> None:
        """Its REGISTER was accepted (often before anyone listens to its events)."""
        await self.program.output.find(
            lambda line: line.endswith("]") and "} 200 OK" in line, "baresip's 200 OK", patience
        )

    async def rtp_received(self, patience: float = PATIENCE) -> None:
        """Audio of the other side has come in."""
        await self.event("CALL_RTPESTAB", patience)

    async def kill(self) -> None:
        """SIGKILL, sockets closed."""
        await self.program.kill()
        self.control.close()
        await self._reading


async def _netstrings(reader: asyncio.StreamReader, lines: Lines) -> None:
    try:
        while size := await reader.readuntil(b":"):
            lines.add((await reader.readexactly(int(size[:-1]) + 1))[:-1].decode())
    except (asyncio.IncompleteReadError, ConnectionError):
        lines.ended = True
