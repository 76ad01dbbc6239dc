"""The inode flag that keeps images from being changed, renamed or removed, even by root."""

from __future__ import annotations

import os
from pathlib import Path

from lamina.linux.inode_flags import FS_IMMUTABLE_FL, get_flags, set_flags


def protect(path: Path) -> None:
    """Make a file immutable; needs CAP_LINUX_IMMUTABLE.

    Raises:
        OSError: ENOTTY, EOPNOTSUPP or EINVAL where the filesystem has no such flag; EPERM.
    """
    _change(path, set=FS_IMMUTABLE_FL)


def fault(directory: Path) -> str:
    """Make a file in that directory immutable for a moment; return why that fails, or ""."""
    import tempfile  # only where it is configured

    with tempfile.NamedTemporaryFile(dir=directory) as file:
        path = Path(file.name)
        try:
            protect(path)
            _change(path, clear=FS_IMMUTABLE_FL)
        except OSError as error:
            return error.strerror or str(error)
    return ""


def _change(path: Path, *, set: int = 0, clear: int = 0) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        set_flags(fd, get_flags(fd) & ~clear | set)
    finally:
        os.close(fd)
