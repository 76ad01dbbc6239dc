"""Records of blobs: their labels, and whether they would survive a power failure."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lamina.core.digest import Digest
from lamina.core.labels import validate
from lamina.core.snapshot import EMPTY_LABELS
from lamina.errors import NotFound
from lamina.meta.database import Database


@dataclass(frozen=True, slots=True)
class ContentInfo:
    """What is recorded of a blob; `size` in bytes, times in nanoseconds since the epoch."""

    digest: Digest
    size: int
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY_LABELS)
    created_ns: int = 0
    updated_ns: int = 0


class ContentTable:
    """The table of blobs. Methods that take a connection are part of its write transaction.

    Args:
        database: the root's metadata.
        boot: id of the running boot.
    """

    def __init__(self, database: Database, *, boot: str) -> None:
        self.database = database
        self._boot = boot

    def find(self, digest: Digest) -> tuple[ContentInfo, bool] | None:
        """Return the record and whether an earlier boot left the blob unsynced; None if none."""
        with self.database.read() as connection:
            row = connection.execute("SELECT * FROM content WHERE digest=?", (digest,)).fetchone()
        if row is None:
            return None
        return _from_row(row), row["unsynced"] not in {None, self._boot}

    def all(self) -> list[ContentInfo]:
        """Return every record in byte order of the digests."""
        with self.database.read() as connection:
            rows = connection.execute("SELECT * FROM content ORDER BY digest").fetchall()
        return [_from_row(row) for row in rows]

    def insert(
        self, connection: sqlite3.Connection, digest: Digest, size: int, labels: Mapping[str, str]
    ) -> None:
        """Record a blob just written, unsynced; the labels are added to an earlier record's."""
        validate(labels)
        row = connection.execute("SELECT * FROM content WHERE digest=?", (digest,)).fetchone()
        now = time.time_ns()
        old = _from_row(row) if row is not None else ContentInfo(digest, size, {}, now)
        merged = json.dumps({**old.labels, **labels})
        connection.execute(
            "INSERT OR REPLACE INTO content VALUES (?,?,?,?,?,?)",
            (digest, size, merged, old.created_ns, now, self._boot),
        )

    def delete(self, connection: sqlite3.Connection, digest: Digest) -> None:
        """Forget the blob; an unknown one is no error."""
        connection.execute("DELETE FROM content WHERE digest=?", (digest,))

    def label(self, digest: Digest, changes: Mapping[str, str]) -> ContentInfo:
        """Set the labels given, delete those given as "", and return what is stored then.

        Raises:
            NotFound: no such blob.
            InvalidArgument: a label is larger than 4096 bytes.
        """
        validate(changes)
        with self.database.write() as connection:
            row = connection.execute("SELECT * FROM content WHERE digest=?", (digest,)).fetchone()
            if row is None:
                raise NotFound("label content", digest)
            merged = {**json.loads(row["labels"]), **changes}
            connection.execute(
                "UPDATE content SET labels=?, updated_ns=? WHERE digest=?",
                (json.dumps({k: v for k, v in merged.items() if v}), time.time_ns(), digest),
            )
            row = connection.execute("SELECT * FROM content WHERE digest=?", (digest,)).fetchone()
        return _from_row(row)

    def reset_labels(self, digest: Digest, labels: Mapping[str, str]) -> None:
        """Replace labels that cannot be read; others, and those of an unknown blob, stay."""
        from lamina.meta.damage import unreadable  # only a repair needs it

        with self.database.write() as connection:
            connection.execute(
                f"UPDATE content SET labels=? WHERE digest=? AND {unreadable('labels')}",
                (json.dumps(dict(labels)), digest),
            )

    def unsynced(self) -> list[Digest]:
        """List the blobs that this boot has written and no syncfs has made durable since."""
        query = "SELECT digest FROM content WHERE unsynced=?"
        with self.database.read() as connection:
            return [Digest(row[0]) for row in connection.execute(query, (self._boot,))]

    def mark_synced(self, digests: Sequence[Digest]) -> None:
        """Record that these blobs are durable."""
        with self.database.write() as connection:
            connection.executemany(
                "UPDATE content SET unsynced=NULL WHERE digest=?", [(d,) for d in digests]
            )


def _from_row(row: sqlite3.Row) -> ContentInfo:
    return ContentInfo(
        Digest(row["digest"]),
        row["size"],
        json.loads(row["labels"]),
        row["created_ns"],
        row["updated_ns"],
    )
