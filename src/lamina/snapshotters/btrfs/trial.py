"""Tries on a directory what the btrfs snapshotter needs, and takes it back."""

from __future__ import annotations

import os
from pathlib import Path

from lamina.linux import mountapi
from lamina.linux.btrfs import create_snapshot, create_subvolume, is_btrfs, subvolume_id
from lamina.linux.btrfs_quota import QuotaMode, quota_mode
from lamina.snapshotters.btrfs.subvolumes import destroy_all

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def try_subvolume(directory: Path, device: str) -> None:
    """Make a subvolume and a read-only snapshot of it there, and mount that from the device.

    Raises:
        OSError: what does not work.
    """
    fd = os.open(directory, _DIRECTORY)
    try:
        try:
            _try(fd, directory, device)
        finally:
            for name in ("subvolume", "snapshot"):
                destroy_all(fd, directory / name)
    finally:
        os.close(fd)


def _try(fd: int, directory: Path, device: str) -> None:
    create_subvolume(fd, "subvolume")
    source = os.open("subvolume", _DIRECTORY, dir_fd=fd)
    try:
        create_snapshot(fd, "snapshot", source, read_only=True)
        id = subvolume_id(source)
    finally:
        os.close(source)
    point = directory / "at"
    point.mkdir(exist_ok=True)
    mountapi.mount(device, point, "btrfs", 0, f"subvolid={id}")
    mountapi.umount2(point, mountapi.MNT_DETACH)
    point.rmdir()


def why_no_quotas(directory: Path) -> str | None:
    """Return None where quotas are on, else the reason why not."""
    fd = os.open(directory, _DIRECTORY)
    try:
        if not is_btrfs(fd):
            return "not on btrfs"
        return None if quota_mode(fd) != QuotaMode.OFF else "they are off"
    except OSError as error:
        return error.strerror or str(error)
    finally:
        os.close(fd)
