"""Records of containers: which image and snapshot each one uses, and how it is run.

The OCI spec of a container is a file in its bundle, not a column: the runtime reads it there, and
the table stays small. What the garbage collector needs (image, snapshotter, snapshot key) are
columns.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from lamina.core.snapshot import EMPTY_LABELS
from lamina.errors import AlreadyExists, NotFound
from lamina.meta.database import Database

CONTAINERS = """
CREATE TABLE containers (
    id TEXT PRIMARY KEY,
    image TEXT NOT NULL,
    runtime TEXT NOT NULL,
    snapshotter TEXT NOT NULL,
    snapshot_key TEXT NOT NULL,
    throw_away INTEGER NOT NULL,
    labels TEXT NOT NULL,
    created_ns INTEGER NOT NULL,
    updated_ns INTEGER NOT NULL
) WITHOUT ROWID, STRICT
"""
"""SQL script of the table; one of the migrations of `metadata.sqlite`."""


class Container(NamedTuple):
    """What is recorded of one container.

    Attributes:
        id: its name, and the name of its bundle directory.
        image: reference it was made from; "" for a root file system given as a directory.
        runtime: path of the OCI runtime that runs it.
        snapshotter: name of the snapshotter that holds its root file system, or "".
        snapshot_key: key of its Active snapshot, or "".
        throw_away: made by `run --rm`; whoever finds it dead removes it.
        labels: the user's, and those the image's configuration brings.
        created_ns: time of creation, ns since the epoch; set by the store.
        updated_ns: time of the last change of the labels, ns since the epoch; set by the store.
    """

    id: str
    image: str = ""
    runtime: str = ""
    snapshotter: str = ""
    snapshot_key: str = ""
    throw_away: bool = False
    labels: Mapping[str, str] = EMPTY_LABELS
    created_ns: int = 0
    updated_ns: int = 0


class ContainerStore:
    """The table of containers; every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, container: Container) -> Container:
        """Record a new container and return it with its times.

        Raises:
            AlreadyExists: the id is taken.
        """
        now = time.time_ns()
        stored = container._replace(created_ns=now, updated_ns=now)
        row = (
            stored.id,
            stored.image,
            stored.runtime,
            stored.snapshotter,
            stored.snapshot_key,
            stored.throw_away,
            json.dumps(dict(stored.labels)),
            now,
            now,
        )
        try:
            with self._database.write() as connection:
                connection.execute("INSERT INTO containers VALUES (?,?,?,?,?,?,?,?,?)", row)
        except sqlite3.IntegrityError as error:
            raise AlreadyExists(
                "create container",
                container.id,
                hint=f"choose another id, or remove it: lamina containers rm {container.id}",
            ) from error
        return stored

    def get(self, id: str) -> Container:
        """Return the container of that id.

        Raises:
            NotFound: there is none.
        """
        with self._database.read() as connection:
            row = connection.execute("SELECT * FROM containers WHERE id=?", (id,)).fetchone()
        if row is None:
            raise NotFound("container", id, hint="lamina containers ls shows those there are")
        return _from_row(row)

    def find(self, id: str) -> Container | None:
        """Return the container of that id, or None."""
        try:
            return self.get(id)
        except NotFound:
            return None

    def list(self) -> Iterator[Container]:
        """Yield every container in byte order of the ids."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT * FROM containers ORDER BY id").fetchall()
        return map(_from_row, rows)

    def throw_aways(self) -> Iterator[Container]:
        """Yield the containers made by `run --rm`, running ones included."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT * FROM containers WHERE throw_away").fetchall()
        return map(_from_row, rows)

    def label(self, id: str, changes: Mapping[str, str]) -> Container:
        """Set the labels given and delete those given as "", and return what is stored then.

        Raises:
            NotFound: there is no such container.
        """
        with self._database.write() as connection:
            row = connection.execute("SELECT labels FROM containers WHERE id=?", (id,)).fetchone()
            if row is None:
                raise NotFound("label container", id)
            merged = {**json.loads(row["labels"]), **changes}
            kept = json.dumps({key: value for key, value in merged.items() if value})
            connection.execute(
                "UPDATE containers SET labels=?, updated_ns=? WHERE id=?",
                (kept, time.time_ns(), id),
            )
        return self.get(id)

    def delete(self, id: str) -> None:
        """Forget the container; an unknown id is no error, so that a removal can be repeated."""
        with self._database.write() as connection:
            connection.execute("DELETE FROM containers WHERE id=?", (id,))


def _from_row(row: sqlite3.Row) -> Container:
    values = dict(row)
    values["throw_away"] = bool(values["throw_away"])
    values["labels"] = json.loads(values["labels"])
    return Container(**values)
