"""Which device of the pool belongs to which snapshot: a small SQLite file of the driver's own.

A row is written before its device is made, and deleted after the device is: what a crash leaves is
a row without a device, which `delete` does not mind. A power loss can undo the last rows, never
devices: the pool commits each of its messages. Then there is a device without row; its number is
met again by `allocate`, the pool says that it is taken, and the next one is tried.

Numbers are given out in ascending order and only once, also when something failed with one of
them, until the pool's 24 bits are used up. So a row that a power loss brings back never names a
device that has come to belong to another snapshot.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import NamedTuple

from lamina.errors import ResourceExhausted
from lamina.linux.dm.thin import MAX_DEVICE_ID
from lamina.meta.database import Database

FIRST_DEVICE_ID = 1 << 20
"""Others that use a pool count from 0 or 1: LVM, Docker, containerd."""

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
_COLUMNS = "device, snapshot, sectors, inherited, filesystem"
_TRIES = 10000


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
        self._database = Database(path, (_SCHEMA.rstrip(),))

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

    def allocate(self, snapshot: int | None, *, sectors: int, filesystem: str) -> Device:
        """Take a number for a device that is about to be made.

        Raises:
            ResourceExhausted: there is no number left.
        """
        with self._database.write() as connection:
            id = _next(connection)
            connection.execute(
                "INSERT INTO devices (device, snapshot, sectors, filesystem) VALUES (?, ?, ?, ?)",
                (id, snapshot, sectors, filesystem),
            )
        return Device(id, snapshot, sectors, 0, filesystem)

    def set_inherited(self, id: int, sectors: int) -> None:
        """Note how much a new device shares with its parent."""
        self._change("UPDATE devices SET inherited = ? WHERE device = ?", sectors, id)

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
            connection.execute("UPDATE counter SET next = next")

    def _find(self, condition: str, value: object) -> Device | None:
        with self._database.read() as connection:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM devices WHERE {condition}", (value,)
            ).fetchone()
        return None if row is None else Device(*row)

    def _change(self, statement: str, *values: object) -> None:
        with self._database.write() as connection:
            connection.execute(statement, values)


def _next(connection: sqlite3.Connection) -> int:
    """Return the next number; after the last one, the lowest ones that no row has any more."""
    (id,) = connection.execute("SELECT next FROM counter").fetchone()
    for _ in range(_TRIES):
        if id > MAX_DEVICE_ID:
            id = FIRST_DEVICE_ID
        taken = connection.execute("SELECT 1 FROM devices WHERE device = ?", (id,)).fetchone()
        if taken is None:
            connection.execute("UPDATE counter SET next = ?", (id + 1,))
            return int(id)
        id += 1
    raise ResourceExhausted("take a number for a device", hint="remove snapshots")
