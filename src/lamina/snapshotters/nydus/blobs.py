"""The caches of blobs, which images of one repository share.

One image uses another's cache of a blob where that has all chunks that it needs, at their places.

    ROOT/blobs/NAME/cache           the data, as far as it was fetched: see `lamina.lazy.layer`
    ROOT/blobs/NAME/registry.json   how to reach its registry
    ROOT/blobs/NAME/contexts        of a gzip layer: where decompression can begin
    ROOT/snapshots/ID/devices.json  names of the caches of a layer with a bootstrap, by device

A cache that no layer names is removed. Whoever makes, mounts, empties or removes one holds a lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from lamina.errors import DataLoss, LaminaError
from lamina.formats.rafs.zran import ZranContext
from lamina.images.reference import parse
from lamina.lazy.layer import TABLE, LayerFile, create_layer, read_layer
from lamina.lazy.sources.description import RegistryDescription
from lamina.lazy.table import Header, UnitTable
from lamina.lazy.unit import Unit
from lamina.snapshotters.lazy_access import Access
from lamina.snapshotters.nydus.contexts import CONTEXTS, write_contexts
from lamina.snapshotters.tree import remove_tree

BLOBS = "blobs"
CACHE = "cache"
DEVICES = "devices.json"
NONE = "none"
"""Beside the caches: the device of a blob that no file has anything of."""
_NEW = "new-"
_ID_DIGITS = 16
_KEY_DIGITS = 32


class BlobPlan(NamedTuple):
    """What a cache is to be made of.

    Attributes:
        blob: its id.
        source: where its bytes come from.
        size: bytes of the device.
        units: that fill it, at least one.
        contexts: of a gzip layer.
    """

    blob: str
    source: RegistryDescription
    size: int
    units: Sequence[Unit]
    contexts: Sequence[ZranContext]


class Blobs:
    """The caches below a root.

    Args:
        root: the snapshotter's directory.
    """

    def __init__(self, root: Path) -> None:
        self.path = root.absolute() / BLOBS

    def cache(self, name: str) -> Path:
        """Return the directory of a cache; that of NONE is no cache."""
        return self.path / name / CACHE

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other threads and processes from all caches."""
        self.path.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def make(self, plan: BlobPlan, access: Access, gate: str) -> str:
        """Return the name of a cache for all of a plan, one that there is or a new one.

        The lock has to be held.

        Raises:
            InvalidArgument: the units break a rule of theirs.
        """
        table = io.BytesIO()
        header = Header(plan.source.size, plan.size)
        UnitTable.write(table, header, plan.units)
        name = _name(plan, table.getvalue())
        if self.cache(name).is_dir():
            return name
        for path in sorted(self.path.glob(f"{plan.blob[:_ID_DIGITS]}.*")):
            if _covers(path / CACHE, plan):
                return path.name
        new = self.path / f"{_NEW}{name}"
        remove_tree(new)  # of a process that was killed
        remove_tree(self.path / name)
        new.mkdir(mode=0o700)
        access.write(new)
        if plan.contexts:
            write_contexts(new / CONTEXTS, plan.contexts)
        create_layer(new / CACHE, LayerFile(plan.source, gate), header, plan.units)
        new.rename(self.path / name)
        return name

    def empty_device(self) -> Path:
        """Return the device of blobs that no file has anything of."""
        path = self.path / NONE
        path.touch(0o600)
        return path

    def sweep(self, used: Iterable[str], let_go: Callable[[Path], None]) -> None:
        """Remove all caches but these. The lock has to be held.

        Args:
            used: names.
            let_go: has the worker serve a cache no more.
        """
        if not self.path.is_dir():
            return
        kept = {NONE, *used}
        for path in self.path.iterdir():
            if path.name in kept:
                continue
            if (path / CACHE).is_dir():
                let_go(path / CACHE)
            remove_tree(path)


def _covers(cache: Path, plan: BlobPlan) -> bool:
    """Tell whether a cache is of the same blob, and has every chunk of a plan where that has it."""
    try:
        source, table = read_layer(cache).source, UnitTable.open(cache / TABLE)
    except (LaminaError, FileNotFoundError):
        return False  # `fsck` tells what is damaged
    with closing(table):
        if not isinstance(source, RegistryDescription):
            return False
        if _identity(source) != _identity(plan.source):
            return False
        units = map(table.unit, range(len(table)))
        found = {piece.cache_offset: piece for unit in units for piece in unit.pieces}
        return table.cache_size == plan.size and all(
            piece.cache_offset in found and found[piece.cache_offset][1:] == piece[1:]
            for unit in plan.units
            for piece in unit.pieces
        )


def _identity(source: RegistryDescription) -> tuple[str, str]:
    """Return the repository of a blob, and the blob."""
    return parse(source.reference).name, source.digest


def _name(plan: BlobPlan, table: bytes) -> str:
    """Return what caches of the same are called, and no others."""
    key = hashlib.sha256(" ".join(_identity(plan.source)).encode())
    key.update(table)
    for one in plan.contexts:
        key.update(repr(one[:4]).encode() + bytes(one.dictionary) + bytes((one.byte, one.bits)))
    return f"{plan.blob[:_ID_DIGITS]}.{key.hexdigest()[:_KEY_DIGITS]}"


def write_devices(directory: Path, names: Sequence[str]) -> None:
    """Keep which caches a layer's devices are, in its directory."""
    (directory / DEVICES).write_text(json.dumps(list(names)), encoding="utf-8")


def read_devices(directory: Path) -> tuple[str, ...]:
    """Return the caches that a layer's devices are; none where nothing was kept.

    Raises:
        DataLoss: it is damaged.
    """
    path = directory / DEVICES
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise DataLoss(f"read which blobs a Nydus image has: {error}", path) from error
    if not isinstance(names, list) or not all(_is_name(name) for name in names):
        raise DataLoss("read which blobs a Nydus image has: it is damaged", path)
    return tuple(names)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and "/" not in name and not name.startswith(".")
