"""Whether fuse-overlayfs works here, found out by mounting with it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lamina.core.mount import escape_option
from lamina.errors import LaminaError, ToolError
from lamina.linux.mountapi import MNT_DETACH, umount2
from lamina.snapshotters.tree import remove_tree
from lamina.tools.fuse import mount_fuse

OLDEST = (1, 0)
"""The first version that reads whiteouts as the kernel's overlay does in every layer."""


def program_fault() -> str | None:
    """Return why the program cannot be used; None where it can."""
    from lamina.tools.fuse_overlayfs import version  # `plugins ls` does not ask

    try:
        found = version()
    except ToolError as error:
        return str(error)
    if found < OLDEST:
        return f"version {'.'.join(map(str, found)) or 'unknown'} is too old"
    return None


def mount_fault(directory: Path, *, writable: bool) -> str | None:
    """Mount three layers in that directory and return what is wrong with that; None if nothing.

    The one in the middle deletes a file of the lowest as the kernel's overlay does.
    """
    place = directory / ("writable" if writable else "read-only")
    place.mkdir()
    try:
        return _tried(place, writable=writable)
    except LaminaError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or place}: {error.strerror}"
    finally:
        remove_tree(place)


def _tried(place: Path, *, writable: bool) -> str | None:
    for name in ("lower1", "lower2", "lower3", "upper", "work"):
        (place / name).mkdir()
    for file in ("lower1/lower1", "lower2/lower2", "lower3/deleted"):
        (place / file).touch()
    os.mknod(place / "lower2/deleted", stat.S_IFCHR)
    base = escape_option(place)
    above = (f"workdir={base}/work", f"upperdir={base}/upper") if writable else ()
    options = (*above, f"lowerdir={base}/lower1:{base}/lower2:{base}/lower3")
    point = place / "at"
    point.mkdir()
    # Not by `lamina.mount`, which takes longer to import than this takes.
    mount_fuse("mount.fuse3", "fuse-overlayfs", "overlay", point, options)
    if not point.is_mount():
        return "fuse-overlayfs has ended, and nothing is mounted"
    try:
        if writable:
            (point / "lower1").unlink()
            (point / "new").touch()
        seen = sorted(path.name for path in point.iterdir())
    finally:
        umount2(point, MNT_DETACH)  # nobody else knows of it
    expected = ["lower2", "new"] if writable else ["lower1", "lower2"]
    return None if seen == expected else f"the mount shows {', '.join(seen) or 'nothing'}"
