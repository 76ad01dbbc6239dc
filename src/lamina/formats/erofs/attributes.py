"""The extended attributes of inodes, read."""

from __future__ import annotations

import struct
from collections.abc import Callable

from lamina.formats.erofs.inodes import Node
from lamina.formats.erofs.layout import (
    EROFS_XATTR_LONG_PREFIX,
    XATTR_ALIGNMENT,
    XATTR_ENTRY,
    XATTR_HEADER,
    XATTR_PREFIXES,
)
from lamina.formats.erofs.metadata import damaged
from lamina.formats.erofs.volume import Volume

_SHARED_ID = struct.Struct("<I")

Attribute = tuple[bytes, bytes]
"""Full name and value."""


def read_attributes(
    volume: Volume, node: Node, shared: Callable[[int], Attribute]
) -> dict[bytes, bytes]:
    """Return the attributes of an inode.

    Args:
        volume: of the image.
        node: the inode.
        shared: returns the shared attribute of an id, as `read_shared` does.

    Raises:
        FormatError: they are damaged, or two have one name.
    """
    size = node.tail_at - node.xattrs_at
    if not size:
        return {}
    body = volume.metadata.read(node.xattrs_at, size, "xattrs")
    _name_filter, count = XATTR_HEADER.unpack_from(body)
    start = XATTR_HEADER.size + count * _SHARED_ID.size
    if start > size:
        expected = f"{count} ids of shared xattrs"
        raise damaged(node.xattrs_at, expected, f"{size} bytes")
    ids = _SHARED_ID.iter_unpack(body[XATTR_HEADER.size : start])
    found = [shared(id) for (id,) in ids]
    while start < size:
        length = _entry_size(body[start : start + XATTR_ENTRY.size], node.xattrs_at + start)
        if start + length > size:
            expected = f"an xattr of {length} bytes"
            raise damaged(node.xattrs_at + start, expected, f"{size - start} bytes")
        found.append(_attribute(body[start : start + length], node.xattrs_at + start))
        start += length
    attributes = dict(found)
    if len(attributes) < len(found):
        raise damaged(node.xattrs_at, "xattrs with names of their own", f"{len(found)} with fewer")
    return attributes


def read_shared(volume: Volume, id: int) -> Attribute:
    """Return the attribute of an id, any.

    Raises:
        FormatError: it lies outside the image, or is damaged.
    """
    at = (volume.superblock.xattr_blkaddr << volume.block_bits) + id * XATTR_ALIGNMENT
    head = volume.metadata.read(at, XATTR_ENTRY.size, "shared xattr")
    # The padding of the last one may end behind the image.
    name_len, _index, value_size = XATTR_ENTRY.unpack(head)
    length = XATTR_ENTRY.size + name_len + value_size
    return _attribute(volume.metadata.read(at, length, "shared xattr"), at)


def _entry_size(head: bytes, at: int) -> int:
    """Return the bytes of an entry with its padding."""
    if len(head) < XATTR_ENTRY.size:
        raise damaged(at, f"an xattr of at least {XATTR_ENTRY.size} bytes", f"{len(head)} bytes")
    name_len, _index, value_size = XATTR_ENTRY.unpack(head)
    size: int = XATTR_ENTRY.size + name_len + value_size
    return -(-size // XATTR_ALIGNMENT) * XATTR_ALIGNMENT


def _attribute(entry: bytes, at: int) -> Attribute:
    name_len, index, value_size = XATTR_ENTRY.unpack_from(entry)
    if index & EROFS_XATTR_LONG_PREFIX:
        raise damaged(at, "an xattr without a long prefix", f"prefix {index:#x}")
    prefix = XATTR_PREFIXES.get(index)
    stop = XATTR_ENTRY.size + name_len
    name = entry[XATTR_ENTRY.size : stop]
    # The names of ACLs are whole with their prefix, all others are not.
    if prefix is None or prefix.endswith(b".") != bool(name) or b"\0" in name:
        raise damaged(at, "the name of an xattr", f"{name!r} with prefix {index}")
    return prefix + name, entry[stop : stop + value_size]
