"""The snapshots of one snapshotter: keys, parents, labels, kinds and states, in one SQLite file.

Each change of storage lies between two transactions, the driver's work outside of them:

    begin_create -> preparing  -> finish_create -> ready             (or abandon)
    begin_fork   -> preparing  -> finish_create -> ready             (or abandon)
    begin_commit -> committing -> finish_commit -> ready, Committed  (or abort_commit)
    remove: the row goes, its id stays in the trash until the storage is gone as well

A row that is preparing or committing has an owner. What a dead owner left is undone at the start of
the next write: a preparing row goes to the trash, a committing one is Active again. What is
preparing is invisible, and so is the name of what is committing, but both are taken. What is being
forked is neither committed nor removed.

A commit is marked with the id of the boot it happened in until `mark_synced`. A store opened under
another boot takes what is still marked for never committed: see `reboot`.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.core.driver import Snapshot
from lamina.core.snapshot import Info, Kind, Usage
from lamina.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    NotImplementedHere,
)
from lamina.meta import forks, recovery, snapshot_rows
from lamina.meta.database import Database
from lamina.meta.owners import Owners
from lamina.meta.snapshot_rows import Record
from lamina.meta.snapshot_schema import MIGRATIONS
from lamina.meta.totals import Totals, totals
from lamina.meta.trash import Trash

if TYPE_CHECKING:
    from lamina.meta.snapshot_repair import SnapshotRepair

PAGE = 500
"""Rows that a walk reads at a time."""

WALK = f"{snapshot_rows.INFO} > ? ORDER BY s.key LIMIT {PAGE}"
INSERT = """
INSERT INTO snapshots (key, kind, state, parent, labels, created, updated, owner)
VALUES (?, ?, 'preparing', ?, ?, ?, ?, ?) RETURNING id"""
CREATED = """
UPDATE snapshots SET state = 'ready', owner = NULL, fork_of = NULL
WHERE id = ? AND state = 'preparing' AND owner = ?"""
COMMIT = """
UPDATE snapshots SET state = 'ready', kind = ?, key = commit_name, owner = NULL,
    parent = coalesce(commit_parent, parent), commit_name = NULL, commit_parent = NULL,
    labels = ?, created = ?, updated = ?, inodes = ?, size = ?, unsynced = ?
WHERE id = ? AND state = 'committing' AND owner = ?"""
BACKLOG = """
SELECT 'free', id FROM trash
UNION ALL SELECT 'sync', id FROM snapshots WHERE unsynced IS NOT NULL AND unsynced <> 'failed'"""


_USED = """
WITH RECURSIVE used (id) AS (
    SELECT id FROM snapshots WHERE kind <> ?
    UNION SELECT parent FROM snapshots JOIN used USING (id) WHERE parent IS NOT NULL
)
SELECT 1 FROM used WHERE id = ?
"""


class SnapshotStore:
    """The store; safe for threads, and for several processes on one file.

    Args:
        path: the SQLite file; its directory must exist.
        boot: id of the running boot.
        owners: who lives, and who this process is.
    """

    def __init__(self, path: Path, *, boot: str, owners: Owners) -> None:
        self._database = Database(path, MIGRATIONS)
        self._boot = boot
        self._owners = owners
        self.trash = Trash(self._database, owners)

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        self._database.close()

    @property
    def repair(self) -> SnapshotRepair:
        """What mends the store where it and the disk have got out of step."""
        from lamina.meta.snapshot_repair import SnapshotRepair  # only a check needs it

        return SnapshotRepair(self._database)

    # Reading

    def record(self, key: str) -> Record:
        """Return the snapshot of that key, of any kind.

        Raises:
            NotFound: there is none, or it did not survive a power loss, and can only be listed,
                removed and restored.
        """
        with self._database.read() as connection:
            return _record(connection, key)

    def snapshot(self, key: str) -> Snapshot:
        """Return what the driver is to know of a View or Active snapshot.

        Raises:
            NotFound: there is none.
            FailedPrecondition: the snapshot is Committed.
            DataLoss: it stands on one that did not survive a power loss.
        """
        with self._database.read() as connection:
            row = snapshot_rows.require(connection, key)
            if row["kind"] == Kind.COMMITTED:
                raise FailedPrecondition("mount snapshot", key, hint="it is Committed; view it")
            parents = snapshot_rows.chain(connection, row["id"])[1:]
        return Snapshot(row["id"], Kind(row["kind"]), parents, json.loads(row["labels"]))

    def walk(self, matches: Callable[[Info], bool]) -> Iterator[Record]:
        """Yield what matches, in byte order of the keys; nothing is locked between the steps."""
        after = ""
        while True:
            with self._database.read() as connection:
                rows = connection.execute(WALK, (after,)).fetchall()
            yield from (found for found in map(snapshot_rows.record, rows) if matches(found.info))
            if len(rows) < PAGE:
                return
            after = rows[-1]["key"]

    def ids(self) -> dict[int, str]:
        """Return id and key of every snapshot, those still preparing included."""
        with self._database.read() as connection:
            return dict(connection.execute("SELECT id, key FROM snapshots").fetchall())

    def complete_ids(self) -> dict[int, str]:
        """Return id and key of every snapshot that has all of its storage."""
        with self._database.read() as connection:
            return dict(
                connection.execute(
                    "SELECT id, key FROM snapshots WHERE state IN ('ready', 'committing')"
                ).fetchall()
            )

    def is_used(self, id: int) -> bool:
        """Tell whether an Active snapshot or a View stands on this one, or is it.

        One that is being made counts from `begin_create` on.
        """
        with self._database.read() as connection:
            row = connection.execute(_USED, (Kind.COMMITTED, id)).fetchone()
        return row is not None

    def totals(self) -> Totals:
        """Add up what is recorded; reads the whole table."""
        with self._database.read() as connection:
            return totals(connection)

    # Creating

    def begin_create(
        self, kind: Kind, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> Snapshot:
        """Take the key and an id for a new View or Active snapshot, which is preparing then.

        Raises:
            InvalidArgument: a kind that is never created, an empty key, or a parent that is not
                Committed.
            NotFound: no such parent.
            AlreadyExists: the key is taken.
            DataLoss: the parent did not survive a power loss.
        """
        if kind not in {Kind.ACTIVE, Kind.VIEW}:
            raise InvalidArgument(f"create a snapshot of kind {kind}", key)
        stored = snapshot_rows.stored_labels(labels)
        with self._write() as connection:
            parents = _parents(connection, parent) if parent else ()
            snapshot_rows.require_free(connection, key)
            now = time.time_ns()
            below = parents[0] if parents else None
            (id,) = connection.execute(
                INSERT, (key, kind, below, json.dumps(stored), now, now, self._owners.token)
            ).fetchone()
        return Snapshot(id, kind, parents, stored)

    def begin_fork(
        self,
        key: str,
        new: str,
        labels: Mapping[str, str] | None = None,
        *,
        parent: str | None = None,
        is_named: bool = False,
    ) -> tuple[Snapshot, Snapshot]:
        """Take the key `new` for a fork of the Active snapshot `key`, which is preparing then.

        Until `finish_create` or `abandon` the source is neither committed nor removed.

        Args:
            key: of the source.
            new: of the fork.
            labels: to be added to those that the source passes on.
            parent: what the fork's parent has to be; None for whatever it is.
            is_named: `key` is what a containerd's client calls the source, if `new` is a key of a
                containerd's; see `forks.source_key`.

        Returns:
            The source and the fork.

        Raises:
            LaminaError: see `forks.insert`.
        """
        with self._write() as connection:
            source = forks.source_key(connection, key, new) if is_named else key
            return forks.insert(connection, source, new, labels, self._owners.token, parent)

    def finish_create(self, id: int) -> None:
        """Make a preparing snapshot ready: its storage is complete."""
        with self._database.write() as connection:
            _change(connection, CREATED, (id, self._owners.token))

    def abandon(self, id: int) -> bool:
        """Undo `begin_create` or `begin_fork`: the key is free, the id in the trash.

        This process has claimed it there.

        Returns:
            False if another process has done so already, having taken this one for dead.
        """
        with self._database.write() as connection:
            deleted = connection.execute(
                "DELETE FROM snapshots WHERE id = ? AND owner = ?", (id, self._owners.token)
            )
            if deleted.rowcount:
                connection.execute(
                    "INSERT INTO trash (id, owner) VALUES (?, ?)", (id, self._owners.token)
                )
        return deleted.rowcount == 1

    # Committing

    def begin_commit(
        self, name: str, key: str, parent: str = "", *, can_rebase: bool = True
    ) -> Snapshot:
        """Take the name for what is to become Committed; the snapshot is committing then.

        The name of a lost layer is free for the same layer, extracted anew.

        Raises:
            InvalidArgument: an empty name, or the parent would change from one to another.
            AlreadyExists: the name is taken.
            NotFound: no such key, or no such new parent.
            FailedPrecondition: the snapshot is not Active, or being committed or forked, or the new
                parent is not Committed.
            NotImplementedHere: a new parent is given where the driver cannot rebase.
        """
        with self._write() as connection:
            if not snapshot_rows.restores(connection, name, key):
                snapshot_rows.require_free(connection, name)
            row = snapshot_rows.require(connection, key)
            if row["kind"] != Kind.ACTIVE:
                kind = Kind(row["kind"])
                raise FailedPrecondition("commit snapshot", key, hint=f"it is {kind}, not Active")
            if row["state"] == "committing":
                raise FailedPrecondition("commit snapshot", key, hint="it is being committed")
            forks.require_none(connection, row["id"], key, "commit")
            added = snapshot_rows.rebased(connection, row, parent)
            if added is not None and not can_rebase:
                raise NotImplementedHere(
                    f"commit snapshot {key} with a new parent", parent,
                    hint="prepare it with that parent, or use a snapshotter that can rebase",
                )  # fmt: skip
            connection.execute(
                "UPDATE snapshots SET state = 'committing', owner = ?, commit_name = ?,"
                " commit_parent = ? WHERE id = ?",
                (self._owners.token, name, added, row["id"]),
            )
            below = row["parent"] if added is None else added
            parents = () if below is None else snapshot_rows.chain(connection, below)
        return Snapshot(row["id"], Kind.ACTIVE, parents, json.loads(row["labels"]))

    def finish_commit(self, id: int, usage: Usage, labels: Mapping[str, str] | None = None) -> None:
        """Make a committing snapshot Committed under its new name, with these labels only.

        What stands on a lost layer of that name stands on this one then.
        """
        stored = json.dumps(snapshot_rows.stored_labels(labels))
        now = time.time_ns()
        values = (
            Kind.COMMITTED, stored, now, now, usage.inodes, usage.size, self._boot, id,
            self._owners.token,
        )  # fmt: skip
        with self._database.write() as connection:
            recovery.replace_lost(connection, id)
            _change(connection, COMMIT, values)

    def abort_commit(self, id: int) -> None:
        """Undo `begin_commit`: the name is free, and the snapshot Active as before."""
        with self._database.write() as connection:
            connection.execute(f"{recovery.ABORT_COMMIT} AND id = ?", (self._owners.token, id))

    # Changing and removing

    def update(self, info: Info, fieldpaths: Iterable[str]) -> Record:
        """Change labels as `Snapshotter.update` says, and return what is stored then."""
        with self._write() as connection:
            row = snapshot_rows.require(connection, info.name)
            labels = snapshot_rows.updated_labels(json.loads(row["labels"]), info, fieldpaths)
            connection.execute(
                "UPDATE snapshots SET labels = ?, updated = ? WHERE id = ?",
                (json.dumps(labels), time.time_ns(), row["id"]),
            )
            return _record(connection, info.name)

    def remove(self, key: str) -> tuple[int, Kind]:
        """Forget the snapshot and put its id into the trash; return the id and the kind.

        Raises:
            NotFound: there is none.
            FailedPrecondition: another snapshot has it as parent, or it is being made, committed
                or forked.
        """
        with self._write() as connection:
            row = snapshot_rows.find(connection, key)
            if row is None:
                if connection.execute(snapshot_rows.FIND, (key,)).fetchone() is not None:
                    raise FailedPrecondition("remove snapshot", key, hint="it is being prepared")
                raise snapshot_rows.missing(key)
            if row["state"] == "committing":
                raise FailedPrecondition("remove snapshot", key, hint="it is being committed")
            forks.require_none(connection, row["id"], key, "remove")
            snapshot_rows.require_no_child(connection, row, key)
            snapshot_rows.discard(connection, row["id"])
        return row["id"], Kind(row["kind"])

    # Background work and crashes

    def backlog(self) -> frozenset[tuple[str, int]]:
        """Return what is left for the background: ids to `free`, and commits to `sync`."""
        with self._database.read() as connection:
            return frozenset((work, id) for work, id in connection.execute(BACKLOG))

    def unsynced(self) -> list[int]:
        """Return the ids of the commits that a power loss would undo."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT id FROM snapshots WHERE unsynced IS NOT NULL AND unsynced <> 'failed'"
            )
            return [id for (id,) in rows]

    def mark_synced(self, ids: Iterable[int]) -> None:
        """Note, durably, that no power loss can undo these commits any more."""
        with self._database.write(durable=True) as connection:
            connection.executemany(
                "UPDATE snapshots SET unsynced = NULL WHERE id = ? AND unsynced <> 'failed'",
                [(id,) for id in ids],
            )

    def mark_failed(self, ids: Iterable[int]) -> None:
        """Note that a sync of these commits failed: they stay what the next boot undoes.

        The kernel tells of a failed write once, and later syncs succeed without the data.
        """
        with self._database.write() as connection:
            connection.executemany(
                "UPDATE snapshots SET unsynced = 'failed' WHERE id = ?", [(id,) for id in ids]
            )

    def failed(self) -> list[str]:
        """Return the keys of commits that a sync could not make durable."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT key FROM snapshots WHERE unsynced = 'failed'")
            return sorted(key for (key,) in rows)

    def recover(self) -> None:
        """Undo what the dead left half done; every other write does so as well."""
        with self._database.read() as connection:
            owners = [owner for (owner,) in connection.execute(recovery.OWNERS)]
        if any(not self._owners.alive(owner) for owner in owners):
            with self._write():
                pass

    def rebooted(self) -> bool:
        """Tell whether the store was last used under another boot, or never."""
        with self._database.read() as connection:
            row = connection.execute("SELECT id FROM boot").fetchone()
        return row is None or row["id"] != self._boot

    def reboot(self, stored: Iterable[int]) -> list[str]:
        """Take in that the machine was restarted and has perhaps lost power.

        Power loss undoes the last transactions and the last writes to files, each on its own. So
        commits that nobody synced are dropped, or marked lost where others stand on them; Views and
        Active snapshots without storage are dropped; storage without snapshot goes to the trash,
        and ids found on disk are never given out again.

        Args:
            stored: ids for which there is storage, listed before this call.

        Returns:
            The keys of what was dropped or is lost.
        """
        on_disk = set(stored)
        with self._write() as connection:
            row = connection.execute("SELECT id FROM boot").fetchone()
            if row is not None and row["id"] == self._boot:
                return []  # another process was faster
            connection.execute("DELETE FROM boot")
            connection.execute("INSERT INTO boot (id) VALUES (?)", (self._boot,))
            recovery.raise_sequence(connection, max(on_disk, default=0))
            recovery.adopt_orphans(connection, on_disk)
            return [
                *recovery.drop_unstored(connection, on_disk),
                *recovery.drop_unsynced(connection, self._boot),
            ]

    def half_done(self) -> list[tuple[str, str]]:
        """Return key and state of what dead owners left preparing or committing."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT key, state, owner FROM snapshots WHERE owner IS NOT NULL"
            ).fetchall()
        return [(key, state) for key, state, owner in rows if not self._owners.alive(owner)]

    def lost(self) -> list[str]:
        """Return the keys of Committed snapshots that did not survive a power loss."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT key FROM snapshots WHERE state = 'lost' ORDER BY key")
            return [key for (key,) in rows]

    def damage(self) -> list[str]:
        """Return what is wrong with the file itself and with references inside it."""
        with self._database.read() as connection:
            return recovery.damage(connection)

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One write transaction, in which nothing half done by the dead is left."""
        with self._database.write() as connection:
            recovery.undo_dead(connection, self._owners)
            yield connection


def _change(connection: sqlite3.Connection, statement: str, values: tuple[object, ...]) -> None:
    if connection.execute(statement, values).rowcount != 1:
        raise Aborted("change a snapshot: another process took this one for dead")


def _record(connection: sqlite3.Connection, key: str) -> Record:
    row = connection.execute(
        f"{snapshot_rows.INFO} = ?", (snapshot_rows.encodable(key),)
    ).fetchone()
    if row is None:
        raise snapshot_rows.missing(key)
    if row["state"] == "lost":
        # A containerd that lists snapshots asks for each, and gives up at any other error.
        raise NotFound("content of snapshot", key, hint=snapshot_rows.remedy(key))
    return snapshot_rows.record(row)


def _parents(connection: sqlite3.Connection, parent: str) -> tuple[int, ...]:
    row = snapshot_rows.find(connection, parent)
    if row is None:
        raise NotFound("parent snapshot", parent)
    if row["kind"] != Kind.COMMITTED:
        raise InvalidArgument("use as parent what is not Committed", parent)
    return snapshot_rows.chain(connection, row["id"])
