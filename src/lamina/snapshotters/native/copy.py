"""Copies a directory tree with everything that a root filesystem consists of.

Contents are shared where the filesystem can (reflink), else copied in the kernel; holes stay holes.
Owner, mode, times to the nanosecond, extended attributes (capabilities and ACLs are such), hard
links, symbolic links, devices, fifos and sockets are kept. Access times are those of the source;
inode flags (chattr) are not copied.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from lamina.linux.reflink import clone_file, copy_data

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SOURCE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_TARGET = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_REFLINK = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS})


def copy_tree(source: Path, target: Path) -> None:
    """Make the empty directory `target` like `source`, which nobody changes meanwhile.

    Raises:
        OSError: something cannot be read or made; a part of the copy is there then.
    """
    source_fd = os.open(source, _DIRECTORY)
    try:
        target_fd = os.open(target, _DIRECTORY)
        try:
            _Copy(target_fd).directory(source_fd, target_fd, "")
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)


class _Copy:
    """One copy: knows the first name of each inode with several, and whether reflinks work."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._first_names: dict[tuple[int, int], str] = {}
        self._reflink = True

    def directory(self, source: int, target: int, path: str) -> None:
        """Fill an open directory from another; `path` leads to it from the top."""
        with os.scandir(source) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                inner = f"{path}/{entry.name}" if path else entry.name
                if stat.S_ISDIR(status.st_mode):
                    self._subdirectory(source, target, entry.name, inner)
                elif not self._linked(status, target, entry.name, inner):
                    self._leaf(source, target, entry.name, status)
        # Last, because making entries changes the directory's times and may need its mode.
        _copy_attributes(source, target, os.fstat(source))

    def _subdirectory(self, source: int, target: int, name: str, path: str) -> None:
        os.mkdir(name, 0o700, dir_fd=target)
        inner_source = os.open(name, _DIRECTORY, dir_fd=source)
        try:
            inner_target = os.open(name, _DIRECTORY, dir_fd=target)
            try:
                self.directory(inner_source, inner_target, path)
            finally:
                os.close(inner_target)
        finally:
            os.close(inner_source)

    def _linked(self, status: os.stat_result, target: int, name: str, path: str) -> bool:
        """Make a further name of what is copied already; false if it is not."""
        if status.st_nlink == 1:
            return False
        first = self._first_names.setdefault((status.st_dev, status.st_ino), path)
        if first == path:
            return False
        os.link(first, name, src_dir_fd=self._top, dst_dir_fd=target, follow_symlinks=False)
        return True

    def _leaf(self, source: int, target: int, name: str, status: os.stat_result) -> None:
        if stat.S_ISREG(status.st_mode):
            self._file(source, target, name)
            return
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        else:
            kind = stat.S_IFMT(status.st_mode)
            os.mknod(name, kind | 0o600, status.st_rdev, dir_fd=target)
        _copy_leaf_attributes(source, target, name, status)

    def _file(self, source_directory: int, target_directory: int, name: str) -> None:
        source = os.open(name, _SOURCE, dir_fd=source_directory)
        try:
            target = os.open(name, _TARGET, 0o600, dir_fd=target_directory)
            try:
                self._content(source, target)
                _copy_attributes(source, target, os.fstat(source))
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
