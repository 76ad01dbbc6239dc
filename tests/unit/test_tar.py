from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.errors import FormatError
from lamina.formats.stream import ChunkStream
from lamina.formats.tar import END_OF_ARCHIVE, Entry, TarReader, Type, header, padding
from lamina.formats.tar.layout import checksum

SECOND = 1_000_000_000
names = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name)


def read(*chunks: bytes) -> list[Entry]:
    reader = TarReader(ChunkStream(chunks))
    found = []
    while (entry := reader.next()) is not None:
        found.append(entry)
    return found


def one(format: int, **values: object) -> bytes:
    """Return an archive with one entry, as Python's tarfile writes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        info = tarfile.TarInfo("name")
        for key, value in values.items():
            setattr(info, key, value)
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    return out.getvalue()


@given(
    name=names,
    linkname=names | st.just(b""),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, (1 << 32) - 2),
    mtime=st.integers(-(1 << 40), 1 << 40),
    fraction=st.just(0) | st.integers(0, SECOND - 1),
    size=st.integers(0, 3000),
    xattrs=st.dictionaries(
        st.from_regex(rb"user\.[a-z]{1,20}", fullmatch=True), st.binary(max_size=400), max_size=3
    ),
)
def test_what_is_written_is_read(
    name: bytes,
    linkname: bytes,
    mode: int,
    uid: int,
    mtime: int,
    fraction: int,
    size: int,
    xattrs: dict[bytes, bytes],
) -> None:
    entry = Entry(
        name,
        Type.REGULAR,
        mode,
        uid,
        7,
        size,
        mtime * SECOND + fraction,
        None,
        linkname,
        xattrs=xattrs,
    )
    data = header(entry) + bytes(size + padding(size)) + END_OF_ARCHIVE
    (found,) = read(data)
    entry.real_size = size
    assert found == entry


def test_python_reads_what_is_written() -> None:
    entry = Entry(
        b"d/" + b"x" * 200, Type.SYMLINK, 0o777, 1, 2, 0, 5 * SECOND, None, b"\xc3\xa9" * 90
    )
    device = Entry(b"dev", Type.CHAR, 0o600, devmajor=5, devminor=1)
    data = header(entry) + header(device) + END_OF_ARCHIVE
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        link, char = archive.getmembers()
    assert (link.name, link.linkname) == ("d/" + "x" * 200, "\u00e9" * 90)
    assert (link.uid, link.gid, link.mtime, link.mode) == (1, 2, 5, 0o777)
    assert (char.type, char.devmajor, char.devminor) == (tarfile.CHRTYPE, 5, 1)


@pytest.mark.parametrize("pieces", [(), ((0, 5),), ((4096, 3), (1 << 40, 2))])
def test_sparse_files_are_read_as_they_were_written(pieces: tuple[tuple[int, int], ...]) -> None:
    size = sum(length for _, length in pieces)
    entry = Entry(b"holes", size=size, sparse=pieces, real_size=1 << 41)
    data = header(entry) + bytes(size + padding(size)) + END_OF_ARCHIVE
    (found,) = read(data)
    assert tuple(piece for piece in found.sparse or () if piece[1]) == pieces
    assert (found.size, found.real_size) == (size, 1 << 41)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        [member] = archive.getmembers()
    assert (member.issparse(), member.size) == (True, 1 << 41)


def test_a_header_is_byte_for_byte_what_ustar_says() -> None:
    block = header(Entry(b"etc/.wh.x", Type.REGULAR, 0))
    assert len(block) == 512
    assert block[:10] == b"etc/.wh.x\0"
    assert block[100:136] == b"0000000\0" * 3 + b"00000000000\0"
    assert block[148:157] == b"%06o\0 0" % checksum(block)
    assert block[257:265] == b"ustar\x0000"
    assert not any(block[265:329])
    assert block[329:345] == b"0000000\0" * 2


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_large_numbers(format: int) -> None:
    values = {"uid": 3_000_000_000, "gid": 0o10000000, "mtime": 1 << 34}
    (entry,) = read(one(format, **values))
    assert (entry.uid, entry.gid, entry.mtime) == (3_000_000_000, 0o10000000, (1 << 34) * SECOND)


def test_negative_time_in_base_256() -> None:
    (entry,) = read(one(tarfile.GNU_FORMAT, mtime=-7))
    assert entry.mtime == -7 * SECOND


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [("1.5", 1_500_000_000), ("1.0000000019", 1_000_000_001), ("-1.5", -1_500_000_000), ("0", 0)],
)
def test_times_in_pax_headers(text: str, nanoseconds: int) -> None:
    (entry,) = read(one(tarfile.PAX_FORMAT, pax_headers={"mtime": text}))
    assert entry.mtime == nanoseconds


def test_a_global_header_is_passed_over() -> None:
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"path": "other", "uid": "9"}
    ) as archive:
        archive.addfile(tarfile.TarInfo("name"))
    (entry,) = read(out.getvalue())
    assert (entry.name, entry.uid) == (b"name", 0)


def test_a_prefix_under_the_gnu_magic() -> None:
    """Go before 1.8 wrote such headers."""
    block = bytearray(header(Entry(b"name")))
    block[257:265] = b"ustar  \0"
    block[345:355] = b"some/where"
    (entry,) = read(sealed(block))
    assert entry.name == b"some/where/name"


def test_access_time_under_the_gnu_magic() -> None:
    block = bytearray(header(Entry(b"name")))
    block[257:265] = b"ustar  \0"
    block[345:357] = b"00000000144\0"
    (entry,) = read(sealed(block))
    assert (entry.name, entry.atime) == (b"name", 100 * SECOND)


def test_signed_checksum() -> None:
    block = bytearray(header(Entry(b"caf\x00")))
    block[:4] = b"caf\xe9"
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:]) + 256
    block[148:156] = b"%06o\0 " % signed
    (entry,) = read(bytes(block))
    assert entry.name == b"caf\xe9"


def sealed(block: bytearray) -> bytes:
    block[148:156] = b"%06o\0 " % checksum(bytes(block))
    return bytes(block)


def test_the_end_is_two_zero_blocks_or_the_end() -> None:
    block = header(Entry(b"name"))
    assert len(read(block)) == len(read(block + bytes(512))) == len(read(block + bytes(5000))) == 1
    assert read() == read(END_OF_ARCHIVE) == []
    with pytest.raises(FormatError, match="two zero blocks"):
        read(block + bytes(512) + block)


def test_a_directory_in_a_v7_archive_has_a_slash() -> None:
    block = bytearray(header(Entry(b"name/", Type.REGULAR_V7)))
    block[257:265] = bytes(8)
    (entry,) = read(sealed(block))
    assert entry.type == Type.DIRECTORY


@pytest.mark.parametrize(
    ("start", "field", "expected"),
    [
        (124, b"-0000000001\0", "octal"),
        (124, b"00000000009\0", "octal"),
        (124, b"\xff" * 12, "a size"),
        (124, b"\x80" + b"\xff" * 11, "octal or base-256"),
        (108, b"0x1\0\0\0\0\0", "octal"),
        (148, b"000000\0 ", "checksum"),
    ],
)
def test_numbers_that_are_none(start: int, field: bytes, expected: str) -> None:
    block = bytearray(header(Entry(b"name")))
    block[start : start + len(field)] = field
    if start != 148:
        sealed(block)
    with pytest.raises(FormatError, match=expected):
        read(bytes(block))


@pytest.mark.parametrize(
    "records",
    [
        b"5",
        b"99 a=b\n",
        b"6 a=b ",
        b"7 path=\n",
        b"11 path=a\0b\n",
        b"-6 a=b\n",
        b"4 =\n",
        b"6 abc\n",
    ],
)
def test_damaged_pax_records(records: bytes) -> None:
    block = header(Entry(b"x", Type.PAX, size=len(records)))
    data = block + records + bytes(padding(len(records))) + header(Entry(b"name"))
    with pytest.raises(FormatError, match="pax header"):
        read(data)


def test_special_headers_are_bounded() -> None:
    for kind in (Type.PAX, Type.GNU_LONG_NAME, Type.GNU_LONG_LINK):
        with pytest.raises(FormatError, match="1 MiB"):
            read(header(Entry(b"x", kind, size=(1 << 20) + 1)), bytes(1 << 21))


@pytest.mark.parametrize(
    "map",
    ["0,10,5,10", "0,10,100,10", "10,5,0,5", "0,11", "0", "a,b", "0,-1,5,11", "0,5"],
)
def test_sparse_maps_that_lie(map: str) -> None:
    records = {"GNU.sparse.map": map, "GNU.sparse.size": "100", "GNU.sparse.name": "n"}
    with pytest.raises(FormatError):
        read(one(tarfile.PAX_FORMAT, size=10, pax_headers=records))


def test_sparse_map_that_is_right() -> None:
    records = {"GNU.sparse.map": "0,5,50,5", "GNU.sparse.size": "100", "GNU.sparse.name": "n"}
    (entry,) = read(one(tarfile.PAX_FORMAT, size=10, pax_headers=records))
    assert entry.name == b"n"
    assert (entry.sparse, entry.size, entry.real_size) == (((0, 5), (50, 5)), 10, 100)


@given(st.lists(st.binary(max_size=40)), st.lists(st.integers(0, 50)))
def test_stream_gives_every_byte_once(chunks: list[bytes], lengths: list[int]) -> None:
    stream = ChunkStream(chunks)
    whole = b"".join(chunks)
    position = 0
    for number, length in enumerate(lengths):
        if number % 3 == 0:
            part = stream.read(length)
        elif number % 3 == 1:
            part = bytes(stream.take(length)) if length else b""
        else:
            part = whole[position : position + length]
            assert stream.skip(length) == length - len(part)
        assert part == whole[position : position + len(part)]
        position += len(part)
        assert stream.offset == position
    stream.drain()
    assert stream.offset == len(whole)
