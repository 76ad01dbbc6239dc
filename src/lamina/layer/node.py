"""One name below a root, looked at without following any link, and compared with another."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from lamina.layer.cursor import is_directory
from lamina.linux.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

_RESOLVE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
_PART = 1 << 20
CAPABILITY = "security.capability"
_ACL = "system.posix_acl_"
_OVERLAYS = ("user.overlay.", "user.fuseoverlayfs.")


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

    def xattrs(self, *, exact: bool = False) -> dict[bytes, bytes]:
        """Return the attributes that a layer carries: capabilities and the user's own.

        With `exact` access control lists as well, which layers may bring but ours leave out.
        """
        if not (stat.S_ISREG(self.status.st_mode) or is_directory(self.status)):
            return {}
        fd = self.open()
        try:
            names = [n for n in _names(fd) if is_carried(n) or (exact and n.startswith(_ACL))]
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

    `user.overlay.` and `user.fuseoverlayfs.` are the overlay's own; a name with `=` has no place in
    a pax header.
    """
    if name == CAPABILITY:
        return True
    return name.startswith("user.") and not name.startswith(_OVERLAYS) and "=" not in name


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
        if x.st_mtime_ns % 1_000_000_000 == 0 and not same_content(a, b):
            return False
    return a.xattrs() == b.xattrs()


def same_exactly(a: Node, b: Node) -> bool:
    """Tell whether `b` is `a` to the nanosecond and to the last byte, but for its names.

    Content is not read where one filesystem is a copy of the other, block for block, and the inode
    number and the time of the last change, which nobody can set, say that it is the same file.
    """
    x, y = a.status, b.status
    if (x.st_mode, x.st_uid, x.st_gid, x.st_rdev) != (y.st_mode, y.st_uid, y.st_gid, y.st_rdev):
        return False
    if x.st_mtime_ns != y.st_mtime_ns:
        return False
    if not is_directory(x) and x.st_size != y.st_size:
        return False
    if (x.st_ino, x.st_ctime_ns) == (y.st_ino, y.st_ctime_ns):
        return True
    return a.xattrs(exact=True) == b.xattrs(exact=True) and same_content(a, b)


def same_content(a: Node, b: Node) -> bool:
    """Tell whether two nodes of one type have the same bytes, or the same target."""
    if stat.S_ISLNK(a.status.st_mode):
        return a.target() == b.target()
    if not stat.S_ISREG(a.status.st_mode):
        return True
    with ExitStack() as stack:
        fds = [node.open() for node in (a, b)]
        for fd in fds:
            stack.callback(os.close, fd)
        return all(one == two for one, two in _parts(*fds))


def _parts(a: int, b: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield what both have at the same offsets, without what is a hole in both."""
    offset = 0
    while True:
        starts = [start for fd in (a, b) if (start := next_data(fd, offset)) is not None]
        if not starts:
            return
        offset = min(starts)
        one, two = os.pread(a, _PART, offset), os.pread(b, _PART, offset)
        yield one, two
        if not one:
            return
        offset += len(one)


def next_data(fd: int, offset: int) -> int | None:
    """Return where data begins at or after an offset; None where nothing but a hole follows.

    The offset itself where the filesystem does not tell.
    """
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
            raise
    return offset


def next_hole(fd: int, offset: int) -> int:
    """Return where data that is at `offset` ends.

    The file's end where the filesystem does not tell.

    Raises:
        OSError: ENXIO, the offset is beyond the end.
    """
    try:
        return os.lseek(fd, offset, os.SEEK_HOLE)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
            raise
    return os.fstat(fd).st_size
