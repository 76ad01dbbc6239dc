"""Tar as image layers use it: POSIX ustar and pax, GNU and v7 are read; ustar and pax are written.

Names are bytes throughout: a layer may hold names that are no UTF-8.

Read: GNU long names (`L`, `K`), GNU sparse files (old `S` headers, pax 0.0, 0.1 and 1.0), base-256
numbers, the ustar prefix, pax `path`, `linkpath`, `size`, `uid`, `gid`, `mtime`, `atime` and
`SCHILY.xattr.*`. Global pax headers are passed over. Not supported: volumes of a split archive
(`M`), incremental dumps (`D`), volume labels (`V`), contiguous files (`7`).
"""

from __future__ import annotations

from lamina.formats.tar.layout import BLOCK, Entry, Type, padding
from lamina.formats.tar.reader import TarReader
from lamina.formats.tar.writer import END_OF_ARCHIVE, header

__all__ = ["BLOCK", "END_OF_ARCHIVE", "Entry", "TarReader", "Type", "header", "padding"]
