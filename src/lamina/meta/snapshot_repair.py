"""How the snapshot store is brought back in step with the disk; each method is one transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable

from lamina.core.labels import SNAPSHOT_REF
from lamina.core.snapshot import Kind
from lamina.meta import damage
from lamina.meta.database import Database
from lamina.meta.snapshot_rows import CHILD, discard

JSON_TABLES = {"snapshots": damage.JsonTable("key", ("labels",))}


class SnapshotRepair:
    """The repairs of one snapshot store; what is not so any more is left alone."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def bad_rows(self) -> list[damage.BadRow]:
        """Return the snapshots whose labels cannot be read."""
        with self._database.read() as connection:
            return list(damage.bad_rows(connection, JSON_TABLES))

    def reset_labels(self, key: str) -> None:
        """Give a snapshot the labels that can be told without the old ones.

        A layer keeps its `snapshot.ref`, by which it is collected when no image needs it.
        """
        with self._database.write() as connection:
            row = connection.execute(
                f"SELECT id, kind FROM snapshots WHERE key = ? AND {damage.unreadable('labels')}",
                (key,),
            ).fetchone()
            if row is None:
                return
            is_layer = row["kind"] == Kind.COMMITTED and key.startswith("sha256:")
            labels = json.dumps({SNAPSHOT_REF: key} if is_layer else {})
            connection.execute("UPDATE snapshots SET labels = ? WHERE id = ?", (labels, row["id"]))

    def reindex(self) -> None:
        """Make all indexes anew."""
        damage.reindex(self._database)

    def has_children(self, key: str) -> bool:
        """Tell whether a snapshot stands on this one, or is about to."""
        with self._database.read() as connection:
            row = connection.execute("SELECT id FROM snapshots WHERE key = ?", (key,)).fetchone()
            return row is not None and _has_children(connection, row["id"])

    def give_up(self, ids: Iterable[int]) -> None:
        """Take in that the storage of these snapshots is gone.

        Layers, and what others stand on, are marked lost: a pull, or unpacking again, restores
        them below what stands on them. All else is forgotten.
        """
        with self._database.write() as connection:
            for id in ids:
                _give_up(connection, id)

    def forget_lost(self, key: str) -> None:
        """Forget a lost snapshot that nothing stands on."""
        with self._database.write() as connection:
            row = connection.execute(
                "SELECT id FROM snapshots WHERE key = ? AND state = 'lost'", (key,)
            ).fetchone()
            if row is not None and not _has_children(connection, row["id"]):
                discard(connection, row["id"])


def _give_up(connection: sqlite3.Connection, id: int) -> None:
    row = connection.execute(
        "SELECT key, kind, labels FROM snapshots WHERE id = ? AND state = 'ready'", (id,)
    ).fetchone()
    if row is None:
        return
    is_layer = json.loads(row["labels"]).get(SNAPSHOT_REF) == row["key"]
    if row["kind"] == Kind.COMMITTED and (is_layer or _has_children(connection, id)):
        connection.execute(
            "UPDATE snapshots SET state = 'lost', unsynced = NULL WHERE id = ?", (id,)
        )
    else:
        discard(connection, id)


def _has_children(connection: sqlite3.Connection, id: int) -> bool:
    return connection.execute(CHILD, (id,)).fetchone() is not None
