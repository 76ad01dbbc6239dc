"""The worker's side of the holder: have it keep descriptors, and take its place when it dies."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from lamina.lazy import holder

_LOOK_SECONDS = 0.02
_SETTLE_SECONDS = 0.2


def worker_command(linger: float) -> list[str]:
    """Return the worker's command, for the holder; `linger` is `Server`'s."""
    # -P: a directory `lamina` in the current directory is not the package.
    return [sys.executable, "-P", "-m", "lamina.lazy.worker", str(linger)]


class Keeper:
    """The holder, as its worker sees it.

    Args:
        task: what the holder gave the worker.
        directory: the holder's.
        argv: the command of the worker, by which it can be started again.
    """

    def __init__(self, task: dict[str, Any], directory: Path, argv: list[str]) -> None:
        self.kept: holder.Kept = task["kept"]
        self._directory = directory
        self._argv = argv
        self._lock = threading.Lock()
        for fd in (*self.kept.values(), task["connection"]):
            os.set_inheritable(fd, False)
        self._connection = socket.socket(fileno=task["connection"])
        self._connection.settimeout(holder.ANSWER_SECONDS)
        self._life = holder.pidfd_of_parent(task["holder"])

    def keep(self, name: str, fd: int) -> int:
        """Have copies of a descriptor kept; return the one to use, `fd` is closed.

        Raises:
            OSError: EPIPE, ECONNRESET, ETIMEDOUT: the holder is dead.
        """
        number = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, holder.FIRST_NUMBER)
        os.close(fd)
        self._ask({"op": "keep", "name": name, "number": number}, [number])
        self.kept[name] = number
        return number

    def drop(self, name: str) -> None:
        """Close all copies of a descriptor.

        Raises:
            OSError: as `keep`.
        """
        os.close(self.kept.pop(name))
        self._ask({"op": "drop", "name": name}, [])

    def is_superseded(self) -> bool:
        """Tell whether the holder is dead and another is there, which has a worker of its own."""
        if self._life is not None and not select.select([self._life], [], [], 0)[0]:
            return False
        return holder.is_held(str(self._directory))

    def wait(self) -> None:
        """Return when the holder is dead and its locks are free."""
        holder.wait_for_end(self._life)

    def succeed(self) -> None:
        """Put a new holder in the dead one's place, unless its standby is there; does not return.

        Whatever of this process is left unfinished is the next worker's.
        """
        directory = str(self._directory)
        command = holder.self_command("successor", directory, self._argv)
        while True:
            while not holder.is_held(directory):
                task = json.dumps({"kept": self.kept})
                child = os.pidfd_open(holder.spawn([*command, task], self.kept.values()))
                while not holder.is_held(directory):
                    if select.select([child], [], [], _LOOK_SECONDS)[0]:
                        break
                os.close(child)
            # Until the other has started more, this process keeps its copies, and serves.
            time.sleep(_SETTLE_SECONDS)
            if holder.is_held(directory):
                os._exit(1)

    def _ask(self, message: dict[str, Any], fds: list[int]) -> None:
        with self._lock:
            socket.send_fds(self._connection, [json.dumps(message).encode()], fds)
            if not self._connection.recv(holder.MESSAGE_BYTES):
                raise ConnectionResetError(errno.ECONNRESET, "the holder has ended")
