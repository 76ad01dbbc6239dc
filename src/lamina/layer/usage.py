"""What a directory tree occupies, counted as containerd counts it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lamina.core.snapshot import Usage
from lamina.errors import Aborted

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def disk_usage(path: Path) -> Usage:
    """Measure the tree below `path`, itself included, without following links.

    Every inode counts once however many names it has, with the blocks (512 bytes each) that are
    allocated to it. Names that vanish meanwhile are left out. Two descriptors are open at most,
    and nothing but directories' names and inodes with several names is kept, so that neither
    depth nor size of a tree matters.

    Raises:
        Aborted: a directory was moved while it was being walked.
        OSError: `path` is missing, is no directory, or cannot be read.
    """
    fd = os.open(path, _DIRECTORY)
    try:
        return _Walk(fd, path).run()
    except FileNotFoundError as error:
        raise Aborted("measure", path, hint="the tree is being removed") from error


class _Walk:
    """Depth-first walk that goes back up through `..` and proves that it came where it was."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path
        self._linked: set[tuple[int, int]] = set()
        self._inodes = 0
        self._blocks = 0

    def run(self) -> Usage:
        """Walk everything; closes the descriptor."""
        try:
            self._walk()
        finally:
            os.close(self._fd)
        return Usage(self._inodes, self._blocks * 512)

    def _walk(self) -> None:
        root = os.fstat(self._fd)
        self._count(root)
        pending = [((root.st_dev, root.st_ino), self._scan())]
        while True:
            names = pending[-1][1]
            if names:
                entered = self._enter(names.pop())
                if entered is not None:
                    pending.append((entered, self._scan()))
                continue
            pending.pop()
            if not pending:
                return
            self._leave(pending[-1][0])

    def _scan(self) -> list[str]:
        """Count what the current directory has and return the names of its directories."""
        directories = []
        with os.scandir(self._fd) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                self._count(status)
                if stat.S_ISDIR(status.st_mode):
                    directories.append(entry.name)
        return directories

    def _count(self, status: os.stat_result) -> None:
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            identity = (status.st_dev, status.st_ino)
            if identity in self._linked:
                return
            self._linked.add(identity)
        self._inodes += 1
        self._blocks += status.st_blocks

    def _enter(self, name: str) -> tuple[int, int] | None:
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=self._fd)
        except (FileNotFoundError, NotADirectoryError):
            return None
        self._move_to(fd)
        status = os.fstat(fd)
        return status.st_dev, status.st_ino

    def _leave(self, expected: tuple[int, int]) -> None:
        self._move_to(os.open("..", _DIRECTORY, dir_fd=self._fd))
        status = os.fstat(self._fd)
        if (status.st_dev, status.st_ino) != expected:
            raise Aborted("measure", self._path, hint="a directory was moved meanwhile; try again")

    def _move_to(self, fd: int) -> None:
        os.close(self._fd)
        self._fd = fd
