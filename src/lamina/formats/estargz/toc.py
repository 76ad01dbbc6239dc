"""The table of contents: JSON that describes every file of a blob and each chunk of its data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Annotated, NamedTuple, overload

import msgspec

from lamina.core.digest import Digest, sha256
from lamina.core.source import RangeSource
from lamina.errors import FormatError
from lamina.formats.compression import Read, decompress
from lamina.formats.estargz.footer import Kind, TocLocation
from lamina.formats.stream import ChunkStream
from lamina.formats.tar import TarReader

FORMAT = "eStargz TOC"
TOC_NAME = b"stargz.index.json"
MAX_COMPRESSED = 256 << 20
MAX_TOC = 512 << 20
"""Bytes: an entry takes about 300, so that more than a million fit; what is read is held whole."""
MAX_ENTRIES = 1 << 21
"""An entry takes some 200 bytes of memory however short it is written."""
MAX_ENTRY = 1 << 20
"""Bytes of JSON: names, target and attributes that one inode can have take less. What is decoded
at a time is no more than that."""
_VERSION = 1

_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Id = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 2)]
_Time = Annotated[datetime, msgspec.Meta(tz=True)]


class TocEntry(msgspec.Struct, rename="camel", frozen=True, gc=False):
    """One entry as it is written; names of the fields as in the JSON, which leaves out zeros.

    Attributes:
        name: path as in the tar, not cleaned; without meaning for a `chunk`.
        type: `dir`, `reg`, `symlink`, `hardlink`, `char`, `block`, `fifo`, or `chunk`: more data
            of the last entry that was none.
        offset: byte of the blob where the stream with the data starts.
        inner_offset: byte of the decoded stream where the data starts.
        chunk_offset: byte of the file where the data belongs.
        chunk_size: bytes; 0 means what is left of the file.
        mode: as in the tar; bits of the file's type may be there, and mean nothing.
        xattrs: full names and values, base64 in the JSON.
        digest: of the whole file.
        chunk_digest: of this chunk.
        chunk_type: of zstd:chunked; `zeros` is data that need not be fetched.
    """

    name: str
    type: str
    size: _Count = 0
    modtime: _Time | None = None
    link_name: str = ""
    mode: _Count = 0
    uid: _Id = 0
    gid: _Id = 0
    offset: _Count = 0
    inner_offset: _Count = 0
    dev_major: _Count = 0
    dev_minor: _Count = 0
    xattrs: dict[str, bytes] | None = None
    digest: str = ""
    chunk_offset: _Count = 0
    chunk_size: _Count = 0
    chunk_digest: str = ""
    chunk_type: str = ""


class _Json(msgspec.Struct):
    version: int
    entries: list[msgspec.Raw]


_decode_entry = msgspec.json.Decoder(TocEntry).decode


class Entries(Sequence[TocEntry]):
    """The entries of a TOC, each decoded when it is asked for: a million in JSON take 350 MB, and
    as objects as much again.

    Asking for one raises FormatError where a field has another type or range than the format's.
    """

    def __init__(self, raw: Sequence[msgspec.Raw]) -> None:
        self._raw = raw

    def __len__(self) -> int:
        return len(self._raw)

    @overload
    def __getitem__(self, index: int) -> TocEntry: ...
    @overload
    def __getitem__(self, index: slice) -> Entries: ...
    def __getitem__(self, index: int | slice) -> TocEntry | Entries:
        if isinstance(index, slice):
            return Entries(self._raw[index])
        raw = self._raw[index]
        size = memoryview(raw).nbytes
        if size > MAX_ENTRY:
            raise _error(0, f"at most {MAX_ENTRY} bytes as entry {index}", str(size))
        try:
            return _decode_entry(raw)
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            got = f"{error}, in entry {index}"
            raise _error(0, "fields of the format's types and ranges", got) from error


class Toc(NamedTuple):
    """What `read_toc` returns.

    Attributes:
        entries: in the order of the blob.
        digest: SHA-256 of the JSON, byte for byte.
        data_end: byte of the blob where the last stream of files ends.
        is_zstd: whether the streams are zstd frames; otherwise gzip members.
        packed_digest: SHA-256 of the TOC of zstd:chunked as it is compressed; None for others.
    """

    entries: Sequence[TocEntry]
    digest: Digest
    data_end: int
    is_zstd: bool
    packed_digest: Digest | None = None


def read_toc(source: RangeSource, location: TocLocation) -> Toc:
    """Fetch the TOC from where `find_toc` found it, and decode it.

    Whether its digest is the one that the manifest names is for the caller to check.

    Raises:
        FormatError: it is damaged, larger than the limits, or lies in another blob.
        OutOfRange, Unavailable: as `read_at`.
    """
    if location.kind is Kind.EXTERNAL:
        raise _error(location.offset, "a TOC in the blob", "one that another image has")
    if location.length > MAX_COMPRESSED:
        raise _error(
            location.offset, f"at most {MAX_COMPRESSED} bytes of TOC", str(location.length)
        )
    packed = source.read_at(location.offset, location.length)
    chunks = decompress(_buffered(packed))
    if location.kind is not Kind.CHUNKED:
        return parse_toc(_member(chunks, location.offset), location.data_end, is_zstd=False)
    data = _join(chunks, location.offset)
    if len(data) != location.raw_length:
        raise _error(location.offset, f"{location.raw_length} bytes", str(len(data)))
    return parse_toc(data, location.data_end, is_zstd=True)._replace(packed_digest=sha256(packed))


def read_external_toc(read: Read, location: TocLocation) -> Toc:
    """Decode the TOC of a blob with an external one, from the layer of the image that has it.

    Args:
        read: that layer, a tar in gzip.
        location: what `find_toc` says of the blob itself.

    Raises:
        FormatError: as `read_toc`.
    """
    return parse_toc(_member(decompress(read), 0), location.data_end, is_zstd=False)


def parse_toc(data: bytes | bytearray, data_end: int, *, is_zstd: bool) -> Toc:
    """Decode the JSON of a TOC, and its entries when they are asked for.

    Raises:
        FormatError: it is no JSON of a TOC, or entries are too many.
    """
    # Braces are never escaped where an object begins, so this bounds what the parser makes before
    # it makes it: an entry has one of its own and at most one for its xattrs.
    objects = data.count(b"{")
    if objects > 2 * MAX_ENTRIES + 1:
        raise _error(0, f"at most {MAX_ENTRIES} entries", f"{objects} JSON objects")
    try:
        decoded = msgspec.json.decode(data, type=_Json)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise _error(0, "the JSON of a TOC", str(error)) from error
    if decoded.version != _VERSION:
        raise _error(0, f"version {_VERSION}", str(decoded.version))
    if len(decoded.entries) > MAX_ENTRIES:
        raise _error(0, f"at most {MAX_ENTRIES} entries", str(len(decoded.entries)))
    return Toc(Entries(decoded.entries), sha256(data), data_end, is_zstd)


def entry_error(index: int, entry: TocEntry, field: str, expected: str, got: object) -> FormatError:
    """Return the error that names an entry and a field of it."""
    where = f"{field} of entry {index} ({entry.name[:200]!r})"
    return FormatError(FORMAT, 0, expected=f"{expected} as {where}", got=str(got)[:200])


def _buffered(data: bytes) -> Read:
    position = 0

    def read(length: int) -> bytes:
        nonlocal position
        part = data[position : position + length]
        position += len(part)
        return part

    return read


def _join(chunks: Iterable[bytes], offset: int) -> bytearray:
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > MAX_TOC:
            raise _error(offset, f"at most {MAX_TOC} bytes of TOC", "more")
    return data


def _member(chunks: Iterable[bytes], offset: int) -> bytearray:
    """Return the body of the one file that the tar with the TOC has."""
    tar = TarReader(ChunkStream(chunks))
    entry = tar.next()
    if entry is None or entry.name != TOC_NAME:
        got = "the end" if entry is None else repr(entry.name[:80])
        raise _error(offset, f"a tar that starts with {TOC_NAME.decode()}", got)
    return _join(_body(tar), offset)


def _body(tar: TarReader) -> Iterator[bytes]:
    while part := tar.take():
        yield bytes(part)


def _error(offset: int, expected: str, got: str) -> FormatError:
    return FormatError(FORMAT, offset, expected=expected, got=got)
