"""Who gets in."""

from __future__ import annotations

from pathlib import Path

import pytest

from sipush.admin.access import Access
from sipush.config import AdminConfig
from sipush.errors import ConfigError

TOKEN = b"0123456789abcdef"


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost",
        "LOCALHOST:9061",
        "127.0.0.1:9061",
        "192.0.2.7",
        "[::1]:9061",
        "admin.example",
    ],
)
def test_a_host_that_leads_here_by_itself_or_was_named_is_known(host: str) -> None:
    assert Access(TOKEN, ["admin.example"]).knows_host(host)


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1.example.org", "a:b:c", "localhost:x"])
def test_any_other_host_is_not(host: str) -> None:
    assert not Access(TOKEN, ["admin.example"]).knows_host(host)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_the_token_opens_everything(scheme: str) -> None:
    access = Access(TOKEN)
    assert access.may_look(f"{scheme} {TOKEN.decode()}")
    assert access.may_act(f"{scheme} {TOKEN.decode()}")


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer 0123456789abcdeg",
        "Basic 0123456789abcdef",
        "Bearer \udcff",
        "Bearer é",
    ],
)
def test_nothing_else_does(authorization: str) -> None:
    access = Access(TOKEN)
    assert not access.may_look(authorization)
    assert not access.may_act(authorization)


def test_without_a_token_everybody_may_look_and_nobody_may_act() -> None:
    access = Access(None)
    assert access.may_look("")
    assert not access.may_act("")
    assert not access.may_act("Bearer ")
    assert not access.has_token


def test_the_token_is_the_first_line_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(TOKEN + b" \r\nsecond line\n")
    assert Access.of(AdminConfig(token_file=path)).may_act(f"Bearer {TOKEN.decode()}")


@pytest.mark.parametrize(
    "text", ["", "\n0123456789abcdef", "fifteen-letters", "sechzehn-Zeichen-ä"]
)
def test_a_token_that_is_too_short_or_cannot_be_sent_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Access.of(AdminConfig(token_file=path))
    needed = "the first line needs 16 ASCII characters"
    assert caught.value.problems == [f"admin.token_file: {path}: {needed}"]


def test_a_token_file_that_is_gone_is_told(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(TOKEN)
    config = AdminConfig(token_file=path)
    path.unlink()
    with pytest.raises(ConfigError, match=r"admin\.token_file: cannot read .*: No such file"):
        Access.of(config)
