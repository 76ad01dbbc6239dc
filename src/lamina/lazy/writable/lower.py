"""What lies below a writable device: the cache of a lazy layer, filled as it is read."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from lamina.lazy.gates import Filler


class Lower:
    """Reads a lazy layer whose cache file is a device. Safe to use from any thread.

    Args:
        path: the cache file.
        filler: of the layer; stays the caller's, and is not asked any more once it is durable.
            None if it is.

    Attributes:
        size: bytes; what lies behind is zeros.
    """

    def __init__(self, path: Path, filler: Filler | None = None) -> None:
        self._filler = filler
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size

    @property
    def needs_filler(self) -> bool:
        """Whether the filler has to stay."""
        return self._let_go() is not None

    def is_local(self, start: int, stop: int) -> bool:
        """Tell at once whether these bytes can be read without waiting for `fill`."""
        filler = self._let_go()
        stop = min(stop, self.size)
        return filler is None or start >= stop or filler.is_local(start, stop)

    def fill(self, start: int, stop: int) -> None:
        """Return when these bytes can be read.

        Raises:
            LaminaError, OSError: they cannot be had.
        """
        filler = self._let_go()
        stop = min(stop, self.size)
        if filler is not None and start < stop:
            filler.fill(start, stop)

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Read bytes that are local.

        Raises:
            OSError: they cannot be read.
        """
        done = max(0, min(len(buffer), self.size - start))
        read_exactly(self._fd, buffer[:done], start)
        buffer[done:] = bytes(len(buffer) - done)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _let_go(self) -> Filler | None:
        filler = self._filler
        if filler is not None and filler.is_durable:
            filler = self._filler = None
        return filler


def read_exactly(fd: int, buffer: memoryview, offset: int) -> None:
    """Fill a buffer from an offset of a file.

    Raises:
        OSError: EIO: the file ends before; others of preadv(2).
    """
    done = 0
    while done < len(buffer):
        got = os.preadv(fd, [buffer[done:]], offset + done)
        if not got:
            raise OSError(errno.EIO, "it ends too early")
        done += got
