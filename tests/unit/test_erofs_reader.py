from __future__ import annotations

import io
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.errors import FormatError, InvalidArgument, NotFound
from lamina.formats.erofs import metadata
from lamina.formats.erofs.layout import EROFS_FEATURE_INCOMPAT_CHUNKED_FILE
from lamina.formats.erofs.reader import Image
from lamina.formats.erofs.tree import BLOCK, HOLE, Extent, Inode
from lamina.formats.erofs.writer import Device, write_image
from tests.erofs import Bytes, Data, described, directory, everything, regular
from tests.erofs_by_hand import CHUNKS, DEVICES, INDEX, META, TAIL, by_hand, put_inode, put_names
from tests.erofs_reading import changed, read, small, written
from tests.erofs_trees import trees


def test_everything_is_read_as_it_was_written() -> None:
    data = Data(2)
    root = everything(data)
    raw = written(root, data)
    image = read(raw, data.devices[1:])
    assert described(image.tree(), data) == described(root, data)
    assert written(image.tree(), data) == raw
    for path, node in image.walk():
        assert image.lookup(path) == image.node(node.nid) == node
        if node.is_regular:
            expected = data.content(found(root, path))
            assert image.read(node, 0, node.size + 100) == expected
            assert image.read(node, 4000, 200) == expected[4000:4200]
            assert image.read(node, node.size, 1) == b""
        if node.is_symlink:
            assert image.target(node) == found(root, path).target
        assert image.xattrs(node) == found(root, path).xattrs


def found(root: Inode, path: bytes) -> Inode:
    for name in path.split(b"/"):
        if name:
            root = root.children[name]
    return root


@settings(max_examples=60)
@given(st.data())
def test_any_tree_is_read_as_it_was_written(draw: st.DataObject) -> None:
    data = Data(2)
    root = draw.draw(trees(data))
    raw = written(root, data)
    image = read(raw, data.devices[1:])
    assert described(image.tree(), data) == described(root, data)
    assert written(image.tree(), data) == raw


def test_golden_bytes() -> None:
    image = read(by_hand(), DEVICES)
    assert [path for path, _ in image.walk()] == [b"/", b"/chunks", b"/index", b"/tail"]
    chunks = image.lookup(b"chunks")
    assert image.read(chunks, 0, 2000) == b"6" * 512 + bytes(512) + b"b" * 176
    assert image.read(chunks, 511, 2) == b"6\0"
    assert list(image.extents(chunks)) == [
        Extent(512, 0, 6 * 512),
        Extent(512, HOLE, 0),
        Extent(176, 1, 512),
    ]
    assert (chunks.mtime, chunks.uid, chunks.gid) == (103_000_000_007, 1, 2)
    index = image.lookup(b"/index")
    assert image.read(index, 0, 600) == b"e" * 600
    assert index.nlink == 1
    tail = image.lookup(b"//./tail/")
    assert image.read(tail, 510, 100) == b"77tail"
    assert image.tree().children[b"tail"].extents == (
        Extent(512, 0, 7 * 512),
        Extent(4, 0, 2048 + 416),
    )
    assert image.slots[0].tag == b"t" * 64


def test_a_directory_without_its_dot() -> None:
    image = by_hand()
    put_inode(image, 1, 2 << 1 | 1 << 4, 0o40755, 2, 65, 0)
    put_names(
        image,
        b"..chunksindextail",
        [(1, 48, 0), (CHUNKS, 50, 0), (INDEX, 56, 0), (TAIL, 61, 0)],
    )
    assert list(read(image).tree().children) == [b"chunks", b"index", b"tail"]
    put_inode(image, 1, 2 << 1, 0o40755, 2, 65, 0)
    with pytest.raises(FormatError, match=r"directory with '\.' and '\.\.'"):
        read(image).tree()


def test_a_plain_file_that_is_a_hole() -> None:
    image = by_hand()
    put_inode(image, TAIL, 0, 0o100600, 1, 1 << 30, 0xFFFFFFFF)
    assert list(read(image).extents(read(image).node(TAIL))) == [Extent(1 << 30, HOLE, 0)]
    at = META + TAIL * 32
    struct.pack_into("<HHHHQI", image, at, 1, 0, 0o100600, 0xFFFF, 1 << 40, 0xFFFFFFFF)
    assert list(read(image).extents(read(image).node(TAIL))) == [Extent(1 << 40, HOLE, 0)]
    struct.pack_into("<HHHHQI", image, at, 1, 0, 0o100600, 0, 1 << 40, 0xFFFFFFFF)
    with pytest.raises(FormatError, match="expected data of 1099511627776 bytes"):
        list(read(image).extents(read(image).node(TAIL)))


def test_times_before_1970_and_far_away() -> None:
    root = directory({b"a": regular(mtime=-1), b"b": regular(mtime=2**33 * 10**9 + 5)}, mtime=-7)
    image = read(written(root, Data(0)))
    assert image.root.mtime == -7
    assert image.lookup(b"a").mtime == -1
    assert image.lookup(b"b").mtime == 2**33 * 10**9 + 5


def test_no_such_path() -> None:
    root, data = small()
    image = read(written(root, data))
    assert image.lookup(b"/d/..").nid == image.root.nid
    for path in (b"e", b"/d/f/x", b"/d/\xff", b"zzz", b"/d/l/x", b"\x01"):
        with pytest.raises(NotFound, match="read an EROFS image"):
            image.lookup(path)


def test_lookup_of_every_name_of_a_large_directory() -> None:
    names = [b"%d-%s" % (n, b"n" * (n * n % 180)) for n in range(3000)]
    child = regular()
    source = Bytes(written(directory(dict.fromkeys(names, child)), Data(0)))
    image = Image(source)
    assert {image.lookup(name).nid for name in names} == {image.lookup(names[0]).nid}
    assert sorted([*names, b".", b".."]) == [entry.name for entry in image.entries(image.root)]
    for name in names:
        with pytest.raises(NotFound):
            image.lookup(name + b"!")


def test_reads_are_few() -> None:
    """Each byte of the metadata is read once."""
    files = {b"%d" % number: regular() for number in range(3000)}
    source = Bytes(written(directory({b"a": directory(files), b"b": directory()}), Data(0)))
    image = Image(source)
    assert sum(1 for _ in image.walk()) == 3003
    assert source.reads == -(-source.size // metadata.SEGMENT)


def test_a_cache_that_is_full() -> None:
    source = Bytes(os.urandom(metadata.SEGMENT * (metadata.MAX_SEGMENTS + 5) + 99))
    cache = metadata.Metadata(source)
    for offset in range(0, source.size - 300, metadata.SEGMENT // 2 - 100):
        assert cache.read(offset, 300, "x") == source.data[offset : offset + 300]
    assert len(cache._segments) == metadata.MAX_SEGMENTS
    assert cache.read(5, 3 * metadata.SEGMENT, "x") == source.data[5 : 5 + 3 * metadata.SEGMENT]


def test_devices() -> None:
    root, data = small()
    image = read(written(root, data))
    file = image.lookup(b"again")
    assert image.read(file, 8192, 200) == bytes(100)
    with pytest.raises(InvalidArgument, match="device 1, which is missing"):
        image.read(file, 0, 10)
    with pytest.raises(InvalidArgument, match="1 extra devices, and 2 are given"):
        read(written(root, data), [b"", b""])
    with pytest.raises(FormatError, match="within the 4096 bytes of device 1"):
        read(written(root, data), [bytes(4096)]).tree()
    for node, offset, length in ((file, -1, 5), (file, 0, -1), (image.root, 0, 5)):
        with pytest.raises(InvalidArgument):
            image.read(node, offset, length)
    with pytest.raises(InvalidArgument, match="no symbolic link"):
        image.target(image.root)


def test_features_without_effect_are_read() -> None:
    root, data = small()
    image = read(changed(written(root, data), feature_incompat=0xD, feature_compat=0x40000000))
    assert described(image.tree(), data) == described(root, data)


def test_flat_files_take_no_chunks() -> None:
    """A file that is one run on a device is plain; the others are as they are without `flat`."""
    data = Data(2)
    one, other = (regular(data.put(bytes(BLOCK + 1), device)) for device in (1, 2))
    two = regular(data.put(bytes(BLOCK), 1), data.put(b"x", 2))
    root = directory({b"one": one, b"other": other, b"two": two})
    image = read(written(root, data, flat=True), data.devices[1:])
    tree = image.tree()
    for name, inode in root.children.items():
        assert tree.children[name].extents == inode.extents
    superblock, (first, second) = image.superblock, image.slots
    assert superblock.feature_incompat & EROFS_FEATURE_INCOMPAT_CHUNKED_FILE
    assert second.uniaddr_lo == first.uniaddr_lo + first.blocks_lo
    assert second.uniaddr_lo + second.blocks_lo == (1 << 32) - 1
    del root.children[b"two"]
    superblock = read(written(root, data, flat=True)).superblock
    assert not superblock.feature_incompat & EROFS_FEATURE_INCOMPAT_CHUNKED_FILE


def test_devices_too_large_to_be_flat_have_chunks() -> None:
    root = directory({b"f": regular(Extent(BLOCK, 1, 0))})
    out = io.BytesIO()
    write_image(root, out, devices=[Device(1 << 31)], flat=True)
    image = read(out.getvalue())
    assert image.slots[0].uniaddr_lo == 0
    assert list(image.tree().children[b"f"].extents) == [Extent(BLOCK, 1, 0)]
