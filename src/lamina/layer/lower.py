"""What the layers below have, for directories that a layer uses without describing them."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from lamina.formats.erofs.tree import Inode
from lamina.linux.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_BENEATH = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS


class LowerLayers:
    """Directories of the layers below, nearest first; `is_missing` when none was there to ask."""

    def __init__(self, stack: ExitStack, layers: Sequence[Path]) -> None:
        self.is_missing = False
        self._layers = []
        for path in layers:
            fd = os.open(path, _DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            self._layers.append(fd)

    def directory(self, path: bytes) -> Inode | None:
        """Return a directory as the first layer has it that has anything there, without children.

        None where none has it, or it is something else.
        """
        self.is_missing |= not self._layers
        for layer in self._layers:
            try:
                fd = openat2(path, _DIRECTORY, dir_fd=layer, resolve=_BENEATH)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue
                if error.errno in {errno.ENOTDIR, errno.ELOOP}:
                    return None
                raise
            try:
                return _described(fd)
            finally:
                os.close(fd)
        return None


def _described(fd: int) -> Inode:
    status = os.fstat(fd)
    xattrs = {os.fsencode(name): os.getxattr(fd, name) for name in os.listxattr(fd)}
    return Inode(status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, xattrs=xattrs)
