"""How much room on the disk a file takes."""

from __future__ import annotations

import os

_UNIT = 512
"""Bytes that `st_blocks` counts by, on every filesystem: stat(3type)."""


def disk_bytes(status: os.stat_result) -> int:
    """Return the bytes of the disk that a file takes, which are fewer than it has in holes."""
    return status.st_blocks * _UNIT
