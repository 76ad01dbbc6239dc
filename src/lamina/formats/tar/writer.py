"""Header blocks as Go's tar writer lays them out, so that equal entries give equal bytes."""

from __future__ import annotations

from collections.abc import Mapping

from lamina.formats.tar.layout import (
    BLOCK,
    MAGIC_POSIX,
    SECOND,
    XATTR_PREFIX,
    Entry,
    Type,
    checksum,
    padding,
)
from lamina.formats.tar.pax import SPARSE_MAP

END_OF_ARCHIVE = bytes(2 * BLOCK)

_MAX_ID = 0o7777777
_MAX_SIZE = 0o77777777777
_MAX_NAME = 100


def header(entry: Entry) -> bytes:
    """Return the blocks that precede the body of `entry`.

    A pax header is written only for what a ustar header cannot say: names that are long or not
    ASCII, large numbers, fractions of seconds, extended attributes, and the map of a sparse file
    (GNU's format 0.1, the body having the pieces of data alone). `atime` is not written.
    """
    records = _pax_records(entry)
    block = _ustar(
        entry.name,
        entry.type,
        numbers=(
            entry.mode & 0o7777,
            _fitting(entry.uid, _MAX_ID),
            _fitting(entry.gid, _MAX_ID),
            _fitting(entry.size, _MAX_SIZE),
            _fitting(_seconds(entry), _MAX_SIZE),
        ),
        linkname=entry.linkname,
        device=(entry.devmajor, entry.devminor),
    )
    if not records:
        return block
    body = b"".join(_pax_record(key, records[key]) for key in sorted(records))
    directory, _, base = entry.name.rstrip(b"/").rpartition(b"/")
    name = b"/".join(part for part in (directory, b"PaxHeaders.0", base) if part)
    numbers = (0, 0, 0, len(body), 0)
    return _ustar(name, Type.PAX, numbers=numbers) + body + bytes(padding(len(body))) + block


def _pax_records(entry: Entry) -> Mapping[bytes, bytes]:
    records = {XATTR_PREFIX + name: value for name, value in entry.xattrs.items()}
    if not _fits(entry.name):
        records[b"path"] = entry.name
    if not _fits(entry.linkname):
        records[b"linkpath"] = entry.linkname
    if entry.sparse is not None:
        numbers = (b"%d,%d" % piece for piece in entry.sparse)
        records[SPARSE_MAP] = b",".join(numbers) or b"0,0"
        records[b"GNU.sparse.size"] = b"%d" % entry.real_size
    if entry.mtime % SECOND:
        records[b"mtime"] = _decimal(entry.mtime)
    for key, value, limit in (
        (b"uid", entry.uid, _MAX_ID),
        (b"gid", entry.gid, _MAX_ID),
        (b"size", entry.size, _MAX_SIZE),
        (b"mtime", _seconds(entry), _MAX_SIZE),
    ):
        if not 0 <= value <= limit and key not in records:
            records[key] = str(value).encode()
    return records


def _fits(name: bytes) -> bool:
    return len(name) <= _MAX_NAME and name.isascii()


def _seconds(entry: Entry) -> int:
    return entry.mtime // SECOND


def _decimal(time: int) -> bytes:
    """Return nanoseconds as seconds with a fraction."""
    sign = b"-" if time < 0 else b""
    return b"%s%d.%09d" % (sign, *divmod(abs(time), SECOND))


def _fitting(value: int, limit: int) -> int:
    return value if 0 <= value <= limit else 0


def _pax_record(key: bytes, value: bytes) -> bytes:
    r"""Return `LENGTH KEY=VALUE\n`, the length counting its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _ustar(
    name: bytes,
    type: bytes,
    *,
    numbers: tuple[int, int, int, int, int],
    linkname: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    mode, uid, gid, size, mtime = numbers
    fields = (
        _ascii(name).ljust(100, b"\0"),
        b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, uid, gid, size, mtime),
        b" " * 8,
        type,
        _ascii(linkname).ljust(100, b"\0"),
        MAGIC_POSIX,
        bytes(64),
        b"%07o\0%07o\0" % device,
        bytes(167),
    )
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % checksum(block) + block[156:]


def _ascii(name: bytes) -> bytes:
    """Return at most 100 bytes of a name, without what is no ASCII; pax has the true one."""
    return bytes(byte for byte in name if byte < 0x80)[:_MAX_NAME]
