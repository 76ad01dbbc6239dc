"""Looks at the root: its filesystem, what is in it, and who is at work there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lamina import plugins
from lamina.core.units import format_size
from lamina.doctor.finding import Finding, Level
from lamina.errors import LaminaError
from lamina.linux.dirent import types_are_known
from lamina.linux.mountinfo import MountInfo, read_mountinfo
from lamina.meta.schema import METADATA
from lamina.snapshotters.wakeup import LOCK, janitor_runs

if TYPE_CHECKING:
    from lamina.core.problem import Problem
    from lamina.store import Store

LITTLE_SPACE = 0.05
"""Part of a filesystem below which its free space, or inodes, are worth a warning."""
_MAX_MOUNTS = 3


def examine_place(root: Path, store: Store | None) -> Iterator[Finding]:
    """Yield what is so of the root.

    Args:
        root: the directory, which may not exist.
        store: opened there; None where there is none yet.
    """
    place = next(path for path in (root, *root.parents) if path.is_dir())
    yield _filesystem(root, place)
    yield _space(place)
    yield _entry_types(place)
    yield _attributes(place)
    yield _daemon(root)
    if store is not None:
        yield from _content(store)


def holds_store(root: Path) -> bool:
    """Tell whether the directory has been used as a root."""
    return (root / METADATA).exists()


def _filesystem(root: Path, place: Path) -> Finding:
    there = "" if root.is_dir() else ", not made yet"
    info = _mount_of(place)
    if info is None:
        return Finding("root", Level.NOTE, f"{root}{there}")
    what = f"{root}{there}: {info.type} on {info.source}, mounted on {info.point}"
    if "ro" in info.options or "ro" in info.super_options:
        return Finding("root", Level.BAD, f"{what}, read-only", f"mount -o remount,rw {info.point}")
    return Finding("root", Level.OK, what)


def _mount_of(path: Path) -> MountInfo | None:
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    resolved = str(path.resolve())
    above = [
        info
        for info in read_mountinfo()
        if info.point == "/" or resolved == info.point or resolved.startswith(f"{info.point}/")
    ]
    # btrfs gives each subvolume a device number of its own.
    same = [info for info in above if info.device == number] or above
    return max(same, key=lambda info: len(info.point), default=None)


def _space(place: Path) -> Finding:
    disk = os.statvfs(place)
    size, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
    detail = f"{format_size(free)} of {format_size(size)} free"
    if disk.f_files:  # some filesystems do not count them
        detail += f", {disk.f_favail:,} of {disk.f_files:,} inodes"
    no_inodes = bool(disk.f_files) and not disk.f_favail
    fix = "lamina images prune --all, or content prune references; or a larger disk"
    if not free or no_inodes:
        return Finding("space", Level.BAD, f"{detail}: full", fix)
    few_inodes = bool(disk.f_files) and disk.f_favail < disk.f_files * LITTLE_SPACE
    if free < size * LITTLE_SPACE or few_inodes:
        return Finding("space", Level.WARN, detail, fix)
    return Finding("space", Level.OK, detail)


def _entry_types(place: Path) -> Finding:
    try:
        known = types_are_known(place)
    except OSError as error:
        return Finding("d_type", Level.NOTE, f"cannot list {place}: {error.strerror}")
    if known:
        return Finding("d_type", Level.OK, "directories tell their entries' types")
    fix = "make it anew with `mkfs.xfs -n ftype=1`, or move the root"
    return Finding("d_type", Level.WARN, "directories do not tell: no overlayfs", fix)


def _attributes(place: Path) -> Finding:
    """Set attributes as layers and overlays have them."""
    try:
        with plugins.probe_directory(place / "doctor") as directory:
            refused = {name: _refused(directory, name) for name in _ATTRIBUTES}
    except OSError as error:
        what = f"cannot write to {error.filename or place}: {error.strerror}"
        fix = "run as root, or name a directory of yours with --root"
        return Finding("attributes", Level.BAD, what, fix)
    missing = [f"{name} ({reason})" for name, reason in refused.items() if reason]
    if not missing:
        return Finding("attributes", Level.OK, "user, trusted and security attributes can be set")
    fix = "run as root, on ext4, xfs or btrfs"
    return Finding("attributes", Level.WARN, f"cannot be set: {', '.join(missing)}", fix)


def _refused(directory: Path, name: str) -> str:
    file = directory / "file"
    file.touch()
    value = b"1" if not name.endswith("capability") else _CAPABILITY
    try:
        os.setxattr(file, name, value)
    except OSError as error:
        return error.strerror or str(error)
    return ""


_ATTRIBUTES = ("user.lamina", "trusted.overlay.lamina", "security.capability")
_CAPABILITY = bytes.fromhex("0000000200000000000000000000000000000000")
"""`struct vfs_cap_data` of revision 2 with no capability in it."""


def _daemon(root: Path) -> Finding:
    found = list(_daemons(root))
    if found:
        return Finding("daemon", Level.OK, f"serves this root: process {', '.join(found)}")
    return Finding("daemon", Level.NOTE, "none serves this root; commands need none")


def _daemons(root: Path) -> Iterator[str]:
    """Yield the ids of the processes `lamina serve` that have something of the root open."""
    top = f"{root.resolve()}/"
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"serve" in words and any(
                str(fd.readlink()).startswith(top) for fd in (process / "fd").iterdir()
            ):
                yield process.name
        except OSError:
            continue  # ended meanwhile, or somebody else's


def _content(store: Store) -> Iterator[Finding]:
    try:
        problems = store.fsck()
    except LaminaError as error:
        yield Finding("store", Level.BAD, str(error), error.hint)
        return
    except OSError as error:
        what = f"cannot be examined: {error.strerror}: {error.filename}"
        yield Finding("store", Level.BAD, what, "run as the owner of the root, or as root")
        return
    yield _mounts(problems)
    yield _problems(problems)
    yield _janitor(store)


def _mounts(problems: list[Problem]) -> Finding:
    points = [problem.subject for problem in problems if "mounted" in problem.what]
    if not points:
        return Finding("mounts", Level.OK, "none is left over")
    shown = ", ".join(points[:_MAX_MOUNTS])
    what = f"{len(points)} left over, such as {shown}"
    return Finding("mounts", Level.WARN, what, "lamina fsck --repair")


def _problems(problems: list[Problem]) -> Finding:
    if not problems:
        return Finding("store", Level.OK, "records and disk agree")
    what = f"{len(problems)} problems, such as {problems[0].subject}: {problems[0].what}"
    return Finding("store", Level.BAD, what, "lamina fsck explains them; --repair mends them")


def _janitor(store: Store) -> Finding:
    """Tell of the background work: commits to sync, removed storage to free."""
    waiting = {"free": 0, "sync": 0}
    for name in store.existing_snapshotters():
        try:
            backlog = store.snapshotter(name).backlog()
        except LaminaError:
            continue  # its status tells
        for work, _ in backlog:
            waiting[work] += 1
    detail = f"{waiting['sync']} commits to sync, {waiting['free']} snapshots to free"
    if not any(waiting.values()):
        return Finding("janitor", Level.OK, "nothing to do")
    if (store.root / LOCK).exists() and janitor_runs(store.root):
        return Finding("janitor", Level.OK, f"at work: {detail}")
    return Finding("janitor", Level.WARN, f"not at work: {detail}", "lamina snapshots cleanup")
