"""What is wrong with the subvolumes themselves."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from lamina.core.problem import Problem, Repair
from lamina.linux.btrfs import is_read_only, is_subvolume, set_read_only

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def faults(dir_fd: int, ids: Iterable[int], *, is_committed: bool) -> Iterator[Problem]:
    """Yield every problem of the subvolumes in one of the driver's directories.

    Args:
        dir_fd: the directory.
        ids: their names.
        is_committed: they are those of Committed snapshots.
    """
    for id in ids:
        try:
            fd = os.open(str(id), _DIRECTORY, dir_fd=dir_fd)
        except FileNotFoundError:
            continue  # destroyed meanwhile
        except NotADirectoryError:
            yield _no_subvolume(id)
            continue
        try:
            if not is_subvolume(fd):
                yield _no_subvolume(id)
            elif is_committed and not is_read_only(fd):
                yield _writable(dir_fd, id)
        finally:
            os.close(fd)


def _no_subvolume(id: int) -> Problem:
    what = "its storage is no subvolume, as where a root was copied file by file"
    return Problem(str(id), what, "remove the snapshot and what stands on it, then pull again")


def _writable(dir_fd: int, id: int) -> Problem:
    what = "its subvolume is writable, so its content may have changed"
    repair = Repair("makes it read-only", lambda: _protect(dir_fd, id))
    return Problem(str(id), what, "", repair)


def _protect(dir_fd: int, id: int) -> None:
    fd = os.open(str(id), _DIRECTORY, dir_fd=dir_fd)
    try:
        set_read_only(fd, True)
    finally:
        os.close(fd)
