"""Which units readers asked for, in the order of their first use: the file `trace` of a layer.

It has each unit once, so that it is never longer than four bytes for each. Nothing of it is
synced: a kill loses nothing, a power loss the end of it.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from lamina.lazy.unit_list import pack, unpack

log = logging.getLogger(__name__)

TRACE = "trace"


class Trace:
    """The trace of one layer, for one process that writes it; safe for threads.

    Args:
        path: the file; made if it is missing.
        count: of the layer's units.

    Raises:
        OSError: it cannot be opened or read.
    """

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen = bytearray(count)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_APPEND
        self._fd = os.open(path, flags, 0o600)
        try:
            self._load(count)
        except BaseException:
            self.close()
            raise

    def note(self, units: range) -> None:
        """Note that somebody has asked for these; raises nothing, it is only for later."""
        if self._seen.find(0, units.start, units.stop) < 0:
            return  # nearly always, and without the lock
        with self._lock:
            new = [number for number in units if not self._seen[number]]
            if not new or self._fd < 0:
                return
            self._seen[units.start : units.stop] = b"\1" * len(units)
            try:
                os.write(self._fd, pack(new))
            except OSError as error:
                log.warning("cannot note what is read: %s", error, extra={"path": str(self._path)})

    def close(self) -> None:
        """Close the file; what is noted afterwards is lost."""
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)

    def _load(self, count: int) -> None:
        size = os.fstat(self._fd).st_size
        data = bytearray()
        while len(data) < size and (part := os.pread(self._fd, size - len(data), len(data))):
            data += part
        for number in unpack(bytes(data), count):
            self._seen[number] = 1
        if torn := len(data) % 4:
            os.ftruncate(self._fd, len(data) - torn)
