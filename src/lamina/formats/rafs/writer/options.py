"""How images are written."""

from __future__ import annotations

from dataclasses import dataclass

from lamina.errors import InvalidArgument
from lamina.formats.rafs.flags import Compressor, Digester
from lamina.formats.rafs.layout import MAX_CHUNK_SIZE, MIN_CHUNK_SIZE

DEFAULT_CHUNK = 1 << 20
VERSIONS = (5, 6)


@dataclass(frozen=True, slots=True)
class RafsOptions:
    """What bootstrap and blobs of an image have in common.

    Attributes:
        version: of the bootstrap, 5 or 6.
        compressor: of chunks.
        chunk_size: bytes of a file's chunks, but for the last; a power of two.
        digester: of digests of chunks, and of version 5's inodes.
    """

    version: int = 6
    compressor: Compressor = Compressor.ZSTD
    chunk_size: int = DEFAULT_CHUNK
    digester: Digester = Digester.BLAKE3

    def check(self) -> None:
        """Check the numbers.

        Raises:
            InvalidArgument: one is out of range.
        """
        if self.version not in VERSIONS:
            raise InvalidArgument("write RAFS of version", self.version, hint="give 5 or 6")
        size = self.chunk_size
        if size.bit_count() != 1 or not MIN_CHUNK_SIZE <= size <= MAX_CHUNK_SIZE:
            hint = f"give a power of two from {MIN_CHUNK_SIZE} to {MAX_CHUNK_SIZE}"
            raise InvalidArgument("use chunk size", size, hint=hint)
