"""Reader of tar archives, one entry at a time and in constant memory."""

from __future__ import annotations

from lamina.errors import FormatError
from lamina.formats.stream import ChunkStream
from lamina.formats.tar import pax, sparse
from lamina.formats.tar.layout import (
    BLOCK,
    MAGIC_GNU,
    MAGIC_POSIX,
    MAX_SPECIAL,
    SECOND,
    TRAILER_STAR,
    WITHOUT_BODY,
    ZERO_BLOCK,
    Entry,
    Type,
    checksum,
    cstring,
    number,
    padding,
    signed_checksum,
)

_MAX_CACHED = 4096


class TarReader:
    """Entries of the archive in `stream`, in order.

    The body of the current entry is read with `take`; what is left of it is passed over by `next`.
    """

    __slots__ = ("_owners", "_padding", "_remaining", "_stream")

    def __init__(self, stream: ChunkStream) -> None:
        self._stream = stream
        self._remaining = 0
        self._padding = 0
        self._owners: dict[bytes, tuple[int, int, int]] = {}

    @property
    def offset(self) -> int:
        """Byte offset in the archive."""
        return self._stream.offset

    def next(self) -> Entry | None:
        """Return the next entry, or None at the end of the archive.

        The archive ends with two zero blocks, or where the stream ends between two entries.

        Raises:
            FormatError: the archive is cut off or breaks the format's rules.
        """
        self._finish_body()
        records: dict[bytes, bytes] = {}
        long_name = long_link = b""
        first = True
        while True:
            at = self._stream.offset
            block = self._next_block(may_end=first)
            if block is None:
                return None
            first = False
            kind = block[156:157]
            if kind == Type.PAX:
                records = pax.parse(self._special(block, at), at + BLOCK)
            elif kind == Type.PAX_GLOBAL:
                self._begin_body(self._size(block, at))
                self._finish_body()
                first = True
            elif kind == Type.GNU_LONG_NAME:
                long_name = cstring(self._special(block, at))
            elif kind == Type.GNU_LONG_LINK:
                long_link = cstring(self._special(block, at))
            else:
                break
        entry = self._entry(block, at)
        if records:
            pax.merge(entry, records, at)
        entry.name = long_name or entry.name
        entry.linkname = long_link or entry.linkname
        self._describe_body(entry, records, block, at)
        return entry

    def take(self) -> memoryview:
        """Return the next part of the current entry's body, empty when there is no more.

        Raises:
            FormatError: the stream ends within the body.
        """
        if not self._remaining:
            return memoryview(b"")
        part = self._stream.take(self._remaining)
        if not part:
            raise self._cut(f"{self._remaining} more bytes of a file")
        self._remaining -= len(part)
        return part

    def _begin_body(self, size: int) -> None:
        self._remaining = size
        self._padding = padding(size)

    def _finish_body(self) -> None:
        left = self._remaining + self._padding
        self._remaining = self._padding = 0
        if left and (missing := self._stream.skip(left)):
            raise self._cut(f"{missing} more bytes of a file")

    def _next_block(self, *, may_end: bool) -> bytes | None:
        block = self._stream.read(BLOCK)
        if len(block) == BLOCK and block != ZERO_BLOCK:
            return block
        if not block and may_end:
            return None
        if block == ZERO_BLOCK and self._stream.read(BLOCK) in {b"", ZERO_BLOCK}:
            return None
        raise self._cut("a header, or two zero blocks")

    def _cut(self, expected: str) -> FormatError:
        return FormatError("tar", self._stream.offset, expected=expected, got="something else")

    def _exactly(self, length: int) -> bytes:
        data = self._stream.read(length)
        if len(data) < length:
            raise self._cut(f"{length - len(data)} more bytes")
        return data

    def _special(self, block: bytes, at: int) -> bytes:
        """Return the body of a pax header or long name."""
        size = self._size(block, at)
        if size > MAX_SPECIAL:
            raise FormatError("tar", at, expected="a header of at most 1 MiB", got=f"{size} bytes")
        data = self._exactly(size)
        self._exactly(padding(size))
        return data

    def _size(self, block: bytes, at: int) -> int:
        self._verify(block, at)
        size = number(block, 124, 136, at)
        if size < 0:
            raise FormatError("tar", at + 124, expected="a size", got=str(size))
        return size

    def _verify(self, block: bytes, at: int) -> None:
        claimed = number(block, 148, 156, at)
        total = checksum(block)
        if claimed != total and claimed != signed_checksum(block):
            got = f"{claimed}, where the bytes sum up to {total}"
            raise FormatError("tar", at + 148, expected="the header's checksum", got=got)

    def _entry(self, block: bytes, at: int) -> Entry:
        size = self._size(block, at)
        owner = block[100:124]
        numbers = self._owners.get(owner)
        if numbers is None:
            numbers = self._remember(owner, at)
        entry = Entry(
            cstring(block[:100]),
            block[156:157],
            *numbers,
            size,
            number(block, 136, 148, at) * SECOND,
            None,
            cstring(block[157:257]),
        )
        if entry.type in {Type.CHAR, Type.BLOCK}:
            entry.devmajor = number(block, 329, 337, at)
            entry.devminor = number(block, 337, 345, at)
        magic = block[257:265]
        if magic[:6] == MAGIC_POSIX[:6]:
            self._add_prefix(entry, block, 131 if block[508:] == TRAILER_STAR else 155)
        elif magic == MAGIC_GNU:
            self._add_gnu_times(entry, block, at)
        return entry

    def _remember(self, owner: bytes, at: int) -> tuple[int, int, int]:
        """Return mode, uid and gid; most entries of a layer share a few combinations."""
        mode, uid, gid = (number(owner, start, start + 8, at) for start in (0, 8, 16))
        if len(self._owners) >= _MAX_CACHED:
            self._owners.clear()
        self._owners[owner] = (mode & 0o7777, uid, gid)
        return self._owners[owner]

    def _add_prefix(self, entry: Entry, block: bytes, length: int) -> None:
        if block[345]:
            entry.name = cstring(block[345 : 345 + length]) + b"/" + entry.name

    def _add_gnu_times(self, entry: Entry, block: bytes, at: int) -> None:
        """Take the access time that GNU tar keeps where POSIX has the prefix.

        Go before 1.8 wrote a prefix under the GNU magic all the same. Such a file is known by
        text that is no number there.
        """
        if not block[345]:
            return
        try:
            entry.atime = number(block, 345, 357, at) * SECOND
        except FormatError:
            if not cstring(block[345:500]).isascii():
                raise
            self._add_prefix(entry, block, 155)

    def _describe_body(
        self, entry: Entry, records: dict[bytes, bytes], block: bytes, at: int
    ) -> None:
        """Settle type and size, and start the body."""
        if entry.type == Type.REGULAR_V7:
            entry.type = Type.DIRECTORY if entry.name.endswith(b"/") else Type.REGULAR
        if entry.type in WITHOUT_BODY:
            entry.size = 0
        if entry.size < 0:
            raise FormatError("tar", at, expected="a size", got=str(entry.size))
        entry.real_size = entry.size
        if entry.type == Type.GNU_SPARSE:
            entry.type = Type.REGULAR
            sparse.apply_old(entry, block, lambda: self._exactly(BLOCK), at)
        elif entry.type == Type.REGULAR and records:
            sparse.apply_pax(entry, records, lambda: self._exactly(BLOCK), at)
        self._begin_body(entry.size)
