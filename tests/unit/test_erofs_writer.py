from __future__ import annotations

import io
import os
import random
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from lamina.errors import InvalidArgument
from lamina.formats.erofs.chunks import chunk_bits, chunk_indexes, merge_extents
from lamina.formats.erofs.directories import directory_size, sorted_names, split_blocks
from lamina.formats.erofs.layout import (
    CHUNK_INDEX,
    COMPACT_INODE,
    EROFS_SUPER_OFFSET,
    EXTENDED_INODE,
    SUPERBLOCK,
    ChunkIndex,
    CompactInode,
    ExtendedInode,
    Superblock,
)
from lamina.formats.erofs.tree import BLOCK, HOLE, Extent, Inode
from lamina.formats.erofs.writer import Device, Written, reserved_blocks, write_image
from lamina.formats.erofs.xattrs import XattrTable
from tests.erofs import Data, directory, everything, fsck, make_image, regular, symlink


def written(
    root: Inode, devices: Sequence[Device] = (), first_block: int = 0, uuid: bytes = bytes(16)
) -> bytes:
    out = io.BytesIO()
    result = write_image(root, out, devices=devices, first_block=first_block, uuid=uuid)
    assert isinstance(result, Written)
    assert len(out.getvalue()) == result.blocks * BLOCK
    return out.getvalue()


def superblock(image: bytes) -> Superblock:
    return Superblock._make(SUPERBLOCK.unpack_from(image, EROFS_SUPER_OFFSET))


def inode_offset(image: bytes, nid: int) -> int:
    return superblock(image).meta_blkaddr * BLOCK + nid * 32


def root_inode(image: bytes) -> CompactInode | ExtendedInode:
    at = inode_offset(image, superblock(image).rootnid)
    if image[at] & 1:
        return ExtendedInode._make(EXTENDED_INODE.unpack_from(image, at))
    return CompactInode._make(COMPACT_INODE.unpack_from(image, at))


def test_golden_bytes() -> None:
    """Checked by hand against the kernel's erofs_fs.h."""
    file = regular(Extent(5000, 1, 4096), xattrs={b"user.a": b"1"})
    root = directory({b"f": file, b"l": symlink(b"to", mtime=-1)})
    image = written(root, [Device(3, b"tag")], uuid=bytes(range(16)))
    head = image[1024 : 1024 + 128].hex(" ", 4).split()
    assert " ".join(head[:1] + head[2:]) == (
        "e2e1f5e0 03000000 0c000100 03000000 00000000 00000000 00000000"
        " 00000000 02000000 01000000 00000000 00010203 04050607 08090a0b 0c0d0e0f"
        " 00000000 00000000 00000000 00000000 0c000000 00000100 09000000 00000000"
        " 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000"
    )
    assert image[1152:1280] == b"tag".ljust(64, b"\0") + b"\3".ljust(64, b"\0")
    assert not any(image[:1024]) and not any(image[1280:4096])
    expected = bytearray(4096)
    expected[32:64] = bytes.fromhex(  # the root: compact, inline, 2 links, 53 bytes
        "04000000ed41020035000000 00000000 00000000 01000000 00000000 00000000"
    )
    expected[64:117] = (
        struct.pack("<QHBx", 1, 48, 2)
        + struct.pack("<QHBx", 1, 49, 2)
        + struct.pack("<QHBx", 4, 51, 1)
        + struct.pack("<QHBx", 6, 52, 7)
        + b"...fl"
    )
    expected[128:160] = bytes.fromhex(  # the file: compact, in chunks of 8192 bytes
        "08000300a481010088130000 00000000 21000000 02000000 00000000 00000000"
    )
    expected[160:180] = bytes.fromhex("00000000 00 00000000000000 01 01 0100 61 31 0000")
    expected[184:192] = bytes.fromhex("0000 0100 01000000")
    expected[192:256] = bytes.fromhex(  # the link: extended, a nanosecond before 1970
        "05000000ffa10000 0200000000000000 00000000 03000000 00000000 00000000"
        "ffffffffffffffff ffc99a3b 01000000" + "00" * 16
    )
    expected[256:258] = b"to"
    assert image[4096:] == expected


def test_equal_trees_make_equal_bytes() -> None:
    def shuffled(inode: Inode) -> Inode:
        items = list(inode.children.items())
        random.shuffle(items)
        inode.children = dict(items)
        for child in inode.children.values():
            shuffled(child)
        return inode

    data = Data(2)
    root = everything(data)
    devices = [Device(1000), Device(1000)]
    one = written(root, devices, data.first_block)
    assert written(shuffled(root), devices, data.first_block) == one


def test_compact_inodes_where_nothing_is_lost() -> None:
    same = [regular(mtime=5), regular(mtime=5, uid=65_535), symlink(b"x", mtime=5)]
    others = [regular(mtime=6), regular(mtime=5, uid=65_536), regular(mtime=5, gid=65_536)]
    large = regular(Extent(1 << 32, HOLE, 0), mtime=5)
    inodes = [*same, *others, large]
    root = directory({b"%d" % n: inode for n, inode in enumerate(inodes)}, mtime=5)
    image = written(root)
    assert (superblock(image).epoch, superblock(image).fixed_nsec) == (0, 5)
    versions = []
    for name, (nid, _type) in root_entries(image).items():
        if name not in {b".", b".."}:
            versions.append(image[inode_offset(image, nid)] & 1)
    assert versions == [0] * len(same) + [1] * len(others) + [1]


def root_entries(image: bytes) -> dict[bytes, tuple[int, int]]:
    """Parse the directory entries of an inline root."""
    at = inode_offset(image, superblock(image).rootnid)
    root = root_inode(image)
    data = image[at + (64 if root.format & 1 else 32) :][: root.size]
    count = struct.unpack_from("<H", data, 8)[0] // 12
    fields = [struct.unpack_from("<QHB", data, 12 * n) for n in range(count)]
    ends = [*(offset for _, offset, _ in fields[1:]), root.size]
    return {
        data[offset:end]: (nid, kind) for (nid, offset, kind), end in zip(fields, ends, strict=True)
    }


def test_names_are_in_order_with_the_dots_among_them() -> None:
    names = [b"a", b"!", b"-x", b"..x", b"...", b"\xff", b".a"]
    image = written(directory({name: regular() for name in names}))
    found = list(root_entries(image))
    assert found == sorted([*names, b".", b".."])


@pytest.mark.parametrize("count", [1, 2, 300, 5000])
def test_blocks_of_names(count: int) -> None:
    names = sorted_names(b"%d" % n * (1 + n % 40) for n in range(count))
    blocks = list(split_blocks(names))
    assert [name for block in blocks for name in block] == names
    sizes = [sum(12 + len(name) for name in block) for block in blocks]
    assert all(size <= BLOCK for size in sizes)
    for size, after in zip(sizes, blocks[1:], strict=False):
        assert size + 12 + len(after[0]) > BLOCK
    assert directory_size(names) == (len(blocks) - 1) * BLOCK + sizes[-1]


def extents(*parts: tuple[int, int, int]) -> list[Extent]:
    """Return extents given in blocks."""
    return [Extent(length * BLOCK, device, block * BLOCK) for length, device, block in parts]


@pytest.mark.parametrize(
    ("parts", "bits"),
    [
        (extents((1, 1, 0)), 0),
        (extents((3, 1, 7)), 2),
        (extents((1, 1, 0), (1, 1, 1), (1, 1, 2)), 2),
        (extents((4, 1, 0), (4, 2, 0)), 2),
        (extents((4, 1, 0), (8, 1, 4), (4, 1, 0)), 2),
        (extents((8, 1, 0), (4, 1, 100), (4, 1, 300)), 2),
        (extents((6, 1, 0), (2, 2, 0)), 1),
        (extents((2, HOLE, 0), (2, HOLE, 9), (4, 1, 0)), 2),
        (extents((1, 1, 0), (8, 1, 1), (1, 2, 0)), 0),
        ([Extent(100, 1, 0)], 0),
        ([Extent(BLOCK + 1, 1, 0)], 1),
        ([Extent(1 << 50, HOLE, 0)], 31),
    ],
)
def test_largest_chunk(parts: list[Extent], bits: int) -> None:
    size = sum(extent.length for extent in parts)
    assert chunk_bits(merge_extents(parts), size) == bits


def test_indexes_say_where_every_block_is() -> None:
    parts = extents((4, 1, 5), (4, HOLE, 0), (20_000, 2, 9), (2, 1, 77))
    parts[-1] = parts[-1]._replace(length=BLOCK + 1)
    bits = chunk_bits(merge_extents(parts), sum(extent.length for extent in parts))
    assert bits == 2
    raw = b"".join(chunk_indexes(merge_extents(parts), bits))
    indexes = [ChunkIndex._make(fields) for fields in CHUNK_INDEX.iter_unpack(raw)]
    assert indexes[0] == (0, 1, 5)
    assert indexes[1] == (0xFFFF, 0, 0xFFFFFFFF)
    assert indexes[2:5002] == [(0, 2, 9 + 4 * n) for n in range(5000)]
    assert indexes[5002:] == [(0, 1, 77)]


def test_attributes_are_shared_where_it_pays() -> None:
    table = XattrTable()
    common = {b"user.common": b"v" * 100}
    one = table.add(common)
    assert table.add(dict(common)) is one
    other = table.add({**common, b"user.a": b""})
    small = [table.add({b"user.b": b"", b"user.c": b"%d" % n}) for n in range(2)]
    shared = table.share()
    assert shared == b"\x06\x01\x64\x00common" + b"v" * 100 + b"\0\0"
    assert one.body == bytes([0, 0, 0, 0, 1, *bytes(7), 0, 0, 0, 0])
    assert one.icount == 2
    assert other.body == one.body.replace(b"\0\0\0\0\1", b"\0\0\0\0\1", 1) + b"\1\1\0\0a\0\0\0"
    assert all(len(xattrs.body) == 12 + 8 + 8 for xattrs in small)


def test_more_shared_attributes_than_an_inode_can_refer_to() -> None:
    table = XattrTable()
    many = {b"user.%03d" % n: b"value" for n in range(300)}
    sets = [table.add(many), table.add(many), table.add(many)]
    assert len(table.share()) == 300 * 12
    assert sets[0].body[4] == 255
    assert len(sets[0].body) == 12 + 255 * 4 + 45 * 12


@pytest.mark.parametrize("devices", [0, 1, 23, 24, 55, 56, 65_535])
def test_device_table(devices: int) -> None:
    file = regular(Extent(1, devices, 0)) if devices else regular()
    image = written(directory({b"f": file}), [Device(1, b"%d" % n) for n in range(devices)])
    fields = superblock(image)
    assert fields.extra_devices == devices
    assert fields.meta_blkaddr >= reserved_blocks(devices)
    if devices:
        last = fields.devt_slotoff * 128 + (devices - 1) * 128
        assert image[last : last + 64].rstrip(b"\0") == b"%d" % (devices - 1)
        assert last + 128 <= fields.meta_blkaddr * BLOCK
    assert root_inode(image).mode == 0o040755


def test_data_of_the_image_is_left_alone() -> None:
    out = io.BytesIO()
    out.write(bytes(BLOCK) + b"d" * BLOCK * 2)
    root = directory({b"f": regular(Extent(BLOCK * 2, 0, BLOCK))})
    result = write_image(root, out, first_block=3)
    assert result.blocks == 4
    assert out.getvalue()[BLOCK : 3 * BLOCK] == b"d" * BLOCK * 2
    assert superblock(out.getvalue()).meta_blkaddr == 3
    assert superblock(out.getvalue()).feature_incompat == 0


def loop() -> Inode:
    root = directory({b"a": directory({b"b": directory()})})
    root.children[b"a"].children[b"b"].children[b"again"] = root.children[b"a"]
    return root


def twice() -> Inode:
    one = directory()
    return directory({b"a": one, b"b": one})


def with_file(**values: object) -> Inode:
    return directory({b"d": directory({b"f": regular(**values)})})


def with_name(name: bytes) -> Inode:
    return directory({b"d": directory({name: regular()})})


def with_extents(*parts: Extent, size: int | None = None) -> Inode:
    file = regular(*parts)
    file.size = file.size if size is None else size
    return directory({b"d": directory({b"f": file})})


@pytest.mark.parametrize(
    ("root", "path", "reason"),
    [
        (regular(), "/", "the root must be a directory"),
        (loop(), "/a/b/again", 'this directory is at "/a" already'),
        (twice(), "/b", 'this directory is at "/a" already'),
        (with_name(b""), "/d", "no file can be named b''"),
        (with_name(b"."), "/d", "no file can be named b'.'"),
        (with_name(b".."), "/d", "no file can be named b'..'"),
        (with_name(b"a/b"), "/d", "no file can be named b'a/b'"),
        (with_name(b"a\0"), "/d", "no file can be named"),
        (with_name(b"x" * 256), "/d", "no file can be named"),
        (with_file(mode=0o644), "/d/f", "its mode is 0o644"),
        (with_file(mode=0o1100644), "/d/f", "its mode is 0o1100644"),
        (with_file(uid=-1), "/d/f", "its owner is -1:0"),
        (with_file(gid=2**32 - 1), "/d/f", "its owner is 0:4294967295"),
        (with_file(mtime=2**63 * 10**9), "/d/f", "its time is"),
        (with_file(size=-1), "/d/f", "its size is -1"),
        (with_file(size=2**63), "/d/f", "its size is"),
        (with_file(xattrs={b"system.x": b""}), "/d/f", "no attribute can be named b'system.x'"),
        (with_file(xattrs={b"user.": b""}), "/d/f", "no attribute can be named"),
        (with_file(xattrs={b"user.a\0": b""}), "/d/f", "no attribute can be named"),
        (with_file(xattrs={b"user." + b"x" * 251: b""}), "/d/f", "no attribute can be named"),
        (with_file(xattrs={b"user.a": bytes(65_536)}), "/d/f", "65536 bytes, over 65535"),
        (
            with_file(xattrs={b"user.%d" % n: bytes(65_000) for n in range(5)}),
            "/d/f",
            "its attributes have 325040 bytes, over 256 KiB",
        ),
        (directory({b"l": symlink(b"")}), "/l", "no link can lead to b''"),
        (directory({b"l": symlink(b"x" * 4096)}), "/l", "(4096 bytes)"),
        (directory({b"l": symlink(b"a\0b")}), "/l", "no link can lead to"),
        (
            directory({b"n": Inode(stat.S_IFBLK, rdev=os.makedev(4096, 0))}),
            "/n",
            "Linux has no device 4096:0",
        ),
        (with_extents(size=1), "/d/f", "its extents have 0 bytes, and it has 1"),
        (with_extents(Extent(9, 1, 0), size=8), "/d/f", "its extents have 9 bytes"),
        (with_extents(Extent(0, 1, 0)), "/d/f", "an extent of 0 bytes"),
        (with_extents(Extent(1, 1, 0), Extent(1, 1, 0)), "/d/f", "begins at byte 1 of the file"),
        (with_extents(Extent(1, 2, 0)), "/d/f", "device 2 of 1"),
        (with_extents(Extent(1, -2, 0)), "/d/f", "device -2 of 1"),
        (with_extents(Extent(1, 1, 5)), "/d/f", "bytes 5 to 6 of device 1"),
        (with_extents(Extent(1, 1, 2 * BLOCK)), "/d/f", "which has 0 to 8192"),
        (with_extents(Extent(2 * BLOCK + 1, 1, 0)), "/d/f", "which has 0 to 8192"),
        (with_extents(Extent(1, 0, 0)), "/d/f", "of device 0"),
        (
            with_extents(Extent(1 << 45, HOLE, 0), Extent(BLOCK, 1, 0), Extent(BLOCK, HOLE, 0)),
            "/d/f",
            "over 268435456 of them",
        ),
    ],
)
def test_what_an_image_cannot_hold(root: Inode, path: str, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        write_image(root, io.BytesIO(), devices=[Device(2)])
    assert caught.value.subject == path
    assert reason in caught.value.hint


def test_what_no_image_can_be_written_with() -> None:
    root = directory()
    for options in (
        {"uuid": b"short"},
        {"first_block": -1},
        {"devices": [Device(1)] * 24, "first_block": 1},
        {"devices": [Device(1 << 32)]},
        {"devices": [Device(-1)]},
        {"devices": [Device(1, b"x" * 65)]},
        {"devices": [Device(1)] * 65_536},
    ):
        with pytest.raises(InvalidArgument):
            write_image(root, io.BytesIO(), **options)


def test_a_deep_tree_needs_no_deep_recursion() -> None:
    root = bottom = directory()
    for _ in range(5000):
        bottom.children[b"d"] = directory()
        bottom = bottom.children[b"d"]
    assert superblock(written(root)).inos == 5001


def test_more_blocks_than_numbers_for_them() -> None:
    """Nothing is written then."""
    out = io.BytesIO()
    with pytest.raises(InvalidArgument, match="over 4294967295"):
        write_image(directory(), out, first_block=(1 << 32) - 1)
    assert not out.getvalue()


@pytest.mark.erofs_utils
def test_fsck_finds_no_fault(tmp_path: Path) -> None:
    data = Data(2)
    root = everything(data)
    image = make_image(tmp_path, root, data)
    fsck(image.path, image.devices)
    image = make_image(tmp_path, root, data, flat=True)
    fsck(image.path, image.devices, extract=False)


@pytest.mark.erofs_utils
def test_fsck_finds_faults(tmp_path: Path) -> None:
    """The tool does read what it is given."""
    data = Data(1)
    image = make_image(tmp_path, directory({b"f": regular(data.put(b"x"))}), data)
    damaged = bytearray(image.path.read_bytes())
    damaged[BLOCK + 32 + 32 + 8] ^= 0x10
    image.path.write_bytes(damaged)
    with pytest.raises(AssertionError):
        fsck(image.path, image.devices)
