"""What is special about the SQLite file."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
import os
import re
import resource
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Queue

import pytest
from structlog.testing import capture_logs

from sipush.config import SqliteConfig
from sipush.core.bindings import Location, Subscriber
from sipush.errors import LocationError
from sipush.location import sqlite, sqlite_file, sqlite_rows, sqlite_worker
from sipush.location.sqlite import SqliteStore
from sipush.location.sqlite_worker import CHECKPOINT_EVERY
from tests.location.rows import AOR, NOW, PHONE, TABLET, binding, message, record, registration

Write = Callable[[SqliteStore], Awaitable[object]]

MARKS = ", ".join("?" * 12)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "var" / "lib" / "sipush.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(SqliteConfig(path=path))
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def full_store(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(SqliteConfig(path=path, synchronous="full"))
    await store.open()
    yield store
    await store.close()


async def test_changes_are_those_of_others_and_no_checkpoints(
    store: SqliteStore, path: Path
) -> None:
    told: list[str | None] = []
    store.listen_to_subscribers(told.append)
    for number in range(2 * CHECKPOINT_EVERY):
        await store.bind(registration(binding(f"1{number}")))
        store.notice_changes()
    assert told == []
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("DELETE FROM subscribers")
        await _look(store)
        assert told == []
        other.execute("INSERT INTO subscribers VALUES (?, ?, '', 1, NULL, '')", (AOR, "a" * 32))
        other.commit()
    await _look(store)
    await _look(store)
    assert told == [None]


async def _look(store: SqliteStore) -> None:
    """In a turn of the loop of its own: in each the file is asked once."""
    await asyncio.sleep(0)
    store.notice_changes()


@dataclass
class Disk:
    """Syncs as often as it may, and tells when it has."""

    may_sync: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    synced: Queue[int] = field(default_factory=Queue)

    def sync(self, file: int) -> None:
        assert self.may_sync.acquire(timeout=10)
        os.fsync(file)
        self.synced.put(file)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """Takes the place of the disk once the test has begun, and works again at its end."""
    disk = Disk()
    monkeypatch.setattr(os, "fdatasync", disk.sync)
    yield disk
    disk.may_sync.release(1000)


async def reopened(path: Path) -> SqliteStore:
    store = SqliteStore(SqliteConfig(path=path))
    await store.open()
    return store


async def test_a_restart_finds_everything_again(store: SqliteStore, path: Path):
    bound = await store.bind(registration(binding(), push=(record(),)))
    await store.put_subscriber(Subscriber(AOR, "a" * 32))
    secret = await store.secret()
    await store.close()
    again = await reopened(path)
    assert await again.lookup(AOR, NOW) == bound
    assert await again.subscriber(AOR) == Subscriber(AOR, "a" * 32)
    assert await again.secret() == secret
    await again.close()


async def test_what_was_acknowledged_survives_kill_9(path: Path):
    command = [sys.executable, "-m", "tests.location.sqlite_writer", str(path)]
    writer = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    acknowledged = [await writer.stdout.readline() for _ in range(50)]
    writer.kill()
    acknowledged += (await writer.stdout.read()).splitlines()
    await writer.wait()
    store = await reopened(path)
    found = await store.lookup(AOR, NOW)
    assert found.bindings[0].cseq >= int(acknowledged[-1])
    assert [r.call_token for r in found.push_records] == [f"token-{found.bindings[0].cseq}"]
    await store.close()


@pytest.mark.parametrize(
    "spoilt",
    [
        "path = '[what?'",
        "platform = 'what?'",
        "expires_epoch = 'what?'",
        "cseq = 'what?'",
        "registered_epoch = 'what?'",
        "registered_epoch = NULL",
        "push_updated_epoch = 'what?'",
        "push_expires_epoch = 'what?'",
    ],
)
async def test_a_row_that_cannot_be_read_fails_alone_those_who_read_it(
    store: SqliteStore, path: Path, spoilt: str
):
    await store.bind(registration(binding(), push=(record(),)))
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute(f"UPDATE devices SET {spoilt}")
        other.commit()
    with pytest.raises(LocationError, match=f"a row of {AOR} that cannot be read"):
        await store.lookup(AOR, NOW)
    spared = binding(aor="102@example.com")
    failed, stored = await asyncio.gather(
        store.bind(registration(binding())),
        store.bind(registration(spared)),
        return_exceptions=True,
    )
    assert isinstance(failed, LocationError)
    assert stored == Location((spared,))


async def test_a_user_who_cannot_be_read_is_named(store: SqliteStore, path: Path):
    await store.put_subscriber(Subscriber(AOR, "a" * 32))
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("UPDATE subscribers SET hold_seconds = 'long'")
        other.commit()
    with pytest.raises(LocationError, match=f"user {AOR} cannot be read"):
        await store.subscriber(AOR)


@pytest.mark.parametrize("spoilt", ["what?", "", "00" * 31, b"\xff"])
async def test_a_secret_that_is_none_is_told(store: SqliteStore, path: Path, spoilt: str | bytes):
    await store.secret()
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("UPDATE meta SET value = ? WHERE key = 'secret'", (spoilt,))
        other.commit()
    with pytest.raises(LocationError, match="secret in the store cannot be read"):
        await store.secret()


async def test_bans_and_messages_that_cannot_be_read_cost_no_others(store: SqliteStore, path: Path):
    await store.put_ban("192.0.2.1", NOW + 60)
    for key in ("k1", "k2", "k3", "gone", "also gone"):
        await store.put_message(message(key), 10)
    for gone in [each for each in await store.messages(AOR, NOW) if "gone" in each.key]:
        await store.remove_message(gone, NOW)
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("INSERT INTO bans VALUES ('192.0.2.2', 'long')")
        other.execute("UPDATE messages SET stored_epoch = 'long ago' WHERE key = 'k2'")
        other.execute("UPDATE messages SET content = 'text' WHERE key = 'k3'")
        other.execute("UPDATE gone_messages SET until_epoch = 'long' WHERE key = 'gone'")
        other.commit()
    assert await store.bans(NOW) == {"192.0.2.1": NOW + 60}
    assert [found.key for found in await store.messages(AOR, NOW)] == ["k1"]
    assert [key for _, key, _ in await store.gone_messages(NOW)] == ["also gone"]


async def test_another_process_may_use_the_file_at_the_same_time(store: SqliteStore, path: Path):
    await store.bind(registration(binding()))
    command = [
        sys.executable,
        "-c",
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]);"
        "print(c.execute('SELECT contact FROM bindings').fetchone()[0]);"
        "c.execute(\"INSERT INTO subscribers VALUES ('200@example.com', '', 'x', 1, NULL, '')\");"
        "c.commit()",
        str(path),
    ]
    other = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    output, _ = await other.communicate()
    assert output.decode().strip() == binding().contact
    assert await store.subscriber("200@example.com") == Subscriber("200@example.com", "", "x")


async def test_two_stores_on_one_file_agree_on_the_secret(path: Path):
    first, second = await asyncio.gather(reopened(path), reopened(path))
    assert await first.secret() == await second.secret()
    await asyncio.gather(first.close(), second.close())


def test_a_new_file_may_be_opened_by_many_at_the_same_time(tmp_path: Path):
    together = threading.Barrier(2, timeout=10)

    def opened(path: Path) -> str:
        together.wait()
        with contextlib.closing(sqlite_file.connect(path)) as connection:
            return str(connection.execute("PRAGMA journal_mode").fetchone()[0])

    paths = [tmp_path / f"{number // 2}.db" for number in range(600)]
    with ThreadPoolExecutor(2) as threads:
        assert set(threads.map(opened, paths)) == {"wal"}


async def test_only_the_owner_may_read_the_files(store: SqliteStore, path: Path):
    await store.put_subscriber(Subscriber(AOR))
    files = list(path.parent.iterdir())
    assert path in files
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


async def test_the_tables_can_be_read_by_a_person(store: SqliteStore, path: Path):
    await store.bind(registration(binding(user_agent="Phone 1.0"), push=(record(),)))
    with sqlite3.connect(path) as reader:
        row = reader.execute("SELECT aor, contact, user_agent, cseq FROM bindings").fetchone()
        push = reader.execute("SELECT aor, platform, app_id FROM push_records").fetchone()
    assert row == (AOR, "sip:101@192.0.2.1:5060", "Phone 1.0", 1)
    assert push == (AOR, "apns", "com.example.phone")


async def test_expired_rows_of_users_who_never_come_back_are_removed(
    store: SqliteStore, path: Path
):
    await store.bind(registration(binding(aor="gone@example.com")))
    await store.bind(registration(binding(expires_epoch=NOW + 9999), now_epoch=NOW + 700))
    with sqlite3.connect(path) as reader:
        assert reader.execute("SELECT aor FROM bindings").fetchall() == [(AOR,)]


@pytest.mark.parametrize("is_over", [False, True])
async def test_what_a_clock_that_is_ahead_for_a_moment_calls_expired_is_not_removed(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch, is_over: bool
):
    sleeper, days = "sleeper@example.com", 8 * 86400
    await store.bind(registration(binding(aor=sleeper), push=(record(aor=sleeper),)))
    waiting = message(aor=sleeper, expires_epoch=NOW + days - 10)
    await store.put_message(waiting, 10)
    if is_over:
        monkeypatch.setattr(sqlite, "_DOUBTED_FOR", 0.0)
    monkeypatch.setattr(sqlite, "_PURGE_EVERY", 1)
    for n in range(3):
        late = NOW + days + n
        await store.bind(registration(binding(cseq=n, expires_epoch=late + 60), now_epoch=late))
        await store.put_message(
            message(f"k{n + 2}", stored_epoch=late, expires_epoch=late + 60), 10
        )
    with contextlib.closing(sqlite3.connect(path)) as reader:
        kept = reader.execute("SELECT aor FROM push_records").fetchall()
        kept += reader.execute("SELECT aor FROM messages WHERE aor = ?", (sleeper,)).fetchall()
    assert kept == ([] if is_over else [(sleeper,), (sleeper,)])
    assert bool((await store.lookup(sleeper, NOW + 1)).push_records) is not is_over


async def test_expired_rows_among_many_are_removed_by_the_registers_that_follow(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
):
    many = [f"{number}@example.com" for number in range(3 * sqlite._LOOKED_AT_AT_ONCE)]
    await asyncio.gather(*(store.bind(registration(binding(aor=aor))) for aor in many))
    monkeypatch.setattr(sqlite, "_PURGE_EVERY", 1)
    for cseq in range(4):
        await store.bind(
            registration(binding(cseq=cseq, expires_epoch=NOW + 9999), now_epoch=NOW + 700)
        )
    with sqlite3.connect(path) as reader:
        assert reader.execute("SELECT aor FROM bindings").fetchall() == [(AOR,)]


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    path = tmp_path / "diary"
    path.write_text("dear diary, " * 1000)
    return path


async def test_a_file_that_is_something_else_is_left_alone(diary: Path):
    with pytest.raises(LocationError, match="not an SQLite database"):
        await reopened(diary)
    with diary.open() as file:
        assert file.read() == "dear diary, " * 1000


async def test_a_file_of_a_newer_version_is_left_alone(store: SqliteStore, path: Path):
    await store.close()
    with sqlite3.connect(path) as writer:
        writer.execute("PRAGMA user_version = 99")
    with pytest.raises(LocationError, match="newer sipush"):
        await reopened(path)


async def test_an_old_file_is_migrated(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
):
    bound = await store.bind(registration(binding()))
    await store.close()
    more = (*sqlite_file.MIGRATIONS, ("ALTER TABLE devices ADD COLUMN note TEXT DEFAULT ''",))
    monkeypatch.setattr(sqlite_file, "MIGRATIONS", more)
    again = await reopened(path)
    assert await again.lookup(AOR, NOW) == bound
    await again.close()


async def test_bindings_and_push_records_move_into_one_table(path: Path):
    both, gone = binding(cseq=7, path=("<sip:edge;lr>",)), record(TABLET, extra={"bundle": "x"})
    alone, sleeping = binding(aor="alone@example.com"), record(aor="asleep@example.com")
    path.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as old:
        for statement in itertools.chain.from_iterable(sqlite_file.MIGRATIONS[:7]):
            old.execute(statement)
        old.execute("PRAGMA user_version = 7")
        for row in (both, alone):
            values = asdict(row) | {"path": json.dumps(row.path)}
            del values["known"]
            insert = f"INSERT INTO bindings ({', '.join(values)}) VALUES ({MARKS})"
            old.execute(insert, tuple(values.values()))
        for kept in (record(), gone, sleeping):
            values = asdict(kept) | {"platform": "apns", "extra": json.dumps(kept.extra)}
            insert = f"INSERT INTO push_records ({', '.join(values)}) VALUES ({MARKS})"
            old.execute(insert, tuple(values.values()))
    store = await reopened(path)
    assert await store.lookup(AOR, NOW) == Location((both,), (record(), gone))
    assert await store.lookup(alone.aor, NOW) == Location((alone,))
    assert await store.lookup(sleeping.aor, NOW) == Location((), (sleeping,))
    await store.close()


async def test_numbers_of_messages_rise_across_a_restart(store: SqliteStore, path: Path):
    first = await store.put_message(message("k1"), 10)
    (stored,) = await store.messages(AOR, NOW)
    await store.remove_message(stored, NOW)
    await store.close()
    again = await reopened(path)
    second = await again.put_message(message("k2", stored_epoch=NOW - 1000), 10)
    await again.close()
    assert first is not None
    assert second is not None
    assert second.id == first.id + 1


async def test_a_directory_that_cannot_be_made_is_explained(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(LocationError, match=r"file.*Not a directory|file.*exists"):
        await reopened(tmp_path / "file" / "sipush.db")


async def test_a_lock_held_by_another_process_is_an_error_that_passes(
    store: SqliteStore, path: Path
):
    known = await store.bind(registration(binding()))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LocationError, match="locked"):
        await store.bind(registration(binding(cseq=2)))
    assert await store.lookup(AOR, NOW) == known
    other.execute("ROLLBACK")
    other.close()
    assert await store.bind(registration(binding(cseq=2))) == Location((binding(cseq=2),))


async def test_a_disk_that_takes_nothing_is_an_error_that_passes(store: SqliteStore):
    known = await store.bind(registration(binding()))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(LocationError, match="disk"):
            await store.bind(registration(binding(cseq=2)))
        assert await store.lookup(AOR, NOW) == known
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert await store.bind(registration(binding(cseq=2))) == Location((binding(cseq=2),))


async def test_a_lookup_after_a_bind_reads_nothing_from_the_file(store: SqliteStore):
    await store.bind(registration(binding()))
    await store.lookup(AOR, NOW)
    await store.bind(registration(binding(cseq=2)))
    counts = [_reads()]
    for _ in range(2):
        await store.lookup(AOR, NOW)
        counts.append(_reads())
    assert counts[1] - counts[0] == counts[2] - counts[1]


def _reads() -> int:
    """System calls of this process that have read anything."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("syscr"))


def test_a_full_disk_is_named():
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (x)")
    connection.execute("PRAGMA max_page_count = 2")
    with pytest.raises(sqlite3.OperationalError) as caught:
        connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
    connection.close()
    text = sqlite_file.explain(Path("/x.db"), caught.value)
    assert text.startswith("/x.db: the disk is full; free some space")


async def test_one_bad_request_does_not_spoil_the_others(store: SqliteStore):
    huge = store.bind(registration(binding(cseq=2**70)))
    good = store.bind(registration(binding(aor="102@example.com")))
    outcomes = await asyncio.gather(huge, good, return_exceptions=True)
    assert isinstance(outcomes[0], OverflowError)
    assert isinstance(outcomes[1], Location)


async def test_a_closed_store_says_so(store: SqliteStore):
    await store.close()
    with pytest.raises(LocationError, match="closed"):
        await store.lookup(AOR, NOW)


@pytest.mark.parametrize(
    "statement",
    [
        sqlite_rows._SELECT_LOCATION,
        sqlite._SELECT_SUBSCRIBER,
        sqlite_rows._DELETE_DEVICE,
        sqlite._PURGE,
        sqlite._STRETCH_END,
        sqlite._SELECT_MESSAGES,
        sqlite._PURGE_MESSAGES,
        sqlite._AORS_AFTER,
        sqlite._SUBSCRIBERS_AFTER,
    ],
)
async def test_no_statement_reads_a_whole_table(store: SqliteStore, path: Path, statement: str):
    arguments = ("x",) * (len(set(re.findall(r"\?\d", statement))) or statement.count("?"))
    with sqlite3.connect(path) as reader:
        plan = reader.execute(f"EXPLAIN QUERY PLAN {statement}", arguments).fetchall()
    assert not [step for *_, step in plan if step.startswith("SCAN") and "LIST" not in step]


async def test_a_result_waits_for_the_sync_and_what_is_stored_meanwhile_shares_the_next(
    full_store: SqliteStore, disk: Disk
):
    store = full_store
    first = asyncio.ensure_future(store.bind(registration(binding())))
    while not (await store.lookup(AOR, NOW)).bindings:  # noqa: ASYNC110 - a reader sees it
        await asyncio.sleep(0)
    aors = [f"{number}@example.com" for number in range(100)]
    others = [asyncio.ensure_future(store.bind(registration(binding(aor=a)))) for a in aors]
    while not (await store.lookup(aors[-1], NOW)).bindings:  # noqa: ASYNC110 - the same
        await asyncio.sleep(0)
    assert not first.done()
    disk.may_sync.release()
    assert isinstance(await first, Location)
    assert not any(other.done() for other in others)
    disk.may_sync.release()
    assert all(isinstance(outcome, Location) for outcome in await asyncio.gather(*others))
    assert disk.synced.qsize() == 2


WAITS_FOR_NO_SYNC = {
    "binding": lambda store: store.bind(registration(binding(), push=(record(),))),
    "push record": lambda store: store.remove_push_record(record()),
    "due refresh": lambda store: store.take_refreshes(NOW),
    "ban": lambda store: store.put_ban("192.0.2.1", NOW),
    "held call": lambda store: store.put_held_call("node", "1", b"{}"),
    "held call's end": lambda store: store.remove_held_call("node", "1"),
}
WAITS_FOR_THE_SYNC = {
    "message": lambda store: store.put_message(message(), 10),
    "message's end": lambda store: store.remove_message(message(id=1), NOW),
    "subscriber": lambda store: store.put_subscriber(Subscriber(AOR, "a" * 32)),
    "subscriber's end": lambda store: store.remove_subscriber(AOR),
    "secret": lambda store: store.secret(),
}


@pytest.mark.parametrize("write", WAITS_FOR_NO_SYNC.values(), ids=WAITS_FOR_NO_SYNC)
async def test_written_at_once_and_on_the_disk_within_a_second(
    store: SqliteStore, disk: Disk, monkeypatch: pytest.MonkeyPatch, write: Write
):
    monkeypatch.setattr(sqlite_worker, "SYNC_WITHIN", 0.05)
    await write(store)
    await write(store)
    assert disk.synced.empty()
    disk.may_sync.release(2)
    await asyncio.to_thread(disk.synced.get, timeout=10)
    assert disk.synced.empty()
    await write(store)
    await asyncio.to_thread(disk.synced.get, timeout=10)


@pytest.mark.parametrize("write", WAITS_FOR_THE_SYNC.values(), ids=WAITS_FOR_THE_SYNC)
async def test_written_when_it_is_on_the_disk(store: SqliteStore, disk: Disk, write: Write):
    written = asyncio.ensure_future(write(store))
    await store.put_held_call("node", "1", b"{}")  # the next transaction has been, too
    assert not written.done()
    disk.may_sync.release()
    await written
    assert disk.synced.qsize() == 1


@pytest.mark.parametrize("synchronous", ["normal", "full"])
async def test_closing_leaves_all_on_the_disk(path: Path, disk: Disk, synchronous: str):
    disk.may_sync.release(1)  # the one of its opening
    store = SqliteStore(SqliteConfig(path=path, synchronous=synchronous))
    await store.open()
    disk.synced.get(timeout=10)
    await store.put_held_call("node", "1", b"{}")
    closing = asyncio.ensure_future(store.close())
    disk.may_sync.release(1)
    await closing
    assert disk.synced.qsize() == 1


async def test_a_held_call_waits_for_no_sync_even_if_registers_do(
    full_store: SqliteStore, disk: Disk, path: Path
):
    await full_store.put_held_call("node", "1", b"{}")
    with sqlite3.connect(path) as reader:
        assert reader.execute("SELECT id, held FROM held_calls").fetchall() == [("1", "{}")]
    await full_store.remove_held_call("node", "1")
    with sqlite3.connect(path) as reader:
        assert reader.execute("SELECT count(*) FROM held_calls").fetchall() == [(0,)]
    assert disk.synced.empty()


async def test_a_late_sync_that_fails_is_told_to_the_operator(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
):
    failed = asyncio.Event()
    loop = asyncio.get_running_loop()

    def broken(file: int) -> None:
        loop.call_soon_threadsafe(failed.set)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(sqlite_worker, "SYNC_WITHIN", 0.01)
    with capture_logs() as lines, monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        await store.bind(registration(binding()))
        await failed.wait()
        while not lines:  # noqa: ASYNC110 - the thread's word is on its way
            await asyncio.sleep(0)
    (line,) = lines
    assert (line["event"], line["log_level"]) == ("store_not_synced", "error")
    assert "Input/output error" in line["reason"]
    assert await store.bind(registration(binding(cseq=2))) == Location((binding(cseq=2),))


async def test_a_sync_that_fails_is_an_error_that_passes(
    full_store: SqliteStore, monkeypatch: pytest.MonkeyPatch
):
    store = full_store

    def broken(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        with pytest.raises(LocationError, match="Input/output error"):
            await store.bind(registration(binding()))
    assert await store.bind(registration(binding(cseq=2))) == Location((binding(cseq=2),))


def move_all(path: Path) -> None:
    for name in ("", "-wal", "-shm"):
        file = path.with_name(f"{path.name}{name}")
        file.rename(file.with_name(f"old-{file.name}"))


def replace_by_another(path: Path) -> None:
    other = path.with_name("other.db")
    with contextlib.closing(sqlite_file.connect(other)) as connection:
        connection.execute("INSERT INTO meta VALUES ('is', 'other')")
    other.rename(path)


@pytest.mark.parametrize("touch", [move_all, Path.unlink, replace_by_another])
@pytest.mark.parametrize("synchronous", ["normal", "full"])
async def test_a_file_that_is_moved_under_the_server_is_told_and_the_new_one_is_used(
    path: Path, monkeypatch: pytest.MonkeyPatch, synchronous: str, touch: Callable[[Path], object]
):
    monkeypatch.setattr(sqlite_worker, "SYNC_WITHIN", 0.01)
    store = SqliteStore(SqliteConfig(path=path, synchronous=synchronous))
    await store.open()
    await store.bind(registration(binding()))
    old = path.with_name("kept.db")
    os.link(path, old)
    touch(path)
    with capture_logs() as lines:
        if synchronous == "full":
            with pytest.raises(LocationError, match="was moved, replaced or deleted"):
                await store.bind(registration(binding(cseq=2)))
        else:
            await store.bind(registration(binding(cseq=2)))
        while not lines:  # noqa: ASYNC110 - the thread's word is on its way
            await asyncio.sleep(0)
    assert [(line["event"], line["log_level"]) for line in lines] == [("store_file_moved", "error")]
    assert str(path) in lines[0]["reason"]
    assert await store.lookup(AOR, NOW) == Location()
    fresh = binding(TABLET, cseq=3)
    assert await store.bind(registration(fresh)) == Location((fresh,))
    assert await store.lookup(AOR, NOW) == Location((fresh,))
    await store.close()
    with contextlib.closing(sqlite3.connect(path)) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert reader.execute("SELECT device FROM bindings").fetchall() == [(TABLET,)]
        kept = reader.execute("SELECT value FROM meta WHERE key = 'is'").fetchall()
        assert kept == ([("other",)] if touch is replace_by_another else [])
    with contextlib.closing(sqlite3.connect(old)) as reader:
        assert reader.execute("SELECT device, cseq FROM bindings").fetchall() == [(PHONE, 2)]


async def test_a_checkpoint_opens_no_other_file(path: Path):
    store = SqliteStore(SqliteConfig(path=path, synchronous="full"))
    await store.open()
    os.unlink(path)
    store._writer._checkpoint()
    with pytest.raises(LocationError, match="was moved, replaced or deleted"):
        await store.bind(registration(binding()))
    assert path.name not in os.listdir(path.parent)
    await store.close()


async def test_the_log_of_writes_does_not_grow_for_ever(path: Path):
    store = SqliteStore(SqliteConfig(path=path))
    await store.open()
    wal = path.with_name(f"{path.name}-wal")
    sizes = []
    for cseq in range(1, 4 * CHECKPOINT_EVERY):
        await store.bind(registration(binding(cseq=cseq), push=(record(token=f"{cseq}"),)))
        sizes.append(wal.stat().st_size)
    await store.close()
    assert sizes[-1] < 2 * sizes[CHECKPOINT_EVERY]
