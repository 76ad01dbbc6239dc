r"""Extended headers: `LENGTH KEY=VALUE\n` records (POSIX.1-2008, "pax Extended Header")."""

from __future__ import annotations

from lamina.errors import FormatError
from lamina.formats.tar.layout import SECOND, XATTR_PREFIX, Entry

_NAMES = frozenset([b"path", b"linkpath", b"uname", b"gname"])
_SPARSE_OFFSET = b"GNU.sparse.offset"
_SPARSE_LENGTH = b"GNU.sparse.numbytes"
SPARSE_MAP = b"GNU.sparse.map"


def parse(data: bytes, at: int) -> dict[bytes, bytes]:
    """Return the records; a later one wins.

    GNU's sparse format 0.0 repeats two keys for each piece of data; they come back as the one
    comma-separated `GNU.sparse.map` that format 0.1 has.

    Args:
        data: body of the header.
        at: its offset in the archive, for errors.

    Raises:
        FormatError: a record is cut off, has no length, or has a NUL where a name belongs.
    """
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    position = 0
    while position < len(data):
        key, value, end = _record(data, position, at)
        if key in {_SPARSE_OFFSET, _SPARSE_LENGTH}:
            if (key == _SPARSE_LENGTH) != bool(len(sparse) % 2) or not value.isdigit():
                raise _bad(at + position, data[position:end])
            sparse.append(value)
        else:
            records[key] = value
        position = end
    if sparse:
        records[SPARSE_MAP] = b",".join(sparse)
    return records


def _record(data: bytes, position: int, at: int) -> tuple[bytes, bytes, int]:
    space = data.find(b" ", position, position + 21)
    digits = data[position:space] if space > 0 else b""
    end = position + int(digits) if digits.isdigit() else 0
    if not space + 2 < end <= len(data) or data[end - 1] != 0x0A:
        raise _bad(at + position, data[position : position + 40])
    key, equals, value = data[space + 1 : end - 1].partition(b"=")
    if not key or not equals or b"\0" in (value if key in _NAMES else key):
        raise _bad(at + position, data[position:end])
    return key, value, end


def _bad(offset: int, got: bytes) -> FormatError:
    return FormatError("pax header", offset, expected="LENGTH KEY=VALUE", got=repr(got[:80]))


def merge(entry: Entry, records: dict[bytes, bytes], at: int) -> None:
    """Let the records override what the header block says; an empty value changes nothing.

    Raises:
        FormatError: a number or a time does not parse.
    """
    for key, value in records.items():
        if key.startswith(XATTR_PREFIX):
            entry.xattrs[key[len(XATTR_PREFIX) :]] = value
        elif not value:
            continue
        elif key == b"path":
            entry.name = value
        elif key == b"linkpath":
            entry.linkname = value
        elif key == b"size":
            entry.size = integer(value, at)
        elif key == b"uid":
            entry.uid = integer(value, at)
        elif key == b"gid":
            entry.gid = integer(value, at)
        elif key == b"mtime":
            entry.mtime = nanoseconds(value, at)
        elif key == b"atime":
            entry.atime = nanoseconds(value, at)


def integer(value: bytes, at: int) -> int:
    """Return a decimal number of at most 63 bits, which may be negative."""
    digits = value.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 19:
        raise FormatError("pax header", at, expected="a number", got=repr(value[:80]))
    return int(value)


def nanoseconds(value: bytes, at: int) -> int:
    """Return a decimal time in seconds as nanoseconds, further digits dropped."""
    whole, _, fraction = value.partition(b".")
    digits = fraction or b"0"
    if not digits.isdigit():
        raise FormatError("pax header", at, expected="a time", got=repr(value[:80]))
    part = int(digits[:9].ljust(9, b"0"))
    seconds = integer(whole, at)
    return seconds * SECOND - part if whole.startswith(b"-") else seconds * SECOND + part
