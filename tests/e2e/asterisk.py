"""A real Asterisk with chan_pjsip and voicemail, on the configuration of docs/asterisk.md."""

from __future__ import annotations

import itertools
import tempfile
import tomllib
import wave
from pathlib import Path
from typing import Any

from tests.e2e.daemon import PBX, START_PATIENCE
from tests.e2e.process import Lines, Program
from tests.e2e.wire import PATIENCE
from tests.servers.ports import free_port

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config/asterisk"
EDGE = ROOT / "config/asterisk-edge"

BOXES = ("101", "102", "600")
GREETINGS = ("unavail", "busy")
"The two that the owner of a box records."

_MODULES = (
    *("res_sorcery_config", "res_sorcery_memory", "res_sorcery_astdb"),
    *("res_pjproject", "res_pjsip", "res_pjsip_session", "res_pjsip_pubsub", "chan_pjsip"),
    *("res_pjsip_sdp_rtp", "res_pjsip_caller_id", "res_pjsip_endpoint_identifier_ip"),
    *("res_pjsip_endpoint_identifier_user", "res_pjsip_diversion"),
    *("res_pjsip_header_funcs", "res_pjsip_rfc3326", "res_pjsip_nat"),
    *("res_pjsip_authenticator_digest", "res_pjsip_outbound_authenticator_digest"),
    *("res_pjsip_acl", "res_pjsip_dlg_options", "res_pjsip_path", "res_pjsip_registrar"),
    *("res_pjsip_refer", "res_pjsip_mwi", "res_pjsip_mwi_body_generator", "res_pjsip_logger"),
    *("res_rtp_asterisk", "res_timing_timerfd"),
    *("codec_ulaw", "codec_alaw", "format_wav", "bridge_simple", "pbx_config", "pbx_spool"),
    *("func_callerid", "func_cut", "func_logic", "func_strings"),
    *("app_dial", "app_echo", "app_voicemail"),
)
_ASTERISK_CONF = """\
[directories]
astetcdir => {work}
astmoddir => {root}/usr/lib/asterisk/modules
astdatadir => {work}
astvarlibdir => {work}
astdbdir => {work}
astkeydir => {work}
astagidir => {work}
astspooldir => {work}
astrundir => {work}
astlogdir => {work}
astcachedir => {work}
[options]
verbose = 3
nocolor = yes
"""
_LOGGER_CONF = """\
[general]
[logfiles]
/dev/stdout => verbose(3),notice,warning,error
"""


async def fetched() -> Path:
    """The folder with Debian's packages, fetched by the first who asks."""
    root = ROOT / "run/asterisk"
    fetching = await Program.start(ROOT / ".ci/fetch-asterisk", root)
    code = await fetching.ended(patience=110)
    assert code == 0, "Asterisk was not fetched:\n" + "\n".join(fetching.output.all)
    return root


class Asterisk:
    """Its port is known before the daemon is. It runs once it is started."""

    def __init__(self, root: Path, domain: str, guide: Path = CONFIG) -> None:
        """``root``: what ``fetched`` gave. ``domain``: sipush's, instead of example.com.

        ``guide``: where the files of the operator's guide are.
        """
        self.port = free_port(PBX)
        self.sipush_port = free_port("127.0.0.1")
        self._domain = domain
        self._guide = guide
        self._folder = tempfile.TemporaryDirectory(prefix="sipush-asterisk-")
        self.work = Path(self._folder.name)
        libraries = [*root.glob("lib/*-linux-*"), *root.glob("usr/lib/*-linux-*"), root / "usr/lib"]
        (loader,) = root.glob("lib/*-linux-*/ld-2.31.so")
        self._command = (
            *(loader, "--library-path", ":".join(map(str, libraries))),
            *(root / "usr/sbin/asterisk", "-C", self.work / "asterisk.conf"),
        )
        rtp = free_port()
        for name, text in {
            "asterisk.conf": _ASTERISK_CONF.format(work=self.work, root=root),
            "logger.conf": _LOGGER_CONF,
            "modules.conf": "[modules]\nautoload = no\n"
            + "".join(f"load = {name}.so\n" for name in _MODULES),
            "rtp.conf": f"[general]\nrtpstart = {rtp}\nrtpend = {rtp + 20}\n",
            **{
                name: self._configured(name)
                for name in ("pjsip.conf", "extensions.conf", "voicemail.conf")
            },
        }.items():
            (self.work / name).write_text(text)
        (self.work / "documentation").symlink_to(root / "usr/share/asterisk/documentation")
        (self.work / "outgoing").mkdir()
        boxes = (f"voicemail/default/{box}/{greeting}" for box in BOXES for greeting in GREETINGS)
        for sound in ("sounds/en/vm-intro", "sounds/en/beep", "sounds/en/vm-password", *boxes):
            _write_silence(self.work / f"{sound}.wav")
        self._program: Program | None = None

    def _configured(self, name: str) -> str:
        """A file of the operator's guide, with our addresses and domain."""
        file = self._guide / name
        text = (file if file.exists() else CONFIG / name).read_text(encoding="utf-8")
        for old, new in {
            "192.0.2.10:5060": f"{PBX}:{self.port}",
            "192.0.2.10": PBX,
            "192.0.2.5:5060": f"127.0.0.1:{self.sipush_port}",
            "192.0.2.5": "127.0.0.1",
            "example.com": self._domain,
        }.items():
            text = text.replace(old, new)
        return text

    def configure(self, name: str, old: str, new: str) -> None:
        """Set something else than the guide says, before it starts."""
        file = self.work / name
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    def uri(self, extension: str) -> str:
        """One of its extensions."""
        return f"sip:{extension}@{PBX}:{self.port}"

    @property
    def sipush(self) -> dict[str, Any]:
        """What the guide says of sipush's own configuration, and where Asterisk looks for it."""
        doors = [
            {"transport": transport, "address": "127.0.0.1", "port": self.sipush_port}
            for transport in ("udp", "tcp")
        ]
        return {**tomllib.loads(self._configured("sipush.toml")), "listen": doors}

    @property
    def log(self) -> Lines:
        """Every line it wrote."""
        assert self._program is not None
        return self._program.output

    async def said(self, text: str, patience: float = PATIENCE) -> None:
        """Wait for a line of its log with this text."""
        await self.log.find(lambda line: text in line, text, patience)

    async def heard(self, packets: int) -> None:
        """So many more RTP packets have come; ``rtp set debug on`` goes before."""
        left = itertools.count(packets - 1, -1)
        await self.log.find(
            lambda line: "Got  RTP packet" in line and next(left) == 0,
            f"{packets} RTP packets",
            start=len(self.log.all),
        )

    async def command(self, text: str) -> str:
        """What its console answers."""
        console = await Program.start(*self._command, "-rx", text)
        code = await console.ended()
        answer = "\n".join(console.output.all)
        assert code == 0, answer
        return answer

    def call(self, channel: str, caller: str) -> None:
        """Have ``caller``, such as ``"Dave" <200>``, call somebody and echo there."""
        file = self.work / "call"
        file.write_text(f"Channel: {channel}\nCallerID: {caller}\nApplication: Echo\n")
        file.rename(self.work / "outgoing/call")

    def box(self, number: str) -> Path:
        """The folder of a box."""
        return self.work / "voicemail/default" / number

    async def start(self) -> None:
        """Spawn it and wait until it says that it is ready."""
        self._program = await Program.start(*self._command, "-f")
        await self.said("Asterisk Ready.", patience=START_PATIENCE)

    async def close(self) -> None:
        """Kill it, and remove its folder."""
        if self._program is not None:
            await self._program.kill()
        self._folder.cleanup()


def _write_silence(path: Path) -> None:
    """A prompt that takes 0.1 s, instead of the seconds that Debian's speech takes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
