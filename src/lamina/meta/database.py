"""One SQLite file used by many threads and processes.

WAL journal, `synchronous=NORMAL`: a transaction is atomic always and durable from the next
checkpoint on, so power loss can undo the last ones but never tear one. What must not be undone is
written with `durable=True`, which makes all earlier transactions durable as well.

The last connection that is closed copies the WAL into the file and deletes it: two waits for the
disk, and two more for whoever writes next. A command that is about to end (`process_ends`) does not
close, then. The WAL is worth as much as the file, and a later close, mostly the janitor's, does it.

Writers of one process queue on a lock of our own, because SQLite's busy handler sleeps in steps of
up to 100 ms; writers of other processes wait in that handler for at most `BUSY_SECONDS`.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from lamina.errors import (
    DataLoss,
    FailedPrecondition,
    LaminaError,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)

OLDEST_SQLITE = (3, 37)
"""The first that has STRICT tables."""
BUSY_SECONDS = 60
_PAUSE_SECONDS = 0.005
_PAGE = 4096
_SHARED = 64 << 10
"""Bytes that the file takes which processes share, and some more."""


class Database:
    """Connections to one SQLite file, one for each thread.

    Args:
        path: the file; made with mode 0600 when absent (its directory must exist).
        migrations: SQL scripts; the first makes the schema, each later one brings it one version
            further. `PRAGMA user_version` counts those applied.

    Raises:
        DataLoss: the file is not a database, or of a newer version than this code.
        FailedPrecondition: this Python's SQLite is too old.
    """

    process_ends: ClassVar[bool] = False
    """Set by a program that has nothing left to do but to end: `close` leaves the rest to that."""

    def __init__(self, path: Path, migrations: Sequence[str]) -> None:
        _check_sqlite()
        self.path = path
        self._local = threading.local()
        self._writer = threading.RLock()
        self._all: dict[threading.Thread, sqlite3.Connection] = {}
        self._closed = False
        path.touch(mode=0o600)
        try:
            with translated(path):
                self._migrate(migrations)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def write(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """Run the body as one write transaction: committed at its end, undone by an exception.

        Args:
            durable: let the commit wait for the disk, if the body changes anything.
        """
        with self._writer, translated(self.path):
            connection = self._connection()
            connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # A full disk or an I/O error may have ended the transaction already.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Run the body on a connection outside any transaction: each statement sees the newest."""
        with translated(self.path):
            yield self._connection()

    def close(self) -> None:
        """Close every thread's connection; calling it again does nothing."""
        self._closed = True
        while self._all and not Database.process_ends:
            self._all.popitem()[1].close()

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if self._closed:
            raise LaminaError("use a closed store", self.path)
        if connection is None:
            self._close_of_the_dead()
            _require_blocks(self.path)
            connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._all[threading.current_thread()] = connection
            connection.row_factory = sqlite3.Row
            _use_wal(connection)
            connection.execute("PRAGMA foreign_keys=ON")
            self._local.connection = connection
        return connection

    def _close_of_the_dead(self) -> None:
        """Close the connections of threads that have ended, each of which holds descriptors."""
        for thread in [thread for thread in list(self._all) if not thread.is_alive()]:
            connection = self._all.pop(thread, None)
            if connection is not None:
                connection.close()

    def _migrate(self, migrations: Sequence[str]) -> None:
        if self._version() == len(migrations):
            return
        with self.write() as connection:
            version = self._version()
            if version > len(migrations):
                raise DataLoss(
                    f"open database {self.path}: its version {version} is newer than this "
                    f"program's {len(migrations)}",
                    hint="use the newer lamina",
                )
            for script in migrations[version:]:
                for statement in script.split(";\n"):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version={len(migrations)}")

    def _version(self) -> int:
        with self.read() as connection:
            return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _check_sqlite() -> None:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        raise FailedPrecondition(
            f"use SQLite {sqlite3.sqlite_version}, which this Python has",
            hint=f"Lamina needs {oldest} or newer: use a newer distribution's Python",
        )


def _require_blocks(path: Path) -> None:
    """Refuse a full disk where SQLite would be killed by it (SIGBUS).

    It maps the file that processes share, and makes sure only of one block of each page of that. So
    it does not notice that there is no room for the others, where blocks are smaller.

    Raises:
        ResourceExhausted: the disk is full.
    """
    disk = os.statvfs(path.parent)
    if disk.f_frsize >= _PAGE or disk.f_bavail * disk.f_frsize >= _SHARED:
        return
    import tempfile  # most disks have larger blocks

    # Only root may have what is left, and not all of that: no number tells.
    with tempfile.TemporaryFile(dir=path.parent) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, _SHARED)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            what = f"use database {path}: {error.strerror}"
            raise ResourceExhausted(what, hint="free some space on its disk") from error


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch a new file to WAL.

    SQLite gives up at once, and asks no busy handler, where another connection is doing the same.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_SECONDS)
        else:
            return


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's own errors into the tree's; constraint violations pass through unchanged."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.DatabaseError as error:
        name = getattr(error, "sqlite_errorname", "")
        what = f"use database {path}: {error}"
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise Unavailable(
                what, hint=f"another process has held it for {BUSY_SECONDS} s; try again"
            ) from error
        # The second: SQLite makes the file that processes share, which has no block yet.
        if name in {"SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"}:
            raise ResourceExhausted(what, hint="free some space on its disk") from error
        if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            raise PermissionDenied(what, hint="run as the owner of the root directory") from error
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            raise DataLoss(
                what, hint="restore the file, or remove the root and pull again"
            ) from error
        raise LaminaError(what) from error
