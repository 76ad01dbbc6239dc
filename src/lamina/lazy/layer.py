"""The directory of one layer's cache: what is in it, and who may use it.

`layer.json` says where the bytes come from, `table` which bytes those are, `map` which of them are
in `data`, the sparse cache file. The process that uses it holds a lock on `lock`. `trace` says what
was asked for, `cost` what that has cost, `wanted` what is to be fetched first.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from lamina.errors import AlreadyExists, FailedPrecondition, FormatError, NotFound
from lamina.lazy.cost import COST
from lamina.lazy.sources.description import SourceDescription
from lamina.lazy.table import Header, UnitColumns, UnitTable
from lamina.lazy.trace import TRACE
from lamina.lazy.unit import Unit
from lamina.linux.file_lock import try_lock

LAYER, TABLE, MAP, DATA, LOCK = "layer.json", "table", "map", "data", "lock"
_VERSION = 1
_NEW_PREFIX = "new-"
_NASCENT_LOCK = "lock.new"
_HOLDER = b"%-15d\n"
"""Always of one length, so that a full disk has room for it."""


class LayerFile(msgspec.Struct, frozen=True):
    """The contents of `layer.json`.

    Attributes:
        source: where the bytes come from.
        gate: how missing bytes are asked for (`fanotify`, `fuse`), "" for whatever works.
        version: of the directory's layout.
    """

    source: SourceDescription
    gate: str = ""
    version: int = _VERSION


class LayerLock:
    """The right to use a layer's directory. The kernel takes it back however a process ends."""

    def __init__(self, directory: Path, name: str = LOCK) -> None:
        """Take it.

        Raises:
            NotFound: there is no such layer.
            FailedPrecondition: another process, or another part of this one, has it.
        """
        try:
            self._fd = os.open(directory / name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise NotFound("open lazy layer", directory) from error
        try:
            self._lock(directory)
        except BaseException:
            self.release()
            raise
        with suppress(OSError):  # a full disk; it is only for messages
            os.pwrite(self._fd, _HOLDER % os.getpid(), 0)
        os.utime(self._fd)

    @classmethod
    def create(cls, directory: Path) -> LayerLock:
        """Make the lock of a new layer, and take it before it can be found."""
        (directory / _NASCENT_LOCK).write_bytes(_HOLDER % os.getpid())
        lock = cls(directory, _NASCENT_LOCK)
        (directory / _NASCENT_LOCK).rename(directory / LOCK)
        return lock

    def release(self) -> None:
        """Give it back; calling it again does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _lock(self, directory: Path) -> None:
        if not try_lock(self._fd):
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            hint = f"process {_describe(holder)} has it open"
            raise FailedPrecondition("open lazy layer", directory, hint=hint)
        if not os.fstat(self._fd).st_nlink:
            raise NotFound("open lazy layer", directory)  # removed while it was being opened


def create_layer(
    directory: Path, layer: LayerFile, header: Header, units: Iterable[Unit] | UnitColumns
) -> None:
    """Make the directory of a layer of which nothing is there yet; whole or not at all.

    Nothing is synced: after a power loss it may be gone or damaged, which opening it notices.

    Raises:
        AlreadyExists: there is one.
        InvalidArgument: the units break a rule of theirs.
        OSError: it cannot be written.
    """
    if directory.exists():
        raise AlreadyExists("create lazy layer", directory)
    new = directory.with_name(f"{_NEW_PREFIX}{os.urandom(8).hex()}")
    new.mkdir(mode=0o700)
    try:
        lock = LayerLock.create(new)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    try:
        (new / LAYER).write_bytes(msgspec.json.format(msgspec.json.encode(layer)) + b"\n")
        with (new / TABLE).open("wb") as table:
            UnitTable.write(table, header, units)
        with (new / DATA).open("wb") as data:
            data.truncate(header.cache_size)
        for name in (TRACE, COST):  # here, so that opening the layer needs no room on the disk
            (new / name).touch(0o600)
        new.rename(directory)
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        if isinstance(error, OSError) and directory.exists():
            raise AlreadyExists("create lazy layer", directory) from error
        raise
    finally:
        lock.release()


def sync_layer(directory: Path) -> None:
    """Have a layer that was made survive a power loss; what its cache has is not meant.

    Raises:
        OSError: something could not be written.
    """
    for path in (directory / LAYER, directory / TABLE, directory, directory.parent):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def read_layer(directory: Path) -> LayerFile:
    """Return what `layer.json` says.

    Raises:
        NotFound: there is none.
        FormatError: it is damaged, or of another version.
    """
    path = directory / LAYER
    try:
        layer = msgspec.json.decode(path.read_bytes(), type=LayerFile)
    except FileNotFoundError as error:
        raise NotFound("open lazy layer", directory) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        expected = "the description of a layer"
        raise FormatError(LAYER, 0, expected=expected, got=str(error), source=path) from error
    if layer.version != _VERSION:
        expected, got = f"version {_VERSION}", f"{layer.version}"
        raise FormatError(LAYER, 0, expected=expected, got=got, source=path)
    return layer


def _describe(holder: str) -> str:
    """Return a process's number and name."""
    if not holder.isdecimal():
        return "unknown"
    name = ""
    with suppress(OSError):
        name = Path(f"/proc/{holder}/comm").read_text(errors="replace").strip()
    return f"{holder} ({name})" if name else holder
