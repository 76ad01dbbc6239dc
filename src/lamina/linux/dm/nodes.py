"""Device nodes in /dev/mapper, where no udev makes them, as `dmsetup mknodes` does."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

DIRECTORY = Path("/dev/mapper")
CONTROL = DIRECTORY / "control"
_MODE = 0o600
_MISC_MAJOR = 10


def node(name: str) -> Path:
    """Return the path of a device's node."""
    return DIRECTORY / name


def make(path: Path, number: int) -> None:
    """See to it that `path` is the block device `number`, whatever was there before.

    A node of udev's, which is a link, stays as it is when it leads to that device.

    Raises:
        OSError: making it failed (CAP_MKNOD).
    """
    if _number(path) == number:
        return
    path.parent.mkdir(mode=0o755, exist_ok=True)
    nascent = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        nascent.unlink()
    os.mknod(nascent, stat.S_IFBLK | _MODE, number)
    nascent.replace(path)


def remove(path: Path, number: int) -> None:
    """Remove the node of a device that is gone; a link is udev's, who removes it, too."""
    if not path.is_symlink() and _number(path) == number:
        path.unlink(missing_ok=True)


def make_control() -> None:
    """Make the control node, in a /dev that the kernel does not fill by itself.

    Raises:
        OSError: ENODEV when the kernel has no device-mapper, otherwise what making it
            (CAP_MKNOD) failed with.
    """
    devices = map(str.split, Path("/proc/misc").read_text().splitlines())
    minor = next((minor for minor, name in devices if name == "device-mapper"), None)
    if minor is None:
        raise OSError(errno.ENODEV, "this kernel has no device-mapper", str(CONTROL))
    CONTROL.parent.mkdir(mode=0o755, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mknod(CONTROL, stat.S_IFCHR | _MODE, os.makedev(_MISC_MAJOR, int(minor)))


def _number(path: Path) -> int | None:
    """Return the number of the block device that a path leads to; None when it leads to none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else None
