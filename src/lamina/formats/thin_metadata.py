"""Which devices a thin pool has, from its metadata: the superblock and one B-tree.

Source: drivers/md/dm-thin-metadata.c and drivers/md/persistent-data/dm-btree-internal.h of the
kernel. Everything is little-endian, in blocks of 4096 bytes:

    block 0         superblock: ... the root of the mappings, the root of the device details ...
    a B-tree node   header, max_entries keys, max_entries values: nodes, or in a leaf the details

A commit never changes a block that the last superblock leads to; it writes others, then the
superblock. Not supported: writing, the mappings, the space maps. Checksums are not verified.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from lamina.errors import FormatError

BLOCK = 4096
MAGIC = 27022010
MAX_DEVICES = 1 << 24

_FORMAT = "thin pool metadata"
_SUPERBLOCK = struct.Struct("<4x4xQ16xQII")
"""blocknr, magic, version, time."""
assert _SUPERBLOCK.size == 48
_DETAILS_ROOT = struct.Struct("<Q")
_DETAILS_ROOT_AT = 328
_NODE = struct.Struct("<4xIQIII4x")
"""flags, blocknr, nr_entries, max_entries, value_size."""
assert _NODE.size == 32
_INTERNAL = 1
_LEAF = 2
_DETAILS = struct.Struct("<QQII")
"""mapped_blocks, transaction_id, creation_time, snapshotted_time."""
assert _DETAILS.size == 24
_DEEPEST = 8
_VERSIONS = (1, 2)

ReadBlock = Callable[[int], bytes]
"""Returns the BLOCK bytes of a block by its number."""


class ThinDevice(NamedTuple):
    """A device of the pool: its number, and how many blocks it maps, shared ones included."""

    id: int
    mapped_blocks: int


def parse_details_root(superblock: bytes) -> int:
    """Return the block where the tree of devices begins.

    Raises:
        FormatError: this is no pool's metadata, or of a version that is not known.
    """
    if len(superblock) != BLOCK:
        raise _error(0, f"{BLOCK} bytes", f"{len(superblock)}")
    number, magic, version, _time = _SUPERBLOCK.unpack_from(superblock)
    if magic != MAGIC:
        raise _error(32, f"the magic number {MAGIC}", f"{magic}")
    if number or version not in _VERSIONS:
        raise _error(8, "block 0 of version 1 or 2", f"block {number} of version {version}")
    (root,) = _DETAILS_ROOT.unpack_from(superblock, _DETAILS_ROOT_AT)
    return int(root)


def read_devices(root: int, read_block: ReadBlock) -> list[ThinDevice]:
    """Return the pool's devices, in ascending order.

    Args:
        root: as `parse_details_root` returns it.
        read_block: reads the metadata.

    Raises:
        FormatError: the tree is damaged, or changed while it was read.
    """
    devices: list[ThinDevice] = []
    _walk(root, read_block, 0, devices)
    return devices


def _walk(number: int, read_block: ReadBlock, depth: int, devices: list[ThinDevice]) -> None:
    block = read_block(number)
    flags, blocknr, entries, room, value_size = _NODE.unpack_from(block)
    at = number * BLOCK
    if blocknr != number or flags not in {_INTERNAL, _LEAF}:
        raise _error(at, f"node {number}", f"block {blocknr} with flags {flags:#x}")
    wanted = _DETAILS_ROOT.size if flags == _INTERNAL else _DETAILS.size
    end = _NODE.size + room * (8 + wanted)
    if value_size != wanted or entries > room or end > BLOCK or depth > _DEEPEST:
        raise _error(at, f"values of {wanted} bytes in a node", f"{entries} of {value_size}")
    keys = struct.unpack_from(f"<{entries}Q", block, _NODE.size)
    values = _NODE.size + room * 8
    for index, key in enumerate(keys):
        offset = values + index * wanted
        if flags == _INTERNAL:
            (child,) = _DETAILS_ROOT.unpack_from(block, offset)
            _walk(child, read_block, depth + 1, devices)
            continue
        if key >= MAX_DEVICES or (devices and key <= devices[-1].id):
            raise _error(at, "devices in ascending order", f"device {key}")
        devices.append(ThinDevice(key, _DETAILS.unpack_from(block, offset)[0]))


def _error(offset: int, expected: str, got: str) -> FormatError:
    return FormatError(_FORMAT, offset, expected=expected, got=got)
