"""Extended attributes: in the inode as far as they fit, the others in a block of their own."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from lamina.formats.ext4 import acl
from lamina.formats.ext4.layout import BLOCK, INLINE_XATTRS

_MAGIC = 0xEA020000
_INLINE_HEADER = struct.Struct("<I")
_BLOCK_HEADER = struct.Struct("<5I12x")
"""h_magic, h_refcount, h_blocks, h_hash, h_checksum."""
_ENTRY = struct.Struct("<BBHIII")
"""e_name_len, e_name_index, e_value_offs, e_value_inum, e_value_size, e_hash."""
_END = bytes(4)
_PREFIXES = ((b"user.", 1), (b"trusted.", 4), (b"security.", 6))
_ACLS = {acl.ACCESS: 2, acl.DEFAULT: 3}
_MAX_NAME = 255
_WORD = 0xFFFFFFFF

INLINE_ROOM = INLINE_XATTRS - _INLINE_HEADER.size - len(_END)
BLOCK_ROOM = BLOCK - _BLOCK_HEADER.size - len(_END)


class _Attribute(NamedTuple):
    prefix: int
    name: bytes
    value: bytes

    @property
    def size(self) -> int:
        return _ENTRY.size + _padded(len(self.name)) + _padded(len(self.value))


class Stored(NamedTuple):
    """The attributes of an inode.

    Attributes:
        inline: what follows the inode's fields; empty where none are there.
        block: content of the block, empty where none is needed.
        left_out: names of those that nothing has room for.
    """

    inline: bytes
    block: bytes
    left_out: tuple[bytes, ...]


def split_name(name: bytes) -> tuple[int, bytes] | None:
    """Return the index of an attribute's prefix and the rest of its name; None without any.

    Those have one that Linux lets a program set on ext4: `user.`, `trusted.`, `security.` and the
    two of POSIX ACLs.
    """
    if name in _ACLS:
        return _ACLS[name], b""
    for prefix, index in _PREFIXES:
        if name.startswith(prefix) and len(prefix) < len(name) <= _MAX_NAME and b"\0" not in name:
            return index, name[len(prefix) :]
    return None


def store(xattrs: Mapping[bytes, bytes], mode: int) -> Stored:
    """Return how attributes are stored.

    Args:
        xattrs: with names that `split_name` knows, and ACLs that `acl.parse` does.
        mode: of the inode, which says a part of its ACL.
    """
    inline: list[_Attribute] = []
    block: list[_Attribute] = []
    left_out = []
    inline_room, block_room = INLINE_ROOM, BLOCK_ROOM
    for name in sorted(xattrs, key=lambda name: (len(xattrs[name]), name)):
        attribute = _attribute(name, xattrs[name], mode)
        if attribute is None:
            continue
        if attribute.size <= inline_room:
            inline.append(attribute)
            inline_room -= attribute.size
        elif attribute.size <= block_room:
            block.append(attribute)
            block_room -= attribute.size
        else:
            left_out.append(name)
    return Stored(_inline(inline), _block(block), tuple(left_out))


def _attribute(name: bytes, value: bytes, mode: int) -> _Attribute | None:
    split = split_name(name)
    assert split is not None
    index, rest = split
    if not rest:
        entries = acl.parse(value)
        assert entries is not None
        if name == acl.ACCESS:
            if acl.says_no_more_than_mode(entries):
                return None
            entries = acl.with_mode(entries, mode)
        value = acl.stored(entries)
    return _Attribute(index, rest, value)


def _inline(attributes: Sequence[_Attribute]) -> bytes:
    if not attributes:
        return b""
    size = INLINE_XATTRS - _INLINE_HEADER.size
    return _INLINE_HEADER.pack(_MAGIC) + _entries(attributes, size, 0, [0] * len(attributes))


def _block(attributes: list[_Attribute]) -> bytes:
    """Return a block; its entries are sorted, as the kernel searches only as far as needed."""
    if not attributes:
        return b""
    attributes.sort(key=lambda found: (found.prefix, len(found.name), found.name))
    hashes = [_entry_hash(found.name, found.value) for found in attributes]
    total = 0
    for value in hashes:
        total = _rotated(total, 16) ^ value
    header = _BLOCK_HEADER.pack(_MAGIC, 1, 1, total, 0)
    size = BLOCK - _BLOCK_HEADER.size
    return header + _entries(attributes, size, _BLOCK_HEADER.size, hashes)


def _entries(
    attributes: Iterable[_Attribute], size: int, counted_from: int, hashes: Sequence[int]
) -> bytes:
    """Return entries from the start of an area on, with their values from its end on."""
    area = bytearray(size)
    at, end = 0, size
    for (index, name, value), hash in zip(attributes, hashes, strict=True):
        end -= _padded(len(value))
        area[end : end + len(value)] = value
        offset = end + counted_from if value else 0
        entry = _ENTRY.pack(len(name), index, offset, 0, len(value), hash) + name
        area[at : at + len(entry)] = entry
        at += _padded(len(entry))
    return bytes(area)


def _entry_hash(name: bytes, value: bytes) -> int:
    hash = 0
    for byte in name:
        hash = _rotated(hash, 5) ^ byte
    padded = value.ljust(_padded(len(value)), b"\0")
    for (word,) in struct.iter_unpack("<I", padded):
        hash = _rotated(hash, 16) ^ word
    return hash


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> 32 - bits) & _WORD


def _padded(size: int) -> int:
    return -(-size // 4) * 4
