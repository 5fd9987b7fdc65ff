"""SIPp phones and callers (Debian: sip-tester)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.process import Pipe, Program
from tests.e2e.wire import PATIENCE, Account
from tests.servers.ports import free_port

SCENARIOS = Path(__file__).with_name("sipp")
_COUNTER = itertools.count(1)


@dataclass
class Sipp:
    """One SIPp process that plays one scenario once."""

    program: Program
    log: Pipe
    messages: Path
    "What it sent and received, to be shown when something goes wrong."
    port: int

    @classmethod
    async def start(
        cls,
        directory: Path,
        scenario: str,
        server: tuple[str, int] | None,
        transport: str,
        account: Account,
        *,
        keys: dict[str, str] | None = None,
        answers: str = "",
        ip: str = "127.0.0.1",
    ) -> Sipp:
        """Play ``scenario``.xml as ``account``; calls that come in play ``answers``.xml.

        ``server`` is None for a scenario that begins with a call coming in.
        """
        work = directory / f"sipp-{next(_COUNTER)}-{scenario}"
        work.mkdir()
        log = Pipe(work / "log")
        options = ["-sf", SCENARIOS / f"{scenario}.xml", "-m", "1", "-nostdin", "-i", ip]
        options += ["-t", "t1" if transport == "TCP" else "u1", "-au", account.user]
        options += ["-ap", account.password, "-trace_logs", "-log_file", log.path]
        options += ["-trace_msg", "-message_file", work / "messages"]
        options += ["-trace_err", "-error_file", work / "errors", "-timeout", "60"]
        if answers:
            options += ["-oocsf", SCENARIOS / f"{answers}.xml"]
        # Left to itself SIPp takes 5060 again: a phone that comes back must come from elsewhere.
        port = free_port()
        options += ["-p", str(port)]
        for key, value in {"user": account.user, "domain": account.domain, **(keys or {})}.items():
            options += ["-key", key, value]
        if server is not None:
            options.append(f"{server[0]}:{server[1]}")
        program = await Program.start("sipp", *options, directory=work)
        return cls(program, log, work / "messages", port)

    async def said(self, what: str, patience: float = PATIENCE) -> str:
        """The line it logged that begins with ``what``."""
        try:
            return await self.log.lines.find(
                lambda line: line.startswith(what), f"SIPp's {what!r}", patience
            )
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._trace()}") from None

    async def succeeded(self, patience: float = PATIENCE) -> None:
        """The scenario came to its end as written."""
        code = await self.program.ended(patience)
        assert code == 0, f"SIPp ended with {code}\n{self._trace()}"

    async def kill(self) -> None:
        """SIGKILL, sockets closed."""
        await self.program.kill()
        self.log.close()

    def _trace(self) -> str:
        errors = self.messages.with_name("errors")
        texts = (
            path.read_text(errors="replace") for path in (self.messages, errors) if path.exists()
        )
        return "\n".join(texts)[-6000:]
