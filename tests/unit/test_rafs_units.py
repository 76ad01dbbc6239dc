"""What fills the devices of an EROFS mount of a RAFS bootstrap."""

from __future__ import annotations

import io
from typing import Any

import pytest

from lamina.errors import FormatError, InvalidArgument
from lamina.formats.erofs.reader import Image
from lamina.formats.erofs.tree import BLOCK, HOLE
from lamina.formats.erofs.writer import Device, write_image
from lamina.formats.rafs.bootstrap import read_bootstrap
from lamina.formats.rafs.flags import ChunkFlags
from lamina.formats.rafs.model import FileChunk
from lamina.formats.rafs.toc import read_toc, read_toc_entry
from lamina.formats.rafs.tree import steers_overlay, to_tree
from lamina.formats.rafs.units import lay_out_v5, lay_out_v6
from tests.erofs import Bytes
from tests.rafs import CHUNK, described, directory, noise, regular, sample
from tests.rafs_blobs import BLAKE3, GZIP, LZ4, NONE, SHA256, ZSTD
from tests.rafs_devices import filled, metas
from tests.rafs_v5 import make_v5
from tests.rafs_v6 import make_v6


def compare(image: Image, expected: dict[bytes, object]) -> None:
    """Compare an EROFS image with a tree, file by file."""
    names: dict[int, bytes] = {}
    for path, node in image.walk():
        key = path if path != b"/" else b""
        data = image.read(node, 0, node.size) if node.is_regular else b""
        target = image.target(node) if node.is_symlink else b""
        first = names.setdefault(node.nid, key)
        head = (first, node.mode, node.uid, node.gid, node.mtime, node.rdev, data, target)
        assert (*head, dict(image.xattrs(node))) == expected.pop(key)
    assert not expected


@pytest.mark.parametrize("digester", [BLAKE3, SHA256])
@pytest.mark.parametrize("compressor", [NONE, LZ4, GZIP, ZSTD])
def test_version_5_becomes_an_erofs_image(compressor: int, digester: int) -> None:
    root = sample()
    raw, blob = make_v5(root, compressor=compressor, digester=digester)
    bootstrap = read_bootstrap(Bytes(raw))
    layout = lay_out_v5(bootstrap)
    devices = filled(layout, bootstrap, {0: blob})
    out = io.BytesIO()
    table = [Device(device.size // BLOCK) for device in layout.devices]
    write_image(to_tree(bootstrap, layout), out, devices=table)
    image = Image(Bytes(out.getvalue()), [Bytes(device) for device in devices])
    # An image brings no attributes that steer an overlay.
    root.children[b"!before-dots"].children[b"b"].children[b"c"].xattrs = {}
    compare(image, described(root))


@pytest.mark.parametrize("options", [{}, {"version": 2}, {"batch": 8192}])
@pytest.mark.parametrize("compressor", [NONE, LZ4, GZIP, ZSTD])
def test_version_6_is_read_as_it_is(compressor: int, options: dict[str, int]) -> None:
    root = sample()
    raw, blob = make_v6(root, compressor=compressor, **options)  # type: ignore[arg-type]
    bootstrap = read_bootstrap(Bytes(raw))
    layout = lay_out_v6(bootstrap, metas(bootstrap, blob))
    devices = filled(layout, bootstrap, {0: blob})
    compare(Image(Bytes(raw), [Bytes(device) for device in devices]), described(root))


@pytest.mark.parametrize("compressor", [NONE, LZ4, GZIP, ZSTD])
def test_the_chunk_table_is_enough(compressor: int) -> None:
    raw, blob = make_v6(sample(), compressor=compressor)
    bootstrap = read_bootstrap(Bytes(raw))
    assert lay_out_v6(bootstrap) == lay_out_v6(bootstrap, metas(bootstrap, blob))


def test_chunks_of_the_table_lie_apart() -> None:
    raw, _blob = make_v6(directory({b"a": regular(noise(CHUNK)), b"b": regular(noise(100))}))
    bootstrap = read_bootstrap(Bytes(raw))
    file = bootstrap.root.children[b"b"]
    file.chunks = (FileChunk(0, file.chunks[0].chunk._replace(uncompressed_offset=8)),)
    with pytest.raises(FormatError, match="from byte 4096 of the device on"):
        lay_out_v6(bootstrap)


def test_a_batch_is_one_unit() -> None:
    files = {b"%d" % number: regular(b"text %d" % number * 100) for number in range(10)}
    raw, blob = make_v6(directory(files), compressor=ZSTD, batch=1 << 16)
    bootstrap = read_bootstrap(Bytes(raw))
    (device,) = lay_out_v6(bootstrap, metas(bootstrap, blob)).devices
    (unit,) = device.units
    assert len(unit.pieces) == 10
    assert unit.cache_length == 9 * BLOCK + unit.pieces[-1].length


def test_version_6_can_be_written_anew_without_what_steers_an_overlay() -> None:
    root = sample()
    raw, blob = make_v6(root, compressor=ZSTD)
    bootstrap = read_bootstrap(Bytes(raw))
    layout = lay_out_v6(bootstrap)
    out = io.BytesIO()
    table = [Device(device.size // BLOCK) for device in layout.devices]
    write_image(to_tree(bootstrap, layout), out, devices=table)
    root.children[b"!before-dots"].children[b"b"].children[b"c"].xattrs = {}
    devices = [Bytes(device) for device in filled(layout, bootstrap, {0: blob})]
    compare(Image(Bytes(out.getvalue()), devices), described(root))


def test_a_chunk_between_those_of_a_batch_parts_its_unit() -> None:
    files = {
        b"a": regular(b"a" * 100),
        b"b": regular(noise(CHUNK)),
        b"c": regular(b"c" * 100),
    }
    raw, blob = make_v6(directory(files), compressor=ZSTD, batch=CHUNK)
    bootstrap = read_bootstrap(Bytes(raw))
    meta = metas(bootstrap, blob)[0]
    # As builders do that keep a batch open over chunks that are too large for it.
    first, middle, last = meta.chunks
    size = sum(each.uncompressed_size for each in meta.batches)
    joined = meta._replace(
        chunks=[first, middle, first._replace(offset=last.offset, inner_offset=100)],
        batches=[meta.batches[0]._replace(uncompressed_size=size)],
    )
    (device,) = lay_out_v6(bootstrap, {0: joined}).devices
    assert [len(unit.pieces) for unit in device.units] == [1, 1, 1]
    assert device.units[0][:2] == device.units[2][:2]


def test_digests_from_the_blob() -> None:
    root = sample()
    raw, blob = make_v6(root, chunk_table=False, compressor=ZSTD)
    bootstrap = read_bootstrap(Bytes(raw))
    with pytest.raises(FormatError, match="a chunk with a digest"):
        lay_out_v6(bootstrap, metas(bootstrap, blob))
    toc = read_toc(Bytes(blob), bootstrap.blobs[0].toc_digest)
    digests = bytes(read_toc_entry(Bytes(blob), toc["blob.digest"]))
    layout = lay_out_v6(bootstrap, metas(bootstrap, blob), {0: digests})
    devices = filled(layout, bootstrap, {0: blob})
    compare(Image(Bytes(raw), [Bytes(device) for device in devices]), described(root))


def test_version_6_needs_blob_meta_that_agrees() -> None:
    for options in ({"batch": 8192}, {"chunk_table": False}):
        raw, blob = make_v6(sample(), **options)
        with pytest.raises(InvalidArgument, match=r"blob\.meta is not given"):
            lay_out_v6(read_bootstrap(Bytes(raw)))
    raw, blob = make_v6(sample())
    bootstrap = read_bootstrap(Bytes(raw))
    meta = metas(bootstrap, blob)[0]
    smaller = [meta.chunks[0]._replace(size=1), *meta.chunks[1:]]
    for chunks in (smaller, meta.chunks[1:]):
        with pytest.raises(FormatError, match=r"a chunk of blob\.meta"):
            lay_out_v6(bootstrap, {0: meta._replace(chunks=chunks)})


def test_holes() -> None:
    data = noise(CHUNK, b"1") + bytes(2 * CHUNK) + noise(CHUNK, b"2") + bytes(100)
    raw, _blob = make_v5(directory({b"f": regular(data)}))
    bootstrap = read_bootstrap(Bytes(raw))
    file = bootstrap.root.children[b"f"]
    first, hole, _zeros, last, _end = file.chunks
    flagged = hole.chunk._replace(flags=ChunkFlags.HOLE, uncompressed_offset=1 << 40)
    file.chunks = (first, FileChunk(CHUNK, flagged), last)
    extents = to_tree(bootstrap, lay_out_v5(bootstrap)).children[b"f"].extents
    assert [(extent.length, extent.device) for extent in extents] == [
        (CHUNK, 1),
        (CHUNK, HOLE),
        (CHUNK, HOLE),
        (CHUNK, 1),
        (100, HOLE),
    ]


def test_chunks_of_version_5_lie_inside_of_their_blob() -> None:
    raw, _blob = make_v5(directory({b"f": regular(noise(CHUNK))}))
    bootstrap = read_bootstrap(Bytes(raw))
    file = bootstrap.root.children[b"f"]
    chunk = file.chunks[0].chunk
    changes: list[dict[str, Any]] = [
        {"compressed_size": 0},
        {"compressed_offset": 1},
        {"compressed_size": CHUNK - 1},
        {"flags": ChunkFlags.BATCH},
    ]
    for change in changes:
        file.chunks = (FileChunk(0, chunk._replace(**change)),)
        with pytest.raises(FormatError, match="as chunk 0 of blob"):
            lay_out_v5(bootstrap)


def test_blobs_that_no_file_needs_have_no_device() -> None:
    raw, _blob = make_v5(directory({b"empty": regular(b"")}))
    bootstrap = read_bootstrap(Bytes(raw))
    assert len(bootstrap.blobs) == 1
    assert lay_out_v5(bootstrap).devices == []


def test_attributes_that_steer_an_overlay_are_seen() -> None:
    steered = read_bootstrap(Bytes(make_v6(sample())[0]))
    assert steers_overlay(steered)
    plain = sample()
    plain.children[b"!before-dots"].children[b"b"].children[b"c"].xattrs = {b"user.x": b""}
    assert not steers_overlay(read_bootstrap(Bytes(make_v6(plain)[0])))
