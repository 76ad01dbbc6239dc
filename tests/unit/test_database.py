"""Transactions and connections of one SQLite file."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.errors import FailedPrecondition
from lamina.meta.database import Database

SCHEMA = "CREATE TABLE t (x INTEGER PRIMARY KEY) STRICT"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "db", (SCHEMA,))
    yield opened
    opened.close()


def rows(database: Database) -> list[int]:
    with database.read() as connection:
        return [x for (x,) in connection.execute("SELECT x FROM t ORDER BY x")]


def test_an_old_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 36, 0))
    with pytest.raises(FailedPrecondition, match=r"needs 3\.37 or newer"):
        Database(tmp_path / "db", (SCHEMA,))
    assert not (tmp_path / "db").exists()


def test_error_that_ended_the_transaction_is_the_one_reported(database: Database) -> None:
    with database.write() as connection:
        connection.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"), database.write() as connection:
        connection.execute("INSERT INTO t VALUES (2)")
        connection.execute("INSERT OR ROLLBACK INTO t VALUES (1)")
    with database.write() as connection:
        connection.execute("INSERT INTO t VALUES (3)")
    assert rows(database) == [1, 3]


def test_ended_threads_leave_no_descriptors_open(database: Database) -> None:
    def use() -> None:
        with database.write() as connection:
            connection.execute("INSERT INTO t DEFAULT VALUES")

    for _ in range(20):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert len(rows(database)) == 20
    names = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
             if os.path.lexists(f"/proc/self/fd/{fd}")]  # fmt: skip
    # This thread's, and those of the last one that ended.
    assert names.count(str(database.path)) <= 2


OPEN_AT_ONCE = """
import sys
from pathlib import Path
from lamina.meta.database import Database
sys.stdin.readline()
for path in sys.argv[2:]:
    database = Database(Path(path), (sys.argv[1],))
    with database.write() as connection:
        connection.execute("INSERT INTO t DEFAULT VALUES")
    database.close()
"""


def test_processes_make_a_new_database_at_once(tmp_path: Path) -> None:
    paths = [str(tmp_path / str(number)) for number in range(40)]
    argv = [sys.executable, "-c", OPEN_AT_ONCE, SCHEMA, *paths]
    waiting, go = os.pipe()
    processes = [subprocess.Popen(argv, stdin=waiting) for _ in range(4)]
    os.close(waiting)
    time.sleep(0.5)  # until all have started, more or less
    os.close(go)
    assert [process.wait(60) for process in processes] == [0] * 4
    for path in paths:
        database = Database(Path(path), (SCHEMA,))
        assert len(rows(database)) == 4
        database.close()
