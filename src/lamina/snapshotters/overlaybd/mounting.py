"""Mounting the filesystem on a device."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from lamina.core.mount import Mount
from lamina.errors import FailedPrecondition, Unavailable
from lamina.linux import loop

_OPTIONS = {"ext4": ("noload",), "xfs": ("norecovery", "nouuid"), "erofs": ()}
"""By type: what a device that cannot be written to needs, whose log cannot be replayed."""
_HEAD = 4096
_EROFS, _EXT4, _XFS = b"\xe2\xe1\xf5\xe0", b"\x53\xef", b"XFSB"
"""At bytes 1024, 1080 and 0."""


def mount_device(path: str, point: Path, filesystem: str, *options: str) -> None:
    """Mount what is on a device, read-only.

    Args:
        path: a file, for which a loop device is made, or a block device.
        point: where.
        filesystem: its type as its layer says; what is found on the device counts more.
        options: further ones.

    Raises:
        FailedPrecondition: it is of a type that is not mounted.
        Unavailable: the device cannot be read just now.
        LaminaError: the kernel refuses.
    """
    from lamina.mount import mount_all

    found = _filesystem(path)
    if not found and filesystem in _OPTIONS:
        hint = f"it should be {filesystem}: convert the image again"
        raise FailedPrecondition("find a filesystem on the device of an image:", point, hint=hint)
    found = found or filesystem
    if found not in _OPTIONS:
        hint = f"only {', '.join(_OPTIONS)} can be"
        raise FailedPrecondition("mount the device of an image, which has", found, hint=hint)
    all_options = ["ro", *_OPTIONS[found], *options]
    if not stat.S_ISBLK(Path(path).stat().st_mode):
        # The page cache of what is on the device is enough.
        all_options += ["loop", "direct-io"]
    mount_all([Mount(found, path, options=tuple(all_options))], point)


def is_backing(path: str) -> bool:
    """Tell whether something is mounted from a file, by a loop device, or from a block device.

    Nothing is from one that is gone, or cannot be opened.
    """
    try:
        if stat.S_ISBLK(Path(path).stat().st_mode):
            return not _is_free(path)
        return loop.is_bound(path)
    except OSError:
        return False


def _is_free(path: str) -> bool:
    """Tell whether a block device can be opened for oneself alone, as by mounting it; open(2)."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _filesystem(path: str) -> str:
    """Return the type of what is on a device, "" where it is none that is known."""
    try:
        with open(path, "rb", buffering=0) as device:
            head = device.read(_HEAD)
    except OSError as error:
        raise Unavailable(f"read the device of an image: {error.strerror}", path) from error
    if head[1024:1028] == _EROFS:
        return "erofs"
    if head[1080:1082] == _EXT4:
        return "ext4"
    return "xfs" if head[:4] == _XFS else ""
