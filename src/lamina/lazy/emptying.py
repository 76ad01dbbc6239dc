"""Having the cache of a layer start anew, with nothing in it."""

from __future__ import annotations

import os
from pathlib import Path

from lamina.core.disk_usage import disk_bytes
from lamina.lazy.layer import DATA, MAP, LayerLock

_NEW = "data.new"


def allocated(directory: Path) -> int:
    """Return the bytes of the disk that a layer's files take, 0 if there is none."""
    try:
        with os.scandir(directory) as entries:
            return sum(disk_bytes(entry.stat(follow_symlinks=False)) for entry in entries)
    except FileNotFoundError:
        return 0


def empty(directory: Path) -> int:
    """Take the data of a layer that nothing has mounted; return how many bytes of disk it was.

    The map goes first, durably: a kill or a power loss at any instant leaves units that are
    missing while their data is there, never the reverse. The data file is another one then. What
    reads the old one, against what the caller has to know, goes on reading what it had.

    Raises:
        NotFound: there is no such layer.
        FailedPrecondition: a process has it open.
        OSError: a file cannot be written.
    """
    lock = LayerLock(directory)
    try:
        before = allocated(directory)
        _truncate(directory / MAP)
        _replace(directory)
        return max(0, before - allocated(directory))
    finally:
        lock.release()


def _truncate(path: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o600)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _replace(directory: Path) -> None:
    size = (directory / DATA).stat().st_size
    new = directory / _NEW
    new.unlink(missing_ok=True)
    with new.open("xb") as data:
        data.truncate(size)
    new.rename(directory / DATA)
