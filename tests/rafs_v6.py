"""RAFS bootstraps of version 6, made by hand."""

from __future__ import annotations

import hashlib
import stat
import struct
from collections.abc import Sequence

from tests.rafs import BLOCK, CHUNK, Made
from tests.rafs_blobs import (
    BLAKE3,
    COMPRESSOR_FLAGS,
    DIGESTER_FLAGS,
    EXPLICIT,
    HAS_XATTR,
    INLINED_DIGEST,
    NONE,
    TARFS,
    BlobBuilder,
    Tail,
    add_tail,
    pad,
)


def make_v6(
    root: Made,
    *,
    compressor: int = NONE,
    digester: int = BLAKE3,
    ci_compressor: int = NONE,
    flags: int = EXPLICIT | HAS_XATTR | INLINED_DIGEST,
    prefetch: Sequence[Made] = (),
    batch: int = 0,
    version: int = 1,
    chunk_table: bool = True,
    tar: bool = False,
    builder: BlobBuilder | None = None,
) -> tuple[bytes, bytes]:
    """Return bootstrap and blob; with `tar`, blocks have 512 bytes and the blob is its device.

    A builder is one that makes another kind of blob.
    """
    block = 512 if tar else BLOCK
    version = 2 if batch else version
    features = 0x1 | 0x20 | 0x7000_0000 | (4 if version == 2 else 0) | (0x80 if batch else 0)
    blob = builder or BlobBuilder(compressor, digester, unit=block, batch=batch)
    metadata = _V6Metadata(root, blob, block)
    tail = add_tail(blob, features, version=version, ci_compressor=ci_compressor)
    id = hashlib.sha256(tail.blob).hexdigest().encode()
    ci_compressor = ci_compressor if tail.ci_compressed < tail.ci_size else NONE
    if tar:
        tail = Tail(device_of(blob), 0, 0, 0, b"")
        features, flags = 0x4000_0040, flags | TARFS
    blob_table = struct.pack(
        "<64sIIIIIIQQIIQQQ32s32sQQI36x",
        id,
        0,
        CHUNK,
        len(blob.pieces),
        compressor,
        digester,
        features,
        len(tail.blob),
        blob.size,
        len(tail.toc),
        ci_compressor,
        tail.ci_offset,
        tail.ci_compressed,
        tail.ci_size,
        hashlib.sha256(tail.toc).digest(),
        bytes(32),
        0,
        0,
        0,
    )
    wanted = [metadata.nids[node] for node in prefetch]
    tables = blob_table + struct.pack(f"<{len(wanted)}I", *wanted)
    body = metadata.body()
    chunk_at = 2 * BLOCK + len(body)
    chunks = b"".join(piece.raw(0) for piece in blob.pieces) if chunk_table else b""
    chunks = chunks[:80] if tar else chunks
    extended = struct.pack(
        "<QQIIQQQI204x",
        flags | COMPRESSOR_FLAGS[compressor] | DIGESTER_FLAGS[digester],
        BLOCK,
        len(blob_table),
        CHUNK,
        chunk_at,
        len(chunks),
        BLOCK + len(blob_table) if wanted else 0,
        4 * len(wanted),
    )
    superblock = _v6_superblock(metadata.nids[root], len(metadata.nids), blob.size, block)
    slot = struct.pack("<64sII56x", id, blob.size // block, 512)
    head = pad(bytes(1024) + superblock + extended + slot, BLOCK)
    return head + pad(tables, BLOCK) + body + pad(chunks, BLOCK), tail.blob


def device_of(blob: BlobBuilder) -> bytes:
    """Return what a device of chunks that are not compressed has."""
    device = bytearray(blob.size)
    for piece in blob.pieces:
        start = piece.compressed_offset
        device[piece.offset : piece.offset + piece.size] = blob.data[start : start + piece.size]
    return bytes(device)


def _v6_superblock(root: int, inodes: int, size: int, block: int) -> bytes:
    meta = 2 * BLOCK // block
    numbers = (12 if block == BLOCK else 9, 0, root, inodes, 0, 0, size // block, meta, 0)
    head = struct.pack("<IIIBBHQQIIII", 0xE0F5E1E2, 0, 0x40000000, *numbers)
    return (head + bytes(32) + struct.pack("<IHHH", 0xC, 0, 1, 11)).ljust(128, b"\0")


_PREFIXES = {b"user.": 1, b"trusted.": 4, b"security.": 6}
_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}


class _V6Metadata:
    """The inodes of version 6, each in blocks of its own, behind one that is empty."""

    def __init__(self, root: Made, blob: BlobBuilder, block: int) -> None:
        self._block = block
        self.nids: dict[Made, int] = {}
        self._parents: dict[Made, Made] = {}
        self._addresses: dict[Made, bytes] = {}
        self._links: dict[Made, int] = {}
        self._at = BLOCK
        self._add(root, root, blob)

    def _add(self, node: Made, parent: Made, blob: BlobBuilder) -> None:
        self._links[node] = self._links.get(node, 0) + 1
        if node in self.nids:
            return
        pieces = [blob.put(node.data[at : at + CHUNK]) for at in range(0, len(node.data), CHUNK)]
        self._addresses[node] = b"".join(
            struct.pack("<HBBI", piece.number, 1, 0, piece.offset // self._block)
            for piece in pieces
        )
        self.nids[node] = self._at // 32
        self._parents[node] = parent
        self._at += len(pad(bytes(128 + len(_v6_xattrs(node))) + self._addresses[node], BLOCK))
        for name in sorted(node.children):
            self._add(node.children[name], node, blob)

    def body(self) -> bytes:
        found = b"".join(self._inode(node) for node in self.nids)
        return bytes(BLOCK) + found

    def _inode(self, node: Made) -> bytes:
        xattrs = _v6_xattrs(node)
        layout, body, u = 0, b"", 0
        if stat.S_ISREG(node.mode):
            bits = (CHUNK // self._block).bit_length() - 1
            layout, u, body = 4, 0x20 | bits, self._addresses[node]
            size = len(node.data)
            xattrs += bytes(-len(xattrs) % 8) if body else b""
        elif stat.S_ISDIR(node.mode):
            layout, body = 2, self._names(node)
            size = len(body)
        else:
            layout, body = (2 if node.target else 0), node.target
            size, u = len(body), node.rdev
        icount = (len(_v6_xattrs(node)) - 12) // 4 + 1 if node.xattrs else 0
        head = struct.pack(
            "<HHHHQIIIIqII16x",
            1 | layout << 1,
            icount,
            node.mode,
            0,
            size,
            u,
            0,
            node.uid,
            node.gid,
            *node.mtime,
            self._links[node],
        )
        return pad(head + xattrs + body, BLOCK)

    def _names(self, node: Made) -> bytes:
        names = {**node.children, b".": node, b"..": self._parents[node]}
        dirents, text = b"", b""
        for name in sorted(names):
            found = names[name]
            place = 12 * len(names) + len(text)
            kind = _TYPES[stat.S_IFMT(found.mode)]
            dirents += struct.pack("<QHBx", self.nids[found], place, kind)
            text += name
        return dirents + text


def _v6_xattrs(node: Made) -> bytes:
    if not node.xattrs:
        return b""
    raw = bytes(12)
    for name, value in node.xattrs.items():
        prefix = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
        rest = name[len(prefix) :]
        raw += pad(struct.pack("<BBH", len(rest), _PREFIXES[prefix], len(value)) + rest + value, 4)
    return raw
