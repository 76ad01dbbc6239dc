"""The records of ext4 that layers are written in."""

from __future__ import annotations

import os
import stat
import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.errors import FormatError
from lamina.formats.ext4 import acl
from lamina.formats.ext4.bitmaps import Bitmaps, set_bits
from lamina.formats.ext4.directories import directory_block, place_names
from lamina.formats.ext4.extents import IN_BLOCK, Piece, extent_map, nodes_needed
from lamina.formats.ext4.geometry import geometry
from lamina.formats.ext4.inodes import record
from lamina.formats.ext4.layout import BLOCK, BLOCKS_PER_GROUP, Superblock, crc16, dirent_size
from lamina.formats.ext4.name_hash import name_hash
from lamina.formats.ext4.node import Node, new_directory
from lamina.formats.ext4.runs import append, common, joined, without
from lamina.formats.ext4.xattrs import BLOCK_ROOM, INLINE_ROOM, split_name, store
from tests.erofs import ACL

SUPERBLOCK = Superblock(4096, 16384, 15000, 4000, 4096, 4, b"uuid" * 4, b"seed" * 4)


def test_a_superblock() -> None:
    data = SUPERBLOCK.pack()
    assert len(data) == 1024
    assert data[:56].hex() == (
        "00100000 00400000 00000000 983a0000 a00f0000 00000000 02000000 02000000"
        "00800000 00800000 00100000 00000000 00000000 0000ffff"
    ).replace(" ", "")
    assert data[56:104].hex() == (
        "53ef 0100 0100 0000 00000000 00000000 00000000 01000000 0000 0000"
        "0b000000 0001 0000 28020000 42020000 7b000000"
    ).replace(" ", "")
    assert data[104:120] == b"uuid" * 4
    assert data[236:252] == b"seed" * 4
    assert data[348:352].hex() == "20002000"
    assert data[372] == 4
    assert Superblock.unpack(data) == SUPERBLOCK


@pytest.mark.parametrize("at", [56, 92, 96, 100, 24, 588])
def test_superblocks_of_others(at: int) -> None:
    data = bytearray(SUPERBLOCK.pack())
    data[at] ^= 0x10
    with pytest.raises(FormatError):
        Superblock.unpack(bytes(data))
    with pytest.raises(FormatError):
        Superblock.unpack(bytes(data[:-1]))


def test_crc16_is_that_of_modbus() -> None:
    assert crc16(0, b"123456789") == 0xBB3D
    assert crc16(0xFFFF, b"123456789") == 0x4B37
    assert crc16(crc16(0xFFFF, b"1234"), b"56789") == 0x4B37


@pytest.mark.parametrize("size", [1 << 20, 4 << 20, 129 << 20, 64 << 30, 16 << 40])
def test_places_are_apart(size: int) -> None:
    places = geometry(size)
    assert places.blocks * BLOCK <= size
    assert places.groups == -(-places.blocks // BLOCKS_PER_GROUP)
    bitmaps = sorted(map(places.block_bitmap, range(places.groups)))
    assert bitmaps == list(range(places.block_bitmaps, places.inode_bitmaps))
    assert len(bitmaps) == places.groups
    assert places.inode_tables - places.inode_bitmaps == places.groups
    assert places.data - places.inode_tables == places.groups * places.table_blocks
    assert places.inodes_per_group == 16 * places.table_blocks <= 32768
    assert places.data < places.blocks


def test_a_small_last_group_is_left_out() -> None:
    assert geometry(128 << 20).groups == 1
    assert geometry((128 << 20) + 255 * BLOCK).blocks == BLOCKS_PER_GROUP
    assert geometry((128 << 20) + 256 * BLOCK).blocks == BLOCKS_PER_GROUP + 256


@given(st.integers(0, 200), st.integers(0, 200), st.booleans(), st.binary(min_size=25, max_size=25))
def test_ranges_of_bits(one: int, other: int, used: bool, before: bytes) -> None:
    start, end = sorted((one, other))
    bitmap = bytearray(before)
    set_bits(bitmap, start, end, used=used)
    for bit in range(200):
        had = bool(before[bit // 8] >> bit % 8 & 1)
        assert bool(bitmap[bit // 8] >> bit % 8 & 1) == (used if start <= bit < end else had)


def test_bitmaps_of_groups() -> None:
    bitmaps = Bitmaps(100, 100)
    assert bitmaps.mark(95, 10, used=True) == [(0, 5), (1, 5)]
    assert bitmaps.changed == {0, 1}
    assert not bitmaps.exists(2)
    # What there is not is set, to the end of the block.
    assert bitmaps.bitmap(1)[:13].hex() == "1f0000000000000000000000f0"
    assert bitmaps.bitmap(1)[13:] == b"\xff" * (BLOCK - 13)


_RUNS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 6)), max_size=8)


def numbers(runs: list[tuple[int, int]]) -> set[int]:
    return {number for start, length in runs for number in range(start, start + length)}


def apart(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for number in sorted(numbers(runs)):
        append(found, number, 1)
    return found


@given(_RUNS, _RUNS)
def test_runs(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    one, other = apart(some), apart(others)
    shared = common(one, other)
    assert numbers(shared) == numbers(one) & numbers(other)
    assert numbers(without(one, shared)) == numbers(one) - numbers(other)
    assert joined(without(one, shared) + shared) == one


def test_maps_in_inodes() -> None:
    assert nodes_needed([Piece(0, 500, 3)]) == 0
    found = extent_map([Piece(0, 500, 3)], [])
    assert found.root.hex() == ("0af3 0100 0400 0000 0000000000000000 0300 0000 f4010000").replace(
        " ", ""
    ).ljust(120, "0")
    empty = extent_map([], [])
    assert empty.root.hex() == "0af300000400000000000000".ljust(120, "0")


def test_long_pieces_are_several_extents() -> None:
    found = extent_map([Piece(0, 1000, 40_000)], [])
    assert found.root[:36].hex() == (
        "0af3 0200 0400 0000 00000000 00000000 0080 0000 e8030000 00800000 401c 0000 e8830000"
    ).replace(" ", "")


def test_maps_of_two_levels() -> None:
    pieces = [Piece(2 * number, 1000 + number, 1) for number in range(5 * IN_BLOCK)]
    assert nodes_needed(pieces) == 6
    root, nodes = extent_map(pieces, range(1, 7))
    assert root[:24].hex() == "0af301000400020000000000000000000600000000000000"
    assert [len(node) for node in nodes] == [BLOCK] * 6
    leaf, index = nodes[1], nodes[5]
    assert leaf[:16].hex() == "0af354015401000000000000a8020000"
    assert index[:24].hex() == "0af305005401010000000000000000000100000000000000"


def test_an_acl() -> None:
    entries = acl.parse(ACL)
    assert entries is not None
    assert acl.stored(entries).hex() == (
        "01000000 01000600 02000400e8030000 04000400 10000400 20000000"
    ).replace(" ", "")
    changed = acl.with_mode(entries, 0o751)
    assert [permissions for _, permissions, _ in changed] == [7, 4, 4, 5, 1]
    without_mask = [entry for entry in entries if entry[0] in {1, 4, 32}]
    assert acl.says_no_more_than_mode(without_mask)
    assert not acl.says_no_more_than_mode(entries)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        ACL[:-1],
        b"\1" + ACL[1:],
        ACL[:4] + ACL[12:],  # without an owner
        ACL + ACL[-8:],
        ACL[:4] + ACL[12:20] + ACL[4:12] + ACL[20:],  # in another order
        ACL[:28] + ACL[36:],  # without a mask
        ACL[:14] + b"\x08" + ACL[15:],  # a permission that there is not
        ACL[:16] + b"\xff" * 4 + ACL[20:],  # a user that there is not
    ],
)
def test_what_is_no_acl(value: bytes) -> None:
    assert acl.parse(value) is None


def test_names_of_attributes() -> None:
    assert split_name(b"user.a") == (1, b"a")
    assert split_name(b"trusted.a.b") == (4, b"a.b")
    assert split_name(b"security.capability") == (6, b"capability")
    assert split_name(b"system.posix_acl_access") == (2, b"")
    assert split_name(b"system.posix_acl_default") == (3, b"")
    for name in (
        b"user.",
        b"system.data",
        b"system.posix_acl_access.x",
        b"a",
        b"user." + b"n" * 251,
    ):
        assert split_name(name) is None


def test_attributes_in_the_inode() -> None:
    stored = store({b"user.ab": b"value", b"user.c": b""}, stat.S_IFREG)
    assert stored.block == b""
    assert stored.left_out == ()
    assert (
        stored.inline.hex()
        == (
            "000002ea"
            "01 01 0000 00000000 00000000 00000000 63000000"
            "02 01 5400 00000000 05000000 00000000 61620000"
        )
        .replace(" ", "")
        .ljust(2 * 88, "0")
        + b"value\0\0\0".hex()
    )


def test_attributes_where_they_fit() -> None:
    room = INLINE_ROOM - 20
    assert store({b"user.a": b"v" * room}, stat.S_IFREG).block == b""
    stored = store({b"user.a": b"v" * (room + 1)}, stat.S_IFREG)
    assert stored.inline == b""
    assert stored.block[:20].hex() == "000002ea0100000001000000" + stored.block[12:20].hex()
    largest = BLOCK_ROOM - 20
    assert store({b"user.a": b"v" * largest}, stat.S_IFREG).left_out == ()
    assert store({b"user.a": b"v" * (largest + 1)}, stat.S_IFREG).left_out == (b"user.a",)


def test_an_acl_that_is_the_mode_takes_no_place() -> None:
    value = ACL[:12] + ACL[20:28] + ACL[36:]
    assert acl.parse(value) is not None
    assert store({b"system.posix_acl_access": value}, stat.S_IFREG | 0o640).inline == b""


def test_an_inode() -> None:
    node = Node(
        stat.S_IFREG | 0o4755, 70_000, 5, 2**31 * 10**9 + 7, 1_000_000_001, size=5 << 32, links=3
    )
    node.blocks, node.xattr_block = [(1000, 2)], 77
    data = record(node)
    assert data[:40].hex() == (
        "ed89 7011 00000000 01000000 00000080 00000080 00000000 0500 030018000000 00000800 00000000"
    ).replace(" ", "")
    assert data[104:112].hex() == "4d00000005000000"
    assert data[120:124].hex() == "01000000"
    assert data[128:144].hex() == "200000001d0000001d00000004000000"


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ((1, 3), "03010000 00000000"),
        ((255, 255), "ffff0000 00000000"),
        ((256, 0), "00000000 00000100"),
        ((259, 70_000), "00000000 70031111"),
    ],
)
def test_devices(device: tuple[int, int], words: str) -> None:
    data = record(Node(stat.S_IFBLK, rdev=os.makedev(*device)))
    assert data[40:48].hex() == words.replace(" ", "")


def directory(*names: bytes) -> Node:
    node = new_directory(Node(stat.S_IFDIR, number=12))
    assert node.directory
    for name in names:
        put(node, name)
    return node


def put(node: Node, name: bytes) -> None:
    assert node.directory
    node.directory.children[name] = Node(stat.S_IFREG, number=20)
    node.directory.changed[name] = None


def test_a_block_of_a_directory() -> None:
    node = directory(b"name")
    assert node.directory
    assert place_names(node.directory) == [0]
    assert directory_block(node, 0).hex() == (
        "0c000000 0c00 01 02 2e000000 0c000000 0c00 02 02 2e2e0000 14000000 e80f 04 01 6e616d65"
    ).replace(" ", "").ljust(2 * BLOCK, "0")


def test_names_stay_in_their_blocks() -> None:
    names = [b"%0200d" % number for number in range(36)]
    node = directory(*names)
    found = node.directory
    assert found
    assert place_names(found) == [0, 1]
    assert [name for block in found.names for name in block] == names
    assert found.names[1][0] == names[19]
    del found.children[names[25]]
    found.changed[names[25]] = None
    assert place_names(found) == [1]
    assert found.names == [names[:19], [*names[19:25], *names[26:]]]
    put(node, b"n" * 100)
    assert place_names(found) == [0]
    put(node, names[25])
    assert place_names(found) == [1]
    put(node, names[30])
    assert place_names(found) == [1]
    assert found.names == [[*names[:19], b"n" * 100], [*names[19:25], *names[26:], names[25]]]
    assert found.leaves == []


@pytest.mark.parametrize(
    ("name", "hash"),
    [
        (b"a", 0xF3A2B252),
        (b"abcd", 0x3460CBEE),
        (b"hello-world", 0xE9353F8A),
        (b"x" * 33, 0x8A3AE4E0),
        (b"0123456789abcdef0123456789abcdef0123456789", 0x6A6614EE),
    ],
)
def test_hashes_of_names(name: bytes, hash: int) -> None:
    """As debugfs says: `dx_hash -h half_md4 -s 4c616d69-6e61-486a-b173-536565640001 NAME`."""
    assert name_hash(name) == hash


_CHANGES = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 200), st.booleans()), max_size=6)


@settings(max_examples=15)
@given(_CHANGES, st.sampled_from([5, 60, 250]))
def test_indexes(changes: list[tuple[int, int, bool]], length: int) -> None:
    """Each name is in the one block where its hash belongs, and none has too many."""
    node = directory(*(b"%d" % number for number in range(900)))
    found = node.directory
    assert found
    for start, count, is_new in [(0, 1, True), *changes]:
        for number in range(start, start + count):
            name = (b"%d" % number).rjust(length, b"0")
            if is_new:
                put(node, name)
            elif found.children.pop(name, None):
                found.changed[name] = None
        before = [list(names) for names in found.names]
        touched = place_names(found)
        assert [
            at
            for at, names in enumerate(found.names)
            if (before[at] if at < len(before) else None) != names and at not in touched
        ] == []
        check_index(node)


def check_index(node: Node) -> None:
    found = node.directory
    assert found
    assert found.leaves == sorted(found.leaves)
    assert found.leaves[0] == (0, 1)
    placed = []
    for (start, block), (end, _) in pairwise([*found.leaves, (1 << 32, 0)]):
        assert all(start <= name_hash(name) < end for name in found.names[block])
        assert sum(map(dirent_size, found.names[block])) <= BLOCK
        placed += found.names[block]
    assert sorted(placed) == sorted(found.children)
    assert sorted(block for _, block in found.leaves) == list(range(1, len(found.names)))


def test_a_root_of_an_index() -> None:
    node = directory(*(b"%0200d" % number for number in range(60)))
    found = node.directory
    assert found
    assert place_names(found) == [0, 1, 2, 3, 4]
    root = directory_block(node, 0)
    assert root[:40].hex() == (
        "0c000000 0c00 01 02 2e000000 0c000000 f40f 02 02 2e2e0000"
        "00000000 01 08 00 00 fc01 0400 01000000"
    ).replace(" ", "")
    assert root[40:64] == b"".join(struct.pack("<II", *leaf) for leaf in found.leaves[1:])
    assert not any(root[64:])


def test_a_block_without_names() -> None:
    node = directory(*(b"%0200d" % number for number in range(30)))
    found = node.directory
    assert found
    place_names(found)
    found.changed.update(dict.fromkeys(found.children))
    found.children.clear()
    assert place_names(found) == [0, 1]
    assert directory_block(node, 1).hex() == "0000000000100000".ljust(2 * BLOCK, "0")
