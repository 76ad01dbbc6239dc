"""Which device of the pool belongs to which snapshot: a small SQLite file of the driver's own.

A row is written before its device is made, and deleted after the device is: what a crash leaves is
a row without a device, which `delete` does not mind. A power loss can undo the last rows, never
devices: the pool commits each of its messages. Then there is a device without row; its number is
met again by `allocate`, the pool says that it is taken, and the next one is tried.

Numbers are given out of the root's own ranges (see `leases`), in ascending order and only once,
also when something failed with one of them, until the pool's 24 bits are used up: how far they
may have come is on disk before. So a row that a power loss brings back never names a device that
has come to belong to another snapshot.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import NamedTuple

from lamina.linux.dm.thin import MAX_DEVICE_ID
from lamina.meta.database import Database

FIRST_DEVICE_ID = 1 << 20
"""Others that use a pool count from 0 or 1: LVM, Docker, containerd."""
RANGE = 1 << 16
"""How many numbers are let at once; the first of them is the lease's own."""
_RESERVED = 64
"""How many numbers a power loss may skip; once in so many, giving one out waits for the disk."""
assert (MAX_DEVICE_ID + 1 - FIRST_DEVICE_ID) % RANGE == 0

_SCHEMA = f"""
CREATE TABLE devices (
    device INTEGER PRIMARY KEY,
    snapshot INTEGER UNIQUE,
    template TEXT UNIQUE,
    sectors INTEGER NOT NULL,
    inherited INTEGER NOT NULL DEFAULT 0,
    filesystem TEXT NOT NULL,
    suspended TEXT
) STRICT;
CREATE TABLE counter (next INTEGER NOT NULL) STRICT;
INSERT INTO counter (next) VALUES ({FIRST_DEVICE_ID});
"""
_RANGES = """
CREATE TABLE ranges (
    start INTEGER PRIMARY KEY,
    next INTEGER NOT NULL,
    reserved INTEGER NOT NULL,
    state TEXT NOT NULL
) STRICT;
CREATE TABLE pool (seen TEXT NOT NULL) STRICT;
INSERT INTO pool (seen) VALUES ('');
DROP TABLE counter;
"""
"""A range is `begun` before its lease is made, and `ours` once that says so. `seen` is the pool's
identity when that was last looked at. `reserved` is the first number that none was given out of."""
_COLUMNS = "device, snapshot, sectors, inherited, filesystem"


class Device(NamedTuple):
    """A device of the pool.

    Attributes:
        id: its number in the pool.
        snapshot: the snapshot whose storage it is; None for a template, and for what is to go.
        sectors: its size.
        inherited: sectors that it got from its parent and shared with it at first.
        filesystem: the type of the filesystem on it.
    """

    id: int
    snapshot: int | None
    sectors: int
    inherited: int
    filesystem: str


class Devices:
    """The table; for several threads, and several processes on one file."""

    def __init__(self, path: Path) -> None:
        self._database = Database(path, (_SCHEMA.rstrip(), _RANGES.rstrip()))

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        self._database.close()

    def of(self, snapshot: int) -> Device | None:
        """Return the snapshot's device."""
        return self._find("snapshot = ?", snapshot)

    def template(self, key: str) -> Device | None:
        """Return the finished template of that key."""
        return self._find("template = ?", key)

    def snapshots(self) -> dict[int, int]:
        """Return the numbers of all snapshots' devices by the snapshots' ids."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT snapshot, device FROM devices WHERE snapshot IS NOT NULL"
            )
            return dict(rows.fetchall())

    def numbers(self) -> set[int]:
        """Return the numbers of all devices, those to go included."""
        with self._database.read() as connection:
            return {device for (device,) in connection.execute("SELECT device FROM devices")}

    def allocate(self, snapshot: int | None, *, sectors: int, filesystem: str) -> Device | None:
        """Take a number for a device that is about to be made; None where none is left."""
        while True:
            with self._database.write() as connection:
                id = _next(connection)
                if id is None:
                    return None
                if _is_reserved(connection, id):
                    connection.execute(_INSERT, (id, snapshot, sectors, filesystem))
                    connection.execute(_COUNT, {"id": id})
                    return Device(id, snapshot, sectors, 0, filesystem)
            self._reserve(id)

    def set_inherited(self, id: int, sectors: int) -> None:
        """Note how much a new device shares with its parent."""
        self._change("UPDATE devices SET inherited = ? WHERE device = ?", sectors, id)

    def set_sectors(self, id: int, sectors: int) -> None:
        """Note another size of a device."""
        self._change("UPDATE devices SET sectors = ? WHERE device = ?", sectors, id)

    def set_template(self, id: int, key: str) -> None:
        """Make the finished device the only template; others are to go."""
        with self._database.write() as connection:
            connection.execute("UPDATE devices SET template = NULL WHERE template IS NOT NULL")
            connection.execute("UPDATE devices SET template = ? WHERE device = ?", (key, id))

    def drop_template(self, id: int) -> None:
        """Let a template go."""
        self._change("UPDATE devices SET template = NULL WHERE device = ?", id)

    def exchange(self, old: Device, new: Device) -> None:
        """Give the snapshot the new device; the old one is to go."""
        with self._database.write() as connection:
            connection.execute("UPDATE devices SET snapshot = NULL WHERE device = ?", (old.id,))
            connection.execute(
                "UPDATE devices SET snapshot = ?, inherited = ? WHERE device = ?",
                (old.snapshot, old.inherited, new.id),
            )

    def forget(self, id: int) -> None:
        """Delete the row of a device that is not in the pool any more, or never was."""
        self._change("DELETE FROM devices WHERE device = ?", id)

    def unowned(self) -> list[Device]:
        """Return devices that nobody has: half made, or to go."""
        with self._database.read() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM devices WHERE snapshot IS NULL AND template IS NULL"
            )
            return [Device(*row) for row in rows]

    def set_suspended(self, id: int, name: str | None) -> None:
        """Note under which name a device is about to be suspended; None once it is not."""
        self._change("UPDATE devices SET suspended = ? WHERE device = ?", name, id)

    def suspended(self) -> dict[int, str]:
        """Return the names of devices that are, or were about to be, suspended."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT device, suspended FROM devices WHERE suspended IS NOT NULL"
            )
            return dict(rows.fetchall())

    def flush(self) -> None:
        """Let no power loss undo what was written so far."""
        with self._database.write(durable=True) as connection:
            connection.execute("UPDATE ranges SET next = next")

    # The ranges of numbers

    def seen(self) -> str:
        """Return the identity of the pool that the ranges are known to be in."""
        with self._database.read() as connection:
            return str(connection.execute("SELECT seen FROM pool").fetchone()[0])

    def set_seen(self, identity: str) -> None:
        """Note in which pool the ranges are known to be."""
        self._change("UPDATE pool SET seen = ?", identity)

    def skip_reserved(self) -> None:
        """Go on past all numbers that may have been given out before a power loss."""
        self._change("UPDATE ranges SET next = MAX(next, reserved)")

    def has_number(self) -> bool:
        """Tell whether a range has numbers that were not given out yet."""
        with self._database.read() as connection:
            return connection.execute(_RANGE_LEFT).fetchone() is not None

    def ranges(self) -> list[int]:
        """Return where the root's own ranges begin."""
        return self._ranges("ours")

    def begun(self) -> list[int]:
        """Return where ranges begin of which it is not known whether they are the root's."""
        return self._ranges("begun")

    def begin_range(self, start: int) -> None:
        """Note, for good, that a lease is about to be made."""
        with self._database.write(durable=True) as connection:
            connection.execute(
                "INSERT INTO ranges (start, next, reserved, state) VALUES (?, ?, ?, 'begun')"
                " ON CONFLICT (start) DO UPDATE SET state = 'begun'",
                (start, start + 1, start + 1 + _RESERVED),
            )

    def end_range(self, start: int) -> None:
        """Note that a range is the root's."""
        with self._database.write(durable=True) as connection:
            connection.execute("UPDATE ranges SET state = 'ours' WHERE start = ?", (start,))

    def drop_range(self, start: int) -> None:
        """Note that a range is another's, and so is all that rows may name in it.

        That is so where the pool was made anew, and another root has come first.
        """
        with self._database.write() as connection:
            connection.execute("DELETE FROM ranges WHERE start = ?", (start,))
            connection.execute(
                "DELETE FROM devices WHERE device >= ? AND device < ?", (start, start + RANGE)
            )

    def begin_again(self) -> bool:
        """Let all ranges begin again with what no row has any more; False where there is none."""
        with self._database.write() as connection:
            query = "UPDATE ranges SET next = start + 1 WHERE state = 'ours'"
            return connection.execute(query).rowcount > 0

    def _reserve(self, id: int) -> None:
        """Have it on disk that this number, and some more, may have been given out."""
        with self._database.write(durable=True) as connection:
            connection.execute(_RESERVE, {"id": id})

    def _ranges(self, state: str) -> list[int]:
        with self._database.read() as connection:
            rows = connection.execute("SELECT start FROM ranges WHERE state = ?", (state,))
            return [start for (start,) in rows]

    def _find(self, condition: str, value: object) -> Device | None:
        with self._database.read() as connection:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM devices WHERE {condition}", (value,)
            ).fetchone()
        return None if row is None else Device(*row)

    def _change(self, statement: str, *values: object) -> None:
        with self._database.write() as connection:
            connection.execute(statement, values)


_INSERT = "INSERT INTO devices (device, snapshot, sectors, filesystem) VALUES (?, ?, ?, ?)"
_THE_RANGE = f"start <= :id AND start + {RANGE} > :id"
_COUNT = f"UPDATE ranges SET next = :id + 1 WHERE {_THE_RANGE}"
_RESERVE = f"""
UPDATE ranges SET reserved = MAX(reserved, MIN(:id + {_RESERVED}, start + {RANGE}))
WHERE {_THE_RANGE}
"""
_RANGE_LEFT = f"""
SELECT start, next FROM ranges WHERE state = 'ours' AND next < start + {RANGE}
ORDER BY start LIMIT 1
"""


def _next(connection: sqlite3.Connection) -> int | None:
    """Return the next number that no row has; None at the end of all ranges."""
    while left := connection.execute(_RANGE_LEFT).fetchone():
        start, first = left
        rows = connection.execute(
            "SELECT device FROM devices WHERE device >= ? AND device < ?", (first, start + RANGE)
        )
        taken = {device for (device,) in rows}
        for id in range(first, start + RANGE):
            if id not in taken:
                return id
        connection.execute(_COUNT, {"id": start + RANGE - 1})
    return None


def _is_reserved(connection: sqlite3.Connection, id: int) -> bool:
    query = f"SELECT 1 FROM ranges WHERE {_THE_RANGE} AND reserved > :id"
    return connection.execute(query, {"id": id}).fetchone() is not None
