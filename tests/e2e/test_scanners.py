"""SIPVicious scans the daemon and learns nothing."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from tests.e2e.daemon import Daemon
from tests.e2e.process import Program
from tests.e2e.world import World
from tests.servers.ports import free_port

TOOLS = Path(sys.executable).parent
DOCUMENT = Path(__file__).parents[2] / "docs" / "abuse.md"
USERS = ("100", "101", "1000")
"Extensions that exist, where every scanner looks first."


@pytest.fixture(params=["sqlite"])
def store_type(request: pytest.FixtureRequest) -> str:
    """Scanners do not see it."""
    name: str = request.param
    return name


async def daemon_with_extensions(world: World, **changes: object) -> Daemon:
    users = {f"{user}@{world.domain}": {"ha1_md5": world.ha1(user)} for user in USERS}
    return await world.start(users=users, **changes)


async def start(world: World, daemon: Daemon, tool: str, *options: str) -> Program:
    """A tool of SIPVicious, aimed at the daemon."""
    host, port = daemon.at("UDP")
    return await Program.start(
        sys.executable,
        TOOLS / f"sipvicious_{tool}",
        *("-P", str(free_port()), "-p", str(port), "-v", *options, host),
        directory=world.directory,
        environment={"HOME": str(world.directory)},
    )


async def scan(world: World, daemon: Daemon, tool: str, *options: str) -> str:
    """Everything a tool says about the daemon."""
    program = await start(world, daemon, tool, *options)
    await program.ended(60)
    return "\n".join(program.output.all)


async def test_svmap_and_svwar_see_a_sip_server_without_product_and_extensions(
    world: World,
) -> None:
    daemon = await daemon_with_extensions(world)
    host, port = daemon.at("UDP")
    guess = ("-e", "100-110,1000", "--domain", world.domain)
    maps, *wars = await asyncio.gather(
        scan(world, daemon, "svmap"),
        *(
            scan(world, daemon, "svwar", "-m", method, *guess, *force)
            for method in ("REGISTER", "INVITE", "OPTIONS")
            for force in ((), ("--force",))
        ),
    )
    assert re.findall(r"^\| (\S+) +\| (.*?) *\|$", maps, re.MULTILINE) == [
        (f"{host}:{port}", "unknown")
    ]
    for said in wars:
        assert "found nothing" in said, said
        assert not re.search(r"^\| *\d+ *\|", said, re.MULTILINE), said


async def test_svcrack_is_banned_before_it_finds_a_weak_password(world: World) -> None:
    daemon = await daemon_with_extensions(world, limits={"failed_sign_ins": 6})
    words = world.directory / "words"
    words.write_text("".join(f"weak{n}\n" for n in range(60)) + world.account("100").password)
    options = ["-u", "100", "-d", str(words), "--domain", world.domain, "--maximumtime", "2"]
    program = await start(world, daemon, "svcrack", *options)
    await program.output.find(lambda line: "stopping" in line, "that nothing answers")
    await program.kill()
    assert "password for" not in "\n".join(program.output.all)
    banned = await daemon.log_event("banned")
    assert len([each for each in daemon.records if each["event"] == "authentication_failed"]) == 6
    assert_fail2ban_reads(daemon, banned["source"])
    elsewhere = await world.phone(daemon, "100", ip="127.0.0.67")
    assert (await elsewhere.register()).response.status == 200


def assert_fail2ban_reads(daemon: Daemon, source: str) -> None:
    """The filter of the document finds the ban, the source, and nothing else in the log."""
    (expression,) = re.findall(r"^failregex = (.*)$", DOCUMENT.read_text(), re.MULTILINE)
    pattern = re.compile(expression.replace("<SUBNET>", r"(?P<host>[\w.:]+(?:/\d+)?)"))
    found = [match["host"] for line in daemon.log.all if (match := pattern.search(line))]
    assert found == [source]
