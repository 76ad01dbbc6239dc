"""mkfs: filesystems made in regular files, and on devices."""

from __future__ import annotations

import os
import re

from lamina.core.units import format_size
from lamina.errors import InvalidArgument, ToolError
from lamina.tools.run import run

_SECONDS = 300.0
_EXT = ("-q", "-F", "-m", "0", "-b", "4096")
_JOURNAL = ("-E", "lazy_journal_init=1")  # a sparse file has zeros there already
_SMALL_JOURNAL = ("-J", "size=16")
_SMALL_JOURNAL_FROM = 512 << 20
"""Bytes from which on mke2fs would make a journal of more than 16 MiB."""
_BTRFS_MINIMUM = re.compile(r"minimum size for each btrfs device is (\d+)")


def make_filesystem(file: str | os.PathLike[str], type: str, size: int) -> None:
    """Make a filesystem that fills a sparse file of `size` bytes.

    Nothing is reserved for root. The journal of ext3 and ext4 has at most 16 MiB, since a copy of
    the file copies what was ever written to it.

    Args:
        file: exists, and is as long as that.
        type: `ext2`, `ext3`, `ext4` or `xfs`.
        size: of the file.

    Raises:
        ToolError: the program is missing, or refuses, as for a file that is too small.
    """
    run([f"mkfs.{type}", *_arguments(type, size), file], timeout=_SECONDS)


def make_filesystem_on(
    device: str | os.PathLike[str], type: str, *, extended: str, small_journal: bool = False
) -> None:
    """Make a filesystem that fills a device, on which nothing is needed any more.

    Args:
        device: its node.
        type: `ext2`, `ext4` or `xfs`.
        extended: what `-E` is given; "" for nothing. xfs has no such option.
        small_journal: make ext4's no larger than 16 MiB.

    Raises:
        ToolError: the program is missing, or refuses.
    """
    if type == "xfs":
        run(["mkfs.xfs", "-q", "-f", "-K", device], timeout=_SECONDS)
        return
    options = [*(("-E", extended) if extended else ()), *(_SMALL_JOURNAL if small_journal else ())]
    run([f"mkfs.{type}", "-q", "-F", *options, device], timeout=_SECONDS)


def make_btrfs(file: str | os.PathLike[str], *, label: str) -> None:
    """Make a btrfs that fills a sparse file, in which nothing is needed any more.

    Args:
        file: exists, and has the size.
        label: of the filesystem.

    Raises:
        InvalidArgument: the file is too small.
        ToolError: the program is missing, or refuses.
    """
    try:
        run(["mkfs.btrfs", "-q", "-f", "-L", label, file], timeout=_SECONDS)
    except ToolError as error:
        least = _BTRFS_MINIMUM.search(error.stderr)
        if least is None:
            raise
        hint = f"mkfs.btrfs wants {format_size(int(least[1]))} at least, which is {least[1]} bytes"
        raise InvalidArgument("make a btrfs that small in", file, hint=hint) from error


def _arguments(type: str, size: int) -> tuple[str, ...]:
    if type == "xfs":
        return ("-q", "-f")
    if type == "ext2":
        return _EXT
    if size < _SMALL_JOURNAL_FROM:
        return (*_EXT, *_JOURNAL)
    return (*_EXT, *_JOURNAL, *_SMALL_JOURNAL)
