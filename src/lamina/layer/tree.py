"""Directories below one root, found so that no name and no link in it can lead out of it."""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from lamina.layer.cursor import DIRECTORY, is_directory
from lamina.layer.removal import remove
from lamina.linux.openat2 import RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS, openat2

_READ = os.O_RDONLY | os.O_DIRECTORY
_MAX_OPEN = 128
_MAX_LINKS = 255
"""Symbolic links on the way to one directory; containerd's bound."""
_DEFAULT_ACL = "system.posix_acl_default"


@dataclass(frozen=True, slots=True, eq=False)
class Directory:
    """An open directory.

    Attributes:
        fd: descriptor, owned by the tree.
        inode: inode number.
        plain: what is made in it gets the group of this process and exactly the mode asked for:
            there is no set-group-id bit, no foreign group (mount option `grpid`), no default ACL.
    """

    fd: int
    inode: int
    plain: bool


class Tree:
    """The directories below `root_fd` by path, with the latest few kept open.

    Symbolic links are followed as if the root were `/`. Whoever replaces or removes a directory or
    a link, or changes what a directory hands down to what is made in it, must call `forget`.
    """

    def __init__(self, root_fd: int, created: Callable[[int, bytes], None]) -> None:
        """`created` is called with descriptor and path of each directory made on the way."""
        self._root_fd = root_fd
        self._created = created
        self._open: OrderedDict[bytes, Directory] = OrderedDict()
        self._gid = os.getegid()
        self._umask_clear = _umask() == 0

    def close(self) -> None:
        """Close all directories but the root."""
        self.forget()

    def forget(self) -> None:
        """Close all directories that are kept open."""
        while self._open:
            os.close(self._open.popitem()[1].fd)

    def find(self, path: bytes) -> Directory:
        """Return the directory; valid until the next call but one, or `forget`.

        Raises:
            FileNotFoundError, NotADirectoryError: as the kernel says.
            OSError: ELOOP (too many links), ENAMETOOLONG.
        """
        found = self._open.get(path)
        if found is not None:
            self._open.move_to_end(path)
            return found
        fd = openat2(path or b".", _READ, dir_fd=self._root_fd, resolve=RESOLVE_IN_ROOT)
        return self._keep(path, fd)

    def make(self, path: bytes) -> Directory:
        """Return the directory after making it, and all above it, with mode 0755 where missing."""
        try:
            return self.find(path)
        except FileNotFoundError:
            return self._keep(path, self._make(path))

    def remove(self, directory: Directory, name: bytes) -> bool:
        """Remove a name and all below it; return whether it existed.

        Other directories are closed, this one included, if a path could have led through it.
        """
        try:
            status = os.lstat(name, dir_fd=directory.fd)
        except FileNotFoundError:
            return False
        remove(name, dir_fd=directory.fd)
        if is_directory(status) or stat.S_ISLNK(status.st_mode):
            self.forget()
        return True

    def _keep(self, path: bytes, fd: int) -> Directory:
        try:
            directory = self._describe(fd)
        except BaseException:
            os.close(fd)
            raise
        self._open[path] = directory
        if len(self._open) > _MAX_OPEN:
            os.close(self._open.popitem(last=False)[1].fd)
        return directory

    def _describe(self, fd: int) -> Directory:
        status = os.fstat(fd)
        plain = (
            self._umask_clear
            and status.st_gid == self._gid
            and not status.st_mode & stat.S_ISGID
            and _DEFAULT_ACL not in _attributes(fd)
        )
        return Directory(fd, status.st_ino, plain)

    def _make(self, path: bytes) -> int:
        """Walk step by step, following links within the root, and make what is missing."""
        todo = deque(path.split(b"/"))
        done: list[bytes] = []
        links = 0
        fd = os.dup(self._root_fd)
        try:
            while todo:
                part = todo.popleft()
                if part in {b"", b"."}:
                    continue
                if part == b"..":
                    done = done[:-1]
                    fd = _exchange(fd, self._reopen(done))
                    continue
                target = self._step(fd, part, [*done, part])
                if isinstance(target, int):
                    done.append(part)
                    fd = _exchange(fd, target)
                    continue
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fsdecode(path))
                todo.extendleft(reversed(target.split(b"/")))
                if target.startswith(b"/"):
                    done = []
                    fd = _exchange(fd, os.dup(self._root_fd))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _step(self, fd: int, part: bytes, path: list[bytes]) -> int | bytes:
        """Return a descriptor of the directory `part`, made if need be, or the target of a link."""
        try:
            return os.open(part, DIRECTORY, dir_fd=fd)
        except FileNotFoundError:
            return self._make_one(fd, part, path)
        except OSError as error:
            if error.errno not in {errno.ENOTDIR, errno.ELOOP}:
                raise
        try:
            return os.readlink(part, dir_fd=fd)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fsdecode(part))

    def _make_one(self, fd: int, part: bytes, path: list[bytes]) -> int:
        os.mkdir(part, 0o755, dir_fd=fd)
        made = os.open(part, DIRECTORY, dir_fd=fd)
        try:
            os.fchmod(made, 0o755)
            self._created(made, b"/".join(path))
        except BaseException:
            os.close(made)
            raise
        return made

    def _reopen(self, path: list[bytes]) -> int:
        resolve = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS
        return openat2(b"/".join(path) or b".", _READ, dir_fd=self._root_fd, resolve=resolve)


def _exchange(old: int, new: int) -> int:
    os.close(old)
    return new


def _attributes(fd: int) -> list[str]:
    """Return the names of extended attributes; none where the filesystem has none at all."""
    try:
        return os.listxattr(fd)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return []


def _umask() -> int:
    """Return the umask; asking by umask(2) would change it for a moment, under other threads."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        return next(int(line.split()[1], 8) for line in status if line.startswith("Umask:"))
