"""Leases: who needs which content and snapshots although no image names them yet.

A pull takes its lease before it looks anything up and writes down what it is about to use, so a
collection either sees the lease, or ran before and the pull finds the thing gone.

A lease without an owner holds all its resources until it expires. One with an owner holds them as
long as that process lives; after that, until it expires, it still holds all but the extraction
snapshots: the next pull goes on where the dead one stopped, and what was half made is collected.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lamina.core.digest import Digest
from lamina.core.filters import FieldPath, Fields, label_field, parse
from lamina.core.labels import GC_EXPIRE, validate
from lamina.core.snapshot import EMPTY_LABELS
from lamina.errors import AlreadyExists, InvalidArgument, NotFound
from lamina.meta.database import Database
from lamina.meta.owners import NOBODY, Owners

DEFAULT_SECONDS = 24 * 60 * 60
EXTRACT_PREFIX = "extract-"
"""With this begin the keys of extraction snapshots: layers that are being unpacked."""


class Resource(NamedTuple):
    """What a lease holds: `type` is `content`, `images` or `snapshots/SNAPSHOTTER`."""

    type: str
    id: str

    @classmethod
    def content(cls, digest: Digest) -> Resource:
        """The blob of that digest, and an unfinished download of it."""
        return cls("content", digest)

    @classmethod
    def snapshot(cls, snapshotter: str, key: str) -> Resource:
        """The snapshot of that key or name, with its parents."""
        return cls(f"snapshots/{snapshotter}", key)

    @classmethod
    def image(cls, name: str) -> Resource:
        """The image record of that name."""
        return cls("images", name)


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease; times are nanoseconds since the epoch.

    Attributes:
        owner: token of the process that has it; "" where nobody owns it.
        expires_ns: 0 for one that never expires.
    """

    id: str
    owner: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY_LABELS)
    created_ns: int = 0
    expires_ns: int = 0


class Leases:
    """The leases of one root."""

    def __init__(self, database: Database, owners: Owners) -> None:
        self._database = database
        self._owners = owners

    def create(
        self,
        id: str = "",
        *,
        labels: Mapping[str, str] | None = None,
        seconds: float | None = DEFAULT_SECONDS,
        owned: bool = False,
        resources: Iterable[Resource] = (),
    ) -> Lease:
        """Make a lease that expires in so many seconds, or never; `owned` ties it to this process.

        Raises:
            AlreadyExists: the id is taken; without an id a random one is made.
            InvalidArgument: a label is too large, or the one by which containerd says when.
        """
        validate(labels or {})
        if GC_EXPIRE in (labels or {}):
            raise InvalidArgument("label a lease", GC_EXPIRE, hint="say when it expires instead")
        now = time.time_ns()
        lease = Lease(
            id or f"{now}-{secrets.token_urlsafe(3)}",
            self._owners.token if owned else "",
            dict(labels or {}),
            now,
            0 if seconds is None else now + int(seconds * 1e9),
        )
        row = (lease.id, lease.owner, json.dumps(dict(lease.labels)), now, lease.expires_ns)
        with self._database.write() as connection:
            try:
                connection.execute("INSERT INTO leases VALUES (?,?,?,?,?)", row)
            except sqlite3.IntegrityError as error:
                raise AlreadyExists("create lease", lease.id) from error
            _insert(connection, lease.id, resources)
        return lease

    def add(self, id: str, resources: Iterable[Resource]) -> None:
        """Put resources under the lease; they need not exist yet.

        Raises:
            NotFound: the lease is gone.
        """
        with self._database.write() as connection:
            if connection.execute("SELECT 1 FROM leases WHERE id=?", (id,)).fetchone() is None:
                raise NotFound("add to lease", id)
            _insert(connection, id, resources)

    def release(self, id: str) -> None:
        """Give an owned lease up as if this process had died; see the module's description."""
        with self._database.write() as connection:
            connection.execute("UPDATE leases SET owner=? WHERE id=?", (NOBODY, id))
            _drop_extractions(connection, id)

    def delete(self, id: str) -> None:
        """Drop the lease.

        Raises:
            NotFound: there is none of that id.
        """
        with self._database.write() as connection:
            if not self.drop(connection, id):
                raise NotFound("lease", id)

    def drop(self, connection: sqlite3.Connection, id: str) -> bool:
        """Drop the lease inside a write transaction; tell whether it was there."""
        return connection.execute("DELETE FROM leases WHERE id=?", (id,)).rowcount > 0

    def all(self, filters: Sequence[str] = ()) -> list[Lease]:
        """Return the leases that a filter matches (`id`, `labels.KEY`) in byte order of the ids.

        Raises:
            InvalidArgument: a filter does not parse.
        """
        matches = parse(filters)
        with self._database.read() as connection:
            rows = connection.execute("SELECT * FROM leases ORDER BY id").fetchall()
        return [lease for lease in map(_from_row, rows) if matches(_fields(lease))]

    def resources(self, id: str) -> list[Resource]:
        """Return what the lease holds; nothing for an unknown id."""
        query = "SELECT type, id FROM lease_resources WHERE lease=? ORDER BY type, id"
        with self._database.read() as connection:
            return [Resource(*row) for row in connection.execute(query, (id,))]

    def abandoned(self) -> bool:
        """Tell whether a dead owner may have left half made snapshots."""
        query = (
            "SELECT * FROM leases WHERE owner<>'' AND EXISTS (SELECT 1 FROM lease_resources"
            " WHERE lease=leases.id AND type LIKE 'snapshots/%' AND id LIKE ?)"
        )
        with self._database.read() as connection:
            rows = connection.execute(query, (f"{EXTRACT_PREFIX}%",)).fetchall()
        return any(not self._alive(_from_row(row)) for row in rows)

    def drop_abandoned(self, connection: sqlite3.Connection, label: str, value: str) -> int:
        """Drop the leases with that label whose owner is dead; return how many there were.

        It is part of the write transaction that `connection` is in.
        """
        abandoned = [
            lease.id
            for lease in self._all(connection)
            if lease.labels.get(label) == value and lease.owner and not self._alive(lease)
        ]
        for id in abandoned:
            self.drop(connection, id)
        return len(abandoned)

    def held(self, connection: sqlite3.Connection) -> set[Resource]:
        """Drop expired leases and return what the others hold; inside a write transaction.

        The extraction snapshots of dead owners are dropped from their leases.
        """
        now = time.time_ns()
        held: set[Resource] = set()
        for lease in self._all(connection):
            alive = self._alive(lease)
            if 0 < lease.expires_ns <= now and (not lease.owner or not alive):
                self.drop(connection, lease.id)
                continue
            if not alive:
                _drop_extractions(connection, lease.id)
            query = "SELECT type, id FROM lease_resources WHERE lease=?"
            held.update(Resource(*row) for row in connection.execute(query, (lease.id,)))
        return held

    def _all(self, connection: sqlite3.Connection) -> list[Lease]:
        return [_from_row(row) for row in connection.execute("SELECT * FROM leases").fetchall()]

    def _alive(self, lease: Lease) -> bool:
        return not lease.owner or self._owners.alive(lease.owner)


def _fields(lease: Lease) -> Fields:
    def field(path: FieldPath) -> str | None:
        match path:
            case ("id",):
                return lease.id
            case ("labels", *rest) if rest:
                return label_field(lease.labels, tuple(rest))
        return None

    return field


def _insert(connection: sqlite3.Connection, id: str, resources: Iterable[Resource]) -> None:
    connection.executemany(
        "INSERT OR IGNORE INTO lease_resources VALUES (?,?,?)",
        [(id, resource.type, resource.id) for resource in resources],
    )


def _drop_extractions(connection: sqlite3.Connection, id: str) -> None:
    connection.execute(
        "DELETE FROM lease_resources WHERE lease=? AND type LIKE 'snapshots/%' AND id LIKE ?",
        (id, f"{EXTRACT_PREFIX}%"),
    )


def _from_row(row: sqlite3.Row) -> Lease:
    values = dict(row)
    values["labels"] = json.loads(values["labels"])
    return Lease(**values)
