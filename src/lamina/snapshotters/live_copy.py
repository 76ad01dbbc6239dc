"""Copies a directory tree while others change it.

What is there all the time is copied; what vanishes meanwhile is no error, and what appears may be
copied or not. A file that is written to meanwhile is copied as it was at one moment where the
filesystem shares blocks (reflink), else perhaps half old and half new. What is moved from one
directory into another meanwhile may be missing, or be there twice.

Nothing is opened but directories and regular files, which are looked at first: a name may lead to
a fifo or a device from one moment to the next.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path

from lamina.core.cancel import check_cancelled
from lamina.errors import FailedPrecondition
from lamina.linux.handles import file_handle
from lamina.snapshotters.tree_copy import DIRECTORY, TreeCopy, attributes_of, make_special

DEEPEST = 400
"""Directories below one another; each of them is held open, since it may be moved."""
_SCANS = 10
_CLOCK_NS = 10**9
"""More than timestamps of files are behind the clock."""
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_CONTENT = os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC
_NO_DIRECTORY = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


def copy_live_tree(source: Path, target: Path) -> None:
    """Make the empty directory `target`, which nobody else knows, like `source` as it is now.

    Raises:
        OSError: something cannot be read or made; a part of the copy is there then.
        FailedPrecondition: the tree is more than DEEPEST directories deep; as above.
        Cancelled, DeadlineExceeded: see `check_cancelled`; as above.
    """
    source_fd = os.open(source, DIRECTORY)
    try:
        target_fd = os.open(target, DIRECTORY)
        try:
            with LiveCopy(source_fd, target_fd) as copy:
                copy.run()
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)


class LiveCopy(TreeCopy):
    """One copy of what changes; it goes up through descriptors that it holds, not by `..`."""

    def __init__(self, source: int, top: int) -> None:
        super().__init__(source, top)
        self._above: list[int] = []
        self._settled = time.time_ns() - _CLOCK_NS
        self._names: dict[tuple[int, int, bytes], str] = {}

    def __exit__(self, *exc: object) -> None:
        super().__exit__()
        while self._above:
            os.close(self._above.pop())

    def _down(self, name: str) -> bool:
        try:
            found = os.open(name, DIRECTORY, dir_fd=self._source)
        except OSError as error:
            if error.errno not in _NO_DIRECTORY:
                raise
            return False
        if len(self._above) == DEEPEST:
            os.close(found)
            hint = f"it is more than {DEEPEST} directories deep: commit it, and prepare on that"
            raise FailedPrecondition("copy directory", name, hint=hint)
        self._above.append(self._source)
        self._source = found
        os.mkdir(name, 0o700, dir_fd=self._target)
        self._go_in_target(name)
        return True

    def _up(self) -> None:
        os.close(self._source)
        self._source = self._above.pop()
        self._go_in_target("..")

    def _copy_entries(self, path: str) -> list[str]:
        """Copy what there is until there is nothing new; return the names of directories."""
        directories: list[str] = []
        seen: set[str] = set()
        for _ in range(_SCANS):
            new = [name for name in self._listed() if name not in seen]
            for name in new:
                check_cancelled()
                if self._entry(name, path):
                    directories.append(name)
            status = os.fstat(self._source)
            if not new or max(status.st_mtime_ns, status.st_ctime_ns) < self._settled:
                break
            seen.update(new)
        return directories

    def _listed(self) -> list[str]:
        with os.scandir(self._source) as entries:
            return [entry.name for entry in entries]

    def _entry(self, name: str, path: str) -> bool:
        """Copy what a name leads to, if anything; do nothing but say so if to a directory."""
        try:
            inode = os.open(name, _LOOK, dir_fd=self._source)
        except FileNotFoundError:
            return False
        try:
            status = os.fstat(inode)
            if stat.S_ISDIR(status.st_mode):
                return True
            here = f"{path}/{name}" if path else name
            if status.st_nlink < 2:
                self._make(inode, status, name)
            else:
                self._make_or_link(inode, status, name, here)
        finally:
            os.close(inode)
        return False

    def _make_or_link(self, inode: int, status: os.stat_result, name: str, here: str) -> None:
        # A number may be another inode's by now; a handle never is.
        identity = (status.st_dev, status.st_ino, file_handle(inode))
        first = self._names.get(identity)
        if first is None:
            self._make(inode, status, name)
            self._names[identity] = here
            return
        target = self._target
        os.link(first, name, src_dir_fd=self._top, dst_dir_fd=target, follow_symlinks=False)

    def _make(self, inode: int, status: os.stat_result, name: str) -> None:
        opened = f"/proc/self/fd/{inode}"  # leads to the inode itself, whatever its name does
        attributes = attributes_of(opened, status)
        if stat.S_ISREG(status.st_mode):
            content = os.open(opened, _CONTENT)
            try:
                self._contents.copy_file(content, attributes, self._target, name)
            finally:
                os.close(content)
            return
        link = os.readlink("", dir_fd=inode) if stat.S_ISLNK(status.st_mode) else None
        make_special(self._target, name, attributes, link)
