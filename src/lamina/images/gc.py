"""Garbage collection: frees content and unpacked layers that nothing names any more.

Roots are images, live leases, and content with a `containerd.io/gc.root` label. From there the
labels lead on, as in containerd: `gc.ref.content...` from an index to manifests and from a manifest
to configuration and layers, `gc.ref.snapshot.NAME` from a configuration to the top layer's
snapshot, and snapshots to their parents.

Only snapshots that unpacking made are ever collected: extractions (`extract-...` keys; Views by
such a key are what an extraction reads from) and
Committed ones that are called what their label `snapshot.ref` says. All others are roots: those of
a container or a user, those with a `gc.root` label, and those of a containerd that this root serves
(they have the label too, but a name with the namespace in it), whose collector is containerd's.

Mark and sweep are one write transaction of the metadata, in which records, blobs and snapshots
go together: a pull takes its lease (a write) before it looks anything up, so it either is seen
here or finds things gone. Bytes are freed after it, those of snapshots too.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Protocol

from lamina.core.digest import Digest
from lamina.core.labels import GC_REF_CONTENT, GC_REF_SNAPSHOT, GC_ROOT, SNAPSHOT_REF
from lamina.core.snapshot import Info, Kind
from lamina.errors import FailedPrecondition, NotFound
from lamina.images.layer_lock import sweep_locks
from lamina.images.mounts import sweep_mounts
from lamina.images.store import ImageStore
from lamina.meta.content import ContentInfo
from lamina.meta.leases import EXTRACT_PREFIX, Resource

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection removed; `size` is the bytes of the blobs."""

    blobs: tuple[Digest, ...] = ()
    snapshots: tuple[tuple[str, str], ...] = ()
    ingests: tuple[str, ...] = ()
    size: int = 0


class Collectable(Protocol):
    """What collecting needs of a snapshotter; see `Engine`."""

    def walk(self) -> Iterator[Info]:
        """Yield all snapshots."""
        ...

    def discard(self, key: str) -> int:
        """Remove a snapshot, but not its storage."""
        ...

    def release(self, ids: Iterable[int]) -> None:
        """Free the storage of what was discarded."""
        ...


@dataclass(slots=True)
class _Marks:
    """What is alive: digests, and the keys of each snapshotter."""

    content: set[str] = field(default_factory=set)
    snapshots: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


def collect(store: ImageStore, snapshotters: Mapping[str, Collectable]) -> Collected:
    """Remove everything that nothing names.

    Args:
        store: whose images and leases are the roots.
        snapshotters: by name; those of the root that are not given are left alone.
    """
    # Before the snapshots go that are mounted there.
    sweep_mounts(store.temporary, store.owners)
    # Walked before the transaction: what appears meanwhile is no candidate, and a child that
    # appears meanwhile makes its parent's removal fail, which is tolerated.
    walked = {name: list(snapshotter.walk()) for name, snapshotter in snapshotters.items()}
    freed: dict[str, list[int]] = {}
    with store.content.removing() as remove:
        held = store.leases.held(remove.connection)
        blobs = {info.digest: info for info in store.content.records()}
        marks = _mark(remove.connection, held, blobs)
        snapshots: list[tuple[str, str]] = []
        for name, infos in walked.items():
            keys = _dead_snapshots(infos, marks.snapshots[name])
            discarded = dict(_discard(snapshotters[name], keys))
            snapshots += ((name, key) for key in discarded)
            freed[name] = list(discarded.values())
        dead = [info for digest, info in blobs.items() if digest not in marks.content]
        for info in dead:
            remove(info.digest)
        orphans = remove.orphans()
        ingests = store.content.remove_ingests({r.id for r in held if r.type == "content"})
    for name, ids in freed.items():
        if ids:
            snapshotters[name].release(ids)
    store.owners.sweep()
    sweep_locks(store.locks)
    return Collected(
        (*(info.digest for info in dead), *orphans),
        tuple(snapshots),
        tuple(ingests),
        sum(info.size for info in dead),
    )


def _mark(
    connection: sqlite3.Connection, held: Set[Resource], blobs: Mapping[Digest, ContentInfo]
) -> _Marks:
    marks = _Marks()
    pending = [row[0] for row in connection.execute("SELECT digest FROM images")]
    pending += (d for d, info in blobs.items() if any(k.startswith(GC_ROOT) for k in info.labels))
    for resource in held:
        if resource.type == "content":
            pending.append(resource.id)
        elif resource.type.startswith("snapshots/"):
            marks.snapshots[resource.type.removeprefix("snapshots/")].add(resource.id)
    while pending:
        digest = pending.pop()
        if digest in marks.content:
            continue
        marks.content.add(digest)
        info = blobs.get(Digest(digest))
        if info is None:
            continue
        pending += (v for k, v in info.labels.items() if k.startswith(GC_REF_CONTENT))
        for name, key in _snapshot_refs(info.labels):
            marks.snapshots[name].add(key)
    return marks


def _snapshot_refs(labels: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for label, value in labels.items():
        if label.startswith(f"{GC_REF_SNAPSHOT}."):
            # A slash starts a free suffix that lets one blob refer to several snapshots.
            yield label.removeprefix(f"{GC_REF_SNAPSHOT}.").partition("/")[0], value


def _dead_snapshots(infos: Iterable[Info], marked: Set[str]) -> list[str]:
    """Return the keys to remove, children before their parents."""
    by_key = {info.name: info for info in infos}
    alive: set[str] = set()
    roots = [key for key, info in by_key.items() if key in marked or not _unpacked(info)]
    for root in roots:
        key = root
        while key and key not in alive:
            alive.add(key)
            key = by_key[key].parent if key in by_key else ""
    dead = {key for key in by_key if key not in alive}
    return sorted(dead, key=lambda key: -_depth(key, by_key))


def _unpacked(info: Info) -> bool:
    """Tell whether unpacking made the snapshot, so that unpacking can make it again."""
    if GC_ROOT in info.labels:
        return False
    if info.kind is Kind.COMMITTED:
        return info.labels.get(SNAPSHOT_REF) == info.name
    return info.name.startswith(EXTRACT_PREFIX)


def _depth(key: str, by_key: Mapping[str, Info]) -> int:
    depth = 0
    while key in by_key:
        key = by_key[key].parent
        depth += 1
    return depth


def _discard(snapshotter: Collectable, keys: Iterable[str]) -> Iterator[tuple[str, int]]:
    for key in keys:
        try:
            id = snapshotter.discard(key)
        except NotFound:
            continue
        except FailedPrecondition as error:
            log.info("keeping a layer that is in use again", extra={"key": key, "reason": error})
            continue
        yield key, id
