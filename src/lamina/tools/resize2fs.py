"""e2fsck and resize2fs: another size for an ext filesystem that is not mounted."""

from __future__ import annotations

import os
from pathlib import Path

from lamina.tools.run import run

_SECONDS = 600.0
_CORRECTED = 1


def resize_ext(file: Path, size: int) -> None:
    """Make the filesystem in a regular file `size` bytes large, whole KiB.

    The file is at least as long before, and exactly as long afterwards.

    Raises:
        ToolError: e2fsprogs is missing, or there is more in it than fits.
    """
    resize_ext_on(file, size)
    os.truncate(file, size)


def resize_ext_on(device: Path, size: int) -> None:
    """Make the filesystem on a device, which is at least as large, `size` bytes large, whole KiB.

    Raises:
        ToolError: e2fsprogs is missing, or there is more in it than fits.
    """
    run(["e2fsck", "-f", "-p", device], timeout=_SECONDS, success=(0, _CORRECTED))
    run(["resize2fs", device, f"{size >> 10}K"], timeout=_SECONDS)
