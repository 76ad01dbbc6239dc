"""A current directory for one call, in a process that has other threads."""

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
