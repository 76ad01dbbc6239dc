"""Entries of a TOC as JSON: what a header says first, then where the data is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

import msgspec

from lamina.errors import NotImplementedHere
from lamina.formats.tar import Entry, Type
from lamina.formats.tar.layout import SECOND

_TYPES = {
    Type.REGULAR: "reg",
    Type.DIRECTORY: "dir",
    Type.SYMLINK: "symlink",
    Type.HARD_LINK: "hardlink",
    Type.CHAR: "char",
    Type.BLOCK: "block",
    Type.FIFO: "fifo",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


class _Line(msgspec.Struct, rename="camel", omit_defaults=True):
    """What a header says; the names of the fields are those of the JSON."""

    name: str
    type: str
    size: int = 0
    modtime: str = ""
    link_name: str = ""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    dev_major: int = 0
    dev_minor: int = 0
    xattrs: dict[str, bytes] | None = None
    digest: str = ""


class _Place(msgspec.Struct, rename="camel", omit_defaults=True):
    """Where a chunk is."""

    offset: int = 0
    inner_offset: int = 0
    digest: str = ""
    chunk_offset: int = 0
    chunk_size: int = 0
    chunk_digest: str = ""


def entry_line(entry: Entry) -> bytes:
    """Return the JSON of an entry; of a file with data it lacks where that is, and the brace.

    Raises:
        NotImplementedHere: a name is no UTF-8, in which JSON is written.
    """
    line = _Line(
        _text(entry, entry.name),
        _TYPES[entry.type],
        modtime=_modtime(entry.mtime),
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
    )
    if entry.type in {Type.SYMLINK, Type.HARD_LINK}:
        line.link_name = _text(entry, entry.linkname)
    elif entry.type in {Type.CHAR, Type.BLOCK}:
        line.dev_major = entry.devmajor
        line.dev_minor = entry.devminor
    if entry.xattrs:
        line.xattrs = {_text(entry, name): entry.xattrs[name] for name in sorted(entry.xattrs)}
    if entry.type != Type.REGULAR:
        return msgspec.json.encode(line)
    if not entry.size:
        line.digest = _EMPTY
        return msgspec.json.encode(line)
    line.size = entry.size
    return msgspec.json.encode(line)[:-1]


def chunk_line(name: bytes) -> bytes:
    """Return the beginning of an entry for a further chunk of the file of that clean name."""
    return msgspec.json.encode(_Line(name.decode(), "chunk"))[:-1]


def place_line(
    *, offset: int, inner: int, digest: str, chunk_offset: int, chunk_size: int, chunk_digest: str
) -> bytes:
    """Return what follows `entry_line` or `chunk_line`: where the data is, and what it is.

    Args:
        offset: of the stream in the blob.
        inner: of the chunk in the decoded stream, where that has other chunks; else 0.
        digest: of the whole file; "" but for the entry itself.
        chunk_offset: of the chunk in the file.
        chunk_size: 0 for the last one of a file.
        chunk_digest: of the chunk.
    """
    place = _Place(offset, inner, digest, chunk_offset, chunk_size, chunk_digest)
    return b"," + msgspec.json.encode(place)[1:]


def _text(entry: Entry, name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        what = "describe a name that is no UTF-8 in a TOC"
        raise NotImplementedHere(what, repr(entry.name[:200])) from error


@lru_cache(maxsize=1024)
def _modtime(time: int) -> str:
    """Return nanoseconds as RFC 3339; "" for 1970 itself and for years that it cannot say."""
    seconds, rest = divmod(time, SECOND)
    try:
        moment = _EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        return ""
    if not time:
        return ""
    fraction = f".{rest:09}".rstrip("0") if rest else ""
    return f"{moment.replace(tzinfo=None).isoformat()}{fraction}Z"
