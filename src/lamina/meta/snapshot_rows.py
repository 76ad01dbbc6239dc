"""What the snapshot store asks of its rows, within a transaction of the caller's."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from lamina.core.labels import SNAPSHOT_REF
from lamina.core.snapshot import EPOCH, Info, Kind, Usage
from lamina.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)

INFO = """
SELECT s.id, s.key, s.kind, coalesce(p.key, '') AS parent, s.labels, s.created, s.updated,
       s.inodes, s.size, s.state
FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent
WHERE s.state <> 'preparing' AND s.key"""
"""Query for records; goes on with a condition on the key."""

FIND = "SELECT id, kind, state, parent, labels FROM snapshots WHERE key = ?"
HOLDER = "SELECT id FROM snapshots WHERE key = ?1 OR commit_name = ?1"
COMMITTING_TO = "SELECT id FROM snapshots WHERE commit_name = ?"
CHILD = """
SELECT key FROM snapshots WHERE parent = ?1
UNION ALL SELECT key FROM snapshots WHERE commit_parent = ?1 LIMIT 1"""
CHAIN = """
WITH RECURSIVE chain (id, parent, key, state, depth) AS (
    SELECT id, parent, key, state, 0 FROM snapshots WHERE id = ?
    UNION ALL
    SELECT s.id, s.parent, s.key, s.state, depth + 1
    FROM chain JOIN snapshots s ON s.id = chain.parent
) SELECT id, key, state FROM chain ORDER BY depth"""


_KINDS = tuple(Kind)
_DECODER = json.JSONDecoder()

_CONTAINERDS = re.compile(r"[^/]+/[0-9]+/.+", re.DOTALL)
"""Keys that a containerd gives to a daemon: `NAMESPACE/NUMBER/KEY`. It has records of its own."""
_ASK_CONTAINERD = "a containerd has it: remove there its containers and image, then pull that again"


class Record(NamedTuple):
    """One snapshot as stored; `usage` is what was measured at commit, else nothing."""

    id: int
    info: Info
    usage: Usage


def record(row: sqlite3.Row) -> Record:
    """Decode a row of the query `INFO`."""
    id, key, kind, parent, labels, created, updated, inodes, size, _ = row
    info = Info(key, _KINDS[kind], parent, _labels(labels), _time(created), _time(updated))
    return Record(id, info, Usage(inodes, size))


def _labels(text: str) -> dict[str, str]:
    # Not json.loads, half of whose time goes into looking for spaces around the value.
    labels: dict[str, str] = _DECODER.raw_decode(text)[0]
    return labels


def _time(nanoseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=nanoseconds // 1000)


def encodable(key: str) -> str:
    """Return the key.

    Raises:
        InvalidArgument: it has lone surrogates, and so no place in the order of keys.
    """
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument("use as key what is not Unicode text", ascii(key)) from error
    return key


def find(connection: sqlite3.Connection, key: str) -> sqlite3.Row | None:
    """Return the row of a snapshot that is visible: not one still preparing."""
    row: sqlite3.Row | None = connection.execute(FIND, (encodable(key),)).fetchone()
    return None if row is None or row["state"] == "preparing" else row


def require(connection: sqlite3.Connection, key: str) -> sqlite3.Row:
    """Return the row of a visible snapshot.

    Raises:
        NotFound: there is none.
    """
    row = find(connection, key)
    if row is None:
        raise missing(key)
    return row


def missing(key: str) -> NotFound:
    """Return the error of a snapshot that is not there; an empty key never is one's."""
    return NotFound("snapshot", key) if key else NotFound('snapshot ""', hint="name its key")


def require_free(connection: sqlite3.Connection, key: str) -> None:
    """Raise AlreadyExists where the key is taken, InvalidArgument where it is empty."""
    if not key:
        raise InvalidArgument("use an empty snapshot key")
    if connection.execute(HOLDER, (encodable(key),)).fetchone() is not None:
        raise AlreadyExists("snapshot", key)


def restores(connection: sqlite3.Connection, name: str, key: str) -> bool:
    """Tell whether `key`, once committed as `name`, is again the layer that was lost there.

    The label SNAPSHOT_REF of both must name the same chain of layers.
    """
    lost, new = find(connection, name), find(connection, key)
    if lost is None or new is None or lost["state"] != "lost":
        return False
    if connection.execute(COMMITTING_TO, (name,)).fetchone() is not None:
        return False  # someone else is restoring it
    ref = json.loads(lost["labels"]).get(SNAPSHOT_REF)
    return ref is not None and ref == json.loads(new["labels"]).get(SNAPSHOT_REF)


def require_no_child(connection: sqlite3.Connection, row: sqlite3.Row, key: str) -> None:
    """Raise FailedPrecondition where another snapshot has this one as parent, or is to have it."""
    child = connection.execute(CHILD, (row["id"],)).fetchone()
    if child is not None:
        raise FailedPrecondition(
            f'remove snapshot "{key}": it is the parent of', child["key"],
            hint="remove that one first",
        )  # fmt: skip


def asks_containerd(key: str) -> str:
    """Return what to do about damage where a containerd has the records; "" where none has.

    It unpacks nothing that it has a record of, so that a pull alone does not help.
    """
    return _ASK_CONTAINERD if _CONTAINERDS.fullmatch(key) else ""


def remedy(key: str) -> str:
    """Return what helps where a layer did not survive a power loss."""
    own = "pull its image again to restore it, or remove it and what stands on it"
    return asks_containerd(key) or own


def require_content(row: sqlite3.Row) -> None:
    """Raise DataLoss where the snapshot did not survive a power loss."""
    if row["state"] == "lost":
        raise DataLoss(
            "use a layer that was not yet on disk when the machine lost power:", row["key"],
            hint=remedy(row["key"]),
        )  # fmt: skip


def chain(connection: sqlite3.Connection, id: int) -> tuple[int, ...]:
    """Return this id and those below it, the base layer last.

    Raises:
        DataLoss: one of them did not survive a power loss.
    """
    rows = connection.execute(CHAIN, (id,)).fetchall()
    for row in rows:
        require_content(row)
    return tuple(row["id"] for row in rows)


def rebased(connection: sqlite3.Connection, row: sqlite3.Row, parent: str) -> int | None:
    """Return the id of the parent that a commit with `parent` adds; None where none is added.

    Raises:
        InvalidArgument: the snapshot has another parent.
        NotFound: no such parent.
        FailedPrecondition: the parent is not Committed.
    """
    if not parent:
        return None
    found = find(connection, parent)
    if row["parent"] is not None:
        if found is None or found["id"] != row["parent"]:
            raise InvalidArgument("change the parent of a snapshot that has one to", parent)
        return None
    if found is None:
        raise NotFound("parent snapshot", parent)
    if found["kind"] != Kind.COMMITTED:
        raise FailedPrecondition("rebase onto what is not Committed", parent)
    return int(found["id"])


def stored_labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    """Return the labels that are to be stored: an empty value deletes its label."""
    return {key: value for key, value in (labels or {}).items() if value}


def updated_labels(stored: Mapping[str, str], info: Info, paths: Iterable[str]) -> dict[str, str]:
    """Return the labels after `Snapshotter.update`.

    Raises:
        InvalidArgument: a field path names something else than labels.
    """
    paths = tuple(paths)
    labels = dict(stored if paths else info.labels)
    for path in paths:
        if path == "labels":
            labels = dict(info.labels)
        elif path.startswith("labels."):
            key = path.removeprefix("labels.")
            labels[key] = info.labels.get(key, "")
        else:
            raise InvalidArgument(f'cannot update "{path}" field on snapshot', info.name)
    return stored_labels(labels)


def discard(connection: sqlite3.Connection, id: int, owner: str | None = None) -> None:
    """Move a snapshot to the trash, claimed by `owner` if given."""
    connection.execute("DELETE FROM snapshots WHERE id = ?", (id,))
    connection.execute("INSERT INTO trash (id, owner) VALUES (?, ?)", (id, owner))
