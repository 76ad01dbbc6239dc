from __future__ import annotations

import struct

import pytest

from lamina.errors import FormatError
from lamina.formats.thin_metadata import (
    BLOCK,
    MAGIC,
    ThinDevice,
    parse_details_root,
    read_devices,
)


def superblock(root: int = 7, *, magic: int = MAGIC, version: int = 2) -> bytes:
    """Laid out by hand from the kernel's struct: 8 blocknr, 32 magic, 40 version, 328 root."""
    block = bytearray(BLOCK)
    struct.pack_into("<Q", block, 8, 0)
    struct.pack_into("<QI", block, 32, magic, version)
    struct.pack_into("<Q", block, 320, 3)
    struct.pack_into("<Q", block, 328, root)
    return bytes(block)


def node(number: int, flags: int, room: int, size: int, entries: dict[int, bytes]) -> bytes:
    header = struct.pack("<IIQIIII", 0xABCD, flags, number, len(entries), room, size, 0)
    keys = b"".join(struct.pack("<Q", key) for key in entries).ljust(room * 8, b"\xff")
    return (header + keys + b"".join(entries.values())).ljust(BLOCK, b"\xff")


def leaf(number: int, devices: dict[int, int]) -> bytes:
    details = {id: struct.pack("<QQII", blocks, 1, 2, 3) for id, blocks in devices.items()}
    return node(number, 2, 126, 24, details)


def inner(number: int, children: dict[int, int]) -> bytes:
    return node(number, 1, 252, 8, {key: struct.pack("<Q", at) for key, at in children.items()})


def test_superblock() -> None:
    assert parse_details_root(superblock(7)) == 7


@pytest.mark.parametrize(
    ("block", "got"),
    [
        (b"", "got 0"),
        (bytes(BLOCK), "got 0"),
        (superblock(magic=1), "got 1"),
        (superblock(version=3), "version 3"),
    ],
)
def test_not_a_superblock(block: bytes, got: str) -> None:
    with pytest.raises(FormatError, match=got):
        parse_details_root(block)


def test_devices_of_one_leaf() -> None:
    blocks = {7: leaf(7, {1: 10, 5: 0})}
    assert read_devices(7, blocks.__getitem__) == [ThinDevice(1, 10), ThinDevice(5, 0)]
    assert read_devices(7, {7: leaf(7, {})}.__getitem__) == []


def test_devices_of_a_tree() -> None:
    blocks = {7: inner(7, {1: 8, 50: 9}), 8: leaf(8, {1: 10, 5: 0}), 9: leaf(9, {50: 3})}
    assert [device.id for device in read_devices(7, blocks.__getitem__)] == [1, 5, 50]


@pytest.mark.parametrize(
    "blocks",
    [
        {7: leaf(8, {})},
        {7: bytes(BLOCK)},
        {7: node(7, 2, 126, 16, {})},
        {7: node(7, 2, 500, 24, {})},
        {7: node(7, 2, 1, 24, {1: bytes(24), 2: bytes(24)})},
        {7: leaf(7, {1 << 24: 0})},
        {7: leaf(7, {2: 0, 1: 0})},
        {7: inner(7, {1: 7})},
        {7: inner(7, {1: 8, 9: 8}), 8: leaf(8, {1: 0})},
    ],
    ids=["other block", "zeros", "size", "room", "entries", "number", "order", "loop", "twice"],
)
def test_damaged_tree(blocks: dict[int, bytes]) -> None:
    with pytest.raises(FormatError):
        read_devices(7, blocks.__getitem__)
