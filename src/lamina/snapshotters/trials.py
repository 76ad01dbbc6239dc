"""Trials that several snapshotters ask for, made once for each filesystem while all are listed."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path

Probe = Callable[[Path], str | None]
"""Does something in an empty directory and takes it back; None where it works, else why not."""

_Results = dict[Hashable, str | None]
_shared: list[_Results] = []


@contextmanager
def shared() -> Iterator[None]:
    """Have `tried` remember until the end of the body. Nothing is remembered beyond that.

    Between two listings somebody may have followed the advice that the first one gave. One inside
    of another remembers what that has.
    """
    _shared.append(_shared[-1] if _shared else {})
    try:
        yield
    finally:
        _shared.pop()


def tried(probe: Probe, directory: Path) -> str | None:
    """Return what a probe says of a directory, or has said of one like it since `shared` began.

    They are alike where the kernel has no means to tell them apart: on one filesystem, reached
    through mounts with the same options, with the same inode flags (a directory that ignores the
    case of names, or is encrypted, has another answer than its neighbour).
    """
    if not _shared:
        return probe(directory)
    results = _shared[-1]
    key = (probe, *_nature(directory))
    if key not in results:
        results[key] = probe(directory)
    return results[key]


def _nature(directory: Path) -> tuple[int, int, int]:
    from lamina.linux.inode_flags import get_flags

    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            flags = get_flags(fd)
        except OSError:  # this filesystem has none
            flags = 0
        return os.fstat(fd).st_dev, os.fstatvfs(fd).f_flag, flags
    finally:
        os.close(fd)
