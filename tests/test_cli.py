"""The commands, as an operator types them."""

import asyncio
import os
import pty
import re
import sqlite3
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from hashlib import md5, sha256
from pathlib import Path
from typing import Any

import pytest

from sipush import cli
from sipush.cli_store import import_users
from sipush.config import load
from sipush.core.bindings import (
    Binding,
    Platform,
    PushRecord,
    Registration,
    Subscriber,
    full_device,
)
from sipush.location import make_store
from sipush.log_lines import fingerprint
from tests.server.stores import ChangedStore
from tests.transport.authority import Authority

HA1 = "0123456789abcdef0123456789abcdef"
CONFIG = f"""
sip.domains = ["example.com", "example.org"]
store.sqlite.path = "sipush.db"
[users."100@example.com"]
ha1_md5 = "{HA1}"
"""


@dataclass
class Shell:
    """Runs ``sipush`` in a folder of its own."""

    folder: Path

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sipush.cli", *arguments],
            cwd=self.folder,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def ok(self, *arguments: str, stdin: str = "") -> str:
        done = self.run(*arguments, "--config", "sipush.toml", stdin=stdin)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def on_terminal(self, *arguments: str, typed: str) -> str:
        """What is shown to somebody who types that at the first prompt."""
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "sipush.cli", *arguments, "--config", "sipush.toml"]
        shown = b""
        with subprocess.Popen(
            command,
            cwd=self.folder,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        ) as process:
            os.close(theirs)
            while not shown.endswith(b": "):
                shown += os.read(ours, 1024)
            os.write(ours, typed.encode())
            with suppress(OSError):  # EIO: nobody has the terminal any more
                while more := os.read(ours, 1024):
                    shown += more
            assert process.wait() == 1
        os.close(ours)
        return shown.decode().replace("\r\n", "\n")

    def refused(self, *arguments: str, stdin: str = "") -> list[str]:
        done = self.run(*arguments, "--config", "sipush.toml", stdin=stdin)
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr.splitlines()


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    (tmp_path / "sipush.toml").write_text(CONFIG)
    return Shell(tmp_path)


def test_every_command_and_argument_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    def helps(*command: str) -> Iterator[tuple[tuple[str, ...], str]]:
        with pytest.raises(SystemExit, match="0"):
            cli.main([*command, "--help"])
        told = capsys.readouterr().out
        yield command, told
        for name in re.findall(r"^    ([a-z]+) ", told, re.MULTILINE):
            yield from helps(*command, name)

    found = dict(helps())
    assert ("user", "import") in found
    assert len(found) == 14
    for command, told in found.items():
        assert re.search(r"\n\n[A-Z][^\n]+(\n[^\n]+)*\.\n\n", told), command
        for argument in re.findall(r"^  [a-zA-Z].*$", told, re.MULTILINE):
            assert re.fullmatch(r"  \S+ +\S.*|  COMMAND", argument), command


def test_check_sums_up_a_good_configuration(shell: Shell) -> None:
    out = shell.ok("check")
    assert "sipush.toml is good." in out
    assert "udp 0.0.0.0 port 5060, tcp 0.0.0.0 port 5060" in out
    assert f"sqlite, {shell.folder}/sipush.db" in out


def test_check_warns_of_what_deserves_a_look(shell: Shell) -> None:
    with (shell.folder / "sipush.toml").open("a") as file:
        file.write(
            f'[users."101@example.com"]\nha1_md5 = "{HA1}"\n'
            '[groups."600@example.com"]\nmembers = ["100@example.com", "102@example.com"]\n'
            '[emergency]\nroute = ["sip:112@192.0.2.20"]\n'
            'addresses = { "101@example.com" = { country = "DE" } }\n'
            '[domains."example.org"]\nregistrar = "sip:pbx.example.org"\n'
        )
    warnings = [line for line in shell.ok("check").splitlines() if line.startswith("  warning")]
    assert warnings == [
        "  warning  102@example.com, a member of 600@example.com, "
        "is left out unless the store has that user",
        "  warning  100@example.com has no address for emergency calls",
        "  warning  the registrar of example.org is a name: its addresses must be peers",
    ]


def test_check_warns_of_a_node_without_peers(shell: Shell) -> None:
    node = 'store.type = "redis"\nnode.uri = "sip:192.0.2.31"\n'
    peer = '[[peers]]\nname = "nodes"\naddress = "192.0.2.30/31"\n'
    for text, warnings in ((node + CONFIG + peer, 0), (node + CONFIG, 1)):
        (shell.folder / "sipush.toml").write_text(text)
        out = shell.ok("check")
        assert out.count("warning") == warnings
    assert out.endswith(
        "node.uri is set and there are no peers: no call gets from one to another\n"
    )


def test_check_tells_all_files_that_cannot_be_used_at_once(shell: Shell) -> None:
    for name in ("secret", "token", "pem"):
        (shell.folder / name).write_text("short\n")
    with (shell.folder / "sipush.toml").open("a") as file:
        file.write(
            '[apps.x.webhook]\nurl = "https://h"\nsecret_file = "secret"\n'
            '[admin]\ntoken_file = "token"\n'
            '[[listen]]\ntransport = "tls"\ntls = {certificate = "pem", private_key = "pem"}\n'
        )
    assert [line.split(": ")[1] for line in shell.refused("check")] == [
        'apps."x".webhook.secret_file',
        "admin.token_file",
        "tls",
    ]


def test_check_tells_how_long_certificates_last_and_which_must_be_renewed(shell: Shell) -> None:
    authority = Authority(shell.folder)
    with (shell.folder / "sipush.toml").open("a") as file:
        for name, days in (("good.example.com", 90), ("old.example.com", 0)):
            tls = authority.issue(name, days=days)
            file.write(
                '[[listen]]\ntransport = "tls"\nport = 0\n'
                f'tls = {{certificate = "{tls.certificate}", private_key = "{tls.private_key}"}}\n'
            )
    out = shell.ok("check")
    assert f"  tls      {shell.folder}/good.example.com.pem, 89 days left\n" in out
    assert re.search(r"  tls      \S+/old\.example\.com\.pem, -\d days left\n", out)
    assert out.endswith(f"  warning  {shell.folder}/old.example.com.pem must be renewed\n")
    assert out.count("must be renewed") == 1


@pytest.mark.parametrize("command", ["check", "run"])
def test_every_problem_is_one_line_and_nothing_starts(shell: Shell, command: str) -> None:
    (shell.folder / "sipush.toml").write_text("wake.hodl = 1\nlog.level = 2\n")
    assert shell.refused(command) == [
        "sipush: wake.hodl: unknown key (did you mean hold?)",
        'sipush: log.level: is 2 (allowed: "debug", "info", "warning" or "error")',
    ]


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_key_that_cannot_be_sent_to_a_capture_server_is_one_line(
    shell: Shell, command: str
) -> None:
    (shell.folder / "key").write_text("\n")
    with (shell.folder / "sipush.toml").open("a") as file:
        file.write('[hep]\nsend_to = "127.0.0.1:9060"\nkey_file = "key"\n')
    assert shell.refused(command) == [
        "sipush: hep.key_file: 0 bytes in the first line (allowed: 1 to 255)"
    ]


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_password_of_redis_that_is_no_text_is_one_line(shell: Shell, command: str) -> None:
    (shell.folder / "password").write_bytes(b"p\xfc\n")
    (shell.folder / "sipush.toml").write_text(
        '[store]\ntype = "redis"\nredis = {password_file = "password"}\n'
    )
    assert shell.refused(command) == ["sipush: store.redis.password_file: is not UTF-8"]


def test_a_missing_configuration_is_one_line(shell: Shell) -> None:
    done = shell.run("check", "--config", "none.toml")
    assert done.returncode == 1
    assert done.stderr == "sipush: none.toml: cannot be read: No such file or directory\n"


@pytest.mark.parametrize("arguments", [(), ("fly",), ("user",), ("user", "add"), ("run", "-x")])
def test_wrong_usage_is_status_2(shell: Shell, arguments: tuple[str, ...]) -> None:
    done = shell.run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sipush")


def test_the_version_is_printed(shell: Shell) -> None:
    assert re.fullmatch(r"sipush \d+\.\d+\.\d+\n", shell.run("version").stdout)


def test_a_user_is_stored_as_hashes_of_the_domain_s_realm(shell: Shell) -> None:
    assert shell.ok("user", "add", "101@Example.ORG", stdin="s3cret\n") == (
        "101@example.org added.\n"
    )
    stored = "\n".join(sqlite3.connect(shell.folder / "sipush.db").iterdump())
    assert md5(b"101:example.org:s3cret").hexdigest() in stored
    assert sha256(b"101:example.org:s3cret").hexdigest() in stored
    for file in shell.folder.glob("sipush.db*"):
        assert b"s3cret" not in file.read_bytes()


def test_a_bare_user_belongs_to_the_first_domain(shell: Shell) -> None:
    assert shell.ok("user", "add", "101", stdin="pw") == "101@example.com added.\n"
    assert shell.ok("user", "add", "101@example.com", stdin="pw") == "101@example.com replaced.\n"


def test_the_password_may_come_from_a_file(shell: Shell) -> None:
    (shell.folder / "password").write_text("s3cret\n")
    shell.ok("user", "add", "101", "--password-file", "password")
    stored = "\n".join(sqlite3.connect(shell.folder / "sipush.db").iterdump())
    assert md5(b"101:example.com:s3cret").hexdigest() in stored


def test_a_generated_password_is_printed_and_its_hash_stored(shell: Shell) -> None:
    out = shell.ok("user", "add", "101", "--generate")
    password = out.splitlines()[1].removeprefix("password: ")
    stored = "\n".join(sqlite3.connect(shell.folder / "sipush.db").iterdump())
    assert md5(f"101:example.com:{password}".encode()).hexdigest() in stored


@pytest.mark.parametrize(("stdout", "status"), [(">&-", 0), ("| true", 1)])
def test_a_list_that_nobody_reads_is_no_fault(shell: Shell, stdout: str, status: int) -> None:
    command = f"{sys.executable} -m sipush.cli user list --config sipush.toml {stdout}"
    script = f"{command}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=shell.folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (status, "")


def test_users_are_listed_with_their_settings_and_source(shell: Shell) -> None:
    shell.ok("user", "add", "102", "--no-hold", "--fallback", "sip:vm@h", stdin="pw")
    shell.ok("user", "add", "101", "--hold-seconds", "45", stdin="pw")
    assert shell.ok("user", "list").splitlines() == [
        "100@example.com  MD5  hold  [configuration, read-only]",
        "101@example.com  MD5+SHA-256  hold 45 s  [store]",
        "102@example.com  MD5+SHA-256  no hold, then sip:vm@h  [store]",
    ]


def test_a_removed_user_is_gone(shell: Shell) -> None:
    shell.ok("user", "add", "101", stdin="pw")
    assert shell.ok("user", "remove", "101") == "101@example.com removed.\n"
    assert "101" not in shell.ok("user", "list")
    assert shell.refused("user", "remove", "101") == ["sipush: 101@example.com is not in the store"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "problem"),
    [
        (("101@example.net",), "pw", "101@example.net is no address-of-record of ours"),
        (("100",), "pw", "100@example.com is a user of the configuration file: change it there"),
        (("101",), "", "the password is empty"),
        *(
            ((name,), "pw", f"{name} cannot stand in a SIP URI")
            for name in ("1 0 2", "1:2", "<101>", "10%31", '"101"')
        ),
        (("1\x1b[2J",), "pw", "1\\u001b[2J cannot stand in a SIP URI"),
        (("101", "--password-file", "none"), "", "none: No such file or directory"),
        (("101", "--fallback", "tel:1"), "pw", '101@example.com: fallback: is "tel:1" (allowed:'),
        (("101", "--hold-seconds", "-1"), "pw", "101@example.com: hold_seconds: is -1.0 (allowed:"),
    ],
)
def test_a_user_that_cannot_be_added_is_told_why(
    shell: Shell, arguments: tuple[str, ...], stdin: str, problem: str
) -> None:
    (line,) = shell.refused("user", "add", *arguments, stdin=stdin)
    assert line.startswith(f"sipush: {problem}")


def test_the_uri_of_a_user_is_taken_for_the_user(shell: Shell) -> None:
    assert shell.ok("user", "add", "sip:102@example.com", stdin="pw") == "102@example.com added.\n"
    assert shell.ok("user", "add", "müller+x;y", stdin="pw") == "müller+x;y@example.com added.\n"
    assert shell.ok("bindings", "sip:102@example.com").startswith("102@example.com:")


def test_an_emergency_number_is_no_user(shell: Shell) -> None:
    with (shell.folder / "sipush.toml").open("a") as file:
        file.write('[emergency]\nnumbers = ["112"]\nroute = ["sip:112@192.0.2.20"]\n')
    (line,) = shell.refused("user", "add", "112", stdin="pw")
    assert line == "sipush: 112 is an emergency number (allowed: another name)"


def test_a_password_that_is_no_text_is_told(shell: Shell) -> None:
    (shell.folder / "password").write_bytes(b"p\xfc\n")
    assert shell.refused("user", "add", "101", "--password-file", "password") == [
        "sipush: the password is not UTF-8"
    ]


def test_whoever_ends_the_prompt_for_the_password_adds_nobody(shell: Shell) -> None:
    done = shell.on_terminal("user", "add", "101", typed="\x04")
    assert done == "Password: sipush: no password was given\n"
    assert len(shell.ok("user", "list").splitlines()) == 1


def test_a_group_is_no_user(shell: Shell) -> None:
    with (shell.folder / "sipush.toml").open("a") as file:
        file.write('[groups."600@example.com"]\nmembers = ["100@example.com"]\n')
    (line,) = shell.refused("user", "add", "600", stdin="pw")
    assert line.startswith("sipush: 600@example.com is a group of the configuration file")


def test_a_user_of_a_registrar_elsewhere_is_added_there(shell: Shell) -> None:
    with (shell.folder / "sipush.toml").open("a") as file:
        file.write('[domains."example.org"]\nregistrar = "sip:pbx.example.org"\n')
    (line,) = shell.refused("user", "add", "101@example.org", stdin="pw")
    assert line == (
        "sipush: 101@example.org is a user of the registrar sip:pbx.example.org: add it there"
    )


def test_users_are_imported_by_password_or_by_hash(shell: Shell) -> None:
    lines = f'101@example.com,"a,b"\n\n102@example.org,{HA1},\n103,,{HA1 * 2}\n'
    (shell.folder / "users.csv").write_text(lines)
    assert shell.ok("user", "import", "users.csv") == "3 users imported.\n"
    assert shell.ok("user", "list").splitlines()[1:] == [
        "101@example.com  MD5+SHA-256  hold  [store]",
        "102@example.org  MD5  hold  [store]",
        "103@example.com  SHA-256  hold  [store]",
    ]


def test_an_import_with_a_fault_names_every_line_and_imports_nobody(shell: Shell) -> None:
    (shell.folder / "users.csv").write_text("101,pw\n102\n103@x,pw\n100,pw\n104,ab,cd\n")
    assert shell.refused("user", "import", "users.csv") == [
        "sipush: users.csv line 2: must be aor,password or aor,ha1_md5,ha1_sha256",
        "sipush: users.csv line 3: 103@x is no address-of-record of ours "
        "(allowed: user@example.com or example.org)",
        "sipush: users.csv line 4: 100@example.com is a user of the configuration file: "
        "change it there",
        "sipush: users.csv line 5: ha1_md5: cannot be used (allowed: 32 hex digits); "
        "ha1_sha256: cannot be used (allowed: 64 hex digits)",
    ]
    assert "101" not in shell.ok("user", "list")


def test_a_file_as_excel_writes_it_is_imported_without_its_head(shell: Shell) -> None:
    for head in ("aor,password", "AOR, Password", "user,password", "\naor,password"):
        text = f"\ufeff{head}\r\n101,pw\r\n"
        (shell.folder / "users.csv").write_bytes(text.encode())
        assert shell.ok("user", "import", "users.csv") == "1 users imported.\n"
    (shell.folder / "users.csv").write_text(f"aor,ha1_md5,ha1_sha256\n101,{HA1},\n")
    shell.ok("user", "import", "users.csv")
    assert shell.ok("user", "list").splitlines()[1:] == ["101@example.com  MD5  hold  [store]"]


class SlowDisk(ChangedStore):
    """Stores nobody before ``users`` of them wait for it."""

    def __init__(self, users: int) -> None:
        super().__init__()
        self._all_wait = asyncio.Barrier(users)

    async def put_subscriber(self, subscriber: Subscriber) -> None:
        await self._all_wait.wait()
        await self.unchanged.put_subscriber(subscriber)


async def test_users_who_are_imported_do_not_wait_for_the_disk_one_by_one(shell: Shell) -> None:
    (shell.folder / "users.csv").write_text("101,pw\n102,pw\n103,pw\n")
    options = Namespace(file=shell.folder / "users.csv")
    store: Any = SlowDisk(users=3)
    async with asyncio.timeout(5):
        await import_users(options, load(shell.folder / "sipush.toml"))(store)
    stored = {each.aor async for each in store.subscribers()}
    assert stored == {f"{user}@example.com" for user in (101, 102, 103)}


def test_users_who_are_imported_again_keep_what_the_file_does_not_say(shell: Shell) -> None:
    shell.ok("user", "add", "101", "--no-hold", "--fallback", "sip:vm@h", stdin="old")
    (shell.folder / "users.csv").write_text(f"101,,{HA1 * 2}\n")
    shell.ok("user", "import", "users.csv")
    assert shell.ok("user", "list").splitlines()[1:] == [
        "101@example.com  SHA-256  no hold, then sip:vm@h  [store]"
    ]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"101,pw\n102,p\xfcw\n", "line 2: is not UTF-8"),
        (b'101,"pw\n102,pw\n', "line 2: unexpected end of data: is a quote not closed?"),
        (b"101,pw\n102,a\n101@example.com,b\n", "line 3: 101@example.com stands in line 1 already"),
        (b"sip:101@example.com,a\n101,b\n", "line 2: 101@example.com stands in line 1 already"),
        (b"1 0 1,pw\n", "line 1: 1 0 1 cannot stand in a SIP URI (allowed: such as 101)"),
        (b"aor,ha1_md5\n101,pw\n", "line 1: must be aor,password or aor,ha1_md5,ha1_sha256"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_say_what_it_means_is_refused(
    shell: Shell, data: bytes, problem: str
) -> None:
    (shell.folder / "users.csv").write_bytes(data)
    assert shell.refused("user", "import", "users.csv") == [f"sipush: users.csv {problem}"]
    assert len(shell.ok("user", "list").splitlines()) == 1


def test_a_store_that_lives_in_the_server_is_out_of_reach(shell: Shell) -> None:
    (shell.folder / "sipush.toml").write_text('store.type = "memory"')
    assert shell.refused("bindings") == [
        "sipush: store.type is memory: it lives inside the server, out of reach"
    ]


def test_a_store_that_cannot_be_opened_is_one_line(shell: Shell) -> None:
    (shell.folder / "sipush.toml").write_text('store.sqlite.path = "sipush.toml"')
    (line,) = shell.refused("bindings")
    assert line.startswith("sipush: ")


def registration(aor: str, device: str, token: str, expires: float) -> Registration:
    now = time.time()
    contact = "sip:101@192.0.2.7:5062;pn-prid=" + token
    binding = Binding(
        aor, device, contact, contact, now + expires, "call", 1, "udp/192.0.2.1:5060/192.0.2.7:5062"
    )
    record = PushRecord(
        aor,
        device,
        Platform.APNS,
        "com.example.phone",
        call_token=token,
        updated_epoch=now,
        expires_epoch=now + 86400,
    )
    return Registration(aor, "call", 1, now, 10, bind=(binding,), push=(record,))


async def test_bindings_tell_who_is_awake_and_who_is_asleep_without_their_tokens(
    shell: Shell,
) -> None:
    store = make_store(load(shell.folder / "sipush.toml").store)
    await store.open()
    await store.bind(registration("101@example.com", "instance:<urn:uuid:1>", "tokenA", 600))
    sleeper = registration("102@example.com", "token:tokenB", "tokenB", -1)
    sleeper.push = tuple(replace(record, allow_call=False) for record in sleeper.push)
    await store.bind(sleeper)
    await store.close()

    out = shell.ok("bindings")
    assert "token" + "A" not in out
    assert "tokenB" not in out
    awake, asleep = out.split("102@example.com\n")
    assert awake.startswith(
        "101@example.com\n  awake   sip:101@192.0.2.7:5062;pn-prid=[redacted]\n"
    )
    assert "udp/192.0.2.1:5060/192.0.2.7:5062" in awake
    assert "push: apns, com.example.phone, call token " in awake
    in_log = [
        fingerprint(full_device("101@example.com", "instance:<urn:uuid:1>")),
        fingerprint(full_device("102@example.com", "token:tokenB")),
    ]
    assert f"s left, device {in_log[0]}, <urn:uuid:1>\n" in awake
    assert asleep.startswith(f"  asleep  device {in_log[1]}, token {fingerprint('tokenB')}, ")
    assert asleep.endswith(", not for calls\n")
    assert shell.ok("bindings", "102") == "102@example.com\n" + asleep
    shell.ok("user", "add", "103", stdin="pw")
    for user in ("103", "100"):  # of the store, of the configuration
        assert shell.ok("bindings", user) == f"{user}@example.com: nothing registered\n"
    assert shell.refused("bindings", "104") == ["sipush: 104@example.com: there is no such user"]


async def test_what_cannot_be_read_is_named_beside_all_that_can(shell: Shell) -> None:
    store = make_store(load(shell.folder / "sipush.toml").store)
    await store.open()
    for user in ("101", "102", "103"):
        await store.bind(registration(f"{user}@example.com", "token:tokenB", "tokenB", 600))
        await store.put_subscriber(Subscriber(f"{user}@example.com", HA1))
    await store.close()
    with closing(sqlite3.connect(shell.folder / "sipush.db")) as file:
        file.execute("UPDATE devices SET cseq = 'what?' WHERE aor = '102@example.com'")
        file.execute("UPDATE subscribers SET hold_seconds = 'long' WHERE aor = '101@example.com'")
        file.commit()
    done = shell.run("bindings", "--config", "sipush.toml")
    assert (done.returncode, re.findall("^1.*", done.stdout, re.MULTILINE)) == (
        1,
        ["101@example.com", "103@example.com"],
    )
    start = "sipush: a row of 102@example.com that cannot be read (token "
    assert done.stderr.startswith(start)
    assert "tokenB" not in done.stderr
    done = shell.run("user", "list", "--config", "sipush.toml")
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        f"{user}@example.com" for user in ("100", "102", "103")
    ]
    assert done.stderr == (
        "sipush: user 101@example.com cannot be read: hold_seconds is no number\n"
    )
    assert shell.ok("user", "add", "101", stdin="pw") == "101@example.com replaced.\n"
    assert len(shell.ok("user", "list").splitlines()) == 4


async def test_what_a_phone_registered_does_not_steer_the_terminal(shell: Shell) -> None:
    store = make_store(load(shell.folder / "sipush.toml").store)
    await store.open()
    await store.bind(registration("101@example.com", "instance:<urn:\x1b[2J\udcff>", "t", 600))
    await store.close()
    assert "<urn:\\u001b[2J\\udcff>" in shell.ok("bindings")


async def test_bans_are_listed_and_lifted(shell: Shell) -> None:
    store = make_store(load(shell.folder / "sipush.toml").store)
    await store.open()
    await store.put_ban("192.0.2.7", time.time() + 600)
    await store.put_ban("2001:db8:0:7::/64", time.time() + 900)
    await store.put_ban("192.0.2.8", time.time() - 1)
    await store.close()
    first, second = shell.ok("bans", "list").splitlines()
    assert re.fullmatch(r"2001:db8:0:7::/64  banned for (8[89][0-9]|900) s more", first)
    assert re.fullmatch(r"192\.0\.2\.7  banned for (5[89][0-9]|600) s more", second)
    assert shell.refused("bans", "lift", "192.0.2.9") == ["sipush: 192.0.2.9 is not banned"]
    assert shell.refused("bans", "lift", "phone") == ["sipush: phone is no IP address"]
    assert "heard again" in shell.ok("bans", "lift", "2001:db8:0:7::/64")
    assert "heard again" in shell.ok("bans", "lift", "192.0.2.7")
    assert shell.ok("bans", "list") == ""
