"""The SQLite file: its tables, how it is opened, and what its errors mean to the operator."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path

from sipush.errors import LocationError

BUSY_TIMEOUT = 2.0
"Seconds to wait for another process that holds the write lock."
BUSY_PAUSE = 0.005
"Seconds between two tries."
_CACHE = 512
"""KiB of pages that each of two connections keeps. With four times as many neither a bind nor a
look-up is faster, and phones that do nothing fill them; the kernel keeps the pages too."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE bindings (
            aor TEXT NOT NULL,
            device TEXT NOT NULL,
            contact TEXT NOT NULL,
            contact_key TEXT NOT NULL,
            params TEXT NOT NULL,
            path TEXT NOT NULL,        -- JSON array, or empty
            flow TEXT NOT NULL,
            user_agent TEXT NOT NULL,
            call_id TEXT NOT NULL,
            cseq INTEGER NOT NULL,
            registered_epoch REAL NOT NULL,
            expires_epoch REAL NOT NULL,
            PRIMARY KEY (aor, device)
        ) WITHOUT ROWID""",
        "CREATE INDEX bindings_expires ON bindings (expires_epoch)",
        """CREATE TABLE push_records (
            aor TEXT NOT NULL,
            device TEXT NOT NULL,
            platform TEXT NOT NULL,    -- apns, fcm, webpush, webhook
            app_id TEXT NOT NULL,
            call_token TEXT NOT NULL,
            message_token TEXT NOT NULL,
            allow_call INTEGER NOT NULL,
            allow_message INTEGER NOT NULL,
            dialect TEXT NOT NULL,
            extra TEXT NOT NULL,       -- JSON object, or empty
            updated_epoch REAL NOT NULL,
            expires_epoch REAL NOT NULL,
            PRIMARY KEY (aor, device)
        ) WITHOUT ROWID""",
        "CREATE INDEX push_records_expires ON push_records (expires_epoch)",
        """CREATE TABLE subscribers (
            aor TEXT NOT NULL PRIMARY KEY,
            ha1_md5 TEXT NOT NULL,
            ha1_sha256 TEXT NOT NULL,
            hold INTEGER NOT NULL,
            hold_seconds REAL,         -- NULL: the app's, else the default
            fallback TEXT NOT NULL
        ) WITHOUT ROWID""",
        "CREATE TABLE meta (key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    ),
    (
        """CREATE TABLE held_calls (
            id TEXT NOT NULL PRIMARY KEY,
            owner TEXT NOT NULL,       -- the process that holds it
            held TEXT NOT NULL         -- JSON
        ) WITHOUT ROWID""",
    ),
    (
        """CREATE TABLE messages (
            id INTEGER NOT NULL PRIMARY KEY,
            aor TEXT NOT NULL,
            key TEXT NOT NULL,         -- digest of Call-ID, CSeq and From tag
            content BLOB NOT NULL,     -- the request as it came
            stored_epoch REAL NOT NULL,
            expires_epoch REAL NOT NULL
        )""",
        "CREATE UNIQUE INDEX messages_key ON messages (aor, key)",
        "CREATE INDEX messages_expires ON messages (expires_epoch)",
    ),
    (
        """CREATE TABLE refreshes (
            aor TEXT NOT NULL,
            device TEXT NOT NULL,
            due_epoch REAL NOT NULL,
            PRIMARY KEY (aor, device)
        ) WITHOUT ROWID""",
        "CREATE INDEX refreshes_due ON refreshes (due_epoch)",
    ),
    (
        """CREATE TABLE bans (
            source TEXT NOT NULL PRIMARY KEY,  -- an IPv4 address or an IPv6 /64
            until_epoch REAL NOT NULL
        ) WITHOUT ROWID""",
    ),
    (
        "DROP INDEX bindings_expires",
        "DROP INDEX push_records_expires",
    ),
    (
        """CREATE TABLE gone_messages (
            aor TEXT NOT NULL,
            key TEXT NOT NULL,
            until_epoch REAL NOT NULL,
            PRIMARY KEY (aor, key)
        ) WITHOUT ROWID""",
        "CREATE INDEX gone_messages_until ON gone_messages (until_epoch)",
    ),
    (
        """CREATE TABLE devices (         -- one row, as a REGISTER changes both halves of it
            aor TEXT NOT NULL,
            device TEXT NOT NULL,
            contact TEXT,              -- NULL, and so to registered_epoch: no binding
            contact_key TEXT,
            expires_epoch REAL,
            call_id TEXT,
            cseq INTEGER,
            flow TEXT,
            params TEXT,
            path TEXT,                 -- JSON array, or empty
            user_agent TEXT,
            registered_epoch REAL,
            platform TEXT,             -- as above; NULL, and so on: no push record
            app_id TEXT,
            call_token TEXT,
            message_token TEXT,
            allow_call INTEGER,
            allow_message INTEGER,
            dialect TEXT,
            extra TEXT,                -- JSON object, or empty
            push_updated_epoch REAL,
            push_expires_epoch REAL,
            PRIMARY KEY (aor, device)
        ) WITHOUT ROWID""",
        """INSERT INTO devices SELECT aor, device,
            contact, contact_key, bindings.expires_epoch, call_id, cseq, flow, params, path,
            user_agent, registered_epoch, platform, app_id, call_token, message_token, allow_call,
            allow_message, dialect, extra, updated_epoch, push_records.expires_epoch
            FROM bindings LEFT JOIN push_records USING (aor, device)""",
        """INSERT OR IGNORE INTO devices (aor, device, platform, app_id, call_token, message_token,
            allow_call, allow_message, dialect, extra, push_updated_epoch, push_expires_epoch)
            SELECT aor, device, platform, app_id, call_token, message_token, allow_call,
            allow_message, dialect, extra, updated_epoch, expires_epoch FROM push_records""",
        "DROP TABLE bindings",
        "DROP TABLE push_records",
        """CREATE VIEW bindings AS SELECT aor, device, contact, contact_key, params, path, flow,
            user_agent, call_id, cseq, registered_epoch, expires_epoch
            FROM devices WHERE contact IS NOT NULL""",
        """CREATE VIEW push_records AS SELECT aor, device, platform, app_id, call_token,
            message_token, allow_call, allow_message, dialect, extra,
            push_updated_epoch AS updated_epoch, push_expires_epoch AS expires_epoch
            FROM devices WHERE platform IS NOT NULL""",
    ),
)
"""Entry N holds the statements that lead from ``PRAGMA user_version`` N to N + 1. Released entries
are never edited."""

_ADVICE = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
    sqlite3.SQLITE_BUSY: f"another process has kept it locked for {BUSY_TIMEOUT:g} s",
    sqlite3.SQLITE_LOCKED: "another process has it locked",
    sqlite3.SQLITE_READONLY: "it is read-only; check its owner and the mount",
    sqlite3.SQLITE_PERM: "no permission; check the owner of the file and its directory",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check path, owner and free file descriptors",
    sqlite3.SQLITE_IOERR: "the disk failed or a limit was hit; see the kernel log and df",
    sqlite3.SQLITE_CORRUPT: "it is damaged; restore a backup, or move it away and start afresh",
    sqlite3.SQLITE_NOTADB: "it is not an SQLite database; move it away or set another path",
}


def explain(path: Path, error: sqlite3.Error | OSError) -> str:
    """What the operator can do about ``error``. Never holds a stored value."""
    if isinstance(error, OSError):
        return f"{path}: {error.strerror or error}"
    advice = _ADVICE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
    return f"{path}: {advice} ({error})" if advice else f"{path}: {error}"


class FileMovedError(LocationError):
    """The file that is open is not the one that has its name."""


Files = dict[Path, tuple[int, int]]
"Which file each was when it was opened: device and inode."


def which(file: Path | int) -> tuple[int, int]:
    """Which file that is, by its name or descriptor. Raises OSError."""
    status = os.stat(file)
    return status.st_dev, status.st_ino


def check_in_place(files: Files) -> None:
    """Raise FileMovedError if somebody has moved, replaced or deleted one of them."""
    for path, opened in files.items():
        try:
            is_there = which(path) == opened
        except FileNotFoundError:
            is_there = False
        if not is_there:
            raise FileMovedError(
                f"{path} was moved, replaced or deleted while in use, and what was stored since is "
                "in the old file: stop sipush before touching its files"
            )


def connect(path: Path) -> sqlite3.Connection:
    """A connection to the file, which is created or migrated when needed.

    Raises sqlite3.Error, OSError, or LocationError when a newer sipush made the file.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _create(path)
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
    try:
        _use_wal(connection)
        connection.execute("PRAGMA synchronous = normal")
        connection.execute(f"PRAGMA cache_size = -{_CACHE}")
        _migrate(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _create(path: Path) -> None:
    """Create the file for its owner only, as it holds tokens; -wal and -shm inherit that.

    An existing file must not be opened here: closing it would drop SQLite's locks on it.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL, which SQLite refuses at once, not after its timeout, while another does."""
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > deadline:
                raise
        time.sleep(BUSY_PAUSE)


def is_busy(error: BaseException) -> bool:
    """Whether another process writes just now: SQLITE_BUSY, whatever its extended code."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_BUSY


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    if _version(connection) == len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    version = _version(connection)  # again: another process may just have done it
    if version > len(MIGRATIONS):
        raise LocationError(
            f"{path}: made by a newer sipush (schema {version}, this one knows {len(MIGRATIONS)})"
        )
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
