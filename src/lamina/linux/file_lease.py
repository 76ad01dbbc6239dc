"""Leases: a way to learn whether anybody else has a file open (fcntl(2), F_SETLEASE)."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def is_open_elsewhere(path: Path) -> bool:
    """Tell whether anything but this call has a regular file open.

    Whatever the kernel has open counts too, in all namespaces: what is mounted from the file, alone
    or as part of an overlay. A file that is only mapped does not count.

    Raises:
        OSError: it cannot be opened; EACCES: it is another's, and CAP_LEASE is missing; EINVAL: its
            filesystem knows no leases.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)  # takes the lease back
    return False
