"""Gzip layers that are decompressed once, and where that could have begun."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterator

from lamina.errors import FormatError, InvalidArgument, NotImplementedHere
from lamina.formats.compression import MAGIC_LENGTH, Compression, Read, detect
from lamina.formats.deflate import Point
from lamina.formats.rafs.writer.contexts import SPACING
from lamina.images.manifest import Descriptor
from lamina.linux.libz import GzipBlocks

_WHAT = "leave the data of an image in its layer"


class GzipScan:
    """One layer of an image.

    Args:
        layer: its descriptor, for errors.
    """

    def __init__(self, layer: Descriptor) -> None:
        self._layer = layer
        self._blocks: GzipBlocks | None = None

    def unpack(self, read: Read) -> Iterator[bytes]:
        """Yield the tar.

        Raises:
            InvalidArgument: the layer is no gzip.
            FormatError: it is damaged.
            NotImplementedHere: there is no libz.so.1 here.
        """
        head = read(MAGIC_LENGTH)
        if detect(head) is not Compression.GZIP or not self._layer.digest.startswith("sha256:"):
            hint = "it has to be gzip, and its digest SHA-256: convert it without --oci-ref"
            raise InvalidArgument(_WHAT, self._layer.digest, hint=hint)
        try:
            self._blocks = GzipBlocks(_with_head(head, read), spacing=SPACING)
        except OSError as error:
            raise NotImplementedHere(_WHAT, hint=f"{error.strerror}: {error.filename}") from error
        chunks = iter(self._blocks)
        while chunk := self._next(chunks):
            yield chunk

    def result(self) -> tuple[list[Point], array[int]]:
        """Return where decompression can begin, and where blocks end; once all was unpacked."""
        assert self._blocks is not None, "the layer is unpacked first"
        return [Point._make(point) for point in self._blocks.points], self._blocks.ends

    def _next(self, chunks: Iterator[bytes]) -> bytes:
        try:
            return next(chunks, b"")
        except OSError as error:
            if error.errno != errno.EBADMSG:
                raise
            raise FormatError("gzip", 0, expected="gzip data", got=str(error.strerror)) from error


def _with_head(head: bytes, read: Read) -> Read:
    """Return a function that reads once more what was read to look at it."""
    left = [head]

    def again(size: int) -> bytes:
        return left.pop() if left else read(size)

    return again
