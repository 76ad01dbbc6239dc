"""How the snapshot store gets over what a crash left, within a transaction of the caller's."""

from __future__ import annotations

import sqlite3
from collections.abc import Set as AbstractSet

from lamina.core.snapshot import Kind
from lamina.meta.owners import Owners
from lamina.meta.snapshot_rows import discard

ABORT_COMMIT = """
UPDATE snapshots SET state = 'ready', owner = NULL, commit_name = NULL, commit_parent = NULL
WHERE state = 'committing' AND owner = ?"""
"""Makes Active again what an owner is committing; may go on with a further condition."""

LOST = """
SELECT lost.id FROM snapshots new JOIN snapshots lost ON lost.key = new.commit_name
WHERE new.id = ? AND lost.state = 'lost'"""
OWNERS = "SELECT DISTINCT owner FROM snapshots WHERE owner IS NOT NULL"


def undo_dead(connection: sqlite3.Connection, owners: Owners) -> None:
    """Undo what dead owners were preparing or committing."""
    for (owner,) in connection.execute(OWNERS).fetchall():
        if not owners.alive(owner):
            _undo(connection, owner)


def _undo(connection: sqlite3.Connection, owner: str) -> None:
    connection.execute(ABORT_COMMIT, (owner,))
    preparing = connection.execute("SELECT id FROM snapshots WHERE owner = ?", (owner,)).fetchall()
    for (id,) in preparing:
        discard(connection, id)


def raise_sequence(connection: sqlite3.Connection, id: int) -> None:
    """Never give out an id up to this one."""
    changed = connection.execute(
        "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = 'snapshots'", (id,)
    ).rowcount
    if not changed:
        connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('snapshots', ?)", (id,))


def adopt_orphans(connection: sqlite3.Connection, on_disk: AbstractSet[int]) -> list[int]:
    """Put into the trash what has storage but no snapshot; return those ids.

    The newest go first: they may stand on older ones.
    """
    rows = connection.execute("SELECT id FROM snapshots UNION ALL SELECT id FROM trash")
    orphans = sorted(on_disk - {id for (id,) in rows}, reverse=True)
    connection.executemany("INSERT INTO trash (id) VALUES (?)", [(id,) for id in orphans])
    return orphans


def drop_unstored(connection: sqlite3.Connection, on_disk: AbstractSet[int]) -> list[str]:
    """Drop Views and Active snapshots that have no storage; return their keys."""
    rows = connection.execute(
        "SELECT id, key FROM snapshots WHERE kind <> ?", (Kind.COMMITTED,)
    ).fetchall()
    missing = [row for row in rows if row["id"] not in on_disk]
    for row in missing:
        discard(connection, row["id"])
    return [row["key"] for row in missing]


def drop_unsynced(connection: sqlite3.Connection, boot: str) -> list[str]:
    """Drop what was committed under another boot and never synced; return the keys.

    What others stand on stays and is marked lost. Children go before their parents, so a chain of
    such commits goes as a whole.
    """
    keys = []
    while True:
        leaves = connection.execute(
            "SELECT id, key FROM snapshots s WHERE unsynced <> ?"
            " AND NOT EXISTS (SELECT 1 FROM snapshots c WHERE c.parent = s.id)",
            (boot,),
        ).fetchall()
        if not leaves:
            break
        for row in leaves:
            discard(connection, row["id"])
            keys.append(row["key"])
    kept = connection.execute(
        "UPDATE snapshots SET state = 'lost', unsynced = NULL WHERE unsynced <> ? RETURNING key",
        (boot,),
    )
    return [*keys, *(row["key"] for row in kept.fetchall())]


def replace_lost(connection: sqlite3.Connection, id: int) -> None:
    """Let what is being committed take the place of the lost snapshot of its name, if one is."""
    lost = connection.execute(LOST, (id,)).fetchone()
    if lost is None:
        return
    connection.execute("UPDATE snapshots SET parent = ? WHERE parent = ?", (id, lost["id"]))
    discard(connection, lost["id"])


def damage(connection: sqlite3.Connection) -> list[str]:
    """Return what is wrong with the database file itself and with references inside it."""
    from lamina.meta.damage import dangling, integrity  # only a check needs it

    uncommitted = connection.execute(
        "SELECT s.key FROM snapshots s JOIN snapshots p ON p.id = s.parent WHERE p.kind <> ?",
        (Kind.COMMITTED,),
    ).fetchall()
    return [
        *integrity(connection),
        *(
            f"row {id} of table {table} refers to a row that is gone"
            for table, id in dangling(connection)
        ),
        *(f'the parent of snapshot "{row[0]}" is not Committed' for row in uncommitted),
    ]
