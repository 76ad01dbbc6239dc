"""What was read of a device while somebody recorded it: the one file of an acceleration layer.

All numbers are little-endian, aligned as a C compiler does for x86-64:

    byte 0     magic, 4 bytes; 4 bytes of anything
    byte 8     bytes of the accesses, 8 bytes
    byte 16    CRC-32C of the accesses, begun with 0; 4 bytes of anything
    byte 24    accesses of 24 bytes: `R` and 3 bytes of anything, the number of the layer in 4
               bytes, the length in 8, the place in 8

A place counts in the layer's LSMT file: uncompressed, but not the device.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from lamina.errors import FormatError, InvalidArgument, ResourceExhausted
from lamina.formats.crc32c import crc32c
from lamina.formats.tar.layout import Entry, padding
from lamina.formats.tar.writer import END_OF_ARCHIVE, header

FORMAT = "overlaybd trace"
NAME = b"trace"
"""Of the file, in the layer and unpacked."""
MAGIC = 0xC2EF1820
HEADER = struct.Struct("<I4xQI4x")
assert HEADER.size == 24
ACCESS = struct.Struct("<c3xIQq")
assert ACCESS.size == 24
MAX_ACCESSES = 1 << 20

_READ = b"R"
_MODE = 0o444
_MAX_LAYER = (1 << 32) - 1
_MAX_PLACE = (1 << 63) - 1


class Access(NamedTuple):
    """A read.

    Attributes:
        layer: number of the layer, the lowest being 0.
        place: byte of its LSMT file.
        length: bytes.
    """

    layer: int
    place: int
    length: int


def is_trace(head: bytes) -> bool:
    """Tell from the first 4 bytes; what is neither that nor empty is a list of paths."""
    return head[:4] == MAGIC.to_bytes(4, "little")


def read_trace(raw: bytes) -> list[Access]:
    """Return the reads in their order. What is no read is passed over.

    Raises:
        FormatError: it is no trace, is damaged or cut off, or has more than MAX_ACCESSES.
    """
    if len(raw) < HEADER.size:
        raise _damaged(0, f"a header of {HEADER.size} bytes", f"{len(raw)} bytes")
    magic, size, crc = HEADER.unpack_from(raw)
    if magic != MAGIC:
        raise _damaged(0, f"the magic {MAGIC:#x}", f"{magic:#x}")
    body = raw[HEADER.size :]
    if size != len(body) or size % ACCESS.size:
        raise _damaged(8, f"accesses of {ACCESS.size} bytes, {len(body)} in all", str(size))
    if size > MAX_ACCESSES * ACCESS.size:
        raise _damaged(8, f"at most {MAX_ACCESSES} accesses", str(size // ACCESS.size))
    if (got := crc32c(0, body)) != crc:
        raise _damaged(16, f"the CRC-32C {got:#010x}", f"{crc:#010x}")
    found = []
    for number, (kind, layer, length, place) in enumerate(ACCESS.iter_unpack(body)):
        if place < 0 or place + length > _MAX_PLACE:
            at = HEADER.size + number * ACCESS.size
            raise _damaged(at, "a place in a file", f"{length} bytes at {place}")
        if kind == _READ:
            found.append(Access(layer, place, length))
    return found


def write_trace(accesses: Iterable[Access]) -> bytes:
    """Return the file of reads.

    Raises:
        InvalidArgument: one lies where no file can be.
        ResourceExhausted: they are more than are read again.
    """
    body = bytearray()
    for access in accesses:
        layer, place, length = access
        inside = 0 <= place <= _MAX_PLACE and 0 <= length <= _MAX_PLACE - place
        if not (inside and 0 <= layer <= _MAX_LAYER):
            raise InvalidArgument("write access to overlaybd trace", tuple(access))
        body += ACCESS.pack(_READ, layer, length, place)
    if len(body) > MAX_ACCESSES * ACCESS.size:
        raise ResourceExhausted(f"write overlaybd trace of more than {MAX_ACCESSES} accesses")
    return HEADER.pack(MAGIC, len(body), crc32c(0, bytes(body))) + body


def layer_tar(body: bytes) -> bytes:
    """Return the layer: a tar with one file, which is a trace or a list of paths.

    It is as Go's tar writer makes it, and is pushed so, not compressed.
    """
    head = header(Entry(NAME, mode=_MODE, size=len(body)))
    return head + body + bytes(padding(len(body))) + END_OF_ARCHIVE


def _damaged(offset: int, expected: str, got: str) -> FormatError:
    return FormatError(FORMAT, offset, expected=expected, got=got)
