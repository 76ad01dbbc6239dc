"""Entries put in order: each path with the one that counts, and the chunks of its data."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from lamina.errors import FormatError
from lamina.formats.estargz.toc import FORMAT, Toc, TocEntry
from lamina.formats.tar.layer import clean

TYPES = frozenset(["dir", "reg", "symlink", "hardlink", "char", "block", "fifo"])
_DATA, _ZEROS = frozenset(["", "data"]), "zeros"
_SHA256 = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)


class Chunk(NamedTuple):
    """A run of a file's bytes, all of it in one stream.

    Attributes:
        stream: byte of the blob where the gzip member or zstd frame starts.
        inner: byte of the decoded stream where the chunk starts.
        offset: byte of the file.
        length: bytes, at least 1.
        digest: SHA-256; empty where the TOC has none.
        is_zeros: whether it is told to be zeros; the blob has them all the same.
    """

    stream: int
    inner: int
    offset: int
    length: int
    digest: bytes
    is_zeros: bool = False


class File(NamedTuple):
    """A path of the layer, with the last entry of that name.

    Attributes:
        path: clean, without a leading slash; the root is the empty one.
        number: of the entry in the TOC.
        chunks: of a regular file, in order, from 0 to its size without a gap.
    """

    path: bytes
    number: int
    entry: TocEntry
    chunks: Sequence[Chunk]


class Contents(NamedTuple):
    """What `read_files` returns.

    Attributes:
        files: by path.
        streams: where each stream of the blob with data starts, ascending; then where the last
            one ends.
    """

    files: dict[bytes, File]
    streams: list[int]

    def stream_end(self, start: int) -> int:
        """Return where the stream that starts at `start` ends at the latest."""
        return self.streams[bisect_right(self.streams, start)]


def read_files(toc: Toc) -> Contents:
    """Resolve names and chunks.

    Raises:
        FormatError: an entry is of a type that is not known, chunks do not make up their file, or
            data lies outside the part of the blob that has it.
    """
    files: dict[bytes, File] = {}
    streams: set[int] = set()
    entries = toc.entries
    index = 0
    while index < len(entries):
        first = index
        entry = entries[first]
        if entry.type not in TYPES:
            expected = "an entry before its chunks" if entry.type == "chunk" else "a known type"
            raise entry_error(first, entry, "type", expected, entry.type)
        index += 1
        while index < len(entries) and entries[index].type == "chunk":
            index += 1
        chunks = _chunks(entries, first, index, toc.data_end)
        streams.update(chunk.stream for chunk in chunks)
        path = clean(entry.name.encode())
        # The later entry takes the later place too, as in the order of the blob.
        files.pop(path, None)
        files[path] = File(path, first, entry, chunks)
    return Contents(files, [*sorted(streams), toc.data_end])


def entry_error(index: int, entry: TocEntry, field: str, expected: str, got: object) -> FormatError:
    """Return the error that names an entry and a field of it."""
    where = f"{field} of entry {index} ({entry.name[:200]!r})"
    return FormatError(FORMAT, 0, expected=f"{expected} as {where}", got=str(got)[:200])


def _chunks(entries: Sequence[TocEntry], first: int, stop: int, data_end: int) -> list[Chunk]:
    entry = entries[first]
    if entry.type != "reg":
        if stop > first + 1:
            raise entry_error(first, entry, "type", "reg, since chunks follow,", entry.type)
        return []
    if not entry.size:
        return []
    chunks: list[Chunk] = []
    end = 0
    for index in range(first, stop):
        part = entries[index]
        is_zeros = part.chunk_type == _ZEROS
        if not is_zeros and part.chunk_type not in _DATA:
            raise entry_error(index, part, "chunkType", "data or zeros", part.chunk_type)
        left = entry.size - end
        length = part.chunk_size or left
        if part.chunk_offset != end:
            raise entry_error(index, part, "chunkOffset", str(end), part.chunk_offset)
        if not 0 < length <= left:
            raise entry_error(index, part, "chunkSize", f"1 to {left}", length)
        # Each payload has a tar header before it, so that none lies at the blob's first byte.
        if part.offset >= data_end or not (part.offset or part.inner_offset):
            raise entry_error(index, part, "offset", f"1 to below {data_end}", part.offset)
        whole = not end and length == entry.size
        text = part.chunk_digest or (entry.digest if whole else "")
        place = (part.offset, part.inner_offset, end, length)
        chunks.append(Chunk(*place, _sha256(index, part, text), is_zeros))
        end += length
    if end != entry.size:
        raise entry_error(first, entry, "size", f"{end}, as much as the chunks have,", entry.size)
    return chunks


def _sha256(index: int, entry: TocEntry, digest: str) -> bytes:
    if not digest:
        return b""
    match = _SHA256.fullmatch(digest)
    if match is None:
        raise entry_error(index, entry, "chunkDigest", "sha256 and 64 digits", digest)
    return bytes.fromhex(match[1])
