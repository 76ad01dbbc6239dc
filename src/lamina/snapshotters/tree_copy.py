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
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

from lamina.core.cancel import check_cancelled
from lamina.linux.reflink import clone_file, copy_data

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SOURCE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_TARGET = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_REFLINK = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS, errno.ETXTBSY}
)


def copy_tree(source: Path, target: Path) -> None:
    """Make the empty directory `target` like `source`, which nobody changes meanwhile.

    Depth does not matter, and few descriptors are open at a time.

    Raises:
        OSError: something cannot be read or made; a part of the copy is there then.
        Cancelled, DeadlineExceeded: see `check_cancelled`; as above.
    """
    with contextlib.ExitStack() as stack:
        source_fd = os.open(source, DIRECTORY)
        stack.callback(os.close, source_fd)
        top = os.open(target, DIRECTORY)
        stack.callback(os.close, top)
        copy = stack.enter_context(TreeCopy(source_fd, top))
        copy.run()


class TreeCopy:
    """One copy: a walk of two directories in step, down by name and up again by `..`.

    It knows the first name of each inode that has several, and whether reflinks work.

    Args:
        source: descriptor of the directory to copy, which is duplicated, as `top` is.
        top: that of the empty directory to copy into.
    """

    def __init__(self, source: int, top: int) -> None:
        self._top = top
        self._source = os.dup(source)
        self._target = os.dup(top)
        self._first_names: dict[tuple[int, int], str] = {}
        self._contents = Contents()

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
                name = pending[-1].pop()
                if self._down(name):
                    path.append(name)
                    pending.append(self._copy_entries("/".join(path)))
                continue
            attributes_of(self._source, os.fstat(self._source)).give_to(self._target)
            pending.pop()
            if not pending:
                return
            path.pop()
            self._up()

    def _down(self, name: str) -> bool:
        """Go into a directory, which is made; false if there is none any more."""
        os.mkdir(name, 0o700, dir_fd=self._target)
        self._go(name)
        return True

    def _up(self) -> None:
        self._go("..")

    def _go(self, name: str) -> None:
        source = os.open(name, DIRECTORY, dir_fd=self._source)
        os.close(self._source)
        self._source = source
        self._go_in_target(name)

    def _go_in_target(self, name: str) -> None:
        target = os.open(name, DIRECTORY, dir_fd=self._target)
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
            source = os.open(name, _SOURCE, dir_fd=self._source)
            try:
                self._contents.copy_file(source, attributes_of(source, status), self._target, name)
            finally:
                os.close(source)
            return
        link = None
        if stat.S_ISLNK(status.st_mode):
            link = os.readlink(name, dir_fd=self._source)
        # There is no *xattrat(2) before Linux 6.13; a path below an open directory does as well.
        original = f"/proc/self/fd/{self._source}/{name}"
        attributes = attributes_of(original, status, follow=False)
        make_special(self._target, name, attributes, link)


class Attributes(NamedTuple):
    """What an inode has beside its content."""

    status: os.stat_result
    xattrs: Mapping[str, bytes]

    def give_to(self, target: int) -> None:
        """Give them to an open file or directory.

        The order matters: a change of owner clears capabilities and setuid.
        """
        os.fchown(target, self.status.st_uid, self.status.st_gid)
        for name, value in self.xattrs.items():
            os.setxattr(target, name, value)
        os.fchmod(target, stat.S_IMODE(self.status.st_mode))
        os.utime(target, ns=(self.status.st_atime_ns, self.status.st_mtime_ns))


def attributes_of(inode: int | str, status: os.stat_result, *, follow: bool = True) -> Attributes:
    """Read an inode's attributes, by a descriptor or a path."""
    xattrs = {}
    for name in os.listxattr(inode, follow_symlinks=follow):
        try:
            xattrs[name] = os.getxattr(inode, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno != errno.ENODATA:  # removed since it was listed
                raise
    return Attributes(status, xattrs)


def make_special(directory: int, name: str, attributes: Attributes, link: str | None) -> None:
    """Make what must not be opened: a symbolic link to `link`, else a device, fifo or socket."""
    status = attributes.status
    if link is not None:
        os.symlink(link, name, dir_fd=directory)
    else:
        kind = stat.S_IFMT(status.st_mode)
        os.mknod(name, kind | 0o600, status.st_rdev, dir_fd=directory)
    os.chown(name, status.st_uid, status.st_gid, dir_fd=directory, follow_symlinks=False)
    for attribute, value in attributes.xattrs.items():
        os.setxattr(f"/proc/self/fd/{directory}/{name}", attribute, value, follow_symlinks=False)
    if link is None:
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=directory)
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)


class Contents:
    """Copies files within one filesystem, which shares blocks between them or does not."""

    def __init__(self) -> None:
        self._reflink = True

    def copy_file(self, source: int, attributes: Attributes, directory: int, name: str) -> None:
        """Make a file that is like an open one.

        The attributes were read before the content is: a file that overlayfs is about to give its
        content (metacopy) is marked then, or has it.
        """
        target = os.open(name, _TARGET, 0o600, dir_fd=directory)
        try:
            self._content(source, target)
            attributes.give_to(target)
        finally:
            os.close(target)

    def _content(self, source: int, target: int) -> None:
        if self._reflink:
            try:
                clone_file(source, target)
            except OSError as error:
                if error.errno not in _NO_REFLINK:
                    raise
                # Of EINVAL and ETXTBSY one file is the cause, such as one that is swapped to.
                self._reflink = error.errno in {errno.EINVAL, errno.ETXTBSY}
            else:
                return
        copy_data(source, target)
