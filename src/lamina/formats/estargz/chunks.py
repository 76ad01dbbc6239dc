"""The chunks of all files, as columns: a million of them take 70 MB."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from operator import eq
from typing import NamedTuple

from lamina.formats.estargz.toc import TocEntry, entry_error

HAS_DIGEST, IS_ZEROS = 1, 2
_DATA, _ZEROS = frozenset(["", "data"]), "zeros"
_DIGEST = 32
_PREFIX = "sha256:"


class Chunk(NamedTuple):
    """A run of a file's bytes, all of it in one stream.

    Attributes:
        stream: byte of the blob where the gzip member or zstd frame starts.
        inner: byte of the decoded stream where the chunk starts.
        offset: byte of the file.
        length: bytes, at least 1.
        flags: HAS_DIGEST; IS_ZEROS where it is told to be zeros, which the blob has all the same.
    """

    stream: int
    inner: int
    offset: int
    length: int
    flags: int


class Chunks:
    """Chunks in the order of the TOC.

    Args:
        data_end: byte of the blob where the last stream ends.

    Attributes:
        streams: where the stream of each starts.
        numbers: of the entries that they are from.
        data_end: as given.
    """

    def __init__(self, data_end: int) -> None:
        self.data_end = data_end
        self.streams = array("Q")
        self.numbers = array("I")
        self._inner = array("Q")
        self._offset = array("Q")
        self._length = array("Q")
        self._flags = array("B")
        self._digests = bytearray()

    def __len__(self) -> int:
        return len(self.streams)

    def __getitem__(self, number: int) -> Chunk:
        return Chunk(
            self.streams[number],
            self._inner[number],
            self._offset[number],
            self._length[number],
            self._flags[number],
        )

    def place(self, number: int) -> tuple[int, int]:
        """Return the stream of a chunk, and where it starts in that."""
        return self.streams[number], self._inner[number]

    def length(self, number: int) -> int:
        """Return the bytes of a chunk."""
        return self._length[number]

    def columns(self, numbers: Sequence[int]) -> tuple[array[int], array[int], bytearray]:
        """Return length, whether there is a digest, and digest of these chunks.

        Each is at most 512 MiB long.
        """
        lengths = array("I", map(self._length.__getitem__, numbers))
        flags = array("B", (self._flags[number] & HAS_DIGEST for number in numbers))
        if len(numbers) == len(self) and all(map(eq, numbers, range(len(self)))):
            return lengths, flags, self._digests
        digests = bytearray()
        for number in numbers:
            digests += self._digests[number * _DIGEST : (number + 1) * _DIGEST]
        return lengths, flags, digests

    def digest(self, number: int) -> bytes:
        """Return the SHA-256 of a chunk; b"" where the TOC has none."""
        if not self._flags[number] & HAS_DIGEST:
            return b""
        return bytes(self._digests[number * _DIGEST : (number + 1) * _DIGEST])

    def add(self, index: int, part: TocEntry, file: TocEntry, end: int) -> int:
        """Take up what an entry says of data; return where it ends in its file.

        Args:
            index: of the entry.
            part: the entry.
            file: the one that it continues, or itself.
            end: bytes of the file that the chunks before it have.

        Raises:
            FormatError: it does not continue the file, or lies outside of the blob.
        """
        left = file.size - end
        length = part.chunk_size or left
        if part.chunk_offset != end:
            raise entry_error(index, part, "chunkOffset", str(end), part.chunk_offset)
        if not 0 < length <= left:
            raise entry_error(index, part, "chunkSize", f"1 to {left}", length)
        # Each payload has a tar header before it, so that none lies at the blob's first byte.
        if part.offset >= self.data_end or not (part.offset or part.inner_offset):
            raise entry_error(index, part, "offset", f"1 to below {self.data_end}", part.offset)
        if part.chunk_type in _DATA:
            flags = 0
        elif part.chunk_type == _ZEROS:
            flags = IS_ZEROS
        else:
            raise entry_error(index, part, "chunkType", "data or zeros", part.chunk_type)
        digest = part.chunk_digest or (file.digest if length == file.size else "")
        if digest:
            flags |= HAS_DIGEST
            self._digests += _sha256(index, part, digest)
        else:
            self._digests += bytes(_DIGEST)
        self.streams.append(part.offset)
        self.numbers.append(index)
        self._inner.append(part.inner_offset)
        self._offset.append(end)
        self._length.append(length)
        self._flags.append(flags)
        return end + length


def _sha256(index: int, entry: TocEntry, digest: str) -> bytes:
    digits = digest.removeprefix(_PREFIX)
    try:
        found = bytes.fromhex(digits)
    except ValueError:
        found = b""
    if len(found) != _DIGEST or found.hex() != digits or digits == digest:
        raise entry_error(index, entry, "chunkDigest", "sha256 and 64 digits", digest)
    return found
