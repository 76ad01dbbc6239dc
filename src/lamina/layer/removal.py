"""Removal of directory trees of any depth, by descriptors."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from lamina.layer.cursor import Cursor

Kept = Callable[[int, bytes], bool]
"""Tells of a directory's inode number and a name in it whether that name stays."""


def remove(name: bytes, *, dir_fd: int) -> None:
    """Remove a file, a link itself, or a whole directory tree.

    Raises:
        FileNotFoundError: there is no such name.
    """
    try:
        os.unlink(name, dir_fd=dir_fd)
    except IsADirectoryError:
        clear_directory(name, dir_fd=dir_fd)
        os.rmdir(name, dir_fd=dir_fd)


def clear_directory(
    name: bytes, *, dir_fd: int, kept: Kept = lambda directory, name: False
) -> None:
    """Remove everything below a directory but what is to be kept and the directories above that."""
    with Cursor(name, dir_fd=dir_fd) as cursor:
        path: list[bytes] = []
        pending = [_unlink_files(cursor, kept)]
        while True:
            if pending[-1]:
                path.append(pending[-1].pop())
                cursor.enter(path[-1])
                pending.append(_unlink_files(cursor, kept))
                continue
            pending.pop()
            if not pending:
                return
            cursor.leave()
            _remove_empty(path.pop(), cursor, kept)


def _unlink_files(cursor: Cursor, kept: Kept) -> list[bytes]:
    """Remove what is no directory from the current one and return the names of the others."""
    directories = []
    with os.scandir(cursor.fd) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                directories.append(name)
            elif not kept(cursor.inode, name):
                os.unlink(name, dir_fd=cursor.fd)
    return directories


def _remove_empty(name: bytes, cursor: Cursor, kept: Kept) -> None:
    if kept(cursor.inode, name):
        return
    try:
        os.rmdir(name, dir_fd=cursor.fd)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
