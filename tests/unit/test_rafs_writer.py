"""Images written as RAFS, and read back."""

from __future__ import annotations

import stat
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.errors import FormatError, InvalidArgument
from lamina.formats.rafs.blob_meta import read_blob_meta
from lamina.formats.rafs.flags import ChunkFlags, Compressor
from lamina.formats.rafs.model import Chunk, Inode
from lamina.formats.rafs.toc import BLOB_DIGEST, IMAGE_BLOB, read_toc, read_toc_entry
from lamina.formats.rafs.units import lay_out_v6
from lamina.formats.rafs.writer.options import RafsOptions
from lamina.formats.rafs.writer.tail import chunk_info, tar_header
from tests.archives import Archive
from tests.erofs import Bytes
from tests.rafs import content_of, noise, shown
from tests.rafs_blobs import Piece, info_v1
from tests.rafs_blobs import tar_header as made_header
from tests.rafs_devices import filled
from tests.rafs_writing import Written, digests, written

CHUNK = 4096
SMALL = RafsOptions(chunk_size=CHUNK)
BIG = noise(3 * CHUNK) + b"text " * 5000
VERSIONS = [5, 6]


def base() -> Archive:
    archive = Archive().dir("etc").dir("gone").dir("opaque").dir("opaque/below").dir("deep")
    archive.file("etc/conf", b"of the base").file("gone/a", b"a").file("opaque/below/old", b"old")
    archive.file("big", BIG, 0o4755, uid=70_000, mtime=1_700_000_000.5).file("empty", b"")
    archive.link("deep/big", "big", mode=0o4755, uid=70_000, mtime=1_700_000_000.5)
    archive.file("zeros", bytes(3 * CHUNK + 5))
    archive.symlink("link", "etc/conf").symlink("far", "x" * 4090)
    archive.entry("fifo", b"6").entry("null", b"3", devmajor=1, devminor=3)
    archive.file("etc/" + "n" * 250, b"long", pax_headers={"SCHILY.xattr.user.a": "1"})
    archive.dir("/".join(["d" * 200] * 18))
    return archive


def above() -> Archive:
    archive = Archive().file(".wh.gone").file("opaque/.wh..wh..opq").file("opaque/new", b"new")
    archive.file("etc/conf", BIG[:CHUNK] + b"!").dir("etc", 0o700)
    return archive


def names(inode: Inode) -> set[bytes]:
    return set(inode.children)


def at(image: Written, path: str) -> Inode:
    inode = image.bootstrap.root
    for part in path.encode().split(b"/"):
        inode = inode.children[part]
    return inode


def chunks(inode: Inode) -> list[Chunk]:
    return [found.chunk for found in inode.chunks]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("compressor", Compressor)
def test_what_is_written_is_read(version: int, compressor: Compressor) -> None:
    options = RafsOptions(version, compressor, CHUNK)
    image = written(base().data(), above().data(), options=options)
    bootstrap = image.bootstrap
    found = shown(bootstrap, content_of(bootstrap, image.blobs))
    data = {path: row[6] for path, row in found.items() if isinstance(row, tuple)}
    assert data[b"/big"] == data[b"/deep/big"] == BIG
    assert data[b"/zeros"] == bytes(3 * CHUNK + 5)
    assert data[b"/etc/conf"] == BIG[:CHUNK] + b"!"
    assert found[b"/deep/big"] == found[b"/big"]
    assert at(image, "big").nlink == 2
    assert (at(image, "big").mode & 0o7777, at(image, "big").uid) == (0o4755, 70_000)
    assert at(image, "big").mtime == 1_700_000_000_500_000_000
    assert [chunk.digest for chunk in chunks(at(image, "big"))] == digests(options, BIG)
    assert (at(image, "null").rdev, at(image, "link").target) == (0x103, b"etc/conf")
    assert at(image, "etc/" + "n" * 250).xattrs == {b"user.a": b"1"}
    assert at(image, "etc").mode & 0o777 == 0o700
    assert len(at(image, "far").target) == 4090
    assert at(image, "/".join(["d" * 200] * 18)).is_directory
    assert b"gone" not in bootstrap.root.children
    assert names(at(image, "opaque")) == {b"new"}
    packed = any(chunk.flags & ChunkFlags.COMPRESSED for chunk in chunks(at(image, "big")))
    assert packed == (compressor is not Compressor.NONE)
    assert image.devices()


def test_the_blob_of_a_layer_is_laid_out_as_upstream_does() -> None:
    image = written(base().data(), options=SMALL)
    (blob,), (entry,) = image.blobs, image.bootstrap.blobs
    assert entry.features == 0x70000021
    toc = read_toc(Bytes(blob), entry.toc_digest)
    assert list(toc) == [IMAGE_BLOB, "blob.meta", "blob.meta.header", BLOB_DIGEST]
    known = [read_toc_entry(Bytes(blob), toc[name]) for name in toc if name != IMAGE_BLOB]
    meta = read_blob_meta(Bytes(blob), entry)
    assert len(known[-1]) == 32 * len(meta.chunks) == 32 * entry.chunk_count
    layout = lay_out_v6(image.bootstrap, {0: meta}, {0: bytes(known[-1])})
    assert filled(layout, image.bootstrap, {0: blob}) == image.devices()


def test_bytes_are_those_that_upstream_writes() -> None:
    image = written(Archive().file("a", b"x").data(), options=SMALL)
    (blob,) = image.blobs
    head = struct.unpack_from("<IIIBBHQqIIII", image.raw, 1024)
    assert head == (0xE0F5E1E2, 0, 0x40000000, 12, 0, 128, 2, 0, 0, 1, 2, 0)
    assert struct.unpack_from("<IHHH", image.raw, 1024 + 80) == (0xC, 0, 1, 11)
    assert struct.unpack_from("<QQIIQQQI", image.raw, 1152) == (
        *(0x194, 4096, 256, CHUNK),
        *(4 * 4096, 80, 0, 0),
    )
    id = image.bootstrap.blobs[0].id.encode()
    assert struct.unpack_from("<64sII", image.raw, 1408) == (id, 1, 512)
    assert struct.unpack_from("<64sIIIIIIQQ", image.raw, 4096) == (
        *(id, 0, CHUNK, 1, 3, 0, 0x70000021),
        *(len(blob), 4096),
    )
    # The root, beside it its entries; then the file's one chunk: of number 0, blob 1, block 0.
    root = struct.unpack_from("<HHHHQ", image.raw, 3 * 4096)
    assert root == (5, 0, 0o40755, 0, 3 * 12 + 4)
    assert image.raw[3 * 4096 + 128 + 64 :][:8] == bytes.fromhex("0000010000000000")
    assert tar_header(IMAGE_BLOB, 7802).rstrip(b"\0") == (
        b"image.blob".ljust(124, b"\0")
        + b"00000017172\0"
        + b"00000000000\0"
        + b"0005641\0"
        + b"0".ljust(101, b"\0")
        + b"ustar  "
    )


def test_places_of_chunks_are_as_blob_meta_has_them() -> None:
    for size, packed in ((1, 1), (1 << 20, (1 << 20) - 1), (1 << 24, 5 << 20)):
        chunk = Chunk(0, 7, b"", 1, 0xFF_FFFF_FFFF, packed, 0xFFF_FFFF_F000, size, 0)
        piece = Piece(7, b"", 0xFF_FFFF_FFFF, packed, 0xFFF_FFFF_F000, size)
        assert chunk_info(chunk) == info_v1(piece)
    assert len(made_header("a", 1)) == len(tar_header("a", 1)) == 512


def test_a_file_whose_chunks_follow_each_other_is_one_chunk_to_the_kernel() -> None:
    archive = Archive().file("run", noise(9 * CHUNK)).file("broken", noise(CHUNK) * 3)
    image = written(archive.data(), options=SMALL)
    formats = {}
    for name in ("run", "broken"):
        place = 2 * 4096 + at(image, name).number * 32
        (formats[name],) = struct.unpack_from("<I", image.raw, place + 16)
    assert formats == {"run": 0x20 | 4, "broken": 0x20}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_same_layers_make_the_same_bytes(version: int) -> None:
    options = RafsOptions(version, chunk_size=CHUNK)
    layers = base().data(), above().data()
    assert (
        written(*layers, options=options, threads=1)[:2]
        == (written(*layers, options=options, threads=5)[:2])
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_what_the_image_has_is_not_written_again(version: int) -> None:
    options = RafsOptions(version, chunk_size=CHUNK)
    first = Archive().file("a", BIG).file("b", BIG).data()
    second = Archive().file("c", BIG).data()
    image = written(first, second, second, options=options)
    assert [layer.blob is not None for layer in image.layers] == [True, False, False]
    assert len(image.blobs) == 1
    assert chunks(at(image, "a")) == chunks(at(image, "b")) == chunks(at(image, "c"))
    assert image.bootstrap.blobs[0].chunk_count == len(set(digests(options, BIG)))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_blob_that_no_file_needs_is_left_out(version: int) -> None:
    options = RafsOptions(version, chunk_size=CHUNK)
    layers = [Archive().file("a", text).data() for text in (b"one", b"two")]
    image = written(*layers, Archive().dir("d").data(), options=options)
    (entry,) = image.bootstrap.blobs
    assert image.layers[1].blob is not None
    assert entry.id == image.layers[1].blob.id


@pytest.mark.parametrize("version", VERSIONS)
def test_an_image_without_data_has_no_blob(version: int) -> None:
    options = RafsOptions(version, chunk_size=CHUNK)
    image = written(Archive().dir("d").file("d/empty", b"").data(), options=options)
    assert (image.bootstrap.blobs, image.blobs) == ((), [])
    if version == 6:
        assert struct.unpack_from("<I", image.raw, 1024 + 36) == (0,)
    assert names(at(image, "d")) == {b"empty"}


def test_inodes_of_version_5_are_above_their_directories() -> None:
    archive = Archive().dir("z").symlink("a", "x").link("z/again", "a").file("b", b"b")
    image = written(archive.link("z/b", "b").data(), options=RafsOptions(5, chunk_size=CHUNK))
    directory = at(image, "z")
    assert at(image, "z/again") is not at(image, "a")
    assert at(image, "z/again").number > directory.number > at(image, "z/b").number
    assert at(image, "z/again").target == b"x"


@pytest.mark.parametrize("version", VERSIONS)
def test_files_that_are_wanted_first_come_first_and_are_prefetched(version: int) -> None:
    options = RafsOptions(version, chunk_size=CHUNK)
    first = Archive().file("a", b"aa" * CHUNK).file("b", b"bb").file("c", b"cc").dir("d")
    second = Archive().file("b", b"new b").file("e", b"e")
    wanted = {0: [b"/c", b"b", b"d", b"none"], 1: [b"e"]}
    image = written(first.data(), second.data(), options=options, prioritized=wanted)
    assert image.layers[0].missing == (b"d", b"none")
    bootstrap = image.bootstrap
    assert [inode.number for inode in bootstrap.prefetch] == [
        bootstrap.root.children[name].number for name in (b"c", b"e")
    ]
    numbers = {name: chunks(at(image, name))[0].number for name in ("c", "a", "e")}
    assert numbers == {"c": 0, "a": 2, "e": 0}


NAMES = st.text("abc.\u00e9", min_size=1, max_size=3).filter(lambda n: n not in {".", ".."})
FILES = st.dictionaries(NAMES, st.sampled_from([b"", b"x", BIG, bytes(CHUNK), noise(CHUNK)]))


@settings(max_examples=40)
@given(st.lists(st.dictionaries(NAMES, FILES, max_size=3), min_size=1, max_size=3), st.booleans())
def test_any_layers_show_what_the_last_of_them_has(
    layers: list[dict[str, dict[str, bytes]]], old: bool
) -> None:
    expected: dict[bytes, bytes] = {}
    tars = []
    for layer in layers:
        archive = Archive()
        for directory, files in layer.items():
            archive.dir(directory)
            for name, data in files.items():
                archive.file(f"{directory}/{name}", data)
                expected[f"/{directory}/{name}".encode()] = data
        tars.append(archive.data())
    image = written(*tars, options=RafsOptions(5 if old else 6, chunk_size=CHUNK))
    bootstrap = image.bootstrap
    found = shown(bootstrap, content_of(bootstrap, image.blobs))
    shows = {path: row for path, row in found.items() if isinstance(row, tuple)}
    assert {path: row[6] for path, row in shows.items() if stat.S_ISREG(row[1])} == expected
    assert len(image.devices()) == len(image.blobs)


def test_options_out_of_range_and_damaged_layers_are_refused() -> None:
    for options in (RafsOptions(7), RafsOptions(chunk_size=5000), RafsOptions(chunk_size=1 << 25)):
        with pytest.raises(InvalidArgument):
            options.check()
    SMALL.check()
    with pytest.raises(FormatError):
        written(Archive().file("a", BIG).data()[:2000], options=SMALL)
