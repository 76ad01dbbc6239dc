"""Blobs of the content store, read at any offset."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from lamina.core.digest import Digest
from lamina.errors import OutOfRange
from lamina.images.content import ContentStore


class FileSource:
    """An open file as a `RangeSource`; whoever opened it closes it."""

    def __init__(self, file: BinaryIO) -> None:
        self._fd = file.fileno()
        self.size = os.fstat(self._fd).st_size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly these bytes.

        Raises:
            OutOfRange: the file does not have them.
        """
        data = os.pread(self._fd, length, offset) if 0 <= offset <= self.size else b""
        if len(data) != length:
            raise OutOfRange(f"read {length} bytes at {offset} of a blob of {self.size}")
        return data


@contextmanager
def open_blob(content: ContentStore, digest: Digest) -> Iterator[FileSource]:
    """Open a blob for the body.

    Raises:
        NotFound: it is not there.
    """
    with content.open(digest) as file:
        yield FileSource(file)
