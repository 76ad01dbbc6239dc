"""Bootstraps of both versions, read."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from lamina.errors import DigestMismatch, FormatError, InvalidArgument
from lamina.formats.rafs.bootstrap import read_bootstrap, version_of
from lamina.formats.rafs.flags import BlobFeatures, Compressor, Digester
from lamina.formats.rafs.model import Bootstrap, Inode
from lamina.formats.rafs.units import lay_out_v6
from tests.erofs import Bytes
from tests.erofs_reading import small, written
from tests.rafs import CHUNK, Made, content_of, described, directory, regular, sample, shown
from tests.rafs_blobs import BLAKE3, GZIP, LZ4, NONE, SHA256, ZSTD
from tests.rafs_v5 import make_v5
from tests.rafs_v6 import make_v6

Make = Callable[..., tuple[bytes, bytes]]

COMPRESSORS = [NONE, LZ4, GZIP, ZSTD]


def read(bootstrap: bytes, *, verify: bool = True) -> Bootstrap:
    return read_bootstrap(Bytes(bootstrap), verify=verify)


@pytest.mark.parametrize("digester", [BLAKE3, SHA256])
@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_version_5(compressor: int, digester: int) -> None:
    root = sample()
    raw, blob = make_v5(root, compressor=compressor, digester=digester)
    found = read(raw)
    assert (found.version, found.chunk_size, found.digester) == (5, CHUNK, digester)
    assert [(each.compressor, each.compressed_size) for each in found.blobs] == [
        (compressor, len(blob))
    ]
    assert shown(found, content_of(found, [blob])) == described(root)


@pytest.mark.parametrize("digester", [BLAKE3, SHA256])
@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_version_6(compressor: int, digester: int) -> None:
    root = sample()
    raw, blob = make_v6(root, compressor=compressor, digester=digester)
    found = read(raw)
    assert (found.version, found.chunk_size, found.block) == (6, CHUNK, 4096)
    (entry,) = found.blobs
    assert (entry.compressor, entry.digester) == (Compressor(compressor), Digester(digester))
    assert entry.features & BlobFeatures.ALIGNED
    assert shown(found, content_of(found, [blob])) == described(root)


@pytest.mark.parametrize("make", [make_v5, make_v6])
def test_without_explicit_owners_all_is_roots(make: Make) -> None:
    root = sample()
    raw, blob = make(root, flags=0)
    found = read(raw)
    assert shown(found, content_of(found, [blob])) == described(root, owned=False)


@pytest.mark.parametrize("make", [make_v5, make_v6])
def test_prefetch_is_in_the_tables_order(make: Make) -> None:
    root = sample()
    files = root.children[b"files"]
    wanted = [files.children[b"large"], files]
    raw, _blob = make(root, prefetch=wanted)
    found = read(raw)
    files_found = found.root.children[b"files"]
    assert found.prefetch == [files_found.children[b"large"], files_found]


def test_an_old_version_5_has_no_extended_blob_table() -> None:
    root = sample()
    raw, blob = make_v5(root, extended=False)
    found = read(raw)
    assert [each.chunk_count for each in found.blobs] == [-1]
    assert shown(found, content_of(found, [blob])) == described(root)


def test_a_version_6_without_chunk_table_knows_places_on_devices() -> None:
    raw, _blob = make_v6(directory({b"f": regular(b"x" * 5000)}), chunk_table=False)
    found = read(raw)
    first, second = found.root.children[b"f"].chunks
    assert (first.offset, first.chunk.uncompressed_offset, first.chunk.uncompressed_size) == (
        0,
        0,
        CHUNK,
    )
    assert (second.offset, second.chunk.uncompressed_offset) == (CHUNK, CHUNK)
    assert (second.chunk.uncompressed_size, second.chunk.digest) == (904, b"")


def test_a_tar_is_its_device() -> None:
    root = sample()
    raw, tar = make_v6(root, tar=True)
    found = read(raw)
    assert found.block == 512

    def content(inode: Inode) -> bytes:
        pieces = [
            tar[chunk.compressed_offset :][: chunk.uncompressed_size]
            for _offset, chunk in inode.chunks
        ]
        return b"".join(pieces)

    assert shown(found, content) == described(root)
    with pytest.raises(InvalidArgument, match="it is a tar"):
        lay_out_v6(found, {})


def test_a_changed_digest_is_found() -> None:
    root = sample()
    raw, _blob = make_v5(root)
    target = raw.index(b"../files/large")
    damaged = raw[:target] + b"../files/Large" + raw[target + 14 :]
    with pytest.raises(DigestMismatch, match=r"digest of inode .* \(symlink\)"):
        read(damaged)
    assert read(damaged, verify=False).version == 5


def test_versions_are_told_apart() -> None:
    assert version_of(Bytes(make_v5(directory({}))[0])) == 5
    assert version_of(Bytes(make_v6(directory({}))[0])) == 6
    plain = written(*small())
    with pytest.raises(FormatError, match="an EROFS image that is none"):
        version_of(Bytes(plain))
    for other in (b"", b"RAFS", bytes(2000)):
        with pytest.raises(FormatError, match="a RAFS bootstrap of version 5 or 6"):
            version_of(Bytes(other))


def changed(raw: bytes, at: int, format: str, value: object) -> bytes:
    copy = bytearray(raw)
    struct.pack_into(format, copy, at, value)
    return bytes(copy)


@pytest.mark.parametrize(
    ("at", "format", "value", "expected"),
    [
        (4, "<I", 0x600, "version 0x500, got 0x600"),
        (8, "<I", 128, "a superblock of 8192 bytes"),
        (12, "<I", 5000, "a power of two"),
        (12, "<I", 1 << 25, "a power of two"),
        (16, "<Q", 0x4000, "known flags"),
        (16, "<Q", 0x3, "one compressor"),
        (16, "<Q", 0xC, "one digest algorithm"),
        (16, "<Q", 0x0200_0000, "not encrypted"),
        (32, "<Q", 1 << 60, "inode table of"),
        (48, "<Q", 1 << 60, "blob table of"),
        (68, "<I", 2, "1 extended entries"),
        (72, "<Q", 1 << 60, "extended blob table of"),
    ],
)
def test_a_version_5_superblock_is_checked(at: int, format: str, value: int, expected: str) -> None:
    raw, _blob = make_v5(sample())
    with pytest.raises(FormatError, match=expected):
        read(changed(raw, at, format, value))


@pytest.mark.parametrize(
    ("at", "format", "value", "expected"),
    [
        (1024 + 12, "<B", 9, "TARTFS_MODE only"),
        (1024 + 13, "<B", 1, "no slots after the superblock"),
        (1024 + 44, "<I", 1, "no shared xattrs"),
        (1024 + 80, "<I", 4, "features 0x4"),
        (1024 + 88, "<H", 10, "slot 11"),
        (1152, "<Q", 0x1, "one digest algorithm"),
        (1152, "<Q", 0x4, "one compressor"),
        (1152, "<Q", 0x0200_0085, "not encrypted"),
        (1152 + 8, "<Q", 1 << 60, "blob table of"),
        (1152 + 16, "<I", 100, "a blob table of at most"),
        (1152 + 20, "<I", 100, "a power of two"),
        (1152 + 24, "<Q", 1 << 60, "chunk table of"),
        (1152 + 32, "<Q", 79, "a table of chunks"),
        (1408, "<B", 0x61 ^ 0xFF, "the device of blob"),
        (4096 + 64, "<I", 1, "blob 0 with chunks"),
        (4096 + 84, "<I", 0x100 | 1, "not encrypted"),
        (4096 + 84, "<I", 0x40 | 1, "either ALIGNED or TARFS"),
        (4096 + 84, "<I", 0x80 | 1, "CHUNK_INFO_V2 with BATCH"),
        (4096 + 84, "<I", 0x8000_0001, "known features"),
        (4096 + 96, "<Q", 4096, "a chunk within"),
        (4096 + 108, "<I", 9, "a known compressor"),
        (4096 + 216, "<I", 1, "cipher 1"),
    ],
)
def test_a_version_6_superblock_and_blob_table_are_checked(
    at: int, format: str, value: int, expected: str
) -> None:
    raw, _blob = make_v6(sample())
    with pytest.raises(FormatError, match=expected):
        read(changed(raw, at, format, value))


def test_names_lead_nowhere_else() -> None:
    for name in (b"..", b".", b"a/b", b"/", b"", b"n" * 256):
        root = Made(0o40755, children={name: regular(b"")})
        with pytest.raises(FormatError):
            read(make_v5(root)[0])
