"""A disk that is to become a pool: who uses it, and what is on it that would be lost."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from lamina.errors import FailedPrecondition, InvalidArgument
from lamina.linux.blockdev import device_size
from lamina.linux.mountinfo import read_mountinfo
from lamina.tools.wipefs import signatures

_BLOCK = Path("/sys/dev/block")
_SWAPS = Path("/proc/swaps")


def require_unused(device: Path) -> None:
    """Make sure that nobody uses a disk or a part of it.

    Raises:
        InvalidArgument: it is no block device.
        FailedPrecondition: it is mounted, swapped to, part of another device, or open for a
            program that wants it for itself.
    """
    numbers = [_number(device), *_partitions(device).values()]
    uses = [*_mounts(numbers), *_swaps(numbers), *_holders(numbers)]
    if not uses and (error := _open_exclusively(device)):
        uses = [error]
    if uses:
        hint = "free it first, or name another device"
        raise FailedPrecondition(f"use {device}: it is in use: {', '.join(uses)}", hint=hint)


def content(device: Path) -> list[str]:
    """Return in words what is on a disk; nothing when it looks empty."""
    found = [f"{signature} on {device}" for signature in signatures(device)]
    return [*found, *(f"partition {name}" for name in _partitions(device))]


def size_of(device: Path) -> int:
    """Return the size of a disk in bytes."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return device_size(fd)
    finally:
        os.close(fd)


def _number(device: Path) -> str:
    try:
        status = device.stat()
    except FileNotFoundError as error:
        raise InvalidArgument("use as disk", device, hint="there is no such device") from error
    if not stat.S_ISBLK(status.st_mode):
        raise InvalidArgument("use as disk", device, hint="it is no block device")
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def _partitions(device: Path) -> dict[str, str]:
    """Return the numbers of a disk's partitions by their names."""
    directory = _BLOCK / _number(device)
    return {
        entry.name: (entry / "dev").read_text().strip()
        for entry in sorted(directory.iterdir() if directory.exists() else ())
        if (entry / "partition").exists()
    }


def _mounts(numbers: list[str]) -> list[str]:
    return [f"mounted on {info.point}" for info in read_mountinfo() if info.device in numbers]


def _swaps(numbers: list[str]) -> list[str]:
    try:
        lines = _SWAPS.read_text().splitlines()[1:]
    except FileNotFoundError:  # a kernel without swap
        return []
    paths = [Path(line.split()[0]) for line in lines if line.startswith("/dev/")]
    return [f"swap {path}" for path in paths if path.exists() and _number(path) in numbers]


def _holders(numbers: list[str]) -> list[str]:
    directories = [_BLOCK / number / "holders" for number in numbers]
    return [
        f"part of {(entry / 'dm/name').read_text().strip() if (entry / 'dm').exists() else name}"
        for directory in directories
        if directory.is_dir()
        for entry in directory.iterdir()
        for name in (entry.name,)
    ]


def _open_exclusively(device: Path) -> str:
    """Return "" if a disk can be had alone, as for a mount, else why not."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return "a program, or the kernel, has it for itself"
    return ""
