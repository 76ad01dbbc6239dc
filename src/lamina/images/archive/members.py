"""The members of an archive one after the other, without a path of theirs ever touching a disk."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lamina.errors import FormatError, NotFound
from lamina.formats.compression import decompress
from lamina.formats.stream import ChunkStream
from lamina.formats.tar import Entry, TarReader, Type

_CHUNK = 1 << 20
_LAYOUT_FILES = ("oci-layout", "index.json", "manifest.json")


@dataclass(frozen=True, slots=True)
class Member:
    """A file or a link.

    Attributes:
        name: cleaned, relative to the archive's root; it is a key, and never used as a path.
        size: bytes of a file.
        target: cleaned name of the member that a link stands for; "" for a file.
        chunks: the file's content; to be used up before the next member is asked for.
    """

    name: str
    size: int
    target: str
    chunks: Iterator[bytes | memoryview]


def members(source: Path | BinaryIO) -> Iterator[Member]:
    """Yield the files and links of a layout directory, or of a tar file or stream.

    A tar may be compressed with gzip or zstd.

    Raises:
        NotFound: there is no such file.
        FormatError: the archive is damaged.
    """
    if not isinstance(source, Path):
        yield from _tar_members(source.read)
        return
    if source.is_dir():
        yield from _directory_members(source)
        return
    if not source.exists():
        raise NotFound("archive", source)
    with open(source, "rb") as file:
        yield from _tar_members(file.read)


def _tar_members(read: Callable[[int], bytes]) -> Iterator[Member]:
    reader = TarReader(ChunkStream(decompress(read)))
    while (entry := reader.next()) is not None:
        if entry.sparse is not None:
            raise FormatError("image archive", reader.offset, expected="a file", got="a sparse one")
        if entry.type == Type.REGULAR:
            yield Member(_clean(entry.name), entry.size, "", iter(reader.take, b""))
        elif entry.type in {Type.SYMLINK, Type.HARD_LINK}:
            yield Member(_clean(entry.name), 0, _link_target(entry), iter(()))


def _directory_members(root: Path) -> Iterator[Member]:
    """Yield the files of a layout directory; nothing else that lies there is looked at."""
    blobs = sorted(str(path.relative_to(root)) for path in root.glob("blobs/*/*"))
    for name in (*_LAYOUT_FILES, *blobs):
        try:
            fd = os.open(root / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            continue
        with open(fd, "rb", buffering=0):
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode):
                yield Member(name, status.st_size, "", _chunks(fd))


def _chunks(fd: int) -> Iterator[bytes]:
    while data := os.read(fd, _CHUNK):
        yield data


def _clean(name: bytes) -> str:
    return posixpath.normpath("/" + name.decode("utf-8", "surrogateescape")).lstrip("/")


def _link_target(entry: Entry) -> str:
    if entry.type == Type.HARD_LINK:
        return _clean(entry.linkname)
    return _clean(posixpath.dirname(entry.name) + b"/" + entry.linkname)
