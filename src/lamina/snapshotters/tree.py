"""Removes a directory tree: fast, whatever is in it, and never across a mount point."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

from lamina.errors import FailedPrecondition
from lamina.linux.inode_flags import FS_APPEND_FL, FS_IMMUTABLE_FL, get_flags, set_flags
from lamina.linux.openat2 import (
    RESOLVE_BENEATH,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    openat2,
)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_INSIDE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
_DEPTH = 64
"""Directories below one another that are open at a time; deeper ones move up to the top first."""
_PROTECTED = FS_IMMUTABLE_FL | FS_APPEND_FL


def remove_tree(path: Path) -> None:
    """Remove the directory `path` with all that is in it; nothing there is no error.

    Anything else of that name is removed too. Symbolic links are removed, never followed: each step
    is relative to an open directory.

    Raises:
        FailedPrecondition: something is mounted there or below; other parts may be gone by then.
        OSError: something cannot be removed.
    """
    try:
        parent = os.open(path.parent, _DIRECTORY)
    except FileNotFoundError:
        return
    try:
        remove_tree_in(parent, path)
    finally:
        os.close(parent)


def remove_tree_in(parent: int, path: Path) -> None:
    """Do as `remove_tree`, given an open descriptor of the directory that `path` is in."""
    try:
        _Removal(path).remove(parent, path.name, 0)
    except NotADirectoryError:
        os.unlink(path.name, dir_fd=parent)
    except FileNotFoundError:
        if os.access(path.name, os.F_OK, dir_fd=parent, follow_symlinks=False):
            raise


class _Removal:
    """One removal; `top` is the descriptor of its uppermost directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._top = -1
        self._moved = itertools.count()

    def remove(self, parent: int, name: str, depth: int) -> None:
        """Remove the directory `name` in `parent`."""
        fd = self._open(parent, name)
        try:
            if depth == 0:
                self._top = fd
            while True:
                self._empty(fd, depth)
                try:
                    self._rmdir(parent, name)
                except OSError as error:
                    # New are what moved up here, and what a scan missed while others vanished.
                    if error.errno != errno.ENOTEMPTY:
                        raise self._explained(error) from error
                    continue
                return
        finally:
            os.close(fd)

    def _empty(self, fd: int, depth: int) -> None:
        with os.scandir(fd) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    self._unlink(fd, entry.name)
                elif depth < _DEPTH:
                    self.remove(fd, entry.name, depth + 1)
                else:
                    self._move_up(fd, entry.name)

    def _open(self, parent: int, name: str) -> int:
        try:
            fd = openat2(name, _DIRECTORY, dir_fd=parent, resolve=_INSIDE)
        except PermissionError:
            # Only root reads a directory of mode 0000; its owner has to change the mode first.
            os.chmod(name, 0o700, dir_fd=parent)
            fd = openat2(name, _DIRECTORY, dir_fd=parent, resolve=_INSIDE)
        except OSError as error:
            raise self._explained(error) from error
        return fd

    def _rmdir(self, parent: int, name: str) -> None:
        try:
            os.rmdir(name, dir_fd=parent)
        except PermissionError:
            unprotect(parent, name)
            os.rmdir(name, dir_fd=parent)

    def _unlink(self, parent: int, name: str) -> None:
        try:
            os.unlink(name, dir_fd=parent)
        except PermissionError:
            unprotect(parent, name)
            os.unlink(name, dir_fd=parent)
        except OSError as error:
            raise self._explained(error) from error

    def _move_up(self, parent: int, name: str) -> None:
        while True:
            new = f".deep-{next(self._moved)}"
            try:
                self._rename(parent, name, new)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                    raise self._explained(error) from error
                continue  # the tree has something of that name
            return

    def _rename(self, parent: int, name: str, new: str) -> None:
        try:
            os.rename(name, new, src_dir_fd=parent, dst_dir_fd=self._top)
        except PermissionError:
            unprotect(parent, name)
            _clear_protection(self._top)
            os.rename(name, new, src_dir_fd=parent, dst_dir_fd=self._top)

    def _explained(self, error: OSError) -> Exception:
        if error.errno not in {errno.EXDEV, errno.EBUSY}:
            return error
        return FailedPrecondition(
            f"remove {self._path}: something is mounted below it", error.filename or "",
            hint="unmount it; /proc/self/mountinfo tells what it is",
        )  # fmt: skip


def unprotect(parent: int, name: str) -> None:
    """Let a name be removed or renamed: its directory writable, neither of them immutable."""
    if not os.fstat(parent).st_mode & 0o200:
        os.fchmod(parent, 0o700)
    _clear_protection(parent)
    try:
        fd = os.open(
            name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent
        )
    except OSError:
        return  # links, sockets and devices have no flags
    try:
        _clear_protection(fd)
    finally:
        os.close(fd)


def _clear_protection(fd: int) -> None:
    try:
        flags = get_flags(fd)
    except OSError:
        return  # this filesystem, or kind of file, has no flags
    if flags & _PROTECTED:
        set_flags(fd, flags & ~_PROTECTED)
