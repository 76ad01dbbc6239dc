"""The tar that an overlaybd layer is pushed to a registry in: one member, which is the layer.

There are two forms. overlaybd's own tools write a pax header with the size, and a member that has
none itself, so that the layer begins at byte 1536; base layers have a plain header of 512 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from lamina.core.source import RangeSource
from lamina.errors import FormatError, OutOfRange
from lamina.formats.tar.layout import (
    BLOCK,
    MAGIC_POSIX,
    Type,
    checksum,
    number,
    padding,
    signed_checksum,
)
from lamina.formats.tar.pax import integer, parse

FORMAT = "overlaybd tar"
NAME = b"overlaybd.commit"
"""Of the member."""
HEADER_SIZE = 3 * BLOCK
"""Bytes before the layer, as they are written."""

_PAX_NAME = b"overlaybd.pax"
_MODE = b"100644"
_END = bytes(2 * BLOCK)
_FIELDS = ((0, 100), (100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (148, 8), (156, 1))
_SUM, _SIZE = 148, 124


class Window:
    """Some bytes of a source, as a source."""

    def __init__(self, source: RangeSource, offset: int, size: int) -> None:
        """Take `size` bytes from byte `offset` on, which must be there."""
        self._source = source
        self.offset = offset
        self.size = size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from byte `offset` on.

        Raises:
            OutOfRange: the range does not lie inside the window.
            Unavailable: the bytes cannot be had just now.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OutOfRange(f"read {length} bytes at {offset} of a window of {self.size}")
        return self._source.read_at(self.offset + offset, length)


def is_tar(head: bytes) -> bool:
    """Tell from the first 512 bytes whether they are a header as overlaybd knows it.

    GNU's form is not.
    """
    if len(head) < BLOCK or head[257:262] != MAGIC_POSIX[:5] or head[263:265] != MAGIC_POSIX[6:]:
        return False
    try:
        said = number(head, _SUM, _SUM + 8, 0)
    except FormatError:
        return False
    return said in {checksum(head[:BLOCK]), signed_checksum(head[:BLOCK])}


def unwrap(source: RangeSource) -> RangeSource:
    """Return the layer in a tar; what is no tar, as it is.

    Raises:
        FormatError: the tar is cut off or has no layer as its first member.
        Unavailable: the bytes cannot be had just now.
    """
    head = source.read_at(0, min(HEADER_SIZE, source.size))
    if not is_tar(head[:BLOCK]):
        return source
    start, said = 0, 0
    if head[156:157] == Type.PAX:
        length = number(head, _SIZE, _SIZE + 12, _SIZE)
        if not 0 < length <= BLOCK or len(head) < HEADER_SIZE:
            got = f"{length} bytes of it in {source.size}"
            raise _damaged(_SIZE, "a pax header of one block", got)
        said = integer(parse(head[BLOCK : BLOCK + length], BLOCK).get(b"size", b"0"), BLOCK)
        start = 2 * BLOCK
    block = head[start : start + BLOCK]
    if not is_tar(block) or block[156:157] not in {Type.REGULAR, Type.REGULAR_V7}:
        raise _damaged(start, "the header of a regular file", repr(block[:100].rstrip(b"\0")))
    size = said if said > 0 else number(block, _SIZE, _SIZE + 12, start + _SIZE)
    start += BLOCK
    if not 0 <= size <= source.size - start:
        raise _damaged(start, f"a layer of {size} bytes", f"{source.size - start} bytes")
    return Window(source, start, size)


@contextmanager
def wrapped(out: BinaryIO) -> Iterator[None]:
    """Put what is written meanwhile into a tar, with overlaybd's own header.

    The header comes last, so that what is not complete is no tar. The output must be able to seek;
    it is left behind the end of the tar, and neither closed nor flushed.
    """
    first = out.tell()
    out.write(bytes(HEADER_SIZE))
    yield
    size = out.tell() - first - HEADER_SIZE
    out.write(bytes(padding(size)) + _END)
    end = out.tell()
    out.seek(first)
    out.write(header(size))
    out.seek(end)


def header(size: int) -> bytes:
    """Return the HEADER_SIZE bytes before a layer of `size` bytes."""
    rest = len(b" size=%d\n" % size)
    length = rest + len(str(rest))
    length = rest + len(str(length))
    record = b"%d size=%d\n" % (length, size)
    pax = _block((_PAX_NAME, b"", b"", b"", _long(len(record)), b"", b"", Type.PAX))
    none = _long(0)
    member = (NAME, _short(_MODE), _short(b"0"), _short(b"0"), none, none, b"", Type.REGULAR)
    return pax + record.ljust(BLOCK, b"\0") + _block(member, b"root")


def _block(fields: tuple[bytes, ...], owner: bytes = b"") -> bytes:
    """Return a header block; `fields` come in the order of _FIELDS."""
    block = bytearray(BLOCK)
    for (start, width), value in zip(_FIELDS, fields, strict=True):
        block[start : start + width] = value.ljust(width, b"\0")
    block[257:265] = MAGIC_POSIX
    block[265 : 265 + len(owner)] = owner
    block[297 : 297 + len(owner)] = owner
    block[_SUM : _SUM + 8] = _short(b"%o" % checksum(bytes(block)))
    return bytes(block)


def _short(digits: bytes) -> bytes:
    return digits.rjust(6) + b" \0"


def _long(value: int) -> bytes:
    return (b"%o" % value).rjust(11) + b" "


def _damaged(offset: int, expected: str, got: str) -> FormatError:
    return FormatError(FORMAT, offset, expected=expected, got=got)
