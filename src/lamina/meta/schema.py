"""Schema of `ROOT/metadata.sqlite`: images, content, leases, containers, launches.

Times are nanoseconds since the epoch; labels and annotations are JSON objects.
"""

from __future__ import annotations

from pathlib import Path

from lamina.meta.containers import CONTAINERS
from lamina.meta.database import Database
from lamina.meta.launches import LAUNCHES

IMAGES = """
CREATE TABLE images (
    name TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    media_type TEXT NOT NULL,
    size INTEGER NOT NULL,
    annotations TEXT NOT NULL,
    labels TEXT NOT NULL,
    created_ns INTEGER NOT NULL,
    updated_ns INTEGER NOT NULL
) WITHOUT ROWID, STRICT;
CREATE TABLE content (
    digest TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    labels TEXT NOT NULL,
    created_ns INTEGER NOT NULL,
    updated_ns INTEGER NOT NULL,
    unsynced TEXT  -- id of the boot that wrote the blob, until a syncfs has made it durable
) WITHOUT ROWID, STRICT;
CREATE INDEX content_unsynced ON content (unsynced) WHERE unsynced IS NOT NULL;
CREATE TABLE leases (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,  -- token of the process that holds it; '' for one held until it expires
    labels TEXT NOT NULL,
    created_ns INTEGER NOT NULL,
    expires_ns INTEGER NOT NULL
) WITHOUT ROWID, STRICT;
CREATE TABLE lease_resources (
    lease TEXT NOT NULL REFERENCES leases (id) ON DELETE CASCADE,
    type TEXT NOT NULL,  -- 'content', 'snapshots/NAME' or 'images', as in containerd
    id TEXT NOT NULL,
    PRIMARY KEY (lease, type, id)
) WITHOUT ROWID, STRICT
"""

MIGRATIONS = (IMAGES, CONTAINERS, LAUNCHES)
METADATA = "metadata.sqlite"


def open_metadata(root: Path) -> Database:
    """Open the database of a root directory, which exists; the caller closes it."""
    return Database(root / METADATA, MIGRATIONS)
