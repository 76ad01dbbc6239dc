"""A position in a directory tree that moves one directory at a time and holds one descriptor."""

from __future__ import annotations

import os
import stat
from typing import Self

from lamina.errors import Aborted

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Cursor:
    """Enter directories by name and leave them again, however deep, without following links.

    The way back up is `..`, proved by device and inode number to lead where the cursor came from.

    Attributes:
        fd: descriptor of the current directory; owned by the cursor.
    """

    __slots__ = ("_above", "_identity", "fd")

    def __init__(self, path: str | bytes | os.PathLike[str], *, dir_fd: int | None = None) -> None:
        self.fd = os.open(path, DIRECTORY, dir_fd=dir_fd)
        self._identity = _identify(self.fd)
        self._above: list[tuple[int, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)

    @property
    def inode(self) -> int:
        """Inode number of the current directory."""
        return self._identity[1]

    def enter(self, name: str | bytes) -> None:
        """Go down into the directory `name`.

        Raises:
            FileNotFoundError, NotADirectoryError: it is no directory any more.
        """
        self._above.append(self._identity)
        self._move(os.open(name, DIRECTORY, dir_fd=self.fd))

    def leave(self) -> None:
        """Go back up.

        Raises:
            Aborted: the directory was moved meanwhile.
        """
        expected = self._above.pop()
        self._move(os.open("..", DIRECTORY, dir_fd=self.fd))
        if self._identity != expected:
            raise Aborted("walk a directory tree", hint="a directory was moved meanwhile")

    def _move(self, fd: int) -> None:
        os.close(self.fd)
        self.fd = fd
        self._identity = _identify(fd)


def _identify(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def is_directory(status: os.stat_result) -> bool:
    """Tell whether that is a directory's status."""
    return stat.S_ISDIR(status.st_mode)
