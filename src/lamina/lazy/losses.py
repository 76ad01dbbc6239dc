"""What the disk could not take: noticed before readers get it, and written anew."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress

from lamina.lazy.unit_map import UnitMap
from lamina.linux.sync import check_writeback

log = logging.getLogger(__name__)


class Losses:
    """Of one cache file. Safe to use from any thread.

    A page that cannot be written stays in memory as if it were on the disk, and is read from there
    as something else once memory is short: readers must not be let at it.

    Args:
        fd: a file description of its own: that of a sync has to be told of the same; stays the
            caller's.
        units: what is forgotten.
        path: for messages.
    """

    def __init__(self, fd: int, units: UnitMap, path: os.PathLike[str]) -> None:
        self._fd = fd
        self._map = units
        self._path = path
        self._counting = threading.Lock()
        self._forgetting = threading.Lock()
        self._noted = self._forgotten = 0

    def found(self) -> bool:
        """Tell whether `forget` has to be called before anything is read; waits for nothing."""
        if self._noted == self._forgotten and not self._map.is_durable:
            try:
                check_writeback(self._fd)
            except OSError as error:
                log.warning("the disk has lost what was written to a cache: %s", error.strerror,
                            extra={"path": str(self._path)})  # fmt: skip
                self.note()
        return self._noted != self._forgotten

    def note(self) -> None:
        """Say that something was lost."""
        with self._counting:
            self._noted += 1

    def forget(self) -> None:
        """Have everything that is not durable fetched and written anew, if something was lost."""
        with self._forgetting:
            noted = self._noted  # what is noted meanwhile is another loss
            if noted == self._forgotten:
                return
            # Pages are dropped before they are written again: after an error ext4 has buffers that
            # say "written" on extents that are not, and a write to them is lost without an error.
            with suppress(OSError):
                os.fdatasync(self._fd)  # it tells of the same, and only clean pages are dropped
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
            with suppress(OSError):  # of the map's file, on the same disk
                self._map.forget()
            self._forgotten = noted
