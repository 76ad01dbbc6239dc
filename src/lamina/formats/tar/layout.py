"""Fields of a tar header block and the entry that it describes.

One header is 512 bytes (POSIX.1-2008, `pax`, "ustar Interchange Format"; GNU tar manual, "Basic Tar
Format"). Offsets and lengths of its fields:

    0   100 name        148  8 checksum    265 32 uname     345 155 prefix    (POSIX)
    100   8 mode        156  1 type flag   297 32 gname     345  12 atime     (GNU)
    108   8 uid         157 100 link name  329  8 devmajor  386  96 4 sparse  (GNU)
    116   8 gid         257  6 magic       337  8 devminor  482   1 extended  (GNU)
    124  12 size        263  2 version                      483  12 real size (GNU)
    136  12 mtime (seconds)

Numbers are octal digits, or big-endian two's complement with the first bit set (base-256).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

from lamina.errors import FormatError

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)
MAX_SPECIAL = 1 << 20
"""Bytes that a pax header, a long name or a sparse map may have; Go's reader has the same limit."""
XATTR_PREFIX = b"SCHILY.xattr."
SECOND = 1_000_000_000

MAGIC_POSIX = b"ustar\x0000"
MAGIC_GNU = b"ustar  \x00"
TRAILER_STAR = b"tar\x00"


class Type:
    """Type flags."""

    REGULAR_V7 = b"\0"
    REGULAR = b"0"
    HARD_LINK = b"1"
    SYMLINK = b"2"
    CHAR = b"3"
    BLOCK = b"4"
    DIRECTORY = b"5"
    FIFO = b"6"
    PAX = b"x"
    PAX_GLOBAL = b"g"
    GNU_LONG_NAME = b"L"
    GNU_LONG_LINK = b"K"
    GNU_SPARSE = b"S"


WITHOUT_BODY = frozenset(
    [Type.HARD_LINK, Type.SYMLINK, Type.CHAR, Type.BLOCK, Type.DIRECTORY, Type.FIFO]
)


@dataclass(slots=True)
class Entry:
    """One member of an archive.

    Attributes:
        name: as written, not cleaned.
        type: one of `Type`; a sparse file is REGULAR with `sparse` set.
        mode: permission, set-id and sticky bits.
        size: bytes of the body in the archive.
        mtime: nanoseconds since 1970; may be negative.
        atime: the same, or None where the archive has none.
        linkname: target of a hard or symbolic link.
        xattrs: extended attributes by name.
        sparse: `(offset, length)` of each piece of data in the body, ascending; None for a file
            without holes.
        real_size: size of the file; differs from `size` only for sparse files.
    """

    name: bytes
    type: bytes = Type.REGULAR
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    atime: int | None = None
    linkname: bytes = b""
    devmajor: int = 0
    devminor: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    sparse: tuple[tuple[int, int], ...] | None = None
    real_size: int = 0


def padding(size: int) -> int:
    """Return how many zero bytes follow a body of that size."""
    return -size % BLOCK


def cstring(data: bytes) -> bytes:
    """Return what precedes the first NUL."""
    return data.partition(b"\0")[0]


def checksum(block: bytes) -> int:
    """Return the sum of all bytes, those of the checksum field counted as spaces.

    Adler-32's low half is one plus the sum modulo 65521, and 256 bytes sum up to less than that:
    two of them give the exact sum at a tenth of the cost of adding numbers in Python.
    """
    total = (zlib.adler32(block[:256]) & 0xFFFF) + (zlib.adler32(block[256:]) & 0xFFFF) - 2
    return total - sum(block[148:156]) + 8 * 0x20


def signed_checksum(block: bytes) -> int:
    """Return the sum with bytes taken as signed, as some old tar programs computed it."""
    return checksum(block) - 256 * sum(byte > 127 for byte in block[:148] + block[156:])


def number(block: bytes, start: int, end: int, at: int) -> int:
    """Return the number in `block[start:end]`; `at` is the block's offset, for the error.

    Raises:
        FormatError: neither octal nor base-256 of at most 63 bits.
    """
    raw = block[start:end]
    digits = raw.strip(b" \0")
    if digits.isdigit():
        try:
            return int(digits, 8)
        except ValueError:
            pass
    elif not digits:
        return 0
    elif raw[0] & 0x80:
        value = int.from_bytes(raw, "big", signed=bool(raw[0] & 0x40))
        if not raw[0] & 0x40:
            value -= 0x80 << 8 * (len(raw) - 1)
        if -(1 << 63) <= value < 1 << 63:
            return value
    elif (before_nul := cstring(digits)) != digits and before_nul.isdigit():
        return number(before_nul, 0, len(before_nul), at + start)
    raise FormatError("tar", at + start, expected="an octal or base-256 number", got=repr(raw))
