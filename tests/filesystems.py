"""Filesystems of one's own, in loop devices."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = 512 << 20
"""Of the sparse image; no current mkfs refuses it."""


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
        subprocess.run(("umount", mount_point), check=True)
