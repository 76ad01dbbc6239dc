"""Which snapshot is being forked, within a transaction of the caller's.

The row of a fork names its source while it is preparing. That guards the source: it is neither
committed nor removed meanwhile, by no process. When the fork's owner dies the row goes, as every
preparing one does, and the guard with it.
"""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Mapping

from lamina.core.driver import Snapshot
from lamina.core.labels import (
    FORKED_FROM,
    GID_MAPPING,
    MAX_SIZE,
    NOT_FORKED,
    NOT_FORKED_PREFIX,
    UID_MAPPING,
)
from lamina.core.snapshot import Kind
from lamina.errors import FailedPrecondition, InvalidArgument, NotFound
from lamina.meta import snapshot_rows

BEING_FORKED = "SELECT key FROM snapshots WHERE fork_of = ?"
_INSERT = """
INSERT INTO snapshots (key, kind, state, parent, labels, created, updated, owner, fork_of)
VALUES (?, ?, 'preparing', ?, ?, ?, ?, ?, ?) RETURNING id"""
IN_NAMESPACE = """
SELECT key FROM snapshots
WHERE key > ?1 || '/' AND key < ?1 || '0' AND kind = 2 AND state <> 'preparing'"""
_IN_STORAGE = (UID_MAPPING, GID_MAPPING, MAX_SIZE)
"""What a snapshot's storage was made with, so that a fork cannot have it otherwise."""
_CONTAINERDS = re.compile(r"([^/]+)/([0-9]+)/(.+)", re.DOTALL)


def insert(
    connection: sqlite3.Connection,
    key: str,
    new: str,
    labels: Mapping[str, str] | None,
    owner: str,
    parent: str | None,
) -> tuple[Snapshot, Snapshot]:
    """Take the key `new` for a fork of `key`; return both as the driver is told of them.

    Raises:
        NotFound: no such source.
        FailedPrecondition: the source is not Active, or being committed.
        AlreadyExists: the new key is taken.
        InvalidArgument: the new key is empty, `parent` is not the source's, or a label does not
            fit the source's storage.
        DataLoss: the source stands on what did not survive a power loss.
    """
    row = snapshot_rows.require(connection, key)
    if row["kind"] != Kind.ACTIVE:
        hint = f"it is {Kind(row['kind'])}, not Active: " + (
            "prepare a snapshot on it"
            if row["kind"] == Kind.COMMITTED
            else "prepare a snapshot on its parent"
        )
        raise FailedPrecondition("fork snapshot", key, hint=hint)
    if row["state"] == "committing":
        raise FailedPrecondition("fork snapshot", key, hint="it is being committed")
    snapshot_rows.require_free(connection, new)
    parents = snapshot_rows.chain(connection, row["id"])[1:]
    if parent is not None:
        _require_parent(connection, row, key, parent)
    source = Snapshot(row["id"], Kind.ACTIVE, parents, json.loads(row["labels"]))
    stored = forked_labels(source.labels, key, labels)
    now = time.time_ns()
    values = (new, Kind.ACTIVE, row["parent"], json.dumps(stored), now, now, owner, source.id)
    (id,) = connection.execute(_INSERT, values).fetchone()
    return source, Snapshot(id, Kind.ACTIVE, parents, stored)


def forked_labels(
    source: Mapping[str, str], key: str, given: Mapping[str, str] | None
) -> dict[str, str]:
    """Return a fork's labels: the source's, without those about it alone, then those given.

    Raises:
        InvalidArgument: one that is given does not fit the storage that is copied.
    """
    given = given or {}
    for name in _IN_STORAGE:
        if name in given and given[name] != source.get(name, ""):
            hint = f'the source has "{source.get(name, "")}", and its storage is copied as it is'
            raise InvalidArgument(f"fork with another label {name}", given[name], hint=hint)
    kept = {
        name: value
        for name, value in source.items()
        if name not in NOT_FORKED and not name.startswith(NOT_FORKED_PREFIX)
    }
    return snapshot_rows.stored_labels({**kept, **given, FORKED_FROM: key})


def require_none(connection: sqlite3.Connection, id: int, key: str, what: str) -> None:
    """Raise FailedPrecondition where the snapshot is being forked."""
    fork = connection.execute(BEING_FORKED, (id,)).fetchone()
    if fork is not None:
        hint = f'it is being forked as "{fork["key"]}": try again when that is done'
        raise FailedPrecondition(f"{what} snapshot", key, hint=hint)


def source_key(connection: sqlite3.Connection, named: str, new: str) -> str:
    """Return the key of the source that whoever asks for the key `new` calls `named`.

    A containerd sends `NAMESPACE/NUMBER/KEY` for its client's KEY, and passes a label on as it
    is. What its client has named is the newest of that KEY in that namespace.
    """
    asked = _CONTAINERDS.fullmatch(new)
    if asked is None:
        return named
    rows = connection.execute(IN_NAMESPACE, (asked[1],)).fetchall()
    matches = (_CONTAINERDS.fullmatch(row["key"]) for row in rows)
    found = {int(match[2]): match[0] for match in matches if match and match[3] == named}
    return found[max(found)] if found else named


def _require_parent(
    connection: sqlite3.Connection, row: sqlite3.Row, key: str, parent: str
) -> None:
    """Check the parent that whoever asks takes the fork to have: it may keep a record of that."""
    found = connection.execute(
        "SELECT key FROM snapshots WHERE id = ?", (row["parent"],)
    ).fetchone()
    actual = "" if found is None else found["key"]
    if actual == parent:
        return
    if parent and snapshot_rows.find(connection, parent) is None:
        raise NotFound("parent snapshot", parent)
    raise InvalidArgument(
        f'fork snapshot "{key}" with the parent', parent,
        hint=f'a fork has its source\'s: "{actual}"',
    )  # fmt: skip
