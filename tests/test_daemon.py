"""What the daemon tells at its start."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from structlog.testing import capture_logs

from sipush.config import EmergencyConfig, NodeConfig, load
from sipush.core.bindings import Subscriber
from sipush.daemon import Daemon
from sipush.errors import LocationError, UnreadableError
from sipush.location.memory import MemoryStore
from tests.bench.in_process import configuration
from tests.server.stores import ChangedStore


class EndlessStore(ChangedStore):
    """One user, found at once, among more keys than anybody can look at."""

    async def subscribers(self) -> AsyncIterator[Subscriber]:
        yield Subscriber("bob@example.com", "0" * 32)
        await asyncio.Event().wait()


class SpoiltStore(ChangedStore):
    """A user, and one who cannot be read."""

    async def subscribers(self) -> AsyncIterator[Subscriber]:
        yield Subscriber("bob@example.com", "0" * 32)
        raise LocationError("spoilt")


def daemon(directory: Path, store: MemoryStore | ChangedStore) -> Daemon:
    daemon = Daemon(Path(), configuration(directory))
    daemon._store = store
    return daemon


async def test_a_user_who_cannot_be_read_keeps_no_server_from_starting(tmp_path: Path) -> None:
    users = await daemon(tmp_path, SpoiltStore())._some_users()
    assert users[-2:] == ["bob@example.com", "…"]


class PartlySpoiltStore(ChangedStore):
    """A user who cannot be read, and one who can."""

    async def subscribers(self) -> AsyncIterator[Subscriber | UnreadableError]:
        yield UnreadableError("user carol@example.com cannot be read")
        yield Subscriber("bob@example.com", "0" * 32)


async def test_a_user_who_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    one = daemon(tmp_path, PartlySpoiltStore())
    assert "bob@example.com" in await one._some_users()
    route = EmergencyConfig(numbers=["112"], route=["sip:112@192.0.2.1"])
    one._config = one._config.model_copy(update={"emergency": route, "users": {}})
    with capture_logs() as logs:
        await one._tell_who_has_no_address()
    assert [each["event"] for each in logs] == ["store_unavailable", "emergency_address_missing"]
    assert logs[1]["users"] == ["bob@example.com"]


async def test_a_start_does_not_wait_for_users_that_are_hard_to_find(tmp_path: Path) -> None:
    async with asyncio.timeout(10):
        users = await daemon(tmp_path, EndlessStore())._some_users()
    assert users[-2:] == ["bob@example.com", "…"]


async def test_a_start_names_few_users_all_and_many_users_in_part(tmp_path: Path) -> None:
    store = MemoryStore()
    one = daemon(tmp_path, store)
    await store.put_subscriber(Subscriber("bob@example.com", "0" * 32))
    configured = [*one._config.users]
    assert await one._some_users() == [*configured, "bob@example.com"]
    for number in range(20):
        await store.put_subscriber(Subscriber(f"{number}@example.com", "0" * 32))
    users = await one._some_users()
    assert (len(users), users[-1]) == (11, "…")


def node(directory: Path, uri: str) -> Daemon:
    config = configuration(directory).model_copy(update={"node": NodeConfig(uri=uri)})
    return Daemon(Path(), config)


def test_nodes_of_one_host_name_keep_their_held_calls_and_nonces_to_themselves(
    tmp_path: Path,
) -> None:
    doors, key = ["udp/0.0.0.0:5060"], bytes(32)
    one, other, again = (node(tmp_path, f"sip:10.0.0.{n}") for n in (1, 2, 1))
    assert one._name(doors) == again._name(doors) != other._name(doors)
    assert one._nonce_key(key) == again._nonce_key(key) != other._nonce_key(key)


async def test_what_began_with_an_empty_file_may_be_reloaded_with_it_time_and_again(
    tmp_path: Path,
) -> None:
    file = tmp_path / "sipush.toml"
    file.write_text("# nothing yet\n")
    one = Daemon(file, load(file))
    one._build(bytes(32))
    for _ in range(3):
        before = one._config
        one._reload()
        assert one._config is not before  # a reload that fails keeps it
    await one._tasks.close()
