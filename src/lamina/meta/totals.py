"""Sums over one snapshotter's store, from what is recorded there: nothing on disk is measured."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import NamedTuple

from lamina.core.snapshot import Kind, Usage

_KINDS = """
SELECT kind, count(*), sum(inodes), sum(size) FROM snapshots WHERE state <> 'preparing'
GROUP BY kind"""
_UNSYNCED = "SELECT count(*) FROM snapshots WHERE unsynced IS NOT NULL AND unsynced <> 'failed'"
_PENDING = "SELECT count(*) FROM trash"
# AUTOINCREMENT counts every row that there ever was.
_REMOVALS = "SELECT seq FROM sqlite_sequence WHERE name = 'trash'"


class Totals(NamedTuple):
    """What a store has, and has got rid of.

    Attributes:
        kinds: how many snapshots there are of each kind.
        usage: sum of what was measured at the commits.
        unsynced: commits that would not survive power loss yet.
        removals_pending: removed snapshots whose storage is still to be freed.
        removals_done: those freed since the store was made.
    """

    kinds: Mapping[Kind, int]
    usage: Usage
    unsynced: int
    removals_pending: int
    removals_done: int


def totals(connection: sqlite3.Connection) -> Totals:
    """Add everything up, in one reading transaction."""
    connection.execute("BEGIN")
    try:
        rows = connection.execute(_KINDS).fetchall()
        (unsynced,) = connection.execute(_UNSYNCED).fetchone()
        (pending,) = connection.execute(_PENDING).fetchone()
        removals = connection.execute(_REMOVALS).fetchone()
    finally:
        connection.execute("ROLLBACK")
    kinds = dict.fromkeys((Kind.VIEW, Kind.ACTIVE, Kind.COMMITTED), 0)
    usage = Usage()
    for kind, count, inodes, size in rows:
        kinds[Kind(kind)] = count
        usage += Usage(inodes, size)
    removed = removals[0] if removals else 0
    return Totals(kinds, usage, unsynced, pending, removed - pending)
