"""Layers that are filesystems of their own, mounted where a stacking driver has a directory.

Every client can use the mounts of such a driver: what they name is a directory, whatever is mounted
there. A layer is mounted when it is needed, once in each mount namespace, and stays mounted until
its snapshot is destroyed: a client mounts what it was told later, or never.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def is_mounted(point: Path) -> bool:
    """Tell whether something is mounted on a directory, in this mount namespace."""
    return os.lstat(point).st_dev != os.lstat(point.parent).st_dev


def has_option(point: Path, option: str) -> bool:
    """Tell whether what is on top on a directory, in this mount namespace, has a mount option."""
    from lamina.linux.mountinfo import mounts_at_or_below

    path = point.resolve()
    found = [info.options for info in mounts_at_or_below(path) if info.point == str(path)]
    return bool(found) and option in found[-1]


def is_older(point: Path, other: Path) -> bool:
    """Tell whether what is on top on a directory was mounted before what has `other`.

    False on kernels before Linux 6.8, which do not tell.

    Raises:
        OSError: one of them cannot be looked at.
    """
    from lamina.linux.mount_id import unique_mount_id

    return unique_mount_id(point) < unique_mount_id(other)


def mount_once(point: Path, mount: Callable[[], None]) -> None:
    """Call `mount`, which mounts on `point`, unless something is mounted there already.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    if is_mounted(point):
        return
    with locked(point):
        if not is_mounted(point):
            mount()


def mount_in_turn(point: Path, mount: Callable[[], None]) -> None:
    """As `mount_once`, but wait for whoever holds `locked`, even where something is mounted.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    with locked(point):
        if not is_mounted(point):
            mount()


def unmount_all(point: Path) -> None:
    """Take off whatever is mounted on a directory; one that is gone is no error.

    Raises:
        FailedPrecondition: something in it is in use. Overlays that stand on it do not count.
    """
    from lamina.mount import unmount  # who lists snapshotters mounts none

    try:
        while is_mounted(point):
            unmount(point)
    except FileNotFoundError:
        return


@contextmanager
def locked(point: Path) -> Iterator[None]:
    """Keep other threads and processes from mounting there.

    It is the directory above that is locked: that of the layer. The image itself is not free for
    it, as it is locked while a loop device is bound to it.
    """
    fd = os.open(point.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
