"""Schema of `ROOT/metadata.sqlite`: images, content, leases, containers.

Times are microseconds since the epoch; labels and annotations are JSON objects.
"""

from __future__ import annotations

IMAGES = """
CREATE TABLE images (
    name TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    media_type TEXT NOT NULL,
    size INTEGER NOT NULL,
    annotations TEXT NOT NULL,
    labels TEXT NOT NULL,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE content (
    digest TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    labels TEXT NOT NULL,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    unsynced TEXT  -- id of the boot that wrote the blob, until a syncfs has made it durable
) WITHOUT ROWID;
CREATE INDEX content_unsynced ON content (unsynced) WHERE unsynced IS NOT NULL;
CREATE TABLE leases (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,  -- token of the process that holds it; '' for one held until it expires
    labels TEXT NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE lease_resources (
    lease TEXT NOT NULL REFERENCES leases (id) ON DELETE CASCADE,
    type TEXT NOT NULL,  -- 'content', 'snapshots/NAME' or 'images', as in containerd
    id TEXT NOT NULL,
    PRIMARY KEY (lease, type, id)
) WITHOUT ROWID
"""

MIGRATIONS = (IMAGES,)
