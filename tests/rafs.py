"""Trees for RAFS images, and what a bootstrap shows of them."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lamina.formats.rafs.chunk_data import decompress, verify_chunk
from lamina.formats.rafs.flags import ChunkFlags, Compressor
from lamina.formats.rafs.model import Bootstrap, Inode
from tests.erofs import CAPABILITY

CHUNK = 4096
BLOCK = 4096


@dataclass(eq=False)
class Made:
    """A file to be put into an image; under two names, a hard link."""

    mode: int
    data: bytes = b""
    target: bytes = b""
    children: dict[bytes, Made] = field(default_factory=dict)
    uid: int = 0
    gid: int = 0
    mtime: tuple[int, int] = (0, 0)
    rdev: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


def directory(children: dict[bytes, Made], **rest: object) -> Made:
    return Made(stat.S_IFDIR | 0o755, children=children, **rest)  # type: ignore[arg-type]


def regular(data: bytes, **rest: object) -> Made:
    return Made(stat.S_IFREG | 0o644, data, **rest)  # type: ignore[arg-type]


def noise(size: int, seed: bytes = b"") -> bytes:
    """Return bytes that no compressor makes fewer."""
    return hashlib.shake_128(seed).digest(size)


def sample() -> Made:
    """Return a tree with each type of file, with and without chunks."""
    linked = regular(b"linked " * 700, uid=7, gid=8, mtime=(9, 10))
    files = {
        b"empty": regular(b""),
        b"hard": linked,
        b"large": regular(noise(CHUNK) + b"text " * 2500, mtime=(1_700_000_000, 999_999_999)),
        b"small": regular(b"x", xattrs={b"user.a": b"1", b"security.capability": CAPABILITY}),
        b"zeros": regular(bytes(3 * CHUNK)),
    }
    special = {
        b"block": Made(stat.S_IFBLK | 0o600, rdev=0x812),
        b"char": Made(stat.S_IFCHR | 0o666, rdev=0x103),
        b"fifo": Made(stat.S_IFIFO | 0o600),
        b"socket": Made(stat.S_IFSOCK | 0o600),
        b"symlink": Made(stat.S_IFLNK | 0o777, target=b"../files/large"),
    }
    below = directory({b"same": linked}, xattrs={b"trusted.overlay.opaque": b"y"})
    nested = directory({b"b": directory({b"c": below}), b"none": directory({})})
    return directory(
        {b"!before-dots": nested, b"files": directory(files), b"special": directory(special)}
    )


def described(root: Made, *, owned: bool = True) -> dict[bytes, object]:
    """Return what `shown` returns of a bootstrap with such a tree."""
    found: dict[bytes, object] = {}
    names: dict[Made, bytes] = {}

    def visit(node: Made, path: bytes) -> None:
        ids = (node.uid, node.gid) if owned else (0, 0)
        time = node.mtime[0] * 10**9 + node.mtime[1]
        first = names.setdefault(node, path)
        found[path] = (first, node.mode, *ids, time, node.rdev, node.data, node.target, node.xattrs)
        for name, child in sorted(node.children.items()):
            visit(child, path + b"/" + name)

    visit(root, b"")
    return found


def shown(bootstrap: Bootstrap, content: Callable[[Inode], bytes]) -> dict[bytes, object]:
    """Return each path with all that is known of its inode, and the first of its names."""
    found: dict[bytes, object] = {}
    names: dict[Inode, bytes] = {}

    def visit(inode: Inode, path: bytes) -> None:
        data = content(inode) if inode.is_regular else b""
        first = names.setdefault(inode, path)
        rest = (inode.mtime, inode.rdev, data, inode.target, dict(inode.xattrs))
        found[path] = (first, inode.mode, inode.uid, inode.gid, *rest)
        for name, child in sorted(inode.children.items()):
            visit(child, path + b"/" + name)

    visit(bootstrap.root, b"")
    return found


def content_of(bootstrap: Bootstrap, blobs: Sequence[bytes]) -> Callable[[Inode], bytes]:
    """Return a function for `shown` that decompresses and verifies; not for batches."""

    def content(inode: Inode) -> bytes:
        data = bytearray(inode.size)
        for offset, chunk in inode.chunks:
            start = chunk.compressed_offset
            raw = blobs[chunk.blob][start : start + chunk.compressed_size]
            packed = chunk.flags & ChunkFlags.COMPRESSED
            compressor = bootstrap.blobs[chunk.blob].compressor if packed else Compressor.NONE
            body = decompress(compressor, raw, chunk.uncompressed_size)
            verify_chunk(bootstrap.digester, chunk, body)
            data[offset : offset + len(body)] = body
        return bytes(data)

    return content
