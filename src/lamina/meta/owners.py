"""Tokens that prove that the process which wrote a row still lives.

A token is the name of a file in `owners/` that its process keeps locked with flock(2). The kernel
drops the lock when the process ends, however it ends; nothing is timed and no process id is
compared, so neither a reused id nor a reboot can make a dead owner look alive.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

NOBODY = "nobody"
"""A token that no process ever holds: for rows whose owner has given them up."""


class Owners:
    """The tokens under one root. This object's own is made when it is first asked for."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        self._directory = directory
        self._lock = threading.Lock()
        self._own: tuple[str, int] | None = None

    @property
    def token(self) -> str:
        """The token of this object, alive until `close` or the end of the process."""
        return self._held()[0]

    def fileno(self) -> int:
        """Return the locked descriptor: a child process that inherits it keeps the token alive."""
        return self._held()[1]

    def alive(self, token: str) -> bool:
        """Tell whether the owner lives. The file of a dead one is removed on the way."""
        path = self._directory / token
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            # Shared, so that two who ask at once do not take each other for the owner.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def sweep(self) -> None:
        """Remove the files of all dead owners, those that no row names included."""
        for path in self._directory.iterdir():
            self.alive(path.name)

    def close(self) -> None:
        """Give the token up; calling it again does nothing."""
        with self._lock:
            if self._own is None:
                return
            token, fd = self._own
            self._own = None
        (self._directory / token).unlink(missing_ok=True)
        os.close(fd)

    def _held(self) -> tuple[str, int]:
        with self._lock:
            while self._own is None:
                self._own = self._claim(os.urandom(8).hex())
            return self._own

    def _claim(self, token: str) -> tuple[str, int] | None:
        """Make and lock the token's file; None if someone took it for a dead one in between."""
        path = self._directory / token
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if path.exists():
                return token, fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None
