"""Sparse files that serve as disks, on loop devices."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lamina.core.units import format_size
from lamina.errors import InvalidArgument
from lamina.linux.loop import LoopDevice, attached

log = logging.getLogger(__name__)

_MODE = 0o600


def make_sparse(file: Path, size: int) -> None:
    """Make a file of `size` bytes, or make one that is there longer; what is in it stays.

    Raises:
        InvalidArgument: the filesystem has no files that large.
    """
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
    try:
        _extend(fd, file, size)
        os.fsync(fd)
    finally:
        os.close(fd)


def require_place_for(file: Path, size: int) -> None:
    """Make sure that a file of `size` bytes can be made, its directory included.

    That takes no room; one that nobody sees is made, and is gone again.

    Raises:
        InvalidArgument: something else than a directory is in its directory's place, or in that of
            one above; or the filesystem has no files that large.
        OSError: nothing can be made there.
    """
    above = next(path for path in file.parents if path.exists())
    if not above.is_dir():
        raise InvalidArgument("make file", file, hint=f"{above} is no directory")
    with tempfile.TemporaryFile(dir=above) as trial:
        _extend(trial.fileno(), file, size)


def warn_of_small_disk(directory: Path, wanted: int, *, what: str) -> None:
    """Warn where files may come to take more space than their disk has.

    Args:
        directory: where they are.
        wanted: bytes that they may come to take.
        what: uses them: `pool`.
    """
    free = shutil.disk_usage(directory).free
    if free < wanted:
        log.warning(
            "%s has %s free, less than the %s that the %s may come to take;"
            " a %s whose disk is full fails",
            *(directory, format_size(free), format_size(wanted), what, what),
        )


def _extend(fd: int, file: Path, size: int) -> None:
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        if error.errno not in {errno.EFBIG, errno.EINVAL}:
            raise
        hint = "the filesystem there has no files that large"
        raise InvalidArgument(f"make a file of {format_size(size)}", file, hint=hint) from error


@contextmanager
def attached_directly(file: Path) -> Iterator[LoopDevice]:
    """Attach a file past the page cache, where its filesystem can do that."""
    try:
        attachment = attached(file, direct_io=True)
        device = attachment.__enter__()
    except OSError as error:
        if error.errno != errno.EINVAL:  # kernels before 5.8, on tmpfs and the like
            raise
        attachment = attached(file)
        device = attachment.__enter__()
    with ExitStack() as stack:
        stack.push(attachment)
        yield device
