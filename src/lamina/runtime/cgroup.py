"""The cgroup of a container: its path, and the removal of one that a killed runtime left."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from pathlib import Path

_MOUNT_POINT = Path("/sys/fs/cgroup")
_SETTLE_SECONDS = 2.0
_STEP_SECONDS = 0.02


def unified() -> bool:
    """Tell whether cgroup v2 rules alone."""
    return (_MOUNT_POINT / "cgroup.controllers").exists()


def default_path(directory: Path, id: str) -> str:
    """Return the cgroup path of a container that is kept below `directory`.

    Containers of the same id in different stores have different ones, and no directory is shared
    that somebody would have to remove last.
    """
    return f"/lamina-{zlib.crc32(bytes(directory)):08x}-{id}"


def remove(path: str) -> None:
    """Remove the cgroup in every hierarchy where it exists and is empty, or will be in a moment.

    A runtime removes it itself; this is for one that was killed.

    Raises:
        OSError: EBUSY: processes are in it, and still after 2 s.
    """
    deadline = time.monotonic() + _SETTLE_SECONDS
    for directory in _directories(path):
        while directory.exists():
            try:
                directory.rmdir()
            except FileNotFoundError:
                break
            except OSError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_STEP_SECONDS)


def _directories(path: str) -> Iterator[Path]:
    relative = path.strip("/")
    if not relative or ".." in Path(relative).parts:
        return
    bases = [_MOUNT_POINT] if unified() else [p for p in _MOUNT_POINT.iterdir() if p.is_dir()]
    for base in bases:
        directory = base / relative
        if directory.is_dir():
            yield directory
