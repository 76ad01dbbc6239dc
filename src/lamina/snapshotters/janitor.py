"""The janitor: a process that frees removed storage and syncs commits, when nobody else is busy.

    python -m lamina.snapshotters.janitor ROOT

There is at most one per root. It does what is to be done for all registered snapshotters and for
the content store, at idle priority, and ends. No wake-up is lost: whoever finds the janitor's lock
taken has changed the store before, and the janitor looks once more after it has let go of the lock.
What it cannot do stays for the next one, and is what `cleanup` complains of.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from lamina.errors import LaminaError
from lamina.linux.priority import become_idle
from lamina.meta.boot import boot_id
from lamina.meta.content import ContentTable
from lamina.meta.database import Database
from lamina.meta.schema import METADATA, open_metadata
from lamina.snapshotters import find
from lamina.snapshotters.engine import DATABASE, Engine
from lamina.snapshotters.wakeup import REGISTRATIONS, janitor_lock

log = logging.getLogger(__name__)

REST = 0.5
"""Seconds of pause for each second of removing, so that the disk's queue has room for others."""

Backlog = frozenset[tuple[object, ...]]


class Chore(Protocol):
    """The background work of one part of the root."""

    def backlog(self) -> Backlog:
        """Return what there is to do."""
        ...

    def work(self) -> None:
        """Do it; what fails stays in the backlog."""
        ...


class SnapshotterChore:
    """Syncs a snapshotter's commits and frees what was removed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def backlog(self) -> Backlog:
        """Return the engine's, with its name."""
        return frozenset((self._engine.name, *item) for item in self._engine.backlog())

    def work(self) -> None:
        """Sync first: the commits are what a loss of power would undo."""
        try:
            self._engine.sync()
        finally:  # a full disk fails a sync until something is freed
            self._engine.reap(rest=REST)
        if self._engine.evicts:  # what was in use before the removal can go now
            self._engine.shrink()


class ContentChore:
    """Syncs blobs."""

    def __init__(self, root: Path, database: Database) -> None:
        self._root = root
        self._database = database
        self._table = ContentTable(database, boot=boot_id())

    def backlog(self) -> Backlog:
        """Return the blobs that are not known to be durable."""
        return frozenset(("content", digest) for digest in self._table.unsynced())

    def work(self) -> None:
        """Sync them all at once."""
        from lamina.images.content import DIRECTORY, ContentStore  # runs of containers leave none

        ContentStore(self._root / DIRECTORY, self._database).sync()


def run(root: Path) -> Backlog:
    """Be the janitor of this root until nothing is left that can be done; return what cannot."""
    stuck: Backlog = frozenset()
    while True:
        with janitor_lock(root, fcntl.LOCK_EX) as locked:
            if not locked:
                return frozenset()
            with _chores(root) as chores:
                stuck = _work(chores, stuck)
        with _chores(root) as chores:
            left = _backlog(chores)
        if left <= stuck:
            return left


def _work(chores: Sequence[Chore], stuck: Backlog) -> Backlog:
    """Do everything that can be done; return what cannot."""
    while not (before := _backlog(chores)) <= stuck:
        for chore in chores:
            try:
                chore.work()
            except (LaminaError, OSError) as error:
                log.warning("background work failed: %s", error)
        stuck |= before & _backlog(chores)
    return stuck


def _backlog(chores: Sequence[Chore]) -> Backlog:
    empty: Backlog = frozenset()
    return empty.union(*(chore.backlog() for chore in chores))


@contextlib.contextmanager
def _chores(root: Path) -> Iterator[list[Chore]]:
    """Open all parts of the root that exist; one that cannot be opened is left out."""
    with contextlib.ExitStack() as stack:
        chores: list[Chore] = []
        for path in sorted((root / REGISTRATIONS).glob("[!.]*.json")):
            try:
                engine = _engine(json.loads(path.read_text(encoding="utf-8")))
            except (LaminaError, OSError, ValueError, LookupError, TypeError) as error:
                log.warning("cannot open snapshotter of %s: %s", path, error)
                continue
            if engine is not None:
                chores.append(SnapshotterChore(stack.enter_context(engine)))
        if (root / METADATA).exists():
            database = open_metadata(root)
            stack.callback(database.close)
            chores.append(ContentChore(root, database))
        yield chores


def _engine(registration: dict[str, Any]) -> Engine | None:
    """Open a registered snapshotter; None where its directory is gone, lest it be made again."""
    directory = Path(registration["directory"])
    if not (directory / DATABASE).exists():
        return None
    plugin = find(registration["id"])
    settings = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in registration["config"].items()
    }
    return Engine(plugin.id, plugin.load(plugin.config(**settings), directory), directory)


def main(arguments: Sequence[str]) -> int:
    """Run at idle priority, holding no directory that someone may want to unmount.

    Returns:
        1 if something is left undone.
    """
    root = Path(arguments[0]).absolute()
    os.chdir("/")
    try:
        become_idle()
    except OSError as error:
        log.warning("working at normal priority: %s", error)
    try:
        return 1 if run(root) else 0
    except FileNotFoundError:
        log.info("root %s is gone", root)
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
