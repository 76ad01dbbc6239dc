"""Compares the records of images and content with the disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lamina.core.problem import CLEAN_UP, Problem
from lamina.images.mounts import abandoned_mounts
from lamina.images.remover import blob_files, blob_path
from lamina.images.store import ImageStore

PULL = "pull the image again"


def check(store: ImageStore) -> list[Problem]:
    """Return every problem of the images of one root; blobs are measured, not hashed."""
    # In a write transaction, because a blob and its record come and go inside one.
    with store.database.write():
        return [*_damage(store), *_content(store), *_images(store), *_mounts(store)]


def abandoned_mount(path: Path) -> Problem:
    """Return the problem that a dead process's mount point is."""
    return Problem(str(path), "the process that mounted it has died", CLEAN_UP)


def _damage(store: ImageStore) -> Iterator[Problem]:
    with store.database.read() as connection:
        for (said,) in connection.execute("PRAGMA quick_check"):
            if said != "ok":
                yield Problem(str(store.database.path), said, "remove the root and pull again")


def _content(store: ImageStore) -> Iterator[Problem]:
    records = store.content.records()
    for info in records:
        try:
            size = blob_path(store.content.root, info.digest).stat().st_size
        except FileNotFoundError:
            yield Problem(info.digest, "its file is gone", PULL)
            continue
        if size != info.size:
            yield Problem(info.digest, f"its file has {size} bytes instead of {info.size}", PULL)
    known = {info.digest for info in records}
    for digest, path in blob_files(store.content.root):
        if digest not in known:
            yield Problem(str(path), "no record names this blob", CLEAN_UP)


def _images(store: ImageStore) -> Iterator[Problem]:
    known = {info.digest for info in store.content.records()}
    for image in store.catalogue.walk():
        if image.target.digest not in known:
            yield Problem(image.name, f"{image.target.digest} is not there", PULL)


def _mounts(store: ImageStore) -> Iterator[Problem]:
    return map(abandoned_mount, abandoned_mounts(store.temporary, store.owners))
