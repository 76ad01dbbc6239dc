"""A local file as a source."""

from __future__ import annotations

import os
from pathlib import Path

from lamina.errors import NotFound, OutOfRange, Unavailable


class FileSource:
    """The bytes of a file that nobody changes; any number of threads may read it at once."""

    def __init__(self, path: Path) -> None:
        """Open the file; `close` closes it.

        Raises:
            NotFound: there is none.
            Unavailable: it cannot be opened.
        """
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFound("open layer file", path) from error
        except OSError as error:
            raise Unavailable(f"open layer file {path}: {error.strerror}") from error
        self._size = os.fstat(self._fd).st_size

    @property
    def size(self) -> int:
        """Length in bytes when it was opened."""
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from byte `offset` on.

        Raises:
            OutOfRange: the range does not lie inside the file.
            Unavailable: it cannot be read, or has become shorter.
        """
        if offset < 0 or length < 0 or offset + length > self._size:
            raise OutOfRange(f"read {length} bytes at {offset} of {self._path}")
        parts: list[bytes] = []
        position, end = offset, offset + length
        while position < end:
            part = self._read(end - position, position)
            parts.append(part)
            position += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _read(self, length: int, offset: int) -> bytes:
        try:
            data = os.pread(self._fd, length, offset)
        except OSError as error:
            raise Unavailable(f"read layer file {self._path}: {error.strerror}") from error
        if not data:
            raise Unavailable(f"read layer file {self._path}: it ends at byte {offset} now")
        return data
