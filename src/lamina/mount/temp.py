"""Mounts for the length of a `with` block."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lamina.core.mount import Mount, read_only_mounts, split_options
from lamina.errors import LaminaError
from lamina.mount.execute import mount_all, unmount_all
from lamina.mount.failure import failure

log = logging.getLogger(__name__)

PREFIX = "lamina-mount-"
_VOLATILE = frozenset({"volatile", "fsync=volatile"})


@contextmanager
def temp_mount(mounts: Sequence[Mount], *, dir: Path, read_only: bool = False) -> Iterator[Path]:
    """Mount everything on a new directory and yield its path; unmount and remove it after.

    The overlay option `volatile` is left out: an upper directory that was mounted so once cannot
    be mounted again. The directory is removed with rmdir, so nothing is ever deleted
    through a mount that is stuck.

    Args:
        mounts: what to mount.
        dir: where the new directory goes; `unmount_recursive(dir)` sweeps up after a crash.
        read_only: mount what `read_only_mounts` makes of it.

    Raises:
        LaminaError: mounting failed, or unmounting did while the body raised nothing.
    """
    wanted = without_volatile(mounts)
    if read_only:
        wanted = read_only_mounts(wanted)
    point = _made_directory(dir)
    try:
        mount_all(wanted, point)
    except BaseException:
        _remove_quietly(point)
        raise
    try:
        yield point
    except BaseException:
        _release_quietly(wanted, point)
        raise
    _release(wanted, point)


def without_volatile(mounts: Sequence[Mount]) -> list[Mount]:
    """Return the mounts without `volatile` on any overlay."""
    return [
        mount._replace(options=tuple(o for o in split_options(mount.options) if o not in _VOLATILE))
        if mount.type == "overlay"
        else mount
        for mount in mounts
    ]


def _made_directory(parent: Path) -> Path:
    point = parent / f"{PREFIX}{os.urandom(8).hex()}"
    try:
        point.mkdir(mode=0o700)
        return point
    except OSError as error:
        raise failure(error, f"make a directory for a mount in {parent}") from error


def _remove_quietly(point: Path) -> None:
    try:
        point.rmdir()
    except OSError as error:
        log.warning("a mount point stays: %s", error, extra={"path": str(point)})


def _release(mounts: Sequence[Mount], point: Path) -> None:
    unmount_all(mounts, point)
    try:
        point.rmdir()
    except OSError as error:
        raise failure(error, f"remove the mount point {point}") from error


def _release_quietly(mounts: Sequence[Mount], point: Path) -> None:
    try:
        _release(mounts, point)
    except LaminaError as error:
        log.warning("a temporary mount stays: %s", error, extra={"path": str(point)})
