"""One name below a root, looked at without following any link, and compared with another."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from lamina.layer.cursor import is_directory
from lamina.linux.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

_RESOLVE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
_PART = 1 << 20
CAPABILITY = "security.capability"


@dataclass(frozen=True, slots=True)
class Node:
    """A path below an open root directory with its status at the time of looking."""

    root_fd: int
    path: bytes
    status: os.stat_result

    def open(self) -> int:
        """Open a regular file or directory for reading; the caller closes it."""
        return openat2(
            self.path, os.O_RDONLY | os.O_NONBLOCK, dir_fd=self.root_fd, resolve=_RESOLVE
        )

    def target(self) -> bytes:
        """Return what a symbolic link says."""
        parent, _, base = self.path.rpartition(b"/")
        flags = os.O_PATH | os.O_DIRECTORY
        fd = openat2(parent or b".", flags, dir_fd=self.root_fd, resolve=_RESOLVE)
        try:
            return os.readlink(base, dir_fd=fd)
        finally:
            os.close(fd)

    def xattrs(self) -> dict[bytes, bytes]:
        """Return the attributes that a layer carries: capabilities and the user's own."""
        if not (stat.S_ISREG(self.status.st_mode) or is_directory(self.status)):
            return {}
        fd = self.open()
        try:
            names = [name for name in _names(fd) if is_carried(name)]
            return {os.fsencode(name): os.getxattr(fd, name) for name in names}
        finally:
            os.close(fd)


def _names(fd: int) -> list[str]:
    try:
        return os.listxattr(fd)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return []


def is_carried(name: str) -> bool:
    """Tell whether a layer carries the attribute of that name.

    `user.overlay.` is the overlay's own; a name with `=` has no place in a pax header.
    """
    if name == CAPABILITY:
        return True
    return name.startswith("user.") and not name.startswith("user.overlay.") and "=" not in name


def look(root_fd: int, path: bytes) -> Node | None:
    """Return the node at a path, None where there is none.

    Raises:
        NotADirectoryError: the path leads through something that is no directory.
    """
    try:
        flags = os.O_PATH | os.O_NOFOLLOW
        fd = openat2(path or b".", flags, dir_fd=root_fd, resolve=_RESOLVE)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error
    try:
        return Node(root_fd, path, os.fstat(fd))
    finally:
        os.close(fd)


def same(a: Node, b: Node) -> bool:
    """Tell whether nothing has changed from `a` to `b` that a layer could carry.

    Content counts as unchanged where size and time agree to the nanosecond; it is read only where
    both times are in whole seconds, since many tools cannot set finer ones.
    """
    x, y = a.status, b.status
    if (x.st_dev, x.st_ino) == (y.st_dev, y.st_ino):
        return True
    if (x.st_mode, x.st_uid, x.st_gid, x.st_rdev) != (y.st_mode, y.st_uid, y.st_gid, y.st_rdev):
        return False
    if not is_directory(x):
        if (x.st_size, x.st_mtime_ns) != (y.st_size, y.st_mtime_ns):
            return False
        if x.st_mtime_ns % 1_000_000_000 == 0 and not _same_content(a, b):
            return False
    return a.xattrs() == b.xattrs()


def _same_content(a: Node, b: Node) -> bool:
    if stat.S_ISLNK(a.status.st_mode):
        return a.target() == b.target()
    if not stat.S_ISREG(a.status.st_mode):
        return True
    with os.fdopen(a.open(), "rb", 0) as first, os.fdopen(b.open(), "rb", 0) as second:
        while True:
            one, two = first.read(_PART), second.read(_PART)
            if one != two:
                return False
            if not one:
                return True
