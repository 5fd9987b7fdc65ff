"""The import rules of docs/architecture.md."""

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sipush"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
}
IMPURE = {
    "asyncio",
    "logging",
    "os",
    "random",
    "secrets",
    "selectors",
    "socket",
    "ssl",
    "structlog",
    "threading",
    "time",
    "uuid",
}
MAY_IMPORT = {
    "sip": {"sip"},
    "core": {"sip", "core"},
    "transport": {"sip", "transport"},
    "location": {"sip", "core", "location"},
    "push": {"sip", "core", "push"},
    "server": {"sip", "core", "transport", "location", "push", "server"},
    "admin": {"sip", "core", "transport", "location", "push", "server", "admin"},
}
"The other packages that the modules of a package may import."
PORTS = {
    "sipush.transport.flow",
    "sipush.transport.address",
    "sipush.transport.resolver",
    "sipush.location.store",
    "sipush.push.provider",
    "sipush.push.dispatcher",
}
"What server and admin may know of transport, location and push: never one store or service."
EDGES = {"sipush.daemon", "sipush.cli", "sipush.cli_store"}
"May import what they like; nobody imports them but each other and the demo."
PURE = sorted(name for name in MODULES if name.startswith(("sipush.sip.", "sipush.core.")))
ROOMS = sorted(
    name for name in MODULES if name.split(".")[1:2] and name.split(".")[1] in MAY_IMPORT
)


def imports(name: str) -> Iterator[str]:
    """Every module that ``name`` imports while it runs, wherever in the file."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    for node in _running(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} line {node.lineno}: relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those of ``if TYPE_CHECKING`` blocks."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from _running(child)


def room(name: str) -> str:
    """``sip`` for ``sipush.sip.uri``, ``errors`` for ``sipush.errors``."""
    return f"{name}.".split(".")[1]


@pytest.mark.parametrize("name", PURE)
def test_the_core_knows_no_clock_socket_chance_or_log(name: str) -> None:
    assert {each.partition(".")[0] for each in imports(name)} & IMPURE == set()


@pytest.mark.parametrize("name", ROOMS)
def test_imports_run_one_way(name: str) -> None:
    allowed = MAY_IMPORT[room(name)] | {"errors"}
    if room(name) not in ("sip", "core"):
        allowed |= {"config", "log_lines", "logs", "metrics", "turns"}
    ours = {each for each in imports(name) if each.startswith("sipush.")}
    assert {each for each in ours if room(each) not in allowed} == set()


@pytest.mark.parametrize("name", [name for name in ROOMS if room(name) in ("server", "admin")])
def test_the_server_knows_no_adapter(name: str) -> None:
    outside = {each for each in imports(name) if room(each) in ("transport", "location", "push")}
    assert outside - PORTS == set()


@pytest.mark.parametrize("name", sorted(set(MODULES) - EDGES))
def test_nobody_imports_the_edges(name: str) -> None:
    allowed = EDGES if room(name) == "demo" else set()
    assert set(imports(name)) & EDGES <= allowed


def test_every_room_is_looked_at() -> None:
    assert {room(name) for name in ROOMS} == set(MAY_IMPORT)
    assert "sipush.sip.message" in PURE


def test_the_page_names_every_module_of_every_room() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = page.partition("## Rooms")[2].partition("## ")[0]
    for each in MAY_IMPORT:
        (told,) = re.findall(rf"^  {each}/(.*?)(?=^  \w|^\w)", rooms, re.DOTALL | re.MULTILINE)
        named = re.findall(r"[\w*]+", told)
        modules = [name.rpartition(".")[2] for name in ROOMS if room(name) == each]
        missing = [m for m in modules if not any(fnmatch(m, name) for name in named)]
        assert missing == ["__init__"], each
