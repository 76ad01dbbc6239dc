from __future__ import annotations

import io
from pathlib import Path

import pytest

from lamina.errors import FormatError, InvalidArgument, LaminaError, ResourceExhausted
from lamina.formats.erofs import tar
from lamina.formats.erofs.data import data_runs, sparse_unit
from lamina.formats.erofs.tar import TarImage, image_from_tar
from lamina.formats.erofs.tree import BLOCK
from lamina.formats.stream import ChunkStream
from tests.archives import Archive, in_chunks

MIB = 1 << 20


def image(
    archive: Archive | bytes,
    *,
    max_entries: int = 1000,
    max_bytes: int = 1 << 30,
    chunk: int = 1000,
) -> tuple[TarImage, bytes]:
    data = archive if isinstance(archive, bytes) else archive.data()
    out = io.BytesIO()
    stream = ChunkStream(in_chunks(data, chunk))
    made = image_from_tar(stream, out, max_entries=max_entries, max_bytes=max_bytes)
    assert len(out.getvalue()) == made.blocks * BLOCK
    return made, out.getvalue()


def mixed() -> Archive:
    return (
        Archive(owner=(1, 2))
        .dir("d")
        .file("d/small", b"small")
        .file("d/large", b"l" * 10_000)
        .file("d/empty")
        .link("d/hard", "d/large")
        .symlink("s", "d/large")
        .file("d/.wh.gone")
    )


def test_what_is_made() -> None:
    made, data = image(mixed())
    assert made == TarImage(inodes=7, blocks=6, entries=7, warnings=())
    assert data[BLOCK : BLOCK + 6] == b"small\0"
    assert data[2 * BLOCK : 2 * BLOCK + 10_001] == b"l" * 10_000 + b"\0"


def test_equal_archives_make_equal_bytes() -> None:
    data = mixed().data()
    assert len({image(data, chunk=chunk)[1] for chunk in (1, 511, 10_000, 10**6)}) == 1


def test_data_is_written_as_it_arrives() -> None:
    """What the stream has given is on its way out before more is asked for."""
    size = 64 * MIB
    archive = Archive().file("f", bytes(1000)).data()[:512].replace(b"00000001750", b"00400000000")
    total = sum(archive[:148]) + sum(archive[156:]) + 8 * 32
    header = archive[:148] + b"%06o\0 " % total + archive[156:]
    positions = []
    out = io.BytesIO()

    def chunks() -> object:
        yield header
        for _ in range(64):
            positions.append(out.tell())
            yield bytes(MIB)
        yield bytes(1024)

    made = image_from_tar(
        ChunkStream(chunks()),  # type: ignore[arg-type]
        out,
        max_entries=1,
        max_bytes=size,
    )
    assert positions == [BLOCK + n * MIB for n in range(64)]
    assert made.blocks == 1 + size // BLOCK + 1


def test_an_empty_archive() -> None:
    made, _ = image(Archive())
    assert made == TarImage(1, 2, 0, ())


def test_the_stream_is_left_at_the_end_of_the_archive() -> None:
    stream = ChunkStream([Archive().file("f").data()[:1536], b"after"])
    image_from_tar(stream, io.BytesIO(), max_entries=1, max_bytes=0)
    assert stream.read(10) == b"after"


def test_limits() -> None:
    archive = Archive().file("a", bytes(5000)).file("b").data()
    for entries, size in ((1, 5000), (2, 4999)):
        with pytest.raises(ResourceExhausted, match="unpack layer"):
            image(archive, max_entries=entries, max_bytes=size)
    assert image(archive, max_entries=2, max_bytes=5000)[0].inodes == 3


def test_implied_directories_count_against_the_limit() -> None:
    archive = Archive().file("a/b/c/d").data()
    with pytest.raises(ResourceExhausted, match="unpack layer"):
        image(archive, max_entries=3)
    assert image(archive, max_entries=4)[0].inodes == 5


def sparse(pieces: str, size: int, data: bytes) -> bytes:
    headers = {"GNU.sparse.map": pieces, "GNU.sparse.size": str(size)}
    return Archive().file("f", data, pax_headers=headers).data()


def test_holes_count_against_the_limit() -> None:
    with pytest.raises(ResourceExhausted, match="unpack layer"):
        image(sparse("0,5", 1 << 40, b"12345"))


def test_a_huge_sparse_file_makes_no_huge_image(tmp_path: Path) -> None:
    """Little metadata, and data that takes no more room than it has."""
    archive = sparse(f"0,5,{1 << 39},5,{(1 << 40) - 5},5", 1 << 40, b"12345" * 3)
    with open(tmp_path / "image", "wb") as out:
        made = image_from_tar(ChunkStream([archive]), out, max_entries=1, max_bytes=1 << 40)
        metadata = (1 << 16) * 8 // BLOCK + 1
        assert made.blocks == 1 + 3 * (16 << 20) // BLOCK + metadata
    status = (tmp_path / "image").stat()
    assert status.st_size == made.blocks * BLOCK
    assert status.st_blocks * 512 < 1 << 20


def test_attributes_count_against_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "_MAX_KEPT", 1000)
    archive = Archive().symlink("l", "t" * 500)
    archive.file("f", pax_headers={"SCHILY.xattr.user.a": "x" * 500})
    with pytest.raises(ResourceExhausted, match="attributes and links"):
        image(archive)


@pytest.mark.parametrize(
    ("size", "unit"), [(0, 4096), (1 << 28, 4096), ((1 << 28) + 1, 8192), (1 << 40, 16 << 20)]
)
def test_units_of_sparse_files(size: int, unit: int) -> None:
    assert sparse_unit(size) == unit


@pytest.mark.parametrize(
    ("pieces", "runs"),
    [
        ((), []),
        (((0, 0),), []),
        (((5, 10),), [[(5, 10)]]),
        (((0, 10), (4095, 10), (8200, 1)), [[(0, 10), (4095, 10), (8200, 1)]]),
        (((0, 10), (8192, 10)), [[(0, 10)], [(8192, 10)]]),
        (((0, 10), (4096, 4096), (8192, 1), (16_384, 1)), [
            [(0, 10), (4096, 4096), (8192, 1)], [(16_384, 1)]
        ]),
    ],
)  # fmt: skip
def test_pieces_whose_blocks_touch(
    pieces: tuple[tuple[int, int], ...], runs: list[list[tuple[int, int]]]
) -> None:
    assert data_runs(pieces, BLOCK) == runs


@pytest.mark.parametrize(
    ("archive", "text"),
    [
        (Archive().link("x", "missing"), "a link to something that exists"),
        (Archive().dir("d").link("x", "d"), "no directory"),
        (Archive().link("x", ".."), "no directory"),
        (Archive().file("f").link("f", "f"), "a link to something that exists"),
        (Archive().file("f").file("f/x"), "a path through directories"),
        (Archive().file(".wh.f").file("f/x"), "a path through directories"),
        (Archive().symlink("a", "b").symlink("b", "a").file("a/x"), "few links"),
        (Archive().file("x" * 256), "255 bytes"),
        (Archive().file("x" * 256 + "/x"), "255 bytes"),
        (Archive().file("/".join(["x" * 200] * 30)), "4095 bytes"),
        (Archive().symlink("l", "x" * 4096), "a target of 1 to 4095 bytes"),
        (Archive().entry("l", b"2", linkname=""), "a target of 1 to 4095 bytes"),
        (Archive().entry("x", b"7"), "type"),
        (Archive().file("x", uid=-1), "32 bits"),
        (Archive().file("x", gid=(1 << 32) - 1), "32 bits"),
        (Archive().entry("n", b"3", devmajor=4096), "device numbers"),
        (Archive().entry("n", b"4", devminor=1 << 20), "device numbers"),
        (Archive().file("f").file(".wh.f"), "a whiteout of a lower layer's file"),
        (Archive().file(".wh."), "a whiteout of a name"),
        (Archive().file("d/.wh..."), "a whiteout of a name"),
        (
            Archive().file("f", pax_headers={"SCHILY.xattr.user.a": "x" * 65_536}),
            "less than 64 KiB",
        ),
    ],
)
def test_archives_that_ask_for_what_cannot_be(archive: Archive, text: str) -> None:
    with pytest.raises(FormatError, match=text):
        image(archive)


def test_more_attributes_than_an_image_can_hold() -> None:
    headers = {f"SCHILY.xattr.user.{n}": "x" * 65_000 for n in range(5)}
    with pytest.raises(InvalidArgument, match="/d/f"):
        image(Archive().file("d/f", pax_headers=headers))


def test_links_are_followed_as_often_as_linux_does() -> None:
    archive = Archive()
    for number in range(40):
        archive.symlink(f"l{number}", f"l{number + 1}" if number < 39 else "d")
    data = archive.file("l0/x").data()
    assert image(data)[0].inodes == 43
    longer = Archive().symlink("m", "l0")
    for number in range(40):
        longer.symlink(f"l{number}", f"l{number + 1}" if number < 39 else "d")
    with pytest.raises(FormatError, match="few links"):
        image(longer.file("m/x"))


def test_cut_off_at_every_byte() -> None:
    data = Archive().file("a", b"x" * 700).dir("d").symlink("l", "t").data()
    end = 512 + 1024 + 512 + 512
    for length in range(1, end):
        if length % 512 or length == 1024:
            with pytest.raises(FormatError):
                image(data[:length])


def test_damage_anywhere_is_one_of_our_errors() -> None:
    data = mixed().data()
    for position in range(0, 4096, 7):
        damaged = bytearray(data)
        damaged[position] ^= 0x41
        try:
            image(bytes(damaged))
        except LaminaError:
            continue
