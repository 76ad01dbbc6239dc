"""Taking blobs away inside a transaction, and giving their space back after it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from lamina.core.digest import Digest, algorithm, encoded, parse_digest
from lamina.errors import InvalidArgument
from lamina.meta.content import ContentTable

MAX_OPEN = 256
"""Removed files that are kept open at a time."""


def blob_path(root: Path, digest: Digest) -> Path:
    """Return where a content store keeps the blob."""
    return root / "blobs" / algorithm(digest) / encoded(digest)


def blob_files(root: Path) -> Iterator[tuple[Digest, Path]]:
    """Yield the files of a content store that are named like blobs, with their digests."""
    for path in (root / "blobs").glob("*/*"):
        try:
            yield parse_digest(f"{path.parent.name}:{path.name}"), path
        except InvalidArgument:
            continue


class Remover:
    """Removes blobs inside one write transaction; made by `ContentStore.removing`.

    A file is opened before its name goes, so the kernel frees its blocks when the descriptor is
    closed and not while the transaction keeps other writers waiting.

    Attributes:
        connection: of the transaction.
    """

    connection: sqlite3.Connection

    def __init__(self, root: Path, table: ContentTable) -> None:
        self._root = root
        self._table = table
        self._open: list[int] = []

    def __call__(self, digest: Digest) -> None:
        """Remove record and file; what is not there is no error."""
        self._table.delete(self.connection, digest)
        self._unlink(blob_path(self._root, digest))

    def orphans(self) -> list[Digest]:
        """Remove blob files that no record names, and return their digests."""
        known = {info.digest for info in self._table.all()}
        removed: list[Digest] = []
        for digest, path in blob_files(self._root):
            if digest not in known:
                self._unlink(path)
                removed.append(digest)
        return removed

    def free(self) -> None:
        """Let go of the removed files."""
        while self._open:
            os.close(self._open.pop())

    def _unlink(self, path: Path) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        self._open.append(fd)
        path.unlink()
        if len(self._open) > MAX_OPEN:
            os.close(self._open.pop(0))
