"""A layer's blob as a stream, while its file may still be growing, or from a pipe."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Self

from lamina.errors import FormatError

_UNCOMPRESSED = frozenset(
    [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
    ]
)


def is_sniffed(media_type: str) -> bool:
    """Tell whether the magic number decides on the compression of a layer of that type.

    It does for every type but a plain OCI tar, since Docker's types are often wrong.
    """
    return media_type not in _UNCOMPRESSED


class GrowingBlob:
    """Sequential reader of a file of known final size; a context manager.

    The file is opened at once, so it may be renamed while it is being read.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._size = size
        self._available = 0
        self._position = 0
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    def advance(self, available: int) -> None:
        """Learn that the first `available` bytes are there."""
        with self._changed:
            self._available = max(available, self._available)
            self._changed.notify()

    def read(self, length: int) -> bytes:
        """Return some of the next bytes, at most `length`, none at the end; wait for them.

        Raises:
            FormatError: the file is shorter than was said.
        """
        if self._position == self._size:
            return b""
        if self._position >= self._available:
            with self._changed:
                self._changed.wait_for(lambda: self._available > self._position)
        there = min(self._available, self._size) - self._position
        data = os.read(self._fd, min(length, there))
        if not data:
            raise FormatError(
                "layer blob", self._position, expected=f"{self._size} bytes", got="the end"
            )
        self._position += len(data)
        return data


class PipedBlob:
    """Sequential reader of a pipe, to its end; a context manager.

    Args:
        path: leads to a pipe that somebody has open for writing.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    def advance(self, available: int) -> None:
        """Need nothing: reading waits by itself."""

    def read(self, length: int) -> bytes:
        """Return some of the next bytes, at most `length`, none at the end; wait for them."""
        return os.read(self._fd, length)
