"""RAFS bootstraps of version 5, made by hand."""

from __future__ import annotations

import hashlib
import stat
import struct
from collections.abc import Sequence

from tests.rafs import BLOCK, CHUNK, Made
from tests.rafs_blobs import (
    COMPRESSOR_FLAGS,
    DIGESTER_FLAGS,
    EXPLICIT,
    HAS_XATTR,
    NONE,
    SHA256,
    BlobBuilder,
    digest,
    pad,
)


def make_v5(
    root: Made,
    *,
    compressor: int = NONE,
    digester: int = SHA256,
    flags: int = EXPLICIT | HAS_XATTR,
    prefetch: Sequence[Made] = (),
    extended: bool = True,
) -> tuple[bytes, bytes]:
    """Return bootstrap and blob."""
    blob = BlobBuilder(compressor, digester)
    numbers, order = _numbers(root)
    records = [_Record(node, name, parent) for node, name, parent in order]
    for record in records:
        record.finish(blob, numbers)
    for record in reversed(records):
        record.digest_children(records, digester)
    id = hashlib.sha256(blob.data).hexdigest().encode()
    count = len(records) + len(records) % 2
    inode_table_at = 8192
    prefetch_at = inode_table_at + 4 * count
    wanted = [numbers[node] for node in prefetch]
    prefetch_table = pad(struct.pack(f"<{len(wanted)}I", *wanted))
    blob_at = prefetch_at + len(prefetch_table)
    blob_table = pad(struct.pack("<II", 0, 0) + id)
    extended_at = blob_at + len(blob_table)
    sizes = (len(blob.pieces), 0, blob.size, len(blob.data))
    extended_table = struct.pack("<IIQQ40x", *sizes) if extended else b""
    at = extended_at + len(extended_table)
    table, body = [], b""
    for record in records:
        table.append((at + len(body)) // 8)
        body += record.raw()
    table += [0] * (count - len(table))
    head = struct.pack(
        "<IIIIQQQQQIIIIQ",
        0x52414653,
        0x500,
        8192,
        CHUNK,
        flags | COMPRESSOR_FLAGS[compressor] | DIGESTER_FLAGS[digester],
        len(numbers),
        inode_table_at,
        prefetch_at if wanted else 0,
        blob_at,
        count,
        len(wanted),
        8 + len(id),
        int(extended),
        extended_at if extended else 0,
    )
    tables = struct.pack(f"<{count}I", *table) + prefetch_table + blob_table + extended_table
    return head.ljust(8192, b"\0") + tables + body, blob.data


def _numbers(root: Made) -> tuple[dict[Made, int], list[tuple[Made, bytes, int]]]:
    """Return inode numbers, and the records: inode, name, and place of the directory."""
    order = [(root, b"/", 0)]
    numbers = {root: 1}
    for place, (node, _name, _parent) in enumerate(order):
        for name in sorted(node.children):
            child = node.children[name]
            order.append((child, name, place))
            numbers.setdefault(child, len(order))
    return numbers, order


class _Record:
    """A version 5 inode on its way."""

    def __init__(self, node: Made, name: bytes, parent: int) -> None:
        self.node, self.name, self.parent = node, name, parent
        self.chunks: list[bytes] = []
        self.first = self.count = self.ino = self.parent_ino = 0
        self.digest = b""

    def finish(self, blob: BlobBuilder, numbers: dict[Made, int]) -> None:
        node = self.node
        self.ino = numbers[node]
        digests = []
        for at in range(0, len(node.data), CHUNK):
            piece = blob.put(node.data[at : at + CHUNK])
            digests.append(piece.digest)
            self.chunks.append(piece.raw(0, at))
        self.count = len(self.chunks)
        if not stat.S_ISDIR(node.mode):
            self.digest = digest(blob.digester, b"".join(digests) or node.target)

    def digest_children(self, records: list[_Record], digester: int) -> None:
        if not stat.S_ISDIR(self.node.mode):
            return
        place = records.index(self)
        mine = [other for other in records[1:] if other.parent == place]
        self.count = len(mine)
        self.first = records.index(mine[0]) + 1 if mine else len(records) + 1
        self.digest = digest(digester, b"".join(other.digest for other in mine))
        for other in mine:
            other.parent_ino = self.ino

    def raw(self) -> bytes:
        node = self.node
        flags = (1 if node.target else 0) | (4 if node.xattrs else 0)
        size = BLOCK if stat.S_ISDIR(node.mode) else len(node.data)
        head = struct.pack(
            "<32sQQIIIIQQQIIIHHIIq8x",
            self.digest,
            self.parent_ino,
            self.ino,
            node.uid,
            node.gid,
            0,
            node.mode,
            size,
            -(-size // 512),
            flags,
            1,
            self.first,
            self.count,
            len(self.name),
            len(node.target),
            node.rdev,
            node.mtime[1],
            node.mtime[0],
        )
        tail = pad(self.name) + pad(node.target)
        if node.xattrs:
            pairs = b"".join(
                struct.pack("<I", len(name) + 1 + len(value)) + name + b"\0" + value
                for name, value in node.xattrs.items()
            )
            tail += struct.pack("<Q", len(pairs)) + pad(pairs)
        return head + tail + b"".join(self.chunks)
