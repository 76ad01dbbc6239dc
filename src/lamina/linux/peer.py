"""The process at the other end of a local socket, and what it sees of the filesystem."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import Protocol

_CREDENTIALS = struct.Struct("=iII")
"""`struct ucred`: process, user and group (unix(7), SO_PEERCRED)."""


class _Socket(Protocol):
    """What asyncio gives of a socket, too."""

    @property
    def family(self) -> int: ...

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


def peer_pid(connection: _Socket) -> int:
    """Return the process that has connected; 0 if it is in no process namespace of ours, or far."""
    if connection.family != socket.AF_UNIX:
        return 0
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(data)[0])


def shares_mounts(pid: int) -> bool:
    """Tell whether a process is in this one's mount namespace; needs the right to trace it.

    Raises:
        OSError: ENOENT: it is gone; EACCES.
    """
    return os.path.samestat(*(Path(f"/proc/{who}/ns/mnt").stat() for who in (pid, "self")))


def sees_the_same(pid: int, path: Path) -> bool:
    """Tell whether an absolute path leads a process to what it leads this one to.

    Raises:
        OSError: EACCES: as above; whatever keeps this process from looking at the path.
    """
    ours = path.stat()
    try:
        theirs = Path(f"/proc/{pid}/root{path}").stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return os.path.samestat(ours, theirs)
