"""ZFiles and their tars as they are written: byte for byte where that is known, and read again."""

from __future__ import annotations

import io
import sys
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.core.source import RangeSource
from lamina.errors import FormatError, InvalidArgument, ResourceExhausted
from lamina.formats.tar import END_OF_ARCHIVE, Entry, header, padding
from lamina.formats.zfile.envelope import unwrap, wrapped
from lamina.formats.zfile.layout import Algorithm
from lamina.formats.zfile.reader import read_zfile
from lamina.formats.zfile.writer import ZFileOptions, ZFileWriter
from tests.erofs import Bytes
from tests.rafs import noise
from tests.zfile import ZSTD, lz4_blocks, make_zfile

if sys.version_info >= (3, 14):
    from compression.zstd import compress
else:
    from backports.zstd import compress

DATA = b"words " * 2000 + noise(9000)


def write(data: bytes, options: ZFileOptions, pieces: int = 1 << 20) -> bytes:
    out = io.BytesIO(b"before")
    out.seek(6)
    writer = ZFileWriter(out, options)
    for at in range(0, len(data), pieces):
        assert writer.write(data[at : at + pieces]) == len(data[at : at + pieces])
    size = writer.close()
    assert out.tell() == 6 + size
    return out.getvalue()[6:]


def contents(source: RangeSource) -> bytes:
    return source.read_at(0, source.size)


@pytest.mark.parametrize(("complete", "flags"), [(True, (0x1B, 0x16)), (False, (0x13, 0x16))])
@pytest.mark.parametrize("checksums", [True, False])
def test_is_as_made_by_hand(complete: bool, flags: tuple[int, int], checksums: bool) -> None:
    options = ZFileOptions(checksums=checksums, complete_header=complete)
    expected = make_zfile(lz4_blocks(DATA), len(DATA), flags=flags, crc=checksums)
    assert write(DATA, options) == expected


def test_frames_do_not_depend_on_those_before() -> None:
    pieces = [DATA[at : at + 4096] for at in range(0, len(DATA), 4096)]
    blocks = [compress(piece, level=3) for piece in pieces]
    expected = make_zfile(blocks, len(DATA), algorithm=ZSTD)
    assert write(DATA, ZFileOptions(Algorithm.ZSTD)) == expected


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(Algorithm),
    st.sampled_from([4096, 8192, 16384, 32768, 65536]),
    st.booleans(),
    st.lists(st.tuples(st.binary(max_size=40), st.integers(0, 3000)), max_size=4),
    st.integers(1, 50_000),
)
def test_reads_alike(
    algorithm: Algorithm,
    block_size: int,
    checksums: bool,
    runs: list[tuple[bytes, int]],
    pieces: int,
) -> None:
    data = b"".join(run * times for run, times in runs) + noise(len(runs))
    options = ZFileOptions(algorithm, block_size, checksums)
    raw = write(data, options, pieces)
    assert raw == write(data, options)
    found = read_zfile(Bytes(raw))
    assert (found.algorithm, found.block_size, found.has_crc) == (algorithm, block_size, checksums)
    assert contents(found) == data


@pytest.mark.parametrize("size", [0, 2048, 4097, 1 << 17])
def test_block_sizes_refused(size: int) -> None:
    with pytest.raises(InvalidArgument, match="power of two"):
        ZFileWriter(io.BytesIO(), ZFileOptions(block_size=size))


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("checksums", [True, False])
def test_blocks_that_overlaybd_would_not_read_are_refused(
    algorithm: Algorithm, checksums: bool
) -> None:
    """What cannot be compressed gets longer; 64 KiB of it do not fit overlaybd's buffer."""
    incompressible = noise(65536)
    options = ZFileOptions(algorithm, 65536, checksums)
    with pytest.raises(ResourceExhausted, match="smaller blocks"):
        write(incompressible, options)
    with pytest.raises(ResourceExhausted, match="smaller blocks"):
        write(b"a" + incompressible, options)
    half = ZFileOptions(algorithm, 32768, checksums)
    assert contents(read_zfile(Bytes(write(incompressible, half)))) == incompressible


def test_zstd_frames_that_go_on_are_refused() -> None:
    raw = write(bytes(8192), ZFileOptions(Algorithm.ZSTD, 8192, checksums=False))
    length = len(raw) - 512 - 512 - 4
    block = raw[512 : 512 + length]
    for frame in (block, block * 2, block + b"x", block[:-1]):
        size = 4096 if frame == block else 8192
        with pytest.raises(FormatError):
            contents(read_zfile(Bytes(make_zfile([frame], size, block_size=8192, algorithm=2))))


def in_tar(data: bytes) -> bytes:
    out = io.BytesIO()
    with wrapped(out):
        out.write(data)
    return out.getvalue()


@pytest.mark.parametrize("size", [0, 1, 512, 70_000])
def test_tar(size: int) -> None:
    tar = in_tar(noise(size))
    assert len(tar) == 1536 + size + -size % 512 + 1024
    assert contents(unwrap(Bytes(tar))) == noise(size)


def test_tar_headers_have_numbers_as_overlaybd_writes_them() -> None:
    """With spaces before them; the size is in the pax header only."""
    tar = in_tar(noise(70_000))
    assert tar[:13] + tar[124:157] == b"overlaybd.pax" + b"         16 " + bytes(12) + tar[148:157]
    assert tar[512:528] == b"14 size=70000\n\0\0"
    numbers = b"100644 \0     0 \0     0 \0          0           0 "
    assert tar[1024:1041] + tar[1124:1172] == b"overlaybd.commit\0" + numbers
    assert tar[1172:1181].endswith(b" \x000")


def test_tar_is_one_to_others() -> None:
    with tarfile.open(fileobj=io.BytesIO(in_tar(DATA))) as archive:
        (member,) = archive.getmembers()
        file = archive.extractfile(member)
        assert file is not None
        assert (member.name, file.read()) == ("overlaybd.commit", DATA)


def test_tar_with_a_plain_header() -> None:
    entry = Entry(b"overlaybd.commit", mode=0o444, size=len(DATA))
    tar = header(entry) + DATA + bytes(padding(len(DATA))) + END_OF_ARCHIVE
    assert contents(unwrap(Bytes(tar))) == DATA


def test_no_tar_is_left_as_it_is() -> None:
    for data in (b"", b"x" * 300, DATA, bytes(1536) + DATA):
        assert contents(unwrap(Bytes(data))) == data


def test_tar_cut_off() -> None:
    tar = in_tar(noise(700))
    for length in range(512, 1536 + 700):
        with pytest.raises(FormatError):
            unwrap(Bytes(tar[:length]))


def test_tar_that_is_not_finished_is_none() -> None:
    out = io.BytesIO()
    with pytest.raises(ZeroDivisionError), wrapped(out):
        out.write(DATA)
        raise ZeroDivisionError
    assert contents(unwrap(Bytes(out.getvalue()))) == bytes(1536) + DATA


@pytest.mark.parametrize(
    "tar",
    [
        header(Entry(b"d/", b"5")),
        header(Entry(b"f", size=3, xattrs={b"user.a": b"x" * 600})) + bytes(512),
        header(Entry(b"f", size=513)) + bytes(512),
    ],
)
def test_tars_refused(tar: bytes) -> None:
    with pytest.raises(FormatError):
        unwrap(Bytes(tar))
