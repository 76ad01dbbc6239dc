"""Schema of a snapshotter's `snapshots.sqlite`; `docs/internals/store.md` explains it.

Times are nanoseconds since the epoch; labels are a JSON object. Ids are never reused
(AUTOINCREMENT), because storage is named after them and removed later than the row.
"""

from __future__ import annotations

SNAPSHOTS = """
CREATE TABLE snapshots (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE CHECK (key <> ''),
    kind INTEGER NOT NULL CHECK (kind IN (1, 2, 3)),
    state TEXT NOT NULL CHECK (state IN ('preparing', 'ready', 'committing', 'lost')),
    parent INTEGER REFERENCES snapshots (id),
    labels TEXT NOT NULL,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    inodes INTEGER NOT NULL DEFAULT 0,
    size INTEGER NOT NULL DEFAULT 0,
    owner TEXT,             -- token of the process that is preparing or committing it
    commit_name TEXT UNIQUE CHECK (commit_name <> ''),    -- while committing
    commit_parent INTEGER REFERENCES snapshots (id),      -- while committing with a new parent
    unsynced TEXT,          -- id of the boot that committed it, until it is durable; or 'failed'
    CHECK ((owner IS NOT NULL) = (state IN ('preparing', 'committing'))),
    CHECK ((commit_name IS NOT NULL) = (state = 'committing'))
) STRICT;
CREATE INDEX snapshots_parent ON snapshots (parent) WHERE parent IS NOT NULL;
CREATE INDEX snapshots_commit_parent ON snapshots (commit_parent) WHERE commit_parent IS NOT NULL;
CREATE INDEX snapshots_owner ON snapshots (owner) WHERE owner IS NOT NULL;
CREATE INDEX snapshots_unsynced ON snapshots (unsynced) WHERE unsynced IS NOT NULL;
CREATE TABLE trash (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- children are removed before their parents
    id INTEGER NOT NULL UNIQUE,             -- of a snapshot that is gone, its storage not yet
    owner TEXT                              -- token of the process that is destroying it
) STRICT;
CREATE INDEX trash_owner ON trash (owner) WHERE owner IS NOT NULL;
CREATE TABLE boot (
    id TEXT NOT NULL                        -- the boot under which the store was last opened
) STRICT
"""

FORKS = """
ALTER TABLE snapshots ADD COLUMN fork_of INTEGER;
CREATE INDEX snapshots_fork_of ON snapshots (fork_of) WHERE fork_of IS NOT NULL
"""
"""`fork_of`: while a fork is preparing, the id of its source."""

MIGRATIONS = (SNAPSHOTS, FORKS)
