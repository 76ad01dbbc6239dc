"""Ids whose snapshots are gone while their storage is not yet: the work left for the background.

Whoever destroys storage claims its id first, so that several processes never work on the same one.
A dead owner's claim is void.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from itertools import islice

from lamina.meta.database import Database
from lamina.meta.owners import Owners
from lamina.meta.recovery import adopt_orphans


class Trash:
    """The table `trash` of a snapshot store."""

    def __init__(self, database: Database, owners: Owners) -> None:
        self._database = database
        self._owners = owners

    def claim(self, limit: int, *, besides: AbstractSet[int] = frozenset()) -> list[int]:
        """Claim up to `limit` ids, the longest removed first, and none of those `besides`.

        Once this returns, no power loss can bring their snapshots back: the bytes may go.
        """
        with self._database.write(durable=True) as connection:
            self._void_dead_claims(connection)
            rows = connection.execute("SELECT id FROM trash WHERE owner IS NULL ORDER BY seq")
            ids = list(islice((id for (id,) in rows if id not in besides), limit))
            self._set_owner(connection, self._owners.token, ids)
        return ids

    def claim_one(self, id: int) -> bool:
        """Claim this id, as `claim` does; false if another claims it or it is not in the trash."""
        with self._database.write(durable=True) as connection:
            self._void_dead_claims(connection)
            changed = connection.execute(
                "UPDATE trash SET owner = ? WHERE id = ? AND owner IS NULL",
                (self._owners.token, id),
            )
            return changed.rowcount == 1

    def settle(self, gone: Iterable[int], kept: Iterable[int]) -> None:
        """Give claimed ids up: forget those whose storage is gone, leave the others to anybody."""
        with self._database.write() as connection:
            connection.executemany("DELETE FROM trash WHERE id = ?", [(id,) for id in gone])
            self._set_owner(connection, None, kept)

    def adopt_orphans(self, stored: Iterable[int]) -> list[int]:
        """Take in what has storage but no snapshot, and return those ids.

        Args:
            stored: ids for which there is storage, listed before this call: whatever is created
                meanwhile has its row before its storage.
        """
        on_disk = set(stored)
        with self._database.write() as connection:
            return adopt_orphans(connection, on_disk)

    def ids(self) -> set[int]:
        """Return the ids in the trash."""
        with self._database.read() as connection:
            return {id for (id,) in connection.execute("SELECT id FROM trash")}

    def _void_dead_claims(self, connection: sqlite3.Connection) -> None:
        owners = connection.execute("SELECT DISTINCT owner FROM trash WHERE owner IS NOT NULL")
        dead = [(owner,) for (owner,) in owners.fetchall() if not self._owners.alive(owner)]
        connection.executemany("UPDATE trash SET owner = NULL WHERE owner = ?", dead)

    @staticmethod
    def _set_owner(connection: sqlite3.Connection, owner: str | None, ids: Iterable[int]) -> None:
        connection.executemany(
            "UPDATE trash SET owner = ? WHERE id = ?", [(owner, id) for id in ids]
        )
