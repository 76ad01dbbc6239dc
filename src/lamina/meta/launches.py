"""What running an image needs, as worked out once from its content.

To run an image, its layers' chain id and its process are needed, which its manifest and its
configuration tell. Both are named by the digest that the image's record points at, so what they
say never changes and is remembered with that digest: a tag that moves leads to another row, and
the row goes with the content. The documents are read and checked in one place only
(`lamina.images`), and only when there is no row.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable
from typing import NamedTuple

from lamina.core.process import ImageProcess
from lamina.meta.database import Database

LAUNCHES = """
CREATE TABLE launches (
    digest TEXT NOT NULL REFERENCES content (digest) ON DELETE CASCADE,
    machine TEXT NOT NULL,  -- uname(2)'s; which image of an index is the right one depends on it
    chain_id TEXT NOT NULL,
    process TEXT NOT NULL,  -- JSON object of the fields of ImageProcess
    PRIMARY KEY (digest, machine)
) WITHOUT ROWID, STRICT
"""
"""SQL script of the table; one of the migrations of `metadata.sqlite`."""

_FIND = """
SELECT chain_id, process FROM images
LEFT JOIN launches ON launches.digest = images.digest AND machine = ?
WHERE name = ?"""


class Launch(NamedTuple):
    """How to run an image: the name of its top layer's snapshot ("" for none), and its process."""

    chain_id: str
    process: ImageProcess


class Launches:
    """The table of launches on this machine; every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._machine = os.uname().machine

    def find(self, names: Iterable[str]) -> Launch | None:
        """Return what is remembered of the first of these names that an image has."""
        with self._database.read() as connection:
            for name in names:
                row = connection.execute(_FIND, (self._machine, name)).fetchone()
                if row is not None:
                    return _from_row(row)
        return None

    def remember(self, digest: str, launch: Launch) -> None:
        """Remember how to run the image of this digest; nothing where its content is gone."""
        process = json.dumps({**launch.process._asdict(), "labels": dict(launch.process.labels)})
        with self._database.write() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO launches SELECT digest, ?, ?, ? FROM content"
                " WHERE digest = ?",
                (self._machine, launch.chain_id, process, digest),
            )


def _from_row(row: sqlite3.Row) -> Launch | None:
    if row["process"] is None:
        return None
    return Launch(row["chain_id"], ImageProcess(**json.loads(row["process"])))
