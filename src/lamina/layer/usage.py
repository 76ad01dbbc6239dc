"""What a directory tree occupies, counted as containerd counts it."""

from __future__ import annotations

import os
from pathlib import Path

from lamina.core.cancel import check_cancelled
from lamina.core.snapshot import Usage
from lamina.errors import Aborted
from lamina.layer.cursor import Cursor, is_directory


def disk_usage(path: Path) -> Usage:
    """Measure the tree below `path`, itself included, without following links.

    Every inode counts once however many names it has, with the blocks (512 bytes each) that are
    allocated to it. Names that vanish meanwhile are left out. Only names of directories and inodes
    with several names are kept, so neither depth nor size of a tree matters.

    Raises:
        Aborted: a directory was moved, or the tree removed, while it was being walked.
        OSError: `path` is missing, is no directory, or cannot be read.
        Cancelled, DeadlineExceeded: see `check_cancelled`.
    """
    with Cursor(path) as cursor:
        try:
            return _Count().tree(cursor)
        except FileNotFoundError as error:
            raise Aborted("measure", path, hint="the tree is being removed") from error


class _Count:
    def __init__(self) -> None:
        self._linked: set[tuple[int, int]] = set()
        self._inodes = 0
        self._blocks = 0

    def tree(self, cursor: Cursor) -> Usage:
        self._add(os.fstat(cursor.fd))
        pending = [self._scan(cursor.fd)]
        while True:
            if pending[-1]:
                try:
                    cursor.enter(pending[-1].pop())
                except (FileNotFoundError, NotADirectoryError):
                    continue
                pending.append(self._scan(cursor.fd))
                continue
            pending.pop()
            if not pending:
                return Usage(self._inodes, self._blocks * 512)
            cursor.leave()

    def _scan(self, fd: int) -> list[str]:
        """Count what a directory has and return the names of its directories."""
        check_cancelled()
        directories = []
        with os.scandir(fd) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                self._add(status)
                if is_directory(status):
                    directories.append(entry.name)
        return directories

    def _add(self, status: os.stat_result) -> None:
        if status.st_nlink > 1 and not is_directory(status):
            identity = (status.st_dev, status.st_ino)
            if identity in self._linked:
                return
            self._linked.add(identity)
        self._inodes += 1
        self._blocks += status.st_blocks
