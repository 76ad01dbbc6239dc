"""Runs a function with mounts of its own, which nobody has to clean up.

The function runs in a thread that has left for a new mount namespace: what it mounts is seen by
that thread and by the processes it spawns, and by nobody else. When the last of them is gone, the
kernel takes the mounts down, so that not even SIGKILL leaves one behind. The calling process
stays where it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from lamina.linux.mountapi import MS_REC, MS_SLAVE, mount
from lamina.linux.process import CLONE_NEWNS, unshare

T = TypeVar("T")


def with_private_mounts(function: Callable[[], T]) -> T:
    """Return what the function returns, or raise what it raises.

    Mounts made and removed on the host still show up inside, so that the namespace never keeps
    alive what the host has unmounted.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN.
    """
    call = _Call(function)
    thread = threading.Thread(target=call.run, name="private-mounts")
    thread.start()
    try:
        thread.join()
    except BaseException:
        # Ctrl-C has reached what the thread waits for as well; nothing is undone under its feet.
        thread.join()
        raise
    return call.result()


class _Call(Generic[T]):
    """One call in the thread: carries its outcome over."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._value: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            unshare(CLONE_NEWNS)
            mount("", "/", "", MS_SLAVE | MS_REC)
            self._value.append(self._function())
        except BaseException as error:  # raised again by result()
            self._error = error

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._value[0]
