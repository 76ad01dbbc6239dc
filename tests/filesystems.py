"""Filesystems of one's own, in loop devices."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = 512 << 20
"""Of the sparse image; no current mkfs refuses it."""
BACKGROUND_SECONDS = 30.0


@contextmanager
def mounted(directory: Path, *mkfs: str) -> Iterator[Path]:
    """Make a filesystem with the command `mkfs` in an image in `directory`, and mount it there."""
    image, mount_point = directory / "disk.img", directory / "disk"
    with image.open("wb") as file:
        file.truncate(SIZE)
    mount_point.mkdir()
    subprocess.run((*mkfs, image), check=True, stdout=subprocess.DEVNULL)
    subprocess.run(("mount", "-o", "loop", image, mount_point), check=True)
    try:
        yield mount_point
    finally:
        _unmount(mount_point)


def _unmount(mount_point: Path) -> None:
    """Unmount it, once the process is done that works for a root there in the background."""
    deadline = time.monotonic() + BACKGROUND_SECONDS
    while subprocess.run(("umount", mount_point), stderr=subprocess.DEVNULL).returncode:
        if time.monotonic() > deadline:
            subprocess.run(("umount", mount_point), check=True)
        time.sleep(0.1)
