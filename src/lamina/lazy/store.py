"""The caches of many layers under one root."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from lamina.core.digest import Digest, parse_digest
from lamina.errors import FailedPrecondition, InvalidArgument, NotFound
from lamina.lazy.cache import LayerCache
from lamina.lazy.layer import LOCK, NEW_PREFIX, LayerFile, LayerLock, create_layer, is_open
from lamina.lazy.policy import FillPolicy
from lamina.lazy.sources.description import Opener
from lamina.lazy.table import Header
from lamina.lazy.unit import Unit
from lamina.lazy.workers import Workers

_REMOVED_PREFIX = "rm-"
_NASCENT_SECONDS = 3600.0
"""A new directory without a lock is being made, or was when its maker was killed."""
_SECTOR = 512
"""Bytes of `st_blocks`."""


class CachedLayer(NamedTuple):
    """One layer's cache as it is on disk.

    Attributes:
        digest: of the blob that it caches.
        directory: where it is.
        allocated_bytes: of the disk, for all of its files.
        used: when it was last opened, in nanoseconds since the epoch.
        is_open: whether a process has it open.
    """

    digest: Digest
    directory: Path
    allocated_bytes: int
    used: int
    is_open: bool


class CacheStore:
    """The directories of layers, one for each blob: `sha256-HEX`.

    Args:
        root: their parent; made if it is missing.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def directory(self, digest: Digest) -> Path:
        """Return where a blob's layer is, or would be."""
        return self._root / digest.replace(":", "-")

    def create(
        self, digest: Digest, layer: LayerFile, header: Header, units: Iterable[Unit]
    ) -> Path:
        """Make the directory for a blob's layer, with nothing in its cache.

        Raises:
            AlreadyExists, InvalidArgument, OSError: as `layer.create_layer`.
        """
        directory = self.directory(digest)
        create_layer(directory, layer, header, units)
        return directory

    def open(
        self,
        digest: Digest,
        opener: Opener,
        *,
        policy: FillPolicy | None = None,
        workers: Workers | None = None,
    ) -> LayerCache:
        """Open a blob's layer, which counts as a use of it; see `LayerCache`."""
        return LayerCache(self.directory(digest), opener, policy=policy, workers=workers)

    def layers(self) -> list[CachedLayer]:
        """Return all layers, the one that was used longest ago first."""
        found = [layer for path, digest in self._names() if (layer := self._look(path, digest))]
        return sorted(found, key=lambda layer: (layer.used, layer.digest))

    def remove(self, digest: Digest) -> None:
        """Remove a layer.

        Raises:
            NotFound: there is none.
            FailedPrecondition: a process has it open.
            OSError: it cannot be removed.
        """
        directory = self.directory(digest)
        lock = LayerLock(directory)
        try:
            self._destroy(directory)
        finally:
            lock.release()

    def sweep(self) -> None:
        """Remove what killed processes left half made or half removed."""
        for path in [*self._root.glob(f"{NEW_PREFIX}*"), *self._root.glob(f"{_REMOVED_PREFIX}*")]:
            try:
                lock = LayerLock(path)
            except FailedPrecondition:
                continue  # somebody is at it
            except NotFound:
                self._destroy_lockless(path)
                continue
            shutil.rmtree(path, ignore_errors=True)
            lock.release()

    def _destroy_lockless(self, path: Path) -> None:
        """Remove a directory without a lock: that of a removal which was killed close to its end.

        One that has just been begun to be made has none yet either.
        """
        try:
            age = time.time() - path.stat().st_mtime
        except FileNotFoundError:
            return
        if path.name.startswith(_REMOVED_PREFIX) or age > _NASCENT_SECONDS:
            shutil.rmtree(path, ignore_errors=True)

    def _destroy(self, directory: Path) -> None:
        """Take a locked layer away: out of its name at once, then its files."""
        removed = self._root / f"{_REMOVED_PREFIX}{os.urandom(8).hex()}"
        directory.rename(removed)
        shutil.rmtree(removed)

    def _names(self) -> Iterator[tuple[Path, Digest]]:
        for path in self._root.iterdir():
            try:
                yield path, parse_digest(path.name.replace("-", ":", 1))
            except InvalidArgument:
                continue  # not a layer's directory

    def _look(self, directory: Path, digest: Digest) -> CachedLayer | None:
        """Return what a layer is like, or None if it is gone meanwhile."""
        try:
            used = (directory / LOCK).stat().st_mtime_ns
            with os.scandir(directory) as entries:
                blocks = sum(entry.stat(follow_symlinks=False).st_blocks for entry in entries)
        except FileNotFoundError:
            return None
        return CachedLayer(digest, directory, blocks * _SECTOR, used, is_open(directory))
