"""Compares the records of images and content with the disk, and says how to mend differences."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from lamina.core.digest import Digest, algorithm, encoded
from lamina.core.labels import GC_REF_CONTENT, GC_REF_SNAPSHOT
from lamina.core.problem import Problem, Repair
from lamina.formats.estargz.writer import BlobFormat
from lamina.images.mounts import abandoned_mounts, remove_abandoned
from lamina.images.remover import blob_files, blob_path
from lamina.images.store import ImageStore
from lamina.images.survey import Survey, survey
from lamina.meta import damage
from lamina.meta.content import ContentInfo

JSON_TABLES = {
    "images": damage.JsonTable("name", ("annotations", "labels")),
    "content": damage.JsonTable("digest", ("labels",)),
    "leases": damage.JsonTable("id", ("labels",)),
    "containers": damage.JsonTable("id", ("labels",)),
    "launches": damage.JsonTable("digest", ("process",)),
}
PAUSE_SECONDS = 0.1
"""After which a thing that looks abandoned is looked at again: it may have been just begun."""
_KINDS = (
    *("index", "manifest", "config", "layer", "unknown"),
    *(f"convert-{format}" for format in BlobFormat),
)

T = TypeVar("T")


def check_rows(store: ImageStore, snapshotters: Iterable[str]) -> list[Problem]:
    """Return the rows that cannot be read; while there are any, nothing else can be checked."""
    with store.database.read() as connection:
        rows = list(damage.bad_rows(connection, JSON_TABLES))
    others = [row for row in rows if row.table != "content"]
    if others:
        return [_bad_row(row, _reset_or_delete(store, row)) for row in others]
    if not rows:
        return []
    labels = survey(store, snapshotters).labels
    return [_bad_row(row, _reset_labels(store, Digest(row.key), labels)) for row in rows]


def check(store: ImageStore, found: Survey, *, deep: bool = False) -> list[Problem]:
    """Return every problem of the images of one root.

    Args:
        store: the images.
        found: what they consist of.
        deep: hash every blob, too.
    """
    # In a write transaction, because a blob and its record come and go inside one.
    with store.database.write():
        problems = [*_damage(store), *_content(store, found), *_images(store)]
    problems += _ingests(store)
    problems += (abandoned_mount(path) for path in abandoned_mounts(store.temporary, store.owners))
    if deep:
        problems += _altered(store, found)
    return problems


def abandoned_mount(path: Path) -> Problem:
    """Return the problem that a dead process's directory for mounts is."""
    repair = Repair("unmounts and removes it", lambda: remove_abandoned(path))
    return Problem(str(path), "the process that mounted it has died", repair=repair)


def confirmed(find: Callable[[], list[T]]) -> list[T]:
    """Return what is found now and still a moment later: what is being made or removed is not."""
    first = find()
    if not first:
        return []
    time.sleep(PAUSE_SECONDS)
    again = find()
    return [each for each in first if each in again]


def _bad_row(row: damage.BadRow, repair: Repair) -> Problem:
    what = f"the column {row.column} of its row in {row.table} cannot be read"
    return Problem(row.key, what, "then check again", repair)


def _reset_or_delete(store: ImageStore, row: damage.BadRow) -> Repair:
    key = JSON_TABLES[row.table].key
    if row.table == "launches":
        statement, does = "DELETE FROM launches", "removes the row, which is made anew"
    else:
        statement, does = f"UPDATE {row.table} SET {row.column} = '{{}}'", "empties it"

    def run() -> None:
        with store.database.write() as connection:
            where = f"WHERE {key} = ? AND {damage.unreadable(row.column)}"
            connection.execute(f"{statement} {where}", (row.key,))

    return Repair(does, run)


def _reset_labels(
    store: ImageStore, digest: Digest, labels: Mapping[Digest, Mapping[str, str]]
) -> Repair:
    """Let a blob keep what its document names, since what its labels named is not known."""
    known = labels.get(digest, {})
    does = "takes them from its document" if known else "empties it"
    return Repair(does, lambda: store.content.repair.reset_labels(digest, known))


def _damage(store: ImageStore) -> Iterator[Problem]:
    subject = str(store.database.path)
    with store.database.read() as connection:
        said, rows = damage.integrity(connection), damage.dangling(connection)
    for text in said:
        if damage.is_of_an_index(text):
            repair = Repair("makes the indexes anew", lambda: damage.reindex(store.database))
            yield Problem(subject, text, repair=repair)
        else:
            yield Problem(subject, text, "remove the root and pull again")
    for table in sorted({table for table, _ in rows}):
        count = sum(1 for each, _ in rows if each == table)
        what = f"{count} rows of table {table} refer to a row that is gone"
        repair = Repair("removes them", lambda: _remove_dangling(store))
        yield Problem(subject, what, repair=repair)


def _remove_dangling(store: ImageStore) -> None:
    with store.database.write() as connection:
        connection.execute("DELETE FROM lease_resources WHERE lease NOT IN (SELECT id FROM leases)")
        connection.execute("DELETE FROM launches WHERE digest NOT IN (SELECT digest FROM content)")


def _content(store: ImageStore, found: Survey) -> Iterator[Problem]:
    records = store.content.records()
    for info in records:
        what = _size_fault(store, info)
        if what:
            yield _damaged(store, info, what, found)
    known = {info.digest for info in records}
    for digest, path in blob_files(store.content.root):
        if digest not in known:
            yield _unrecorded(store, digest, path, found)


def _size_fault(store: ImageStore, info: ContentInfo) -> str:
    try:
        size = blob_path(store.content.root, info.digest).stat().st_size
    except FileNotFoundError:
        return "its file is gone"
    return "" if size == info.size else f"its file has {size} bytes instead of {info.size}"


def _damaged(store: ImageStore, info: ContentInfo, what: str, found: Survey) -> Problem:
    """Describe a blob that cannot be used.

    The record of one that keeps others stays while an image has it: without it, they would be
    collected, and a pull would have to fetch them too.
    """
    remedy = found.remedy(info.digest)
    keeps = any(key.startswith((GC_REF_CONTENT, GC_REF_SNAPSHOT)) for key in info.labels)
    if not (keeps and remedy):
        repair = Repair("forgets it", lambda: store.content.repair.forget(info.digest))
        return Problem(info.digest, what, remedy, repair)
    if not blob_path(store.content.root, info.digest).exists():
        return Problem(info.digest, what, remedy)
    repair = Repair("removes the file", lambda: store.content.repair.remove_file(info.digest))
    return Problem(info.digest, what, remedy, repair)


def _unrecorded(store: ImageStore, digest: Digest, path: Path, found: Survey) -> Problem:
    what = "no record names this blob"
    users = found.users.get(digest)
    if not users:
        repair = Repair("removes it", lambda: store.content.repair.remove_unrecorded(digest))
        return Problem(str(path), what, repair=repair)
    labels = found.labels.get(digest, {})
    repair = Repair(
        f"records it again for {users[0]}", lambda: store.content.repair.adopt(digest, labels)
    )
    return Problem(str(path), what, repair=repair)


def _images(store: ImageStore) -> Iterator[Problem]:
    known = {info.digest for info in store.content.records() if not _size_fault(store, info)}
    for image in store.catalogue.walk():
        if image.target.digest not in known:
            fix = f"get it again: lamina images pull {image.name}"
            yield Problem(image.name, f"{image.target.digest} is not there", fix)


def _ingests(store: ImageStore) -> Iterator[Problem]:
    for path in confirmed(lambda: _abandoned_ingests(store)):
        repair = Repair("removes it", partial(store.content.repair.remove_ingest, path))
        yield Problem(str(path), "a download that nobody goes on with", repair=repair)


def _abandoned_ingests(store: ImageStore) -> list[Path]:
    leases = store.leases
    held = {r.id for lease in leases.all() for r in leases.resources(lease.id)}
    # By its name, since a writer may have died before it wrote down what it was to write.
    kept = {
        hashlib.sha256(f"{kind}-{digest}".encode()).hexdigest()
        for digest in held
        if digest.startswith("sha256:")
        for kind in _KINDS
    }
    return [path for path in store.content.repair.abandoned_ingests() if path.name not in kept]


def _altered(store: ImageStore, found: Survey) -> Iterator[Problem]:
    for info in store.content.records():
        try:
            with open(blob_path(store.content.root, info.digest), "rb") as file:
                got = hashlib.file_digest(file, algorithm(info.digest)).hexdigest()
        except FileNotFoundError:
            continue  # said already, or removed meanwhile
        if got != encoded(info.digest) and not _size_fault(store, info):
            what = f"its file has other content: {algorithm(info.digest)}:{got}"
            yield _damaged(store, info, what, found)
