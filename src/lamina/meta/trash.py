"""Ids whose snapshots are gone while their storage is not yet: the work left for the background.

Whoever destroys storage claims its id first, so that several processes never work on the same one.
A dead owner's claim is void.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from lamina.meta.database import Database
from lamina.meta.owners import Owners


class Trash:
    """The table `trash` of a snapshot store."""

    def __init__(self, database: Database, owners: Owners) -> None:
        self._database = database
        self._owners = owners

    def claim(self, limit: int, *, besides: frozenset[int] = frozenset()) -> list[int]:
        """Claim up to `limit` ids, those removed first before others, and not those `besides`.

        Once this returns, no power loss can bring their snapshots back: the bytes may go.
        """
        with self._database.write(durable=True) as connection:
            self._void_dead_claims(connection)
            rows = connection.execute("SELECT id FROM trash WHERE owner IS NULL ORDER BY seq")
            ids: list[int] = []
            for row in rows:
                if len(ids) == limit:
                    break
                if row["id"] not in besides:
                    ids.append(row["id"])
            self._set_owner(connection, self._owners.token, ids)
        return ids

    def unclaim(self, ids: Iterable[int]) -> None:
        """Give back ids whose storage is still there."""
        with self._database.write() as connection:
            self._set_owner(connection, None, ids)

    def forget(self, ids: Iterable[int]) -> None:
        """Take out ids whose storage is gone."""
        with self._database.write() as connection:
            connection.executemany("DELETE FROM trash WHERE id = ?", [(id,) for id in ids])

    def claimed_by_others(self) -> set[int]:
        """Return the ids that other living owners are working on just now."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT id, owner FROM trash WHERE owner IS NOT NULL"
            ).fetchall()
        own = self._owners.token
        return {id for id, owner in rows if owner != own and self._owners.alive(owner)}

    def adopt_orphans(self, stored: Iterable[int]) -> list[int]:
        """Take in what has storage but no snapshot, and return those ids.

        Args:
            stored: ids for which there is storage, listed before this call: whatever is created
                meanwhile has its row before its storage.
        """
        with self._database.write() as connection:
            rows = connection.execute("SELECT id FROM snapshots UNION ALL SELECT id FROM trash")
            orphans = sorted(set(stored) - {id for (id,) in rows})
            connection.executemany("INSERT INTO trash (id) VALUES (?)", [(id,) for id in orphans])
        return orphans

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
