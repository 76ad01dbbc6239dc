"""Copies a directory tree with everything that a root filesystem consists of.

Contents are shared where the filesystem can (reflink), else copied in the kernel; holes stay holes.
Owner, mode, times to the nanosecond, extended attributes (capabilities and ACLs are such), hard
links, symbolic links, devices, fifos and sockets are kept. Access times are those of the source;
inode flags (chattr) are not copied.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Self

from lamina.core.cancel import check_cancelled
from lamina.linux.reflink import clone_file, copy_data

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SOURCE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_TARGET = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_REFLINK = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS})


def copy_tree(source: Path, target: Path) -> None:
    """Make the empty directory `target` like `source`, which nobody changes meanwhile.

    Depth does not matter, and few descriptors are open at a time.

    Raises:
        OSError: something cannot be read or made; a part of the copy is there then.
        Cancelled, DeadlineExceeded: see `check_cancelled`; as above.
    """
    with contextlib.ExitStack() as stack:
        source_fd = os.open(source, _DIRECTORY)
        stack.callback(os.close, source_fd)
        top = os.open(target, _DIRECTORY)
        stack.callback(os.close, top)
        copy = stack.enter_context(_Copy(source_fd, top))
        copy.run()


class _Copy:
    """One copy: a walk of two directories in step, down by name and up again by `..`.

    It knows the first name of each inode that has several, and whether reflinks work.
    """

    def __init__(self, source: int, top: int) -> None:
        self._top = top
        self._source = os.dup(source)
        self._target = os.dup(top)
        self._first_names: dict[tuple[int, int], str] = {}
        self._reflink = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._source)
        os.close(self._target)

    def run(self) -> None:
        """Copy everything, each directory's own attributes last: its entries change its times."""
        path: list[str] = []
        pending = [self._copy_entries("")]
        while True:
            if pending[-1]:
                path.append(pending[-1].pop())
                os.mkdir(path[-1], 0o700, dir_fd=self._target)
                self._go(path[-1])
                pending.append(self._copy_entries("/".join(path)))
                continue
            _copy_attributes(self._source, self._target, os.fstat(self._source))
            pending.pop()
            if not pending:
                return
            path.pop()
            self._go("..")

    def _go(self, name: str) -> None:
        source = os.open(name, _DIRECTORY, dir_fd=self._source)
        os.close(self._source)
        self._source = source
        target = os.open(name, _DIRECTORY, dir_fd=self._target)
        os.close(self._target)
        self._target = target

    def _copy_entries(self, path: str) -> list[str]:
        """Copy what the current directory has, but for directories: return their names."""
        directories = []
        with os.scandir(self._source) as entries:
            for entry in entries:
                check_cancelled()
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    directories.append(entry.name)
                elif not self._linked(status, entry.name, path):
                    self._leaf(entry.name, status)
        return directories

    def _linked(self, status: os.stat_result, name: str, path: str) -> bool:
        """Make a further name of what is copied already; false if it is not."""
        if status.st_nlink == 1:
            return False
        here = f"{path}/{name}" if path else name
        first = self._first_names.setdefault((status.st_dev, status.st_ino), here)
        if first == here:
            return False
        os.link(first, name, src_dir_fd=self._top, dst_dir_fd=self._target, follow_symlinks=False)
        return True

    def _leaf(self, name: str, status: os.stat_result) -> None:
        if stat.S_ISREG(status.st_mode):
            self._file(name, status)
            return
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=self._source), name, dir_fd=self._target)
        else:
            kind = stat.S_IFMT(status.st_mode)
            os.mknod(name, kind | 0o600, status.st_rdev, dir_fd=self._target)
        _copy_leaf_attributes(self._source, self._target, name, status)

    def _file(self, name: str, status: os.stat_result) -> None:
        source = os.open(name, _SOURCE, dir_fd=self._source)
        try:
            target = os.open(name, _TARGET, 0o600, dir_fd=self._target)
            try:
                self._content(source, target)
                _copy_attributes(source, target, status)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _content(self, source: int, target: int) -> None:
        if self._reflink:
            try:
                clone_file(source, target)
            except OSError as error:
                if error.errno not in _NO_REFLINK:
                    raise
                self._reflink = False  # both trees are on one filesystem: it never will
            else:
                return
        copy_data(source, target)


def _copy_attributes(source: int, target: int, status: os.stat_result) -> None:
    """Copy what an inode has beside its content, between open files or directories.

    The order matters: a change of owner clears capabilities and setuid.
    """
    os.fchown(target, status.st_uid, status.st_gid)
    for name in os.listxattr(source):
        os.setxattr(target, name, os.getxattr(source, name))
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_leaf_attributes(source: int, target: int, name: str, status: os.stat_result) -> None:
    """Copy the same for what must not be opened: links, devices, fifos and sockets."""
    os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
    # There is no *xattrat(2) before Linux 6.13, and a path below an open directory does as well.
    copied, original = f"/proc/self/fd/{target}/{name}", f"/proc/self/fd/{source}/{name}"
    for attribute in os.listxattr(original, follow_symlinks=False):
        value = os.getxattr(original, attribute, follow_symlinks=False)
        os.setxattr(copied, attribute, value, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=target)
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=target, follow_symlinks=False)
