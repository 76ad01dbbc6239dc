"""How the content store is brought back in step with the disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from lamina.core.digest import Digest, algorithm, encoded, parse_digest
from lamina.errors import InvalidArgument
from lamina.images.ingest import remove_ingest, try_lock
from lamina.images.remover import blob_path
from lamina.meta.content import ContentTable


class ContentRepair:
    """The repairs of one content store; what is not so any more is left alone.

    Args:
        root: directory of the store.
        table: its records.
    """

    def __init__(self, root: Path, table: ContentTable) -> None:
        self._root = root
        self._table = table

    def forget(self, digest: Digest) -> None:
        """Remove record and file of a blob whose file is gone or damaged."""
        self._drop(digest, record=True)

    def remove_file(self, digest: Digest) -> None:
        """Remove the damaged file of a blob, whose record stays."""
        self._drop(digest, record=False)

    def remove_unrecorded(self, digest: Digest) -> None:
        """Remove a file that no record names."""
        with self._table.database.write():
            if self._table.find(digest) is None:
                blob_path(self._root, digest).unlink(missing_ok=True)

    def adopt(self, digest: Digest, labels: Mapping[str, str]) -> None:
        """Record a file that no record names, under these labels; a damaged one is removed."""
        path = blob_path(self._root, digest)
        if not _is_sound(path, digest):
            self.remove_unrecorded(digest)
            return
        with self._table.database.write() as connection:
            if self._table.find(digest) is None and path.exists():
                self._table.insert(connection, digest, path.stat().st_size, labels)

    def reset_labels(self, digest: Digest, labels: Mapping[str, str]) -> None:
        """Replace labels that cannot be read."""
        self._table.reset_labels(digest, labels)

    def abandoned_ingests(self) -> list[Path]:
        """Return the directories of ingests that nobody writes now."""
        return [path for path in (self._root / "ingest").iterdir() if not _is_locked(path)]

    def remove_ingest(self, directory: Path) -> None:
        """Remove an ingest that nobody writes."""
        fd = _opened(directory)
        if fd is None:
            return
        try:
            if try_lock(fd):
                remove_ingest(directory)
        finally:
            os.close(fd)

    def _drop(self, digest: Digest, *, record: bool) -> None:
        try:
            parse_digest(digest)
        except InvalidArgument:  # a damaged row names no file of ours
            with self._table.database.write() as connection:
                self._table.delete(connection, digest)
            return
        path = blob_path(self._root, digest)
        before = _identity(path)
        if _is_sound(path, digest):
            return
        with self._table.database.write() as connection:
            if _identity(path) != before:
                return  # it was fetched again while it was hashed here
            path.unlink(missing_ok=True)
            if record:
                self._table.delete(connection, digest)


def _is_sound(path: Path, digest: Digest) -> bool:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, algorithm(digest)).hexdigest() == encoded(digest)
    except FileNotFoundError:
        return False


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _is_locked(directory: Path) -> bool:
    fd = _opened(directory)
    if fd is None:
        return True  # gone, or no ingest
    try:
        return not try_lock(fd)
    finally:
        os.close(fd)


def _opened(directory: Path) -> int | None:
    try:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
