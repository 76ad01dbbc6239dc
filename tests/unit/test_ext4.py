"""ext4 of layers: limits, errors, what a layer writes, and that it is always the same."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import pytest

from lamina.errors import FormatError, InvalidArgument, ResourceExhausted
from lamina.formats.ext4 import entries
from lamina.formats.ext4.geometry import geometry
from lamina.formats.ext4.layers import Applied, Ext4Layers
from lamina.formats.ext4.layout import BLOCK
from lamina.formats.lsmt.mappings import Extent
from lamina.formats.tar import END_OF_ARCHIVE, Entry, Type, header
from tests.archives import Archive, in_chunks
from tests.erofs import ACL

SIZE = 32 << 20


class Device:
    """A small device in memory, and layers that are applied to it."""

    def __init__(self, size: int = SIZE, *, max_entries: int = 1_000_000) -> None:
        self.out = io.BytesIO()
        self._layers = Ext4Layers(size, self.out, max_entries=max_entries)

    def apply(
        self, archive: Archive | bytes, *, prioritized: Sequence[bytes] = (), chunk: int = 1000
    ) -> Applied:
        data = archive if isinstance(archive, bytes) else archive.data()
        return self._layers.apply(in_chunks(data, chunk), prioritized=prioritized)

    def block_of(self, content: bytes) -> int:
        """Return which block begins with some bytes."""
        data = self.out.getvalue()
        found = [at for at in range(0, len(data), BLOCK) if data.startswith(content, at)]
        assert len(found) == 1
        return found[0] // BLOCK


def blocks(applied: Applied) -> int:
    return sum(extent.length for extent in applied.extents) // BLOCK


def content(number: int, size: int) -> bytes:
    return (b"file %03d" % number).ljust(size, b".")


def layers() -> list[Archive]:
    xattr = {"SCHILY.xattr.user.large": "v" * 200}
    return [
        Archive(owner=(0, 0)).dir("d").file("d/a", "a" * 9000).symlink("l", "t" * 100),
        Archive(owner=(0, 0)).file("d/.wh.a").file("d/b", "b", pax_headers=xattr).link("c", "d/b"),
        Archive(owner=(0, 0)).file("d/.wh..wh..opq").dir("d/e").file("c", "c" * 5000),
    ]


def test_same_layers_make_same_bytes() -> None:
    one, other = Device(), Device()
    for number, archive in enumerate(layers()):
        data = archive.data()
        assert one.apply(data) == other.apply(data, chunk=7 + number)
        assert one.out.getvalue() == other.out.getvalue()
    digest = hashlib.sha256(one.out.getvalue()).hexdigest()
    assert digest == "8ef6f711b04b8c87b1c1d08eaeadcf236dcb60a51fe1fb42aefd0b090e907cfc"


def test_the_uuid_is_the_callers() -> None:
    out = io.BytesIO()
    Ext4Layers(SIZE, out, uuid=bytes(range(16))).apply(iter([Archive().data()]))
    assert out.getvalue()[1024 + 104 :][:16] == bytes(range(16))


def test_extents_are_whole_blocks_apart() -> None:
    device = Device()
    for archive in layers():
        applied = device.apply(archive)
        end = -1
        for offset, length, layer, place in applied.extents:
            assert offset > end
            assert not offset % BLOCK
            assert length > 0
            assert not length % BLOCK
            assert (layer, place) == (0, offset)
            end = offset + length
        assert end <= SIZE


def test_an_empty_filesystem_takes_few_blocks(tmp_path: Path) -> None:
    """Superblock, 4 blocks of descriptors, 10 bitmaps of blocks, one of inodes, the root."""
    with (tmp_path / "spool").open("w+b") as out:
        applied = Ext4Layers(64 << 30, out).apply(iter([Archive().data()]))
    assert blocks(applied) == 1 + 4 + 10 + 1 + 2
    assert applied.extents[0] == Extent(0, 5 * BLOCK, 0, 0)


@pytest.mark.parametrize("size", [17 << 30, 64 << 30, 1 << 40])
def test_nothing_lies_next_to_descriptors_that_changes(size: int, tmp_path: Path) -> None:
    """overlaybd-apply writes these 128 KiB with the descriptors from before, if anything does."""
    whole = 128 << 10
    with (tmp_path / "spool").open("w+b") as out:
        device = Ext4Layers(size, out)
        device.apply(iter([layers()[0].data()]))
        places = geometry(size)
        descriptors = places.block_bitmaps * BLOCK
        near = range(descriptors, -(-descriptors // whole) * whole)
        for archive in (layers()[1], Archive().file("more", b"more" * BLOCK)):
            applied = device.apply(iter([archive.data()]))
            assert applied.extents[0].offset == 0
            assert not [extent for extent in applied.extents[1:] if extent.offset in near]
            assert applied.extents[0].length <= descriptors


def test_a_layer_without_changes_writes_nothing() -> None:
    device = Device()
    device.apply(layers()[0])
    assert device.apply(Archive()) == Applied([], ())
    assert device.apply(Archive().dir("./")) == Applied([], ())


def test_a_layer_writes_what_it_changes() -> None:
    """A file among many: its data, its inode's block, its directory's, and counts of blocks."""
    device = Device()
    archive = Archive(owner=(0, 0))
    for number in range(1000):
        archive.file(f"d{number % 10}/{number:0100}", b"x")
    device.apply(archive)
    change = Archive(owner=(0, 0)).file(f"d3/{33:0100}", b"changed", mtime=5)
    # The directory's inode, the file's own; superblock, descriptors, bitmaps of both kinds.
    assert blocks(device.apply(change)) <= 1 + 1 + 2 + 4
    # Owner and mode alone are in the inode.
    assert blocks(device.apply(Archive(owner=(5, 5)).dir("d3", 0o700))) == 1


def test_data_lies_in_the_order_of_the_archive() -> None:
    device = Device()
    archive = Archive()
    for number in range(20):
        archive.file(f"{number}", content(number, 10_000))
    applied = device.apply(archive)
    found = [device.block_of(b"file %03d" % number) for number in range(20)]
    assert found == list(range(found[0], found[0] + 20 * 3, 3))
    assert len(applied.extents) <= 3


def test_prioritized_files_come_first() -> None:
    device = Device()
    archive = Archive()
    for number in range(20):
        archive.file(f"d/{number}", content(number, 10_000))
    device.apply(archive, prioritized=[b"/d/17", b"d/4", b"none"])
    found = [device.block_of(b"file %03d" % number) for number in range(20)]
    order = sorted(range(20), key=found.__getitem__)
    assert order == [4, 17, *(number for number in range(20) if number not in {4, 17})]
    assert found[17] == found[4] + 3


def test_prioritized_files_may_be_too_many() -> None:
    device = Device()
    archive = Archive()
    for number in range(20):
        archive.file(f"{number}", content(number, 250_000))
    device.apply(archive, prioritized=[b"%d" % number for number in range(20)])
    found = [device.block_of(b"file %03d" % number) for number in range(20)]
    assert len(set(found)) == 20


def test_removed_inodes_and_blocks_are_used_again() -> None:
    """An image that replaces its files over and over never fills the device."""
    device = Device(4 << 20)
    for number in range(40):
        archive = Archive()
        for file in range(10):
            archive.file(f"{file}", bytes([number]) * 50_000)
        device.apply(archive)
    # 10 files and the root's own in 3 blocks of inodes.
    assert device.apply(Archive().file(".wh..wh..opq").file("x")).extents


def test_a_device_that_is_full() -> None:
    with pytest.raises(ResourceExhausted, match="the device is full: choose a larger one"):
        Device(1 << 20).apply(Archive().file("f", bytes(1 << 20)))


def test_more_inodes_than_there_are() -> None:
    archive = Archive()
    for number in range(300):
        archive.entry(f"{number}", b"6")
    with pytest.raises(ResourceExhausted, match="the device has 256 inodes"):
        Device(4 << 20).apply(archive)


def test_more_names_than_an_inode_can_have() -> None:
    links = [Entry(b"%d" % n, Type.HARD_LINK, linkname=b"f") for n in range(64_999)]
    device = Device()
    device.apply(b"".join(map(header, [Entry(b"f"), *links])) + END_OF_ARCHIVE, chunk=1 << 20)
    with pytest.raises(ResourceExhausted, match="a file has more than 65000 names"):
        device.apply(Archive().link("more", "f"))


def test_more_entries_than_allowed() -> None:
    device = Device(max_entries=2)
    device.apply(Archive().file("a").file("b"))
    with pytest.raises(ResourceExhausted, match="it has more than 2 entries"):
        device.apply(Archive().file("a").file("b").file("a"))


@pytest.mark.parametrize("size", [0, 4096, (1 << 20) - 1, (16 << 40) + 4096])
def test_sizes_that_no_device_has(size: int) -> None:
    with pytest.raises(InvalidArgument):
        Ext4Layers(size, io.BytesIO())


@pytest.mark.parametrize(
    ("archive", "error"),
    [
        (Archive().symlink("l", ""), "a target of 1 to 4095 bytes"),
        (Archive().symlink("l", "t" * 4096), "a target of 1 to 4095 bytes"),
        (Archive().file("n" * 256), "names of at most 255 bytes"),
        (Archive().file("n/" * 2100 + "n"), "paths of at most 4095 bytes"),
        (Archive().file("f").file("f/g"), "a path through directories"),
        (Archive().link("l", "f"), "a link to something that exists and is no directory"),
        (Archive().link("l", "no/f"), "a link to something that exists"),
        (Archive().dir("d").link("l", "d"), "is no directory"),
        (Archive().file(".wh."), "a whiteout of a name"),
        (Archive().file("f", uid=2**32 - 1), "ids of 32 bits"),
        (Archive().entry("s", b"7"), "a type that layers have"),
        (Archive().file("f", pax_headers={"SCHILY.xattr.system.posix_acl_access": "x"}), "an ACL"),
    ],
)
def test_what_no_layer_may_have(archive: Archive, error: str) -> None:
    with pytest.raises(FormatError, match=error.replace("an ACL", "a POSIX ACL")):
        Device().apply(archive)


def test_archives_that_end_within_a_file() -> None:
    data = Archive().file("f", b"x" * 5000).data()
    with pytest.raises(FormatError):
        Device().apply(data[:3000])


def test_files_larger_than_ext4_allows() -> None:
    headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 44)}
    with pytest.raises(ResourceExhausted, match="a file is larger than 16 TiB"):
        Device().apply(Archive().file("f", pax_headers=headers))
    headers["GNU.sparse.size"] = str((1 << 44) - BLOCK)
    Device().apply(Archive().file("f", pax_headers=headers))


def test_few_warnings_are_kept() -> None:
    archive = Archive()
    for number in range(20):
        archive.file(f"{number}", pax_headers={"SCHILY.xattr.system.x": "v"})
    assert len(Device().apply(archive).warnings) == 8


def test_attributes_and_links_of_all_layers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "_MAX_KEPT", 1000)
    device = Device()
    xattr = {"SCHILY.xattr.user.a": "v" * 300}
    device.apply(Archive().file("a", pax_headers=xattr).symlink("l", "t" * 300))
    device.apply(Archive().file("a", pax_headers={"SCHILY.xattr.user.a": "v" * 5000}))
    with pytest.raises(ResourceExhausted, match="attributes and links have more than"):
        device.apply(Archive().file("b", pax_headers=xattr).file("c", pax_headers=xattr))


def test_acls_of_what_has_none() -> None:
    acl = ACL.decode("utf-8", "surrogateescape")
    archive = Archive().file("f", pax_headers={"SCHILY.xattr.system.posix_acl_default": acl})
    archive.symlink("l", "t", pax_headers={"SCHILY.xattr.system.posix_acl_access": acl})
    assert Device().apply(archive).warnings == (
        "attributes of f are left out: system.posix_acl_default",
        "attributes of l are left out: system.posix_acl_access",
    )
