"""The table of contents at the end of a blob: a tar whose headers follow what they describe.

The last 512 bytes are the header of the table itself, which lies before it. Entries have 128 bytes.
Blobs of Nydus before 2.2 have none.
"""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

from lamina.core.source import RangeSource
from lamina.errors import DigestMismatch
from lamina.formats.rafs.chunk_data import Buffer, decompress
from lamina.formats.rafs.flags import Compressor, damaged

IMAGE_BLOB = "image.blob"
IMAGE_BOOT = "image.boot"
BLOB_META = "blob.meta"
BLOB_META_HEADER = "blob.meta.header"
BLOB_DIGEST = "blob.digest"
TOC_NAME = "rafs.blob.toc"

MAX_TOC = 1 << 16
"""Bytes of the table with its header."""
MAX_ENTRY = 512 << 20
"""Bytes of what an entry describes, both ways: it is held in memory whole."""

_HEADER = 512
_NAME = slice(0, 100)
_SIZE = slice(124, 136)
_CHECKSUM = slice(148, 156)
TOC_ENTRY = struct.Struct("<I4x16s32sQQQ48x")
assert TOC_ENTRY.size == 128
TOC_COMPRESSORS = {1: Compressor.NONE, 2: Compressor.ZSTD, 4: Compressor.LZ4_BLOCK}
_COMPRESSOR_MASK = 0xF


class TocEntry(NamedTuple):
    """What lies where in a blob; offsets of `image.blob` are wrong in some, and need not be used.

    Attributes:
        name: one of those above.
        compressor: of its bytes.
        digest: SHA-256 of the uncompressed bytes; zeros for none.
        offset: byte of the blob.
        compressed_size: bytes there.
        uncompressed_size: bytes in the end.
    """

    name: str
    compressor: Compressor
    digest: bytes
    offset: int
    compressed_size: int
    uncompressed_size: int


def read_toc(source: RangeSource, digest: bytes = b"") -> dict[str, TocEntry]:
    """Return the entries of a blob's table, by name.

    Args:
        source: the blob.
        digest: what the bootstrap says of the table; none or zeros where it says nothing.

    Raises:
        FormatError: there is no table, or it is damaged.
        DigestMismatch: it is another one.
    """
    end = source.size - _HEADER
    if end < 0:
        raise damaged(0, f"a header of {_HEADER} bytes at the end", f"{source.size} bytes")
    header = source.read_at(end, _HEADER)
    size = _header_size(header, end)
    if size % TOC_ENTRY.size or not 0 < size <= min(end, MAX_TOC - _HEADER):
        raise damaged(end, f"a table of entries, each of {TOC_ENTRY.size} bytes", f"{size} bytes")
    raw = source.read_at(end - size, size)
    if any(digest):
        got = hashlib.sha256(raw + header).digest()
        if got != digest:
            what = "verify table of contents of"
            raise DigestMismatch(what, "a RAFS blob", expected=digest.hex(), got=got.hex())
    found = {}
    for number, fields in enumerate(TOC_ENTRY.iter_unpack(raw)):
        entry = _entry(*fields, at=end - size + number * TOC_ENTRY.size)
        if entry.name in found:
            raise damaged(end - size, "entries with names of their own", entry.name)
        found[entry.name] = entry
    return found


def read_toc_entry(source: RangeSource, entry: TocEntry) -> Buffer:
    """Return the bytes that an entry describes.

    That of `image.blob` may fail where the blob is right: some builders give a wrong offset.

    Raises:
        FormatError: they are damaged, too many, or not in the blob.
        DigestMismatch: they are others.
    """
    if max(entry.compressed_size, entry.uncompressed_size) > MAX_ENTRY:
        size = max(entry.compressed_size, entry.uncompressed_size)
        raise damaged(entry.offset, f"at most {MAX_ENTRY} bytes as {entry.name}", size)
    if not 0 <= entry.offset <= source.size - entry.compressed_size:
        expected = f"{entry.compressed_size} bytes as {entry.name}"
        raise damaged(entry.offset, expected, f"a blob of {source.size} bytes")
    raw = source.read_at(entry.offset, entry.compressed_size)
    data = decompress(entry.compressor, raw, entry.uncompressed_size)
    if any(entry.digest):
        got = hashlib.sha256(data).digest()
        if got != entry.digest:
            expected = entry.digest.hex()
            raise DigestMismatch("verify RAFS blob:", entry.name, expected=expected, got=got.hex())
    return data


def _header_size(header: bytes, at: int) -> int:
    name = header[_NAME].rstrip(b"\0")
    blank = header[: _CHECKSUM.start] + b" " * 8 + header[_CHECKSUM.stop :]
    if name != TOC_NAME.encode() or _octal(header[_CHECKSUM], at) != sum(blank):
        raise damaged(at, f"the tar header of {TOC_NAME}", name[:40])
    return _octal(header[_SIZE], at)


def _octal(field: bytes, at: int) -> int:
    digits = field.strip(b" \0")
    if not digits or digits.strip(b"01234567"):
        raise damaged(at, "an octal number", field)
    return int(digits, 8)


def _entry(
    flags: int,
    name: bytes,
    digest: bytes,
    offset: int,
    compressed_size: int,
    uncompressed_size: int,
    *,
    at: int,
) -> TocEntry:
    compressor = TOC_COMPRESSORS.get(flags)
    text = name.rstrip(b"\0")
    if compressor is None or flags & ~_COMPRESSOR_MASK:
        raise damaged(at, "an entry with one compressor", f"flags {flags:#x}")
    if not text.isascii() or b"\0" in text or not text:
        raise damaged(at, "the name of an entry", text)
    return TocEntry(text.decode(), compressor, digest, offset, compressed_size, uncompressed_size)
