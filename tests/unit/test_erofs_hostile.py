"""Images that are damaged, or made to be read for ever."""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.errors import FormatError, InvalidArgument
from lamina.formats.erofs import hierarchy, metadata
from lamina.formats.erofs.layout import (
    EROFS_FEATURE_COMPAT_SB_CHKSUM,
    EROFS_SUPER_OFFSET,
    SUPERBLOCK,
    superblock_checksum,
)
from lamina.formats.erofs.reader import Image
from lamina.formats.erofs.tree import BLOCK
from tests.erofs import Bytes, Data, described, directory, everything, regular
from tests.erofs_by_hand import CHUNKS, INDEX, META, TAIL, by_hand, put_inode
from tests.erofs_reading import changed, read, small, without_checksum, written


def use_all(image: Image) -> None:
    """Read everything that an image has, one way and the other."""
    image.tree()
    for path, node in image.walk():
        assert image.lookup(path) == node
        image.xattrs(node)
        if node.is_regular and node.size < 1 << 20:
            assert len(image.read(node, 0, node.size)) == node.size


def test_cut_off_at_every_byte() -> None:
    root, data = small()
    image = written(root, data)
    needed = len(image.rstrip(b"\0"))
    expected = described(root, data)
    for length in range(needed):
        with pytest.raises(FormatError):
            read(image[:length]).tree()
    assert described(read(image).tree(), data) == expected


def test_a_change_of_any_byte() -> None:
    root, data = small()
    original = without_checksum(written(root, data))
    refused = 0
    for position in range(EROFS_SUPER_OFFSET, len(original)):
        damaged = bytearray(original)
        damaged[position] ^= 0xFF
        try:
            use_all(read(damaged))
        except (FormatError, InvalidArgument):
            refused += 1
    assert refused > 100


def test_a_change_of_the_superblock_is_noticed() -> None:
    root, data = small()
    original = written(root, data)
    for position in (*range(EROFS_SUPER_OFFSET, 1200), 4095):
        damaged = bytearray(original)
        damaged[position] ^= 0x04
        with pytest.raises(FormatError):
            read(damaged)


_DATA = Data(2)
_EVERYTHING = bytes(without_checksum(written(everything(_DATA), _DATA)))
_INODES = range(_DATA.first_block * BLOCK, len(_EVERYTHING))


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(range(EROFS_SUPER_OFFSET, 1536)) | st.sampled_from(_INODES),
            st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 4, bytes(4)]),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_changes_anywhere(changes: list[tuple[int, bytes]]) -> None:
    damaged = bytearray(_EVERYTHING)
    for position, value in changes:
        damaged[position : position + len(value)] = value
    try:
        use_all(read(damaged, _DATA.devices[1:]))
    except FormatError as error:
        assert error.format == "erofs"
    except InvalidArgument as error:
        assert "devices" in error.hint


@given(st.binary(max_size=3000))
def test_anything_after_a_superblock(rest: bytes) -> None:
    image = bytes(1024) + SUPERBLOCK.pack(*read(_EVERYTHING).superblock._replace(meta_blkaddr=0))
    try:
        use_all(read(image + rest))
    except FormatError:
        pass


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"magic": 1}, "magic number 0xe0f5e1e2, got 0x1"),
        ({"blkszbits": 8}, r"got 2\*\*8"),
        ({"blkszbits": 17}, r"got 2\*\*17"),
        ({"dirblkbits": 1}, r"times 2\*\*1"),
        ({"fixed_nsec": 10**9}, "nanoseconds"),
        ({"feature_incompat": 0x2}, "COMPR_CFGS"),
        ({"feature_incompat": 0x10}, "ZTAILPACKING"),
        ({"feature_incompat": 0x20}, "FRAGMENTS"),
        ({"feature_incompat": 0x40}, "XATTR_PREFIXES"),
        ({"feature_incompat": 0x80}, "48BIT"),
        ({"feature_incompat": 0x100}, "METABOX"),
        ({"feature_incompat": 0x80000200}, r"unknown features \(0x80000200\)"),
        ({"devt_slotoff": 1000}, "device table of 128 bytes"),
        ({"extra_devices": 65535}, "device table of 8388480 bytes"),
        ({"meta_blkaddr": 2**32 - 1}, "inode of 32 bytes"),
        ({"rootnid": 60000}, "inode of 32 bytes"),
    ],
)
def test_superblocks_that_are_refused(values: dict[str, object], text: str) -> None:
    root, data = small()
    with pytest.raises(FormatError, match=text):
        read(changed(written(root, data), **values))


def test_a_checksum_of_small_blocks() -> None:
    image = by_hand()
    image[1032] |= EROFS_FEATURE_COMPAT_SB_CHKSUM
    with pytest.raises(FormatError, match="the checksum 0x"):
        read(image)
    # It covers a block's length from the superblock on, here block 2.
    image[1028:1032] = struct.pack("<I", superblock_checksum(bytes(image[:1536])))
    assert read(image).superblock.blkszbits == 9


Change = Callable[[bytearray, Image], None]


def at_root(format: str, offset: int, *values: int) -> Change:
    def change(image: bytearray, read: Image) -> None:
        struct.pack_into(format, image, read.root.at + offset, *values)

    return change


def at_path(path: bytes, format: str, offset: int, *values: int) -> Change:
    def change(image: bytearray, read: Image) -> None:
        struct.pack_into(format, image, read.lookup(path).at + offset, *values)

    return change


def behind(path: bytes, format: str, offset: int, *values: int) -> Change:
    """Change what follows an inode and its xattrs."""

    def change(image: bytearray, read: Image) -> None:
        struct.pack_into(format, image, read.lookup(path).tail_at + offset, *values)

    return change


def in_xattrs(path: bytes, format: str, offset: int, *values: int) -> Change:
    def change(image: bytearray, read: Image) -> None:
        struct.pack_into(format, image, read.lookup(path).xattrs_at + offset, *values)

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (at_path(b"d", "<H", 0, 0x20 | 4), "i_format 0x24"),
        (at_path(b"d/f", "<H", 0, 1 << 1), "EROFS_INODE_COMPRESSED_FULL"),
        (at_path(b"d/f", "<H", 0, 3 << 1), "EROFS_INODE_COMPRESSED_COMPACT"),
        (at_path(b"d/f", "<H", 0, 5 << 1), "i_format 0xa"),
        (at_path(b"d/f", "<H", 4, 0o644), "the mode of a file, got 0o644"),
        (at_path(b"d/f", "<H", 4, 0o120644), "type 7 for b'again', as its inode says, got 1"),
        (at_path(b"d/f", "<H", 2, 1), "a header alone"),
        (at_path(b"d/f", "<H", 2, 60000), "240008 more"),
        (at_path(b"d/f", "<I", 16, 0x61), "EROFS_CHUNK_FORMAT_48BIT"),
        (at_path(b"d/f", "<I", 16, 0x80), "known format of chunks, got 0x80"),
        (at_path(b"d/f", "<I", 8, 0xFFFFFFFF), "one with 4194304 more"),
        (behind(b"d/f", "<HHI", 4, 0, 1, 0xFFFFFFFE), "within the 8192 bytes of device 1"),
        (behind(b"d/f", "<HHI", 4, 0, 0, 0xFFFFFFFE), "expected data of 8192 bytes"),
        (at_path(b"d/l", "<I", 8, 4096), "a target of 1 to 4095 bytes, got 4096"),
        (at_path(b"d/l", "<I", 8, 0), "a target of 1 to 4095 bytes, got 0"),
        (at_path(b"d/l", "<I", 8, 4000), "a tail of 4000 bytes in one block"),
        (behind(b"d/l", "<H", 0, 0), "a target without NUL"),
        (at_path(b"d", "<I", 8, 0), "directory with '.' and '..'"),
        (at_path(b"d", "<I", 8, 12), "dirents before their names"),
        (at_path(b"d", "<I", 8, 0xFFFFFFFF), "together"),
        (behind(b"d", "<Q", 0, 5), "inode .* for b'.', got inode 5"),
        (behind(b"d", "<Q", 12, 5), "inode .* for b'..', got inode 5"),
        (behind(b"d", "<H", 8, 61), "dirents before their names"),
        (behind(b"d", "<H", 20, 4000), "names of 1 to 255 bytes"),
        (behind(b"d", "<H", 56, 4000), "names of 1 to 255 bytes"),
        (behind(b"d", "<B", 22, 8), "the type of a file, got 8"),
        (behind(b"d", "<B", 34, 7), "type 1 for b'f', as its inode says, got 7"),
        (behind(b"d", "<Q", 24, 2**64 - 1), "inode of 32 bytes"),
        (behind(b"d", "<B", 63, 0x2F), "names without '/' and NUL"),
        (behind(b"d", "<B", 63, 0), "names without '/' and NUL"),
        (behind(b"d", "<B", 63, 0x7A), "ascending order, got b'l' after b'z'"),
        (behind(b"d", "<B", 63, 0x6C), "ascending order, got b'l' after b'l'"),
        (at_root("<H", 4, 0o100644), "a directory as root"),
        (in_xattrs(b"d/f", "<B", 4, 200), "200 ids of shared xattrs"),
        (in_xattrs(b"d/f", "<B", 4, 1), "shared xattr of 4 bytes"),
        (in_xattrs(b"d/f", "<B", 12, 200), "an xattr of 208 bytes"),
        (in_xattrs(b"d/f", "<B", 13, 9), "the name of an xattr, got b'a' with prefix 9"),
        (in_xattrs(b"d/f", "<B", 13, 2), "the name of an xattr, got b'a' with prefix 2"),
        (in_xattrs(b"d/f", "<B", 13, 0x81), "an xattr without a long prefix"),
        (in_xattrs(b"d/f", "<H", 14, 9), "an xattr of 16 bytes"),
    ],
)
def test_damage_is_named(change: Change, text: str) -> None:
    root, data = small()
    original = written(root, data)
    image = without_checksum(original)
    change(image, read(original))
    with pytest.raises(FormatError, match=text):
        read(image, data.devices[1:]).tree()


def test_the_same_attribute_twice() -> None:
    root = directory(xattrs={b"user.a": b"1", b"user.b": b"2"})
    image = without_checksum(written(root, Data(0)))
    image[image.index(b"b2")] = ord("a")
    with pytest.raises(FormatError, match="names of their own"):
        read(image).tree()


def test_an_extended_inode_with_bad_numbers() -> None:
    root = directory({b"f": regular(uid=70_000, mtime=5)})
    original = written(root, Data(0))
    at = read(original).lookup(b"f").at
    for offset, format, value, text in (
        (8, "<Q", 1 << 63, "a size of at most"),
        (40, "<I", 10**9, "nanoseconds"),
        (6, "<H", 1, "a block number of 32 bits, got 0x100000000"),
    ):
        image = without_checksum(original)
        struct.pack_into(format, image, at + offset, value)
        with pytest.raises(FormatError, match=text):
            read(image).tree()


def test_directories_inside_themselves() -> None:
    root = directory({b"a": directory({b"b": directory()}), b"c": directory()})
    original = written(root, Data(0))
    nids = {path: node.nid for path, node in read(original).walk()}
    b_entry = read(original).lookup(b"a").tail_at + 2 * 12
    for target in (b"/", b"/a", b"/c"):
        image = without_checksum(original)
        struct.pack_into("<Q", image, b_entry, nids[target])
        with pytest.raises(FormatError, match="directories of one name each"):
            list(read(image).walk())


def test_directories_that_share_blocks() -> None:
    """A small image must not take the work of a large one."""
    child = regular()
    large = directory(dict.fromkeys([b"%06d" % number for number in range(3000)], child))
    many = {b"%d" % number: directory() for number in range(300)}
    original = written(directory({b"large": large, **many}), Data(0))
    image, opened = without_checksum(original), read(original)
    node = opened.lookup(b"large")
    # Its `.` is made a name: whose it would be is what gives directories away.
    first = node.data * BLOCK
    struct.pack_into("<Q", image, first, opened.lookup(b"large/000000").nid)
    image[first + 10] = 1
    image[first + struct.unpack_from("<H", image, first + 8)[0]] = ord("-")
    blocks = node.size // BLOCK
    for name in (b"large", *many):
        at = opened.lookup(name).at
        struct.pack_into("<H", image, at, 1 << 4)
        struct.pack_into("<I4xI", image, at + 8, blocks * BLOCK, node.data)
    assert len(list(read(image).entries(read(image).lookup(b"7")))) > 2000
    source = Bytes(image)
    with pytest.raises(FormatError, match=f"at most {len(image)} bytes together"):
        list(Image(source).walk())
    assert source.reads <= 2 * len(image) // metadata.SEGMENT + 2


def test_attributes_that_share_bytes() -> None:
    files = {b"%d" % number: regular(xattrs={b"user.a": b"v" * 100}) for number in range(1000)}
    original = written(directory(files), Data(0))
    opened = read(original)
    # From each multiple of 4 bytes on, this reads as an attribute with a value of 60,000 bytes.
    image = without_checksum(original) + struct.pack("<BBH", 4, 1, 60_000) * 20_000
    first = (len(original) - opened.superblock.xattr_blkaddr * BLOCK) // 4
    for number, name in enumerate(files):
        struct.pack_into("<I", image, opened.lookup(name).xattrs_at + 12, first + number)
    (value,) = read(image).xattrs(read(image).lookup(b"999")).values()
    assert len(value) == 60_000
    with pytest.raises(FormatError, match=f"at most {len(image)} bytes together"):
        read(image).tree()


@pytest.mark.parametrize(
    ("format", "offset", "values", "text"),
    [
        ("<I", 1408 + 68, (0x1002,), "one device, got devices 1 and 2 both from byte 2098176 on"),
        ("<H", 1408 + 72, (1,), "got device 2 of 48 bits"),
        ("<I", 1280 + 68, (0x1002,), "data of 176 bytes, got an image of 4096"),
        ("<I", 1280 + 64, (1,), "data of 176 bytes, got an image of 4096"),
        ("<I", META + CHUNKS * 32 + 32, (8,), "data of 512 bytes, got an image of 4096"),
        ("<H", META + INDEX * 32 + 34, (3,), "one of 2 extra devices, got device 3"),
        ("<I", META + TAIL * 32 + 16, (9,), "data of 512 bytes, got an image of 4096"),
        ("<I", META + TAIL * 32 + 8, (1024,), "a tail of 512 bytes in one block, got one from"),
    ],
)
def test_places_that_are_refused(format: str, offset: int, values: tuple[int], text: str) -> None:
    image = by_hand()
    struct.pack_into(format, image, offset, *values)
    with pytest.raises(FormatError, match=text):
        read(image).tree()


def test_a_first_block_of_48_bits() -> None:
    image = by_hand()
    put_inode(image, INDEX, 1 << 4, 0o100644, 1, 600, 33)
    with pytest.raises(FormatError, match="32 bits, got 0x100000021"):
        read(image).tree()


def test_data_behind_the_device_that_it_begins_on() -> None:
    image = by_hand()
    put_inode(image, TAIL, 0, 0o100600, 1, 1025, 0x1001)
    with pytest.raises(FormatError, match="before byte 2098688, with device 1, got 1025 bytes"):
        read(image).tree()


@pytest.mark.parametrize("kind", [stat.S_IFDIR, stat.S_IFLNK])
def test_names_and_targets_are_in_the_image(kind: int) -> None:
    image = by_hand()
    put_inode(image, INDEX, 4 << 1, kind, 1, 600, 0x21)
    image[META + 64 + 3 * 12 + 10] = 0  # the type in the root
    with pytest.raises(FormatError, match=r"in the image itself, got .* on device 2"):
        read(image).tree()
    put_inode(image, INDEX, 0, kind, 1, 600, 0xFFFFFFFF)
    with pytest.raises(FormatError, match=r"in the image itself, got .*a hole"):
        read(image).tree()


def many_links(count: int) -> bytes:
    child = regular(xattrs={b"user.a": b"v" * 100})
    return written(directory({b"%d" % number: child for number in range(count)}), Data(0))


def test_too_many_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hierarchy, "MAX_NAMES", 100)
    assert len(list(read(many_links(100)).walk())) == 101
    with pytest.raises(FormatError, match="at most 100 names"):
        list(read(many_links(101)).walk())


def test_too_many_extents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hierarchy, "MAX_EXTENTS", 10)
    data = Data(2)
    block = bytes(BLOCK)
    file = regular(*(data.put(block, 1 + number % 2) for number in range(8)))
    assert len(read(written(directory({b"a": file}), data)).tree().children[b"a"].extents) == 8
    other = regular(*(data.put(block, 1 + number % 2) for number in range(3)))
    with pytest.raises(FormatError, match="at most 10 extents"):
        read(written(directory({b"a": file, b"b": other}), data)).tree()


def test_too_deep() -> None:
    root = bottom = directory()
    for _ in range(2047):
        bottom.children[b"d"] = bottom = directory()
    assert len(list(read(written(root, Data(0))).walk())) == 2048
    bottom.children[b"d"] = directory()
    with pytest.raises(FormatError, match="paths of at most 4095 bytes, got 4096"):
        list(read(written(root, Data(0))).walk())
