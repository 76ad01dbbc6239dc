"""Where a mount goes: an open directory or file, found without leaving the root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lamina.linux.openat2 import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2


@contextmanager
def opened_target(root: Path, below: str) -> Iterator[int]:
    """Open (O_PATH) what a mount covers.

    Links inside the root are followed as if the root were `/`, so a hostile one cannot point
    outside; and what is open cannot be exchanged before it is used.

    Args:
        root: of the list of mounts; links in this path itself are followed as usual.
        below: `Mount.target`; "" for the root itself.

    Raises:
        OSError: it does not exist (mounts never make their targets), or links run in circles.
    """
    fd = os.open(root, os.O_PATH | os.O_CLOEXEC)
    try:
        if below:
            fd = _replaced(fd, below)
        yield fd
    finally:
        os.close(fd)


def target_path(root: Path, below: str) -> str:
    """Return the path, free of links, of what `opened_target` opens."""
    with opened_target(root, below) as fd:
        return path_of(fd)


def path_of(fd: int) -> str:
    """Return where an open file is at the moment."""
    return str(Path(f"/proc/self/fd/{fd}").readlink())


def _replaced(root_fd: int, below: str) -> int:
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
    fd = openat2(below, os.O_PATH, dir_fd=root_fd, resolve=resolve)
    os.close(root_fd)
    return fd
