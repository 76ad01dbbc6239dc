"""Members of a layer's tar, kept in a file without a name until their order is known.

What is written later is what was read: header blocks are copied byte for byte, so that owner names
and extended headers survive. Made anew are only the headers of sparse files, which are filled up
with zeros, since chunks are runs of plain bytes.
"""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lamina.errors import FormatError, NotImplementedHere, ResourceExhausted
from lamina.formats.estargz.toc import TOC_NAME
from lamina.formats.estargz.tree import NO_PREFETCH, PREFETCH
from lamina.formats.estargz.writer.limits import check_entry, check_line
from lamina.formats.estargz.writer.lines import entry_line
from lamina.formats.stream import ChunkStream
from lamina.formats.tar import BLOCK, Entry, TarReader, Type, header
from lamina.formats.tar.layer import check_device, check_owner, clean
from lamina.formats.tar.layout import number, padding
from lamina.formats.temporary import spooling

RESERVED = frozenset([PREFETCH, NO_PREFETCH, TOC_NAME])
"""Names at the root of the tar that a blob's writer alone makes."""
_STEP = 1 << 20
_KNOWN = frozenset(
    [
        Type.REGULAR,
        Type.DIRECTORY,
        Type.SYMLINK,
        Type.HARD_LINK,
        Type.CHAR,
        Type.BLOCK,
        Type.FIFO,
    ]
)


@dataclass(slots=True)
class Member:
    """A member as it goes into the blob.

    Attributes:
        path: clean name.
        type: one of `Type`.
        header: the blocks before the body, or where the spool has them: start and length.
        line: its entry in the TOC, without what is known only when the data is written.
        size: bytes of the file, holes included; 0 for all but regular files.
        body: where its data starts in the spool; or the data itself.
        pieces: `(offset, length)` of the data of a sparse file; None for others.
        target: clean name that a hard link leads to.
    """

    path: bytes
    type: bytes
    header: bytes | tuple[int, int]
    line: bytes
    size: int = 0
    body: int | bytes = 0
    pieces: Sequence[tuple[int, int]] | None = None
    target: bytes = b""


def make_member(entry: Entry, body: int | bytes = 0) -> Member:
    """Return a member with a header of its own.

    Raises:
        NotImplementedHere: the TOC cannot say it.
    """
    member = Member(clean(entry.name), entry.type, header(entry), _line(entry), body=body)
    if entry.type == Type.REGULAR:
        member.size = entry.size
    elif entry.type == Type.HARD_LINK:
        member.target = clean(entry.linkname)
    return member


class Spool:
    """The bytes of a tar, in a file that nothing else can open; a context manager.

    Args:
        directory: where the file is; on the disk that is to be filled.
    """

    def __init__(self, directory: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115  see __exit__
        self._directory = directory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def fill(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Pass the chunks on, each of them written before."""
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[self._write(view) :]
            yield chunk

    def read(self, start: int, length: int) -> bytes:
        """Return exactly these bytes, which were written before."""
        data = os.pread(self._file.fileno(), length, start)
        if len(data) == length:
            return data
        parts = [data]
        done = len(data)
        while done < length and (
            data := os.pread(self._file.fileno(), length - done, start + done)
        ):
            parts.append(data)
            done += len(data)
        assert done == length, "the spool has what was read from the archive"
        return b"".join(parts)

    def header(self, member: Member) -> bytes:
        """Return the blocks before the body."""
        if isinstance(member.header, bytes):
            return member.header
        return self.read(*member.header)

    def data(self, member: Member, offset: int, length: int) -> bytes:
        """Return bytes of a member's file, holes as zeros."""
        if isinstance(member.body, bytes):
            return member.body[offset : offset + length]
        if member.pieces is None:
            return self.read(member.body + offset, length)
        return self._sparse(member.body, member.pieces, offset, length)

    def _sparse(
        self, body: int, pieces: Sequence[tuple[int, int]], offset: int, length: int
    ) -> bytes:
        data = bytearray(length)
        first = max(bisect_right(pieces, offset, key=lambda piece: piece[0]) - 1, 0)
        position = body + sum(size for _, size in pieces[:first])
        for start, size in pieces[first:]:
            if start >= offset + length:
                break
            begin, end = max(start, offset), min(start + size, offset + length)
            if begin < end:
                found = self.read(position + begin - start, end - begin)
                data[begin - offset : end - offset] = found
            position += size
        return bytes(data)

    def _write(self, view: memoryview) -> int:
        with spooling("the layer", self._directory):
            return self._file.write(view) or 0


def read_members(
    chunks: Iterable[bytes], spool: Spool, *, max_entries: int, max_bytes: int
) -> list[Member]:
    """Read a whole tar, and what follows it, into the spool; return its members as they come.

    Landmarks and a TOC that an earlier conversion left are not among them.

    Args:
        chunks: of the uncompressed tar.
        spool: empty; it has the data of the members afterwards.
        max_entries: members at most.
        max_bytes: of all files together, with their holes.

    Raises:
        FormatError: the archive is damaged, or asks for what cannot be.
        NotImplementedHere: it has what a TOC cannot say.
        ResourceExhausted: a limit is exceeded, or there is no room for the spool.
    """
    stream = ChunkStream(spool.fill(chunks))
    tar = TarReader(stream)
    members: list[Member] = []
    end = total = count = 0
    while (entry := tar.next()) is not None:
        start, end = end, stream.offset
        body = end
        count += 1
        total += entry.real_size
        if count > max_entries or total > max_bytes:
            many = f"it has more than {max_entries} entries"
            much = f"its files have more than {max_bytes} bytes"
            raise ResourceExhausted("convert layer", hint=many if count > max_entries else much)
        end += entry.size + padding(entry.size)
        if clean(entry.name) not in RESERVED:
            members.append(_member(entry, start, body, spool))
    stream.drain()
    return members


def _member(entry: Entry, start: int, body: int, spool: Spool) -> Member:
    if entry.type not in _KNOWN:
        expected = "a file, link, directory, device or fifo"
        raise FormatError("tar", start, expected=expected, got=f"type {entry.type!r}")
    path = clean(entry.name)
    check_entry(entry, path, start)
    check_owner(entry, start)
    check_device(entry, start)
    if b"\0" in entry.name or not _is_text(entry.name) or not _is_text(entry.linkname):
        raise NotImplementedHere(
            "describe a name that is no UTF-8 in a TOC", repr(entry.name[:200])
        )
    if entry.sparse is not None:
        pieces, entry.sparse = entry.sparse, None
        entry.size = entry.real_size
        member = make_member(entry, body)
        member.pieces = pieces
        return member
    place: bytes | tuple[int, int] = (start, body - start)
    if body - start > BLOCK:
        place = _without_globals(spool.read(start, body - start), start) or place
    member = Member(path, entry.type, place, _line(entry), body=body)
    if entry.type == Type.REGULAR:
        member.size = entry.size
    elif entry.type == Type.HARD_LINK:
        member.target = clean(entry.linkname)
    return member


def _line(entry: Entry) -> bytes:
    line = entry_line(entry)
    check_line(entry, line)
    return line


def _without_globals(blocks: bytes, at: int) -> bytes | None:
    """Return an entry's header blocks without global ones, which hold for others too; or None."""
    kept: list[bytes] = []
    position = 0
    found = False
    while position < len(blocks):
        block = blocks[position : position + BLOCK]
        kind = block[156:157]
        end = position + BLOCK
        if kind in {Type.PAX, Type.PAX_GLOBAL, Type.GNU_LONG_NAME, Type.GNU_LONG_LINK}:
            size = number(block, 124, 136, at + position)
            end += size + padding(size)
        if kind == Type.PAX_GLOBAL:
            found = True
        else:
            kept.append(blocks[position:end])
        position = end
    return b"".join(kept) if found else None


def _is_text(name: bytes) -> bool:
    if name.isascii():
        return True
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
