"""Tars of layers: each is refused, or becomes a blob that has the same files."""

from __future__ import annotations

import io
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lamina.errors import FormatError, InvalidArgument, NotImplementedHere, ResourceExhausted
from lamina.formats.erofs.inodes import Node
from lamina.formats.erofs.reader import Image
from lamina.formats.erofs.tar import image_from_tar
from lamina.formats.erofs.tree import BLOCK as EROFS_BLOCK
from lamina.formats.erofs.writer import Device, write_image
from lamina.formats.estargz.writer import BlobFormat, BlobOptions, write_blob
from lamina.formats.stream import ChunkStream
from lamina.formats.tar import BLOCK, END_OF_ARCHIVE, Entry, TarReader, Type, header, padding
from lamina.formats.tar.layout import checksum
from tests.estargz_reading import BytesSource, read_blob
from tests.fuzz.target import Target

_HIDDEN = (b"stargz.index.json", b".prefetch.landmark", b".no.prefetch.landmark")
_MAX_BYTES = 1 << 22
_OPTIONS = (
    BlobOptions(chunk_size=4096),
    BlobOptions(format=BlobFormat.ZSTD_CHUNKED, chunk_size=4096, min_chunk_size=3000),
)


def _seeds() -> Iterator[bytes]:
    """Yield a byte of options, and a tar."""
    second = 1_000_000_000
    members = [
        (Entry(b"d/", Type.DIRECTORY, mode=0o755, mtime=5 * second), b""),
        (Entry(b"d/f", size=5000, real_size=5000, xattrs={b"user.a": b"1"}), b"x" * 5000),
        (Entry(b"d/" + b"y" * 150, size=3, real_size=3, mtime=second + 5), b"abc"),
        (Entry(b"d/l", Type.SYMLINK, linkname=b"f", mode=0o777), b""),
        (Entry(b"h", Type.HARD_LINK, linkname=b"d/f"), b""),
        (Entry(b"c", Type.CHAR, devmajor=1, devminor=3), b""),
        (Entry(b"p", Type.FIFO), b""),
        (Entry(b"s", size=4, sparse=((0, 2), (9000, 2)), real_size=9002), b"abcd"),
        (Entry(b"d/.wh.gone"), b""),
        (Entry(b"e/.wh..wh..opq"), b""),
    ]
    again = [
        (Entry(b"d/f", size=1, real_size=1), b"1"),
        (Entry(b"h", Type.HARD_LINK, linkname=b"d/f"), b""),
        (Entry(b"d/f", Type.SYMLINK, linkname=b"../h", xattrs={b"user.b": b"2"}), b""),
        (Entry(b"./d/.wh.x", uid=7), b""),
        (Entry(b"d/x/", Type.DIRECTORY, mode=0o1777, xattrs={b"com.apple.x": b"3"}), b""),
        (Entry(b"d", size=3, real_size=3, xattrs={b"trusted.overlay.opaque": b"y"}), b"abc"),
        (Entry(b"/", Type.DIRECTORY, mtime=-5), b""),
        (Entry(b"b", Type.BLOCK, devmajor=8, devminor=1 << 19), b""),
    ]
    parts, others = (
        [header(entry) + body + bytes(padding(len(body))) for entry, body in some]
        for some in (members, again)
    )
    for first in range(4):
        yield bytes((first,)) + b"".join([*others, END_OF_ARCHIVE])
        yield bytes((first,)) + b"".join([*parts, END_OF_ARCHIVE])
        yield bytes((first,)) + b"".join([*parts[:2], *parts[4:5], END_OF_ARCHIVE])
        yield bytes((first,)) + b"".join([*parts[2:4], END_OF_ARCHIVE])


def _resealed(data: bytes) -> bytes:
    """Return a tar whose headers have the sums of what they are now."""
    tar = bytearray(data)
    for at in range(0, len(tar) - BLOCK + 1, BLOCK):
        if tar[at + 257 : at + 262] == b"ustar":
            total = checksum(bytes(tar[at : at + BLOCK]))
            tar[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(tar)


def _run(data: bytes) -> None:
    if not data:
        return
    tar = _resealed(data[1:])
    try:
        blob = _blob(tar, data[0])
    except (FormatError, NotImplementedHere, ResourceExhausted):
        return
    found = read_blob(blob)
    devices = [Device(found.tree.cache_size // EROFS_BLOCK)]
    write_image(found.tree.root, io.BytesIO(), devices=devices)
    try:
        before = _extracted(tar)
    except (FormatError, ResourceExhausted, InvalidArgument):
        return  # what cannot be extracted may be described all the same
    after = _extracted(found.tar)
    lazily = {path: told for path, told in found.files.items() if path}
    linked = _has_links(tar)
    assert _same(before, linked=linked) == _same(after, linked=linked)
    assert _same(before, linked=linked) == _same(lazily, linked=linked)


def _blob(tar: bytes, options: int) -> bytes:
    out = bytearray()
    write_blob(
        [tar],
        out.extend,
        temporary=Path(tempfile.gettempdir()),
        options=_OPTIONS[options % 2],
        prioritized=[b"h", b"d/f"] if options & 2 else None,
        threads=1,
        max_entries=1000,
        max_bytes=_MAX_BYTES,
    )
    return bytes(out)


def _has_links(tar: bytes) -> bool:
    reader = TarReader(ChunkStream([tar]))
    return any(entry.type == Type.HARD_LINK for entry in iter(reader.next, None))


def _extracted(tar: bytes) -> dict[bytes, tuple[Any, ...]]:
    """Return what the writer of EROFS images makes of a tar, read from the image."""
    out = io.BytesIO()
    image_from_tar(ChunkStream([tar]), out, max_entries=2000, max_bytes=2 * _MAX_BYTES)
    image = Image(BytesSource(out.getvalue()))
    return {path[1:]: _described(image, node) for path, node in image.walk() if path != b"/"}


def _described(image: Image, node: Node) -> tuple[Any, ...]:
    """Return what `describe` does of an inode."""
    data = b""
    if node.is_regular:
        data = image.read(node, 0, node.size)
    elif node.is_symlink:
        data = image.target(node)
    return (node.mode, node.uid, node.gid, node.mtime, node.rdev, image.xattrs(node), data)


def _same(files: dict[bytes, tuple[Any, ...]], *, linked: bool) -> dict[bytes, tuple[Any, ...]]:
    """Return what has to be the same.

    Directories that no member describes have attributes as each reader likes. Times of a TOC are
    read in microseconds, and those before 1970 not at all. What the header of a hard link says of
    its file counts where it is extracted, but not in a TOC.
    """
    same: dict[bytes, tuple[Any, ...]] = {}
    for path, (mode, uid, gid, mtime, *rest) in files.items():
        if path in _HIDDEN:
            continue
        if stat.S_ISDIR(mode):
            same[path] = ()
        elif linked:
            same[path] = (stat.S_IFMT(mode), rest[0], rest[-1])
        else:
            same[path] = (mode, uid, gid, max(mtime // 1000, 0), *rest)
    return same


TARGETS = {"tar": Target(_seeds, _run)}
