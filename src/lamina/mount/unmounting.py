"""Unmount: exactly what was asked for, with patience for the busy, never lazily by itself."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from lamina.errors import LaminaError
from lamina.linux.mountapi import MNT_DETACH, UMOUNT_NOFOLLOW, umount2
from lamina.linux.mountinfo import MountInfo, mounts_at_or_below
from lamina.mount.failure import failure

BUSY_SECONDS = 2.5
"""How long a mount that is in use is tried again; something may just be letting go of it."""

_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.050
_NOT_MOUNTED = frozenset({errno.EINVAL, errno.ENOENT})


def unmount(target: str | os.PathLike[str], *, flags: int = 0) -> None:
    """Unmount the topmost mount on `target`; what is no mount point, or not there, is no error.

    Args:
        target: its path; a symlink as last step is not followed.
        flags: MNT_DETACH, MNT_FORCE, ... of `lamina.linux.mountapi`.

    Raises:
        FailedPrecondition: still in use after `BUSY_SECONDS`; says by whom where that is visible.
        PermissionDenied: not root, and no FUSE mount of one's own.
    """
    path = Path(target).absolute()
    path = path.parent.resolve() / path.name
    try:
        _unmount_patiently(path, flags)
    except OSError as error:
        if error.errno in _NOT_MOUNTED:
            return
        if error.errno == errno.EPERM and _is_fuse(path):
            from lamina.tools.fuse import unmount_fuse  # the way for those who are not root

            unmount_fuse(path)
            return
        hint = ""
        if error.errno == errno.EBUSY:
            from lamina.mount.holders import describe_holders  # reads all of /proc

            hint = describe_holders(path)
        raise failure(error, f"unmount {path}", hint=hint) from error


def unmount_recursive(path: str | os.PathLike[str]) -> None:
    """Unmount everything at and below `path`, the innermost first.

    Raises:
        LaminaError: some could not be unmounted, all others were; the first reason.
    """
    top = Path(path).resolve()
    while mounts := mounts_at_or_below(top):
        # A pass takes one mount off each point; what that covered is the next one's, and may be
        # what keeps another mount busy until then.
        points = dict.fromkeys(info.point for info in innermost_first(mounts))
        errors = [error for point in points if (error := _tried(point))]
        if len(mounts_at_or_below(top)) >= len(mounts):
            if errors:
                raise errors[0]
            busy = OSError(errno.EBUSY, "as many mounts come as go")
            raise failure(busy, f"unmount everything below {top}")


def unmount_topmost(path: str | os.PathLike[str]) -> None:
    """Unmount the topmost mount on `path` and what is mounted in it, the innermost first.

    What it covers stays, mounts on directories below `path` included. Nothing mounted on `path`
    itself is no error.

    Raises:
        LaminaError: a mount could not be unmounted; those outside of it still are.
    """
    top = str(Path(path).resolve())
    mounts = mounts_at_or_below(top)
    on_top = [info for info in mounts if info.point == top]
    if not on_top:
        return
    inside = {on_top[-1].id}
    while found := {info.id for info in mounts if info.parent in inside} - inside:
        inside |= found
    for info in innermost_first([info for info in mounts if info.id in inside]):
        unmount(info.point)


def innermost_first(mounts: list[MountInfo]) -> list[MountInfo]:
    """Order mounts so that none comes before what lies on it; `mounts` is in mount order."""
    ordered = sorted(
        enumerate(mounts), key=lambda item: (item[1].point.count("/"), item[0]), reverse=True
    )
    return [info for _, info in ordered]


def _tried(point: str) -> LaminaError | None:
    try:
        unmount(point)
    except LaminaError as error:
        return error
    return None


def _unmount_patiently(path: Path, flags: int) -> None:
    deadline = time.monotonic() + BUSY_SECONDS
    pause = _FIRST_PAUSE
    while True:
        try:
            umount2(path, flags | UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.EBUSY or flags & MNT_DETACH or time.monotonic() >= deadline:
                raise
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        else:
            return


def _is_fuse(path: Path) -> bool:
    on_top = [info for info in mounts_at_or_below(path) if info.point == str(path)]
    return bool(on_top) and on_top[-1].type.partition(".")[0] in {"fuse", "fuseblk"}
