"""ZFiles written as data comes; equal data and options give equal bytes."""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass
from typing import BinaryIO

from lamina.errors import InvalidArgument, ResourceExhausted
from lamina.formats.crc32c import crc32c
from lamina.formats.zfile.blocks import block_compressor
from lamina.formats.zfile.layout import (
    CRC,
    CRC_SEED,
    MAGIC,
    MAGIC_2,
    MAX_BLOCK,
    MAX_BLOCKS,
    MAX_STORED,
    MIN_BLOCK,
    RECORD,
    Algorithm,
    Flags,
    Record,
    pack_record,
)


@dataclass(frozen=True, slots=True)
class ZFileOptions:
    """How a ZFile is written.

    Attributes:
        algorithm: how blocks are compressed.
        block_size: bytes of a block: a power of two from 4096 to 65536. Of the largest, none may
            be without anything to compress: it would get longer than overlaybd reads.
        checksums: whether a CRC follows each block.
        complete_header: whether the header is written again once all is known, so that readers
            need not ask for the trailer; the output is only ever appended to otherwise.
    """

    algorithm: Algorithm = Algorithm.LZ4
    block_size: int = MIN_BLOCK
    checksums: bool = True
    complete_header: bool = True

    def check(self) -> None:
        """Check what can be checked before anything is written.

        Raises:
            InvalidArgument: there are no blocks of that size.
        """
        size = self.block_size
        if not MIN_BLOCK <= size <= MAX_BLOCK or size & (size - 1):
            hint = f"it must be a power of two from {MIN_BLOCK} to {MAX_BLOCK}"
            raise InvalidArgument("write ZFile with block size", size, hint=hint)


_DEFAULTS = ZFileOptions()


class ZFileWriter:
    """Takes uncompressed bytes by `write`; `close` completes the file."""

    def __init__(self, out: BinaryIO, options: ZFileOptions = _DEFAULTS) -> None:
        """Begin at the position of `out`, which is neither closed nor flushed.

        Raises:
            InvalidArgument: there are no blocks of that size.
        """
        options.check()
        self._out = out
        self._options = options
        self._compress = block_compressor(options.algorithm)
        self._first = out.tell() if options.complete_header else 0
        self._rest = bytearray()
        self._lengths = array("I")
        self._size = 0
        header = pack_record(self._record(Flags.HEADER | Flags.DATA | Flags.DIGEST))
        self._position = len(header)
        out.write(header)

    def write(self, data: bytes | memoryview, /) -> int:
        """Append bytes, and return how many.

        Raises:
            ResourceExhausted: there are more blocks than are read again, or one got longer.
        """
        size = self._options.block_size
        self._size += len(data)
        position = 0
        view = memoryview(data)
        if self._rest:
            position = min(size - len(self._rest), len(data))
            self._rest += view[:position]
            if len(self._rest) == size:
                self._block(bytes(self._rest))
                self._rest.clear()
        while len(data) - position >= size:
            self._block(view[position : position + size])
            position += size
        self._rest += view[position:]
        return len(data)

    def close(self) -> int:
        """Write what is left, the jump table and the trailer; return the bytes of the file.

        Nothing can be written then; the output's position is behind the trailer.

        Raises:
            ResourceExhausted: as `write` does.
        """
        if self._rest:
            self._block(bytes(self._rest))
            self._rest.clear()
        lengths = self._lengths
        if sys.byteorder == "big":
            lengths.byteswap()
        table = lengths.tobytes()
        flags = Flags.DATA | Flags.DIGEST
        known = self._record(flags)._replace(
            index_offset=self._position,
            blocks=len(lengths),
            size=self._size,
            index_crc=crc32c(0, table),
        )
        self._out.write(table)
        trailer = pack_record(known._replace(flags=flags | Flags.SEALED))
        self._out.write(trailer)
        if self._options.complete_header:
            end = self._out.tell()
            self._out.seek(self._first)
            complete = flags | Flags.HEADER | Flags.OVERWRITTEN
            self._out.write(pack_record(known._replace(flags=complete)))
            self._out.seek(end)
        return self._position + len(table) + len(trailer)

    def _block(self, data: bytes | memoryview) -> None:
        if len(self._lengths) >= MAX_BLOCKS:
            hint = "choose larger blocks"
            raise ResourceExhausted(f"write ZFile of more than {MAX_BLOCKS} blocks", hint=hint)
        stored = self._compress(data)
        if self._options.checksums:
            stored += CRC.pack(crc32c(CRC_SEED, stored))
        if len(stored) > MAX_STORED:
            what = f"write ZFile block of {len(stored)} bytes: overlaybd reads {MAX_STORED} at most"
            raise ResourceExhausted(what, hint="choose smaller blocks")
        self._out.write(stored)
        self._lengths.append(len(stored))
        self._position += len(stored)

    def _record(self, flags: int) -> Record:
        options = self._options
        return Record(
            magic=MAGIC,
            magic_2=MAGIC_2,
            record_size=RECORD.size,
            digest=0,
            flags=flags,
            index_offset=0,
            blocks=0,
            size=0,
            index_crc=0,
            block_size=options.block_size,
            algorithm=options.algorithm,
            level=0,
            use_dictionary=0,
            dictionary_size=0,
            has_crc=int(options.checksums),
        )
