"""A filler for tests: copies units from `source` to `data` and notes them in `map`.

What else the directory has changes how it behaves: after as many units as `limit` says, a process
fills no more and its readers wait until it is killed; while there is `hold`, all wait; while there
is `fail`, nothing can be had.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from pathlib import Path

UNIT = 1 << 18
FACTORY = "tests.lazy_filler:FileFiller"


class FileFiller:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._source = os.open(directory / "source", os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._source).st_size
        self.data_path = directory / "data"
        self._data = os.open(self.data_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._data).st_size != self.size:
            os.ftruncate(self._data, self.size)
        units = -(-self.size // UNIT)
        map = os.open(directory / "map", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(map, units)
        self._map = mmap.mmap(map, units)
        os.close(map)
        limit = directory / "limit"
        self._left = int(limit.read_text()) if limit.exists() else units
        self._lock = threading.Lock()

    @property
    def is_complete(self) -> bool:
        return self._map.find(b"\0") < 0

    @property
    def is_durable(self) -> bool:
        return self.is_complete

    @property
    def local_bytes(self) -> int:
        return min(self._map[:].count(1) * UNIT, self.size)

    def is_local(self, start: int, stop: int) -> bool:
        return start >= stop or 0 not in self._map[start // UNIT : -(-stop // UNIT)]

    def fill(self, start: int, stop: int) -> range:
        for unit in range(start // UNIT, -(-stop // UNIT)):
            while (self._directory / "hold").exists():
                time.sleep(0.01)
            if (self._directory / "fail").exists():
                raise OSError(errno.ENETUNREACH, "the source is gone")
            self._fill_unit(unit)
        return range(start // UNIT * UNIT, -(-stop // UNIT) * UNIT)

    def fetch_wanted(self) -> None:
        wanted = self._directory / "wanted"
        for unit in map(int, wanted.read_text().split()) if wanted.exists() else ():
            self.fill(unit * UNIT, (unit + 1) * UNIT)

    def complete(self, *, at_once: bool = False) -> None:
        self.fill(0, self.size)

    def close(self) -> None:
        os.close(self._source)
        os.close(self._data)
        self._map.close()

    def _fill_unit(self, unit: int) -> None:
        with self._lock:
            if self._map[unit]:
                return
            if not self._left:
                threading.Event().wait()
            self._left -= 1
            os.pwrite(self._data, os.pread(self._source, UNIT, unit * UNIT), unit * UNIT)
            self._map[unit] = 1
