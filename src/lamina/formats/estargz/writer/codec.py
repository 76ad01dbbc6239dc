"""How the streams of a blob are compressed, and how the blob ends."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from typing import Protocol

from isal import igzip_lib

from lamina.errors import InvalidArgument
from lamina.formats.estargz.footer import chunked_footer, estargz_footer, skippable_header
from lamina.formats.estargz.toc import TOC_NAME
from lamina.formats.tar import END_OF_ARCHIVE, Entry, header, padding

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdCompressor
else:
    from backports.zstd import ZstdCompressor

_ISAL_BEST = 3
_GZIP_WBITS = 31
_ZSTD_LEVEL = 3


class Codec(Protocol):
    """One of the two formats; used by several threads at once."""

    def compress(self, streams: Sequence[bytes]) -> list[bytes]:
        """Return each as a stream of its own; the same ones give the same bytes."""
        ...

    def tail(self, toc: bytes) -> bytes:
        """Return what the tar has behind its members."""
        ...

    def end(self, toc: bytes, tail: bytes, offset: int) -> tuple[bytes, bytes, bytes]:
        """Return TOC and footer, for a blob whose streams end at `offset`.

        Returns:
            What precedes the compressed TOC, the compressed TOC, and what follows it.
        """
        ...


class Gzip:
    """eStargz: gzip members; the TOC is the last file of the tar.

    Args:
        level: 1 to 9 is zlib's; None is the best of ISA-L, several times as fast.

    Raises:
        InvalidArgument: another level.
    """

    def __init__(self, level: int | None) -> None:
        if level is not None and not 1 <= level <= 9:
            raise InvalidArgument("compress with gzip level", level, hint="give one from 1 to 9")
        self._level = level

    def compress(self, streams: Sequence[bytes]) -> list[bytes]:
        """Return each as a gzip member."""
        return [self._member(data) for data in streams]

    def tail(self, toc: bytes) -> bytes:
        """Return the TOC as a file, and the end of the archive."""
        entry = Entry(TOC_NAME, mode=0o444, size=len(toc))
        return b"".join((header(entry), toc, bytes(padding(len(toc))), END_OF_ARCHIVE))

    def end(self, toc: bytes, tail: bytes, offset: int) -> tuple[bytes, bytes, bytes]:
        """Return nothing, the member with the TOC, and the footer."""
        return b"", self._member(tail), estargz_footer(offset)

    def _member(self, data: bytes) -> bytes:
        if self._level is None:
            return igzip_lib.compress(data, _ISAL_BEST, igzip_lib.COMP_GZIP)
        packer = zlib.compressobj(self._level, wbits=_GZIP_WBITS)
        return packer.compress(data) + packer.flush()


class Zstd:
    """zstd:chunked: zstd frames; the TOC is in a skippable one.

    Args:
        level: 1 to 22; None is 3.

    Raises:
        InvalidArgument: another level.
    """

    def __init__(self, level: int | None) -> None:
        if level is not None and not 1 <= level <= 22:
            raise InvalidArgument("compress with zstd level", level, hint="give one from 1 to 22")
        self._level = level or _ZSTD_LEVEL

    def compress(self, streams: Sequence[bytes]) -> list[bytes]:
        """Return each as a zstd frame."""
        return [
            ZstdCompressor(self._level).compress(s, ZstdCompressor.FLUSH_FRAME) for s in streams
        ]

    def tail(self, toc: bytes) -> bytes:
        """Return the end of the archive; the TOC is no part of it."""
        return END_OF_ARCHIVE

    def end(self, toc: bytes, tail: bytes, offset: int) -> tuple[bytes, bytes, bytes]:
        """Return the end of the archive and a header, the TOC as a frame, and the footer."""
        (last, packed) = self.compress([tail, toc])
        before = last + skippable_header(len(packed))
        footer = chunked_footer(offset + len(before), len(packed), len(toc))
        return before, packed, footer
