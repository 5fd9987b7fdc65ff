"""What the documents say of the program, where a test can tell whether it is so."""

from __future__ import annotations

import ast
import re
import sqlite3
import tomllib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sipush.config import SqliteConfig, load
from sipush.errors import ConfigError
from sipush.location.sqlite import SqliteStore

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LOUD = {"warning", "warn", "error", "exception"}


def prose(page: Path) -> str:
    """Without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of the headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        file, _, anchor = link.partition("#")
        if not file.startswith("https:"):
            target = page.parent / file if file else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def snippets() -> Iterator[tuple[str, str]]:
    """Each block of TOML, and the page and line that it is from."""
    for page in PAGES:
        text = page.read_text()
        for block in re.finditer(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            yield block[1], f"{page.name}:{text.count(chr(10), 0, block.start()) + 1}"


def files(value: object) -> Iterator[str]:
    """What the file has to have beside it."""
    if isinstance(value, list):
        for each in value:
            yield from files(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            if isinstance(each, str) and re.search(r"_file$|^certificate$|^private_key$", key):
                yield each
            else:
                yield from files(each)


@pytest.mark.parametrize("text", [pytest.param(text, id=where) for text, where in snippets()])
def test_every_example_of_a_configuration_can_be_used(tmp_path: Path, text: str) -> None:
    text = text.replace('"/etc/sipush/', f'"{tmp_path}/')
    given = tomllib.loads(text)
    for file in files(given):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    needed = {"sip": 'sip.domains = ["example.com"]\n'}
    if "node" in given:
        needed["store"] = 'store.type = "redis"\n'
    missing = [line for section, line in needed.items() if section not in given]
    (tmp_path / "sipush.toml").write_text("".join(missing) + text)
    try:
        load(tmp_path / "sipush.toml")
    except ConfigError as error:
        (problem,) = error.problems
        # A part of what the page has shown before.
        assert "has no push service" in problem
        assert list(given) == ["apps"]


def loud_events() -> set[str]:
    """Everything that is logged as a warning or an error."""
    found = set()
    for file in (ROOT / "sipush").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                event = node.args[0] if node.args else None
                if node.func.attr in LOUD and isinstance(event, ast.Constant):
                    found.add(str(event.value))
    return found


def test_operators_are_told_of_every_line_of_the_log_that_wants_them() -> None:
    tables = (DOCS / "operations.md").read_text() + (DOCS / "messages.md").read_text()
    rows = re.findall(r"^\| (`[a-z_]+`[^|]*) \|", tables, re.MULTILINE)
    told = {event for row in rows for event in re.findall(r"`([a-z_]+)`", row)}
    assert loud_events() - told == set()


async def test_operators_are_told_of_every_table_of_the_store(tmp_path: Path) -> None:
    file = tmp_path / "sipush.db"
    store = SqliteStore(SqliteConfig(path=file))
    await store.open()
    await store.close()
    with closing(sqlite3.connect(file)) as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
        made = {name for (name,) in rows}
    told = re.findall(r"^\| `([a-z_]+)`", (DOCS / "storing.md").read_text(), re.MULTILINE)
    assert made
    assert made - set(told) == set()
