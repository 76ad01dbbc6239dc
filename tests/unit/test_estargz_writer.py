"""Blobs that are written: what they say is what their tar said."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import resource
import stat
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.errors import FormatError, InvalidArgument, NotImplementedHere, ResourceExhausted
from lamina.formats.erofs.reader import Image
from lamina.formats.erofs.tar import image_from_tar
from lamina.formats.erofs.writer import write_image
from lamina.formats.estargz.footer import find_toc
from lamina.formats.estargz.writer import BlobFormat, BlobOptions, WrittenBlob, write_blob
from lamina.formats.estargz.writer.members import Spool
from lamina.formats.stream import ChunkStream
from lamina.formats.tar import END_OF_ARCHIVE, Entry, Type, header, padding
from tests.estargz_reading import Blob, BytesSource, describe, read_blob, walk

SECOND = 1_000_000_000
FORMATS = list(BlobFormat)


def tar_of(*members: tuple[Entry, bytes]) -> bytes:
    parts = [header(entry) + body + bytes(padding(len(body))) for entry, body in members]
    return b"".join([*parts, END_OF_ARCHIVE])


def file(name: str | bytes, body: bytes = b"", **more: object) -> tuple[Entry, bytes]:
    path = name.encode() if isinstance(name, str) else name
    return Entry(path, size=len(body), real_size=len(body), **more), body  # type: ignore[arg-type]


def node(name: str, type: bytes, **more: object) -> tuple[Entry, bytes]:
    return Entry(name.encode(), type, **more), b""  # type: ignore[arg-type]


def write(
    tar: bytes,
    directory: Path,
    options: BlobOptions | None = None,
    prioritized: Sequence[bytes] | None = None,
    threads: int = 2,
    step: int = 1 << 16,
) -> tuple[bytes, WrittenBlob]:
    out = bytearray()
    chunks = (tar[at : at + step] for at in range(0, len(tar), step))
    written = write_blob(
        chunks,
        out.extend,
        temporary=directory,
        options=options,
        prioritized=prioritized,
        threads=threads,
    )
    return bytes(out), written


def converted(
    tar: bytes,
    directory: Path,
    options: BlobOptions | None = None,
    prioritized: Sequence[bytes] | None = None,
) -> Blob:
    return read_blob(write(tar, directory, options, prioritized)[0])


def names(tar: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return archive.getnames()


@pytest.mark.parametrize("format", FORMATS)
def test_all_that_a_header_says(tmp_path: Path, format: BlobFormat) -> None:
    xattrs = {b"user.a": b"\xff\0", b"security.capability": b"1"}
    long = "d/" + "x" * 200
    tar = tar_of(
        node("./", Type.DIRECTORY, mode=0o711, mtime=7 * SECOND),
        node("d/", Type.DIRECTORY, mode=0o1777, uid=1, gid=2, mtime=1_500_000_000),
        file("d/f", b"data", xattrs=xattrs),
        file(long, b"y" * 600),
        file("empty", mode=0),
        node("s", Type.SYMLINK, linkname=b"../\xc3\xbc", mode=0o777),
        node(
            "h",
            Type.HARD_LINK,
            linkname=b"/d/f",
            mode=0o4755,
            uid=70000,
            gid=3_000_000,
            mtime=3 * SECOND,
        ),
        node("c", Type.CHAR, devmajor=5, devminor=700, mode=0o620),
        node("b", Type.BLOCK, devmajor=1, devminor=2),
        node("p", Type.FIFO, mode=0o600),
        file("old", b"o", mtime=-1_500_000_000),
        file("d/.wh.gone"),
        file("e/.wh..wh..opq"),
    )
    data, written = write(tar, tmp_path, BlobOptions(format=format))
    blob = read_blob(data)
    files = blob.files
    assert files[b""][:4] == (stat.S_IFDIR | 0o711, 0, 0, 7 * SECOND)
    assert files[b"d"][:4] == (stat.S_IFDIR | 0o1777, 1, 2, 1_500_000_000)
    regular = (stat.S_IFREG | 0o4755, 70000, 3_000_000, 3 * SECOND, 0, xattrs, b"data")
    assert files[b"d/f"] == files[b"h"] == regular
    assert blob.tree.root.children[b"d"].children[b"f"] is blob.tree.root.children[b"h"]
    assert files[long.encode()][-1] == b"y" * 600
    assert files[b"empty"] == (stat.S_IFREG, 0, 0, 0, 0, {}, b"")
    assert files[b"s"][-1] == "../ü".encode()
    assert files[b"c"][0::4] == (stat.S_IFCHR | 0o620, os.makedev(5, 700), b"")[:2]
    assert stat.S_ISBLK(files[b"b"][0])
    assert stat.S_ISFIFO(files[b"p"][0])
    assert files[b"d/gone"][0] == stat.S_IFCHR
    assert files[b"e"][5] == {b"trusted.overlay.opaque": b"y"}
    entries = {entry.name: entry for entry in blob.toc.entries}
    assert entries["old"].modtime is not None
    assert entries["old"].modtime.timestamp() == -1.5
    assert blob.tree.prefetch is None
    assert written.size == len(data)
    assert written.digest == "sha256:" + hashlib.sha256(data).hexdigest()
    assert written.diff_id == "sha256:" + hashlib.sha256(blob.tar).hexdigest()
    assert written.uncompressed_size == len(blob.tar)
    assert written.toc_digest == blob.toc.digest
    assert blob.tar.startswith(tar[: -len(END_OF_ARCHIVE)])


@pytest.mark.parametrize("format", FORMATS)
def test_chunks_and_the_bytes_that_they_lie_at(tmp_path: Path, format: BlobFormat) -> None:
    tar = tar_of(file("a", b"1" * 4096), file("b", b"2" * 10_000), file("c", b"333"))
    data, _ = write(tar, tmp_path, BlobOptions(format=format, chunk_size=4096))
    blob = read_blob(data)
    sizes = [(e.name, e.type, e.chunk_offset, e.chunk_size) for e in blob.toc.entries]
    assert sizes == [
        ("a", "reg", 0, 0),
        ("b", "reg", 0, 4096),
        ("b", "chunk", 4096, 4096),
        ("b", "chunk", 8192, 0),
        ("c", "reg", 0, 0),
    ]
    assert blob.toc.entries[1].digest == "sha256:" + hashlib.sha256(b"2" * 10_000).hexdigest()
    if format is BlobFormat.ESTARGZ:
        for entry in blob.toc.entries:
            starts = zlib.decompressobj(31).decompress(data[entry.offset :], 3)
            assert starts == blob.files[entry.name.encode()][-1][:3]
    assert len({entry.offset for entry in blob.toc.entries}) == 5


@pytest.mark.parametrize("format", FORMATS)
def test_small_chunks_share_streams_when_asked(tmp_path: Path, format: BlobFormat) -> None:
    tar = tar_of(*(file(f"f{n}", bytes([n]) * 1000) for n in range(40)), file("z", b"z" * 90_000))
    options = BlobOptions(format=format, chunk_size=8192, min_chunk_size=20_000)
    data, _ = write(tar, tmp_path, options, [b"f3"])
    blob = read_blob(data)
    assert blob.files[b"f7"][-1] == b"\x07" * 1000
    assert blob.files[b"z"][-1] == b"z" * 90_000
    f1 = next(e for e in blob.toc.entries if e.name == "f1")
    assert len({entry.offset for entry in blob.toc.entries}) < 10
    landmark = next(e for e in blob.toc.entries if e.name == ".prefetch.landmark")
    assert (landmark.inner_offset, blob.tree.prefetch) == (0, landmark.offset)
    # behind the landmark's block, the whole of f0 and a header
    assert (f1.offset, f1.inner_offset) == (landmark.offset, (1 + 3 + 1) * 512)
    single, _ = write(tar, tmp_path, BlobOptions(format=format, chunk_size=8192), [b"f3"])
    assert len(data) < len(single)


@pytest.mark.parametrize("format", FORMATS)
def test_no_chunk_shares_the_offset_of_empty_files(tmp_path: Path, format: BlobFormat) -> None:
    """A reader that looks for the neighbours of a chunk by their offset finds no empty ones."""
    tar = tar_of(file("a"), file("b", b"2"), file("c"), file("d", b"4" * 99))
    blob = converted(tar, tmp_path, BlobOptions(format=format, min_chunk_size=1 << 20))
    empty, first, between, second = blob.toc.entries
    assert empty.offset == between.offset == 0
    assert 0 < first.offset == second.offset
    assert (first.inner_offset, second.inner_offset) == (0, 3 * 512)
    assert blob.files[b"d"][-1] == b"4" * 99


@pytest.mark.parametrize("format", FORMATS)
def test_prioritized_files_come_first_behind_what_they_need(
    tmp_path: Path, format: BlobFormat
) -> None:
    tar = tar_of(
        file("first", b"1"),
        node("a", Type.DIRECTORY),
        node("a/b", Type.DIRECTORY),
        file("a/b/real", b"2"),
        node("other", Type.DIRECTORY),
        node("other/link", Type.HARD_LINK, linkname=b"a/b/real"),
        file("last", b"3" * 9000),
    )
    options = BlobOptions(format=format, chunk_size=8192, prioritized_chunk_size=4096)
    wanted = [b"/last", b"nowhere", b"other/link", b"last"]
    data, written = write(tar, tmp_path, options, wanted)
    blob = read_blob(data)
    assert names(blob.tar)[:8] == [
        "last", "a", "a/b", "a/b/real", "other", "other/link", ".prefetch.landmark", "first",
    ]  # fmt: skip
    assert [e.chunk_size for e in blob.toc.entries[:3]] == [4096, 4096, 0]
    assert (written.prioritized, written.missing) == (6, (b"nowhere",))
    landmark = next(e for e in blob.toc.entries if e.name == ".prefetch.landmark")
    assert blob.tree.prefetch == landmark.offset
    assert landmark.chunk_digest == "sha256:" + hashlib.sha256(b"\x0f").hexdigest()


def test_no_prefetch_landmark_where_nothing_is_wanted(tmp_path: Path) -> None:
    tar = tar_of(file("a", b"1"))
    for wanted in ([], [b"missing"]):
        blob = converted(tar, tmp_path, prioritized=wanted)
        assert blob.tree.prefetch == 0
        assert names(blob.tar)[0] == ".no.prefetch.landmark"


@pytest.mark.parametrize("format", FORMATS)
def test_converting_again_drops_landmarks_and_toc(tmp_path: Path, format: BlobFormat) -> None:
    tar = tar_of(file("a", b"1"), file("b", b"2" * 5000))
    once = converted(tar, tmp_path, prioritized=[b"b"])
    again = converted(once.tar, tmp_path, BlobOptions(format=format), [])
    assert [name for name in names(again.tar) if "landmark" in name] == [".no.prefetch.landmark"]
    assert names(again.tar).count("stargz.index.json") == (format is BlobFormat.ESTARGZ)
    assert again.files == once.files


def test_the_last_of_a_name_counts(tmp_path: Path) -> None:
    tar = tar_of(
        node("d", Type.DIRECTORY, mode=0o700),
        file("d/x", b"old"),
        node("h", Type.HARD_LINK, linkname=b"d/x"),
        node("i", Type.HARD_LINK, linkname=b"h"),
        node("gone", Type.DIRECTORY),
        file("gone/below", b"old"),
        file("./d//x", b"new"),
        node("d/", Type.DIRECTORY, mode=0o755),
        file("gone", b"file"),
    )
    blob = converted(tar, tmp_path)
    assert set(blob.files) == {b"", b"d", b"d/x", b"h", b"i", b"gone"}
    assert blob.files[b"d/x"][-1] == b"new"
    assert blob.files[b"h"][-1] == blob.files[b"i"][-1] == b"old"
    assert blob.tree.root.children[b"h"] is blob.tree.root.children[b"i"]
    assert blob.files[b"gone"][-1] == b"file"
    assert stat.S_IMODE(blob.files[b"d"][0]) == 0o755
    with tarfile.open(fileobj=io.BytesIO(blob.tar)) as archive:
        links = [(member.name, member.linkname) for member in archive if member.islnk()]
    assert links == [("i", "h")]


@pytest.mark.parametrize("format", FORMATS)
def test_sparse_files_become_plain(tmp_path: Path, format: BlobFormat) -> None:
    size = 50_000
    pieces = ((0, 10), (5000, 4000), (20_000, 1), (size - 5, 5))
    body = b"".join(bytes([65 + n]) * length for n, (_, length) in enumerate(pieces))
    expected = bytearray(size)
    for n, (start, length) in enumerate(pieces):
        expected[start : start + length] = bytes([65 + n]) * length
    sparse = Entry(b"s", size=len(body), sparse=pieces, real_size=size, mtime=SECOND)
    hole = Entry(b"hole", size=0, sparse=(), real_size=9000)
    tar = tar_of((sparse, body), (hole, b""), file("after", b"1"))
    blob = converted(tar, tmp_path, BlobOptions(format=format, chunk_size=4096))
    assert blob.files[b"s"][-1] == bytes(expected)
    assert blob.files[b"hole"][-1] == bytes(9000)
    assert blob.files[b"after"][-1] == b"1"
    with tarfile.open(fileobj=io.BytesIO(blob.tar)) as archive:
        member = archive.extractfile("s")
        assert member is not None
        assert member.read() == bytes(expected)


def test_old_tars_of_gnu_and_global_headers(tmp_path: Path) -> None:
    out = io.BytesIO()
    long = "n" * 150
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo(long)
        info.size, info.uname = 3, "owner"
        archive.addfile(info, io.BytesIO(b"abc"))
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.LNKTYPE, long
        archive.addfile(info)
    blob = converted(out.getvalue(), tmp_path)
    assert blob.files[long.encode()][-1] == blob.files[b"link"][-1] == b"abc"
    assert b"owner" in blob.tar
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "for all"}
    ) as archive:
        info = tarfile.TarInfo("ü" * 120)
        info.size = 2
        archive.addfile(info, io.BytesIO(b"xy"))
    blob = converted(out.getvalue(), tmp_path)
    assert blob.files["ü".encode() * 120][-1] == b"xy"
    assert b"for all" not in blob.tar


def test_a_long_run_of_headers_is_no_one_stream(tmp_path: Path) -> None:
    count = 5000
    tar = tar_of(file("a", b"1"), *(file(f"e{n}") for n in range(count)), file("b", b"2"))
    data, _ = write(tar, tmp_path)
    blob = read_blob(data)
    assert len(blob.files) == count + 3
    assert blob.files[b"b"][-1] == b"2"
    streams = 0
    while data:
        unpacker = zlib.decompressobj(31)
        assert len(unpacker.decompress(data)) <= (1 << 20) + 4096
        data, streams = unpacker.unused_data, streams + 1
    assert streams == 7


def test_an_empty_layer(tmp_path: Path) -> None:
    for format in FORMATS:
        data, written = write(END_OF_ARCHIVE, tmp_path, BlobOptions(format=format))
        assert find_toc(BytesSource(data)).offset == written.toc_offset > 0
        assert list(read_blob(data).files) == [b""]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("level", [None, 1, 9])
def test_the_same_bytes_with_any_number_of_threads(
    tmp_path: Path, format: BlobFormat, level: int | None
) -> None:
    rows = [file(f"f{n:03}", os.urandom(8) * (n * n)) for n in range(120)]
    tar = tar_of(*rows)
    options = BlobOptions(format=format, level=level, chunk_size=65536)
    blobs = {
        write(tar, tmp_path, options, [b"f050"], threads=threads, step=step)[0]
        for threads in (1, 2, 7)
        for step in (512, 100_003)
    }
    assert len(blobs) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (BlobOptions(level=10), "gzip level"),
        (BlobOptions(level=0), "gzip level"),
        (BlobOptions(format=BlobFormat.ZSTD_CHUNKED, level=23), "zstd level"),
        (BlobOptions(chunk_size=5000), "chunk size"),
        (BlobOptions(chunk_size=0), "chunk size"),
        (BlobOptions(prioritized_chunk_size=1), "chunk size"),
        (BlobOptions(min_chunk_size=-1), "min-chunk-size"),
    ],
)
def test_options_out_of_range(tmp_path: Path, options: BlobOptions, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        write(END_OF_ARCHIVE, tmp_path, options)


@pytest.mark.parametrize(
    ("entries", "size", "said"),
    [(1, 9, "it has more than 1 entries"), (9, 1, "its files have more than 1 bytes")],
)
def test_limits_of_a_layer(tmp_path: Path, entries: int, size: int, said: str) -> None:
    tar = tar_of(file("a", b"1"), file("b", b"2"))
    with pytest.raises(ResourceExhausted) as caught:
        out = bytearray().extend
        write_blob([tar], out, temporary=tmp_path, max_entries=entries, max_bytes=size)
    assert str(caught.value) == f"convert layer: resource exhausted; {said}"


def test_what_a_toc_cannot_say(tmp_path: Path) -> None:
    for tar in (
        tar_of(file(b"\xff", b"1")),
        tar_of((Entry(b"l", Type.SYMLINK, linkname=b"\xff"), b"")),
        tar_of(node("l", Type.SYMLINK, linkname=b"d"), file("l/f", b"1")),
    ):
        with pytest.raises(NotImplementedHere, match="in a TOC"):
            write(tar, tmp_path)


def test_links_to_no_file_of_the_layer(tmp_path: Path) -> None:
    link = Type.HARD_LINK
    for members in (
        [node("l", link, linkname=b"lower")],
        [node("d", Type.DIRECTORY), node("l", link, linkname=b"d")],
        [file("d/f"), node("l", link, linkname=b"d")],
        [file(".wh.gone"), node("l", link, linkname=b".wh.gone")],
        [node("l", link, linkname=b"l")],
        [node("l", link, linkname=b"k"), node("k", link, linkname=b"l")],
    ):
        with pytest.raises(NotImplementedHere, match="hard link to no file of the layer"):
            write(tar_of(*members), tmp_path)
    links = (node("l", link, linkname=b"k"), node("k", link, linkname=b"f"))
    blob = converted(tar_of(*links, file("f", b"1"), file(".wh.l2")), tmp_path)
    assert blob.files[b"l"] == blob.files[b"f"]


def test_what_readers_would_refuse_is_not_written(tmp_path: Path) -> None:
    long = "n" * 255
    deep = "/".join(["d" * 200] * 20)
    blob = converted(tar_of(file(long, b"1"), file(f"{long}x/../.wh.{long}"), file(deep)), tmp_path)
    assert {long.encode(), deep.encode()} < set(blob.files)
    for member, said in (
        (file(f"{long}x"), "names of at most 255"),
        (file(f"{long}x/f"), "names of at most 255"),
        (file(f".wh.{long}x"), "names of at most 255"),
        (file(f"{deep}/{long}"), "paths of at most 4095"),
        (file(".wh."), "a whiteout of a name"),
        (node("l", Type.SYMLINK), "a target of 1 to 4095"),
        (node("l", Type.SYMLINK, linkname=b"t" * 4096), "a target of 1 to 4095"),
        (file("f", xattrs={b"user." + b"x" * 251: b""}), "attributes of less than 64 KiB"),
        (file("f", xattrs={b"user.x": bytes(1 << 16)}), "attributes of less than 64 KiB"),
    ):
        with pytest.raises(FormatError, match=said):
            write(tar_of(member), tmp_path)
    many = {b"%d" % number: bytes(60_000) for number in range(14)}
    for member, said in (
        (node("./", Type.SYMLINK, linkname=b"x"), "a root that is no directory"),
        (file("f", xattrs={b"user." + n: many[n] for n in sorted(many)[:5]}), "so many bytes"),
        (file("f", xattrs={b"com.apple." + n: many[n] for n in many}), "so many bytes"),
    ):
        with pytest.raises(NotImplementedHere, match=said):
            write(tar_of(member), tmp_path)


def test_attributes_that_linux_would_not_set_are_left_out(tmp_path: Path) -> None:
    xattrs = {b"com.apple.provenance": b"1", b"system.x": b"2", b"user.a": b"3"}
    tar = tar_of(
        file("f", xattrs=xattrs),
        node("p", Type.FIFO, xattrs=xattrs | {b"security.capability": b"4"}),
    )
    blob = converted(tar, tmp_path)
    assert [entry.xattrs is None for entry in blob.toc.entries] == [False, False]
    assert blob.files[b"f"][5] == {b"user.a": b"3"}
    assert blob.files[b"p"][5] == {b"security.capability": b"4"}
    assert write_image(blob.tree.root, io.BytesIO()).inodes == 3


def test_links_have_the_mode_of_all(tmp_path: Path) -> None:
    tar = tar_of(node("l", Type.SYMLINK, linkname=b"t", mode=0o644))
    assert converted(tar, tmp_path).files[b"l"][0] == stat.S_IFLNK | 0o777


def test_what_is_no_layer(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="type"):
        write(tar_of((Entry(b"v", b"V"), b"")), tmp_path)
    with pytest.raises(FormatError):
        write(tar_of(file("a", b"1" * 2000))[:1500], tmp_path)
    with pytest.raises(FormatError, match="ids"):
        write(tar_of((Entry(b"a", uid=1 << 40), b"")), tmp_path)
    big = Entry(b"big", size=0, sparse=(), real_size=1 << 41)
    with pytest.raises(ResourceExhausted, match="bytes"):
        write(tar_of((big, b"")), tmp_path)


_NAMES = st.sampled_from([b"a", b"b", b"a/b", b"b/a", b"a/b/c", b"a/b/d", b"c", "ü".encode()])


@st.composite
def _members(draw: st.DrawFn) -> list[tuple[Entry, bytes]]:
    """Members as they may come: names again and again, links to what was there before."""
    made: list[tuple[Entry, bytes]] = []
    kinds: dict[bytes, bytes] = {}
    told: dict[bytes, tuple[int, int]] = {}
    for _ in range(draw(st.integers(0, 14))):
        name = draw(_NAMES)
        above = [name[:at] for at, byte in enumerate(name) if byte == ord("/")]
        if any(kinds.get(path, Type.DIRECTORY) != Type.DIRECTORY for path in above):
            continue
        # Each reader gives directories that no member describes a time of its own.
        for path in above:
            if path not in kinds:
                kinds[path] = Type.DIRECTORY
                made.append((Entry(path, Type.DIRECTORY), b""))
        kind = draw(
            st.sampled_from([Type.REGULAR] * 3 + [Type.DIRECTORY, Type.SYMLINK, Type.HARD_LINK])
        )
        files = [
            path
            for path, of in kinds.items()
            if of == Type.REGULAR and path != name and not path.startswith(name + b"/")
        ]
        if kind == Type.HARD_LINK and not files:
            continue
        mtime = draw(st.sampled_from([0, SECOND, 5 * SECOND + 250_000_000]))
        entry = Entry(name, kind, mode=draw(st.sampled_from([0o644, 0o755])), mtime=mtime)
        body = b""
        if kind == Type.REGULAR:
            body = draw(st.binary(max_size=4)) * draw(st.sampled_from([0, 1, 2500]))
            entry.size = entry.real_size = len(body)
        elif kind == Type.SYMLINK:
            entry.linkname, entry.mode = b"t", 0o777
        elif kind == Type.HARD_LINK:
            entry.linkname = draw(st.sampled_from(sorted(files)))
            entry.mode, entry.mtime = told[entry.linkname]
        if kind != Type.DIRECTORY:
            for path in [path for path in kinds if path.startswith(name + b"/")]:
                del kinds[path]
        told[name] = (entry.mode, entry.mtime)
        kinds[name] = Type.REGULAR if kind == Type.HARD_LINK else kind
        made.append((entry, body))
    return made


@given(
    members=_members(),
    options=st.builds(
        BlobOptions,
        format=st.sampled_from(FORMATS),
        chunk_size=st.just(4096),
        min_chunk_size=st.sampled_from([0, 3000]),
    ),
    prioritized=st.none() | st.lists(_NAMES, max_size=4),
)
@settings(max_examples=150, deadline=None)
def test_a_blob_says_what_extracting_its_tar_says(
    tmp_path_factory: pytest.TempPathFactory,
    members: list[tuple[Entry, bytes]],
    options: BlobOptions,
    prioritized: list[bytes] | None,
) -> None:
    tar = tar_of(*members)
    blob = converted(tar, tmp_path_factory.getbasetemp(), options, prioritized)
    before, after = (_extracted(archive) for archive in (tar, blob.tar))
    for found in (before, after):
        for name in (b"stargz.index.json", b".prefetch.landmark", b".no.prefetch.landmark"):
            found.pop(name, None)
    assert before == after
    lazily = {path: told for path, told in blob.files.items() if path}
    assert lazily == before


def _extracted(tar: bytes) -> dict[bytes, tuple[object, ...]]:
    """Return what the writer of EROFS images makes of a tar, read from the image."""
    out = io.BytesIO()
    image_from_tar(ChunkStream([tar]), out, max_entries=1000, max_bytes=1 << 30)
    image = out.getvalue()
    tree = Image(BytesSource(image)).tree()
    return {path: describe(inode, image) for path, inode in walk(tree) if path}


def test_only_a_full_disk_is_called_one(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Spool(tmp_path) as spool:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            with pytest.raises(OSError, match=str(tmp_path)) as caught:
                list(spool.fill([bytes(8192)]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
