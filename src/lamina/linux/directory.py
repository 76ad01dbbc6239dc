"""Directories by their descriptors, in a process that has other threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeVar

from lamina.linux.process import unshare

CLONE_FS = 0x00000200

T = TypeVar("T")


def call_in_directory(dir_fd: int, call: Callable[[], T]) -> T:
    """Return `call()`, made in a thread whose current directory is `dir_fd`.

    The thread leaves the process's shared current directory by unshare(CLONE_FS), which needs no
    privilege, and ends with the call.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            unshare(CLONE_FS)
            os.fchdir(dir_fd)
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="call-in-directory")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def entry_names(dir_fd: int) -> list[str]:
    """Return the names in an open directory as they are now.

    It is opened anew: the descriptor's position is shared by all who read it, and btrfs (>= 6.5)
    shows through a descriptor no name that was added since it was opened or rewound.
    """
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        with os.scandir(fd) as entries:
            return [entry.name for entry in entries]
    finally:
        os.close(fd)
