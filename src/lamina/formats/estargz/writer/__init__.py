"""Writing eStargz and zstd:chunked blobs from the tar of a layer.

The members keep their headers and their order, but for what is asked to come first, for members
that later ones replace, and for landmarks and TOC of an earlier conversion, which are left out. The
same tar and options give the same bytes, with any number of threads, as long as the compressor is
the same: other versions of ISA-L, zlib and libzstd, and ISA-L on other processors, may compress
differently.

Memory: the TOC and some hundred bytes for each member, and a few chunks for each thread. The tar
itself waits in a temporary file, since what comes last in it may have to come first.

Not supported: names that are no UTF-8, which a TOC cannot have, paths through symbolic links, hard
links to no file of the layer, more than 256 KiB of attributes.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lamina.core.digest import Digest
from lamina.errors import InvalidArgument
from lamina.formats.erofs.tree import BLOCK
from lamina.formats.estargz.tree import NO_PREFETCH, PREFETCH
from lamina.formats.estargz.units import MAX_UNIT
from lamina.formats.estargz.writer.codec import Codec, Gzip, Zstd
from lamina.formats.estargz.writer.lines import chunk_line
from lamina.formats.estargz.writer.members import Member, Spool, read_members
from lamina.formats.estargz.writer.order import arrange, surviving
from lamina.formats.estargz.writer.streams import StreamWriter, Write
from lamina.formats.tar.layout import padding

DEFAULT_CHUNK = 4 << 20
MAX_CHUNK = MAX_UNIT // 4
_LANDMARKS = frozenset([PREFETCH, NO_PREFETCH])


class BlobFormat(enum.StrEnum):
    """What is written."""

    ESTARGZ = "estargz"
    ZSTD_CHUNKED = "zstd:chunked"


@dataclass(frozen=True, slots=True)
class BlobOptions:
    """How a blob is written.

    Attributes:
        format: of the blob.
        level: of compression; None is ISA-L's best for gzip and 3 for zstd, 1 to 9 is zlib's for
            gzip, and 1 to 22 is zstd's.
        chunk_size: bytes of a file in a stream at most; a multiple of 4096.
        prioritized_chunk_size: the same for the prioritised files; 0 for no difference.
        min_chunk_size: bytes of the tar that a stream has before another chunk starts a new one;
            0 starts one for each chunk. With it, blobs are smaller and reads of one file decode
            others; readers older than v0.13 of the format's own cannot read them.
    """

    format: BlobFormat = BlobFormat.ESTARGZ
    level: int | None = None
    chunk_size: int = DEFAULT_CHUNK
    prioritized_chunk_size: int = 0
    min_chunk_size: int = 0

    def codec(self) -> Codec:
        """Check the options, and return what compresses.

        Raises:
            InvalidArgument: a number is out of range.
        """
        for size in (self.chunk_size, self.prioritized_chunk_size or self.chunk_size):
            if not 0 < size <= MAX_CHUNK or size % BLOCK:
                hint = f"give a multiple of {BLOCK}, at most {MAX_CHUNK}"
                raise InvalidArgument("use chunk size", size, hint=hint)
        if not 0 <= self.min_chunk_size <= MAX_CHUNK:
            hint = f"give at most {MAX_CHUNK}"
            raise InvalidArgument("use min-chunk-size", self.min_chunk_size, hint=hint)
        return Gzip(self.level) if self.format is BlobFormat.ESTARGZ else Zstd(self.level)


class WrittenBlob(NamedTuple):
    """What `write_blob` returns; sizes in bytes.

    Attributes:
        digest: of the blob.
        size: of the blob.
        diff_id: digest of the tar that the blob decodes to.
        uncompressed_size: of that tar.
        toc_digest: of the TOC's JSON.
        toc_offset: where the compressed TOC starts.
        toc_packed_size: of the compressed TOC.
        toc_packed_digest: of the compressed TOC.
        toc_size: of the JSON.
        entries: of the TOC, chunks not counted.
        prioritized: entries before the landmark.
        missing: paths to be prioritised that the layer does not have.
    """

    digest: Digest
    size: int
    diff_id: Digest
    uncompressed_size: int
    toc_digest: Digest
    toc_offset: int
    toc_packed_size: int
    toc_packed_digest: Digest
    toc_size: int
    entries: int
    prioritized: int
    missing: tuple[bytes, ...]


def write_blob(
    chunks: Iterable[bytes],
    write: Write,
    *,
    temporary: Path,
    options: BlobOptions | None = None,
    prioritized: Sequence[bytes] | None = None,
    threads: int = 0,
    max_entries: int = 20_000_000,
    max_bytes: int = 1 << 40,
    advance: Callable[[int, int], object] | None = None,
) -> WrittenBlob:
    """Write a layer as a blob whose files can be read one at a time.

    Args:
        chunks: of the uncompressed tar; all are taken before the first byte is written.
        write: takes the blob.
        temporary: directory for a file without a name, as large as the tar.
        options: how.
        prioritized: paths that are wanted first, in this order; those that the layer lacks are
            passed over. None writes no landmark, which leaves to the reader what to prefetch; an
            empty list says that nothing is to be.
        threads: that compress; 0 for one for each processor.
        max_entries: members of the archive at most.
        max_bytes: of its files at most, with their holes.
        advance: told, while the blob is written, how many bytes of files are done, and of how many.

    Raises:
        FormatError: the archive is damaged, or asks for what cannot be.
        NotImplementedHere: it has what a TOC cannot say.
        ResourceExhausted: a limit is exceeded, or the disk is full.
        InvalidArgument: an option is out of range.
    """
    options = options or BlobOptions()
    codec = options.codec()
    with Spool(temporary) as spool:
        read = read_members(chunks, spool, max_entries=max_entries, max_bytes=max_bytes)
        order = arrange(surviving(read, spool), prioritized)
        del read
        writing = StreamWriter(write, codec, min_size=options.min_chunk_size, threads=threads)
        with writing:
            total = sum(member.size for member in order.members)
            files = _Files(writing, spool, options, total, advance)
            for index, member in enumerate(order.members):
                files.add(member, is_prioritized=index < order.prioritized)
            writing.finish()
            toc = bytes(writing.toc)
            tail = codec.tail(toc)
            before, packed, footer = codec.end(toc, tail, writing.offset)
            toc_offset = writing.offset + len(before)
            writing.end(tail, (before, packed, footer))
        return WrittenBlob(
            digest=Digest("sha256:" + writing.blob_digest),
            size=writing.offset,
            diff_id=Digest("sha256:" + writing.tar_digest),
            uncompressed_size=writing.size,
            toc_digest=_sha256(toc),
            toc_offset=toc_offset,
            toc_packed_size=len(packed),
            toc_packed_digest=_sha256(packed),
            toc_size=len(toc),
            entries=len(order.members),
            prioritized=order.prioritized,
            missing=order.missing,
        )


class _Files:
    """Writes members one after the other."""

    def __init__(
        self,
        writing: StreamWriter,
        spool: Spool,
        options: BlobOptions,
        total: int,
        advance: Callable[[int, int], object] | None,
    ) -> None:
        self._writing = writing
        self._spool = spool
        self._options = options
        self._total = total
        self._advance = advance
        self._done = 0

    def add(self, member: Member, *, is_prioritized: bool) -> None:
        """Append the member, and its entry."""
        self._writing.add(self._spool.header(member))
        if not member.size:
            self._writing.describe(member.line)
            return
        size = self._options.chunk_size
        if is_prioritized and self._options.prioritized_chunk_size:
            size = self._options.prioritized_chunk_size
        digest = self._digest(member, size) if member.size > size else ""
        line = member.line
        for offset in range(0, member.size, size):
            data = self._spool.data(member, offset, min(size, member.size - offset))
            self._writing.add_chunk(
                line,
                data,
                offset=offset,
                is_last=offset + len(data) == member.size,
                digest="" if offset else digest,
                alone=member.path in _LANDMARKS,
            )
            line = chunk_line(member.path)
            self._done += len(data)
            if self._advance is not None:
                self._advance(self._done, self._total)
        self._writing.add(bytes(padding(member.size)))

    def _digest(self, member: Member, step: int) -> str:
        """Return that of a file in several chunks: its first entry has it."""
        hashed = hashlib.sha256()
        for offset in range(0, member.size, step):
            hashed.update(self._spool.data(member, offset, min(step, member.size - offset)))
        return "sha256:" + hashed.hexdigest()


def _sha256(data: bytes) -> Digest:
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())
