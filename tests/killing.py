"""Killing processes that start one another again."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Collection

QUIET_LOOKS = 3
"""How often nothing new is found; a program that is just being started is not seen at once."""
LOOK_SECONDS = 0.02
END_SECONDS = 60


def kill_all(find: Callable[[], Collection[int]]) -> None:
    """Kill all that `find` finds, at once, so that none can take another's place.

    They have ended when this returns: not only do they have no arguments any more, which is so
    before the kernel closes their files; it has closed those, too (pidfd_open(2)).
    """
    with contextlib.ExitStack() as stack:
        stopped: dict[int, int] = {}
        quiet = 0
        while quiet < QUIET_LOOKS:
            new = set(find()) - stopped.keys()
            for pid in new:
                with contextlib.suppress(ProcessLookupError):
                    fd = os.pidfd_open(pid)
                    stack.callback(os.close, fd)
                    signal.pidfd_send_signal(fd, signal.SIGSTOP)
                    stopped[pid] = fd
            quiet = 0 if new else quiet + 1
            time.sleep(LOOK_SECONDS)
        for fd in stopped.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        for pid, fd in stopped.items():
            if not _readable(fd):
                raise AssertionError(f"process {pid} was killed and has not ended")


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(END_SECONDS * 1000))
