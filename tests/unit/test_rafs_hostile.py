"""Bootstraps and blobs that are damaged, or made to be read for ever."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.errors import DigestMismatch, FormatError, InvalidArgument
from lamina.formats.erofs.tree import BLOCK
from lamina.formats.erofs.writer import Device, write_image
from lamina.formats.rafs import metadata
from lamina.formats.rafs.blob_meta import read_blob_meta
from lamina.formats.rafs.bootstrap import read_bootstrap
from lamina.formats.rafs.model import Bootstrap
from lamina.formats.rafs.toc import read_toc, read_toc_entry
from lamina.formats.rafs.tree import to_tree
from lamina.formats.rafs.units import Layout, decode_unit, lay_out_v5, lay_out_v6
from tests.erofs import Bytes
from tests.rafs import CHUNK, Made, directory, noise, regular, sample
from tests.rafs_blobs import LZ4, ZSTD
from tests.rafs_v5 import make_v5
from tests.rafs_v6 import make_v6

REFUSED = (FormatError, InvalidArgument, DigestMismatch)
V5, V5_BLOB = make_v5(sample(), compressor=LZ4, prefetch=[])
V6, V6_BLOB = make_v6(sample(), compressor=ZSTD, batch=8192)


def use_all(raw: bytes, blob: bytes) -> None:
    """Read everything that a bootstrap and its blob have, without looking at digests."""
    bootstrap = read_bootstrap(Bytes(raw), verify=False)
    source = Bytes(blob)
    if bootstrap.version == 5:
        layout = lay_out_v5(bootstrap)
    else:
        for entry in read_toc(source).values():
            if entry.name != "image.blob":
                read_toc_entry(source, entry)
        metas = {
            index: read_blob_meta(source, each)
            for index, each in enumerate(bootstrap.blobs)
            if each.meta
        }
        layout = lay_out_v6(bootstrap, metas)
    _decode(layout, blob)
    _write(bootstrap, layout)


def _decode(layout: Layout, blob: bytes) -> None:
    for device in layout.devices:
        for unit in device.units:
            stop = unit.source_offset + unit.source_length
            assert stop <= len(blob)
            decode_unit(unit, blob[unit.source_offset : stop])


def _write(bootstrap: Bootstrap, layout: Layout) -> None:
    devices = [Device(-(-device.size // BLOCK)) for device in layout.devices]
    write_image(to_tree(bootstrap, layout), io.BytesIO(), devices=devices)


def test_what_is_not_damaged_is_read() -> None:
    use_all(V5, V5_BLOB)
    use_all(V6, V6_BLOB)


@pytest.mark.parametrize(("raw", "blob"), [(V5, V5_BLOB), (V6, V6_BLOB)])
def test_cut_off(raw: bytes, blob: bytes) -> None:
    end = len(raw.rstrip(b"\0"))
    for length in (*range(0, end, 97), end - 1):
        with pytest.raises(REFUSED):
            use_all(raw[:length], blob)


def test_blobs_cut_off() -> None:
    for length in range(0, len(V6_BLOB), 97):
        with pytest.raises(REFUSED):
            use_all(V6, V6_BLOB[:length])


def _changes(size: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    place = st.integers(0, size - 1)
    return st.lists(st.tuples(place, st.integers(0, 255)), min_size=1, max_size=4)


def _changed(raw: bytes, changes: Sequence[tuple[int, int]], first: int = 0) -> bytes:
    copy = bytearray(raw)
    for place, value in changes:
        copy[first + place] = value
    return bytes(copy)


def _survives(raw: bytes, blob: bytes) -> None:
    try:
        use_all(raw, blob)
    except REFUSED:
        pass


@settings(max_examples=300, deadline=None)
@given(_changes(80))
def test_changes_of_a_version_5_superblock(changes: list[tuple[int, int]]) -> None:
    _survives(_changed(V5, changes), V5_BLOB)


@settings(max_examples=400, deadline=None)
@given(_changes(len(V5) - 8192))
def test_changes_of_version_5_inodes(changes: list[tuple[int, int]]) -> None:
    _survives(_changed(V5, changes, 8192), V5_BLOB)


@settings(max_examples=300, deadline=None)
@given(_changes(512))
def test_changes_of_version_6_superblocks(changes: list[tuple[int, int]]) -> None:
    _survives(_changed(V6, changes, 1024), V6_BLOB)


# Each inode has a block of its own here, most of which is empty.
_USED = [place for place in range(BLOCK, len(V6)) if any(V6[place - 8 : place + 9])]


@settings(max_examples=400, deadline=None)
@given(_changes(len(_USED)))
def test_changes_of_version_6_inodes_and_tables(changes: list[tuple[int, int]]) -> None:
    _survives(_changed(V6, [(_USED[place], value) for place, value in changes]), V6_BLOB)


_TAIL = len(V6_BLOB) - 8192


@settings(max_examples=400, deadline=None)
@given(_changes(len(V6_BLOB) - _TAIL))
def test_changes_of_the_tail_of_a_blob(changes: list[tuple[int, int]]) -> None:
    _survives(V6, _changed(V6_BLOB, changes, _TAIL))


@settings(max_examples=100, deadline=None)
@given(_changes(_TAIL))
def test_changes_of_data(changes: list[tuple[int, int]]) -> None:
    _survives(V6, _changed(V6_BLOB, changes))


def record_at(raw: bytes, number: int) -> int:
    """Return the byte of a version 5 record."""
    (place,) = struct.unpack_from("<I", raw, 8192 + 4 * (number - 1))
    return int(place) * 8


def with_field(raw: bytes, at: int, format: str, value: int) -> bytes:
    copy = bytearray(raw)
    struct.pack_into(format, copy, at, value)
    return bytes(copy)


def refused(raw: bytes, expected: str) -> None:
    with pytest.raises(FormatError, match=expected):
        read_bootstrap(Bytes(raw), verify=False)


def nested() -> Made:
    return directory({b"a": directory({b"b": directory({})}), b"f": regular(noise(CHUNK * 3))})


def test_version_5_directories_are_a_tree() -> None:
    raw, _blob = make_v5(nested())
    # Numbers: 1 the root, 2 a, 3 f, 4 b.
    b = record_at(raw, 4)
    for child in (1, 2, 3, 4):
        circle = with_field(with_field(raw, b + 92, "<I", child), b + 96, "<I", 1)
        refused(circle, "inodes of one name each")
    refused(with_field(raw, record_at(raw, 1) + 96, "<I", 0xFFFFFFFF), "a number of an inode")
    refused(with_field(raw, record_at(raw, 1) + 92, "<I", 0), "a number of an inode")


def test_version_5_records_share_no_bytes() -> None:
    file = regular(noise(CHUNK * 9))
    raw, _blob = make_v5(
        directory({b"%02d" % number: directory({b"f": file}) for number in range(50)})
    )
    # Numbers: 1 the root, then 50 directories, then as many names of the file.
    first = record_at(raw, 52)
    shared = bytearray(raw[: record_at(raw, 53)])
    struct.pack_into("<50I", shared, 8192 + 4 * 51, *[first // 8] * 50)
    refused(bytes(shared), "records that have at most")


def test_version_5_files_have_all_chunks() -> None:
    raw, _blob = make_v5(directory({b"f": regular(noise(CHUNK * 9))}))
    at = record_at(raw, 2)
    more = with_field(raw, at + 96, "<I", 0xFFFFFF)
    refused(more, "9 chunks")
    refused(with_field(more, at + 64, "<Q", 0xFFFFFF * CHUNK), "at most .* chunks")
    refused(with_field(raw, at + 96, "<I", 8), "9 chunks")


def test_version_5_holes_are_counted() -> None:
    raw, _blob = make_v5(directory({b"f": regular(noise(CHUNK))}))
    at = record_at(raw, 2)
    sparse = with_field(raw, at + 80, "<Q", 8)
    refused(with_field(sparse, at + 64, "<Q", 1 << 62), "at most .* chunks")
    refused(with_field(sparse, at + 64, "<Q", 1 << 63), "a size of at most")
    refused(with_field(sparse, at + 64, "<Q", 100), "a chunk of 100 bytes")
    wide = with_field(sparse, at + 64, "<Q", 1000 * CHUNK)
    found = read_bootstrap(Bytes(wide), verify=False)
    assert found.root.children[b"f"].size == 1000 * CHUNK


def test_an_inode_number_stands_for_one_file() -> None:
    raw, _blob = make_v5(directory({b"a": regular(b"1"), b"b": regular(b"2")}))
    refused(with_field(raw, record_at(raw, 3) + 40, "<Q", 2), "an inode number of its own")


def test_chunks_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    raw, _blob = make_v6(directory({b"a": regular(noise(CHUNK)), b"b": regular(noise(CHUNK))}))
    assert read_bootstrap(Bytes(raw)).version == 6
    monkeypatch.setattr(metadata, "MAX_CHUNKS", 2)
    refused(raw, "at most 2 chunks")


def test_version_6_chunks_must_be_in_the_table() -> None:
    root = directory({b"f": regular(noise(CHUNK * 2))})
    raw, _blob = make_v6(root)
    at = raw.index(struct.pack("<HBBI", 1, 1, 0, 1))
    refused(with_field(raw, at, "<H", 2), "a chunk of the chunk table")
    refused(with_field(raw, at + 2, "<B", 0), "a chunk of one of 1 blobs")
    refused(with_field(raw, at + 2, "<B", 2), "a chunk of one of 1 blobs")
    hole = with_field(raw, at + 4, "<I", 0xFFFFFFFF)
    chunks = read_bootstrap(Bytes(hole)).root.children[b"f"].chunks
    assert [found.offset for found in chunks] == [0]


def test_version_6_entries_are_what_the_kernel_takes_them_for() -> None:
    root = directory({b"f": regular(noise(CHUNK * 3))})
    raw, _blob = make_v6(root)
    entries = [struct.pack("<HBBI", number, 1, 0, number) for number in range(3)]
    at = raw.index(b"".join(entries))
    format_at = at - 64 + 16
    one = with_field(raw, format_at, "<I", 0x20 | 2)
    chunks = read_bootstrap(Bytes(raw)).root.children[b"f"].chunks
    assert read_bootstrap(Bytes(one)).root.children[b"f"].chunks == chunks
    swapped = one[:at] + entries[0] + entries[2] + entries[1] + one[at + 24 :]
    refused(swapped, "a chunk that follows")
    refused(with_field(one, at + 4, "<I", 0xFFFFFFFF), "a chunk that follows")
    refused(with_field(one, at + 12, "<I", 0xFFFFFFFF), "a chunk that follows")
    refused(with_field(raw, format_at, "<I", 0), "chunks with indexes")
    tar, _device = make_v6(root, tar=True)
    at = tar.index(struct.pack("<HBBI", 1, 1, 0, 8)) - 8
    refused(with_field(tar, at - 64 + 16, "<I", 0x20 | 2), "chunks of 4096 bytes or more")
