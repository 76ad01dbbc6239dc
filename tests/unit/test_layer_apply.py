from __future__ import annotations

import hashlib
import os
import stat
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.errors import FormatError, LaminaError, ResourceExhausted
from lamina.layer.apply import apply_layer
from lamina.layer.limits import LayerLimits
from lamina.layer.target import LayerTarget
from tests.archives import MTIME, Archive, apply, gnu_tar, in_chunks
from tests.trees import describe


def test_result_covers_the_whole_stream(tmp_path: Path) -> None:
    data = Archive().file("a", b"x" * 1500).data() + b"trailing bytes"
    applied = apply(data, tmp_path / "root")
    assert applied.diff_id == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert (applied.size, applied.entries) == (len(data), 1)


def test_modes_and_times(tmp_path: Path) -> None:
    archive = (
        Archive()
        .dir("d", 0o1777, mtime=MTIME + 0.25)
        .file("d/setuid", "x", 0o4755)
        .file("d/none", "x", 0o000)
        .file("d/old", "x", mtime=-5)
        .file("d/fraction", "x", mtime=MTIME + 0.5)
        .symlink("d/link", "nowhere", mtime=77)
    )
    apply(archive, tmp_path / "root")
    found = describe_modes(tmp_path / "root")
    assert found["d"] == (0o1777, MTIME * 10**9 + 250_000_000)
    assert found["d/setuid"] == (0o4755, MTIME * 10**9)
    assert found["d/none"][0] == 0
    assert found["d/old"][1] == 0
    assert found["d/fraction"][1] == MTIME * 10**9 + 500_000_000
    assert found["d/link"][1] == 77 * 10**9


def describe_modes(root: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        found[str(path.relative_to(root))] = (stat.S_IMODE(status.st_mode), status.st_mtime_ns)
    return found


def test_modes_are_exact_under_a_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        apply(Archive().dir("d", 0o777).file("d/f", "", 0o666).file("i/f", ""), tmp_path / "root")
    finally:
        os.umask(before)
    modes = {name: mode for name, (mode, _) in describe_modes(tmp_path / "root").items()}
    assert modes == {"d": 0o777, "d/f": 0o666, "i": 0o755, "i/f": 0o644}


def test_a_set_group_id_directory_hands_nothing_down(tmp_path: Path) -> None:
    apply(Archive().dir("d", 0o2755).dir("d/e", 0o755).file("d/e/f"), tmp_path / "root")
    modes = {name: mode for name, (mode, _) in describe_modes(tmp_path / "root").items()}
    assert modes == {"d": 0o2755, "d/e": 0o755, "d/e/f": 0o644}


def test_a_directory_that_becomes_set_group_id_late_hands_nothing_down(tmp_path: Path) -> None:
    archive = Archive().file("d/a").dir("d", 0o2755).dir("d/e", 0o755).file("d/f")
    apply(archive, tmp_path / "root")
    modes = {name: mode for name, (mode, _) in describe_modes(tmp_path / "root").items()}
    assert modes == {"d": 0o2755, "d/a": 0o644, "d/e": 0o755, "d/f": 0o644}


def test_access_time_is_never_before_modification(tmp_path: Path) -> None:
    archive = (
        Archive()
        .file("early", mtime=1000, pax_headers={"atime": "500.5"})
        .file("late", mtime=1000, pax_headers={"atime": "2000.5"})
    )
    apply(archive, tmp_path / "root")
    assert (tmp_path / "root/early").stat().st_atime_ns == 1000 * 10**9
    assert (tmp_path / "root/late").stat().st_atime_ns == 2000_500_000_000


def test_what_is_in_the_way_is_replaced(tmp_path: Path) -> None:
    first = (
        Archive().dir("d").file("d/sub/x").file("f", "old").symlink("l", "f").link("h", "f")
        .dir("kept", 0o700).file("kept/inside")
    )  # fmt: skip
    second = (
        Archive().file("d", "now a file").dir("f").file("f/y").file("l", "now a file")
        .file("h", "new").dir("kept", 0o755)
    )  # fmt: skip
    apply(first, tmp_path / "root")
    apply(second, tmp_path / "root")
    content = {name: entry.content for name, entry in describe(tmp_path / "root").items()}
    assert set(content) == {".", "d", "f", "f/y", "l", "h", "kept", "kept/inside"}
    assert (tmp_path / "root/l").read_text() == "now a file"
    assert stat.S_IMODE((tmp_path / "root/kept").stat().st_mode) == 0o755


def test_plain_whiteouts_delete(tmp_path: Path) -> None:
    apply(Archive().file("d/a").file("d/b").file("e/c"), tmp_path / "root")
    apply(Archive().file("d/.wh.a").file(".wh.e").file(".wh.missing"), tmp_path / "root")
    assert set(describe(tmp_path / "root")) == {".", "d", "d/b"}


@pytest.mark.parametrize("marker_first", [True, False])
def test_plain_opaque_marker_spares_its_own_archive(tmp_path: Path, marker_first: bool) -> None:
    apply(Archive().file("d/old").file("d/sub/old").file("d/both", "1").file("o"), tmp_path / "r")
    archive = Archive()
    if marker_first:
        archive.file("d/.wh..wh..opq")
    archive.file("d/both", "2").file("d/sub/new").file("d/deep/er/new")
    if not marker_first:
        archive.file("d/.wh..wh..opq")
    apply(archive, tmp_path / "r")
    assert set(describe(tmp_path / "r")) == {
        ".", "d", "d/both", "d/sub", "d/sub/new", "d/deep", "d/deep/er", "d/deep/er/new", "o",
    }  # fmt: skip


def test_a_deep_tree_is_removed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    apply(Archive().file(".wh.d"), root)
    assert list(root.iterdir()) == []


def test_names_that_are_no_text(tmp_path: Path) -> None:
    archive = Archive().file("caf\udce9/\udcff\n x", "y")
    apply(archive, tmp_path / "root")
    assert os.listdir(os.fsencode(tmp_path / "root" / "caf\udce9")) == [b"\xff\n x"]


def test_user_attributes(tmp_path: Path) -> None:
    archive = Archive().file("f", "x", pax_headers={"SCHILY.xattr.user.key": "value"})
    archive.dir("d", pax_headers={"SCHILY.xattr.user.key": "on a directory"})
    archive.symlink("l", "f", pax_headers={"SCHILY.xattr.user.key": "impossible"})
    archive.file("t", pax_headers={"SCHILY.xattr.trusted.overlay.opaque": "y"})
    applied = apply(archive, tmp_path / "root")
    assert os.getxattr(tmp_path / "root/f", "user.key") == b"value"
    assert os.getxattr(tmp_path / "root/d", "user.key") == b"on a directory"
    assert os.listxattr(tmp_path / "root/t") == []
    assert len(applied.warnings) == 2


def test_attributes_that_fuse_overlayfs_obeys_are_left_out(tmp_path: Path) -> None:
    """Where layers are stacked, one could hide what is below it, in a way of its own."""
    archive = Archive().dir("d", pax_headers={"SCHILY.xattr.user.fuseoverlayfs.opaque": "y"})
    target = LayerTarget(tmp_path / "root", overlay_whiteouts=True)
    target.root.mkdir()
    applied = apply_layer([archive.data()], target, limits=LayerLimits())
    assert os.listxattr(target.root / "d") == []
    assert len(applied.warnings) == 1


@pytest.mark.parametrize("where", ["sparse.gnu", "pax-0.0", "pax-0.1", "pax-1.0"])
def test_sparse_files_keep_their_holes(tmp_path: Path, where: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "holes").open("wb") as file:
        for position in range(40):
            file.seek(position << 20)
            file.write(b"data" * 1500)
        file.truncate(50 << 20)
    os.utime(source / "holes", (MTIME, MTIME))
    if where == "sparse.gnu":
        options = ["--format=gnu", "--sparse"]
    else:
        options = ["--format=pax", "--sparse", f"--sparse-version={where[4:]}"]
    apply(gnu_tar(source, *options), tmp_path / "root")
    assert describe(source)["holes"] == describe(tmp_path / "root")["holes"]
    assert (tmp_path / "root/holes").stat().st_blocks * 512 < 2 << 20


def test_limits(tmp_path: Path) -> None:
    archive = Archive().file("a", bytes(5000)).file("b").data()
    for limits in (
        LayerLimits(max_bytes=4000),
        LayerLimits(max_entries=1),
        LayerLimits(max_bytes=len(archive) - 1),
    ):
        with pytest.raises(ResourceExhausted, match="unpack layer"):
            apply(archive, tmp_path / "root", limits=limits)
    apply(archive, tmp_path / "root", limits=LayerLimits(max_bytes=len(archive), max_entries=2))


def test_holes_count_against_the_limit(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    os.truncate(os.open(tmp_path / "source/x", os.O_CREAT | os.O_WRONLY), 1 << 30)
    data = gnu_tar(tmp_path / "source", "--sparse")
    with pytest.raises(ResourceExhausted):
        apply(data, tmp_path / "root", limits=LayerLimits(max_bytes=1 << 20))


def test_cut_off_at_every_byte(tmp_path: Path) -> None:
    name = "long/" * 30 + "name"
    data = Archive().dir("d").file(name, b"y" * 700).symlink("l", "x" * 150).data()
    end = len(data.rstrip(b"\0"))
    outcomes = set()
    for length in range(end):
        try:
            apply(data[:length], tmp_path / "root")
        except FormatError as error:
            assert 0 <= error.offset <= length
            outcomes.add("cut")
        else:
            outcomes.add("whole")
            assert length % 512 == 0, length
    assert outcomes == {"cut", "whole"}


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damage_anywhere_is_one_of_our_errors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("damage", numbered=True)
    whole = bytearray(SEED)
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, len(whole) - 1))
        whole[position] = data.draw(st.integers(0, 255))
        start = position - position % 512
        if data.draw(st.booleans()):
            fix_checksum(whole, start)
    outside = set(os.listdir(directory))
    try:
        apply(bytes(whole), directory / "root", limits=LayerLimits(max_bytes=1 << 24))
    except LaminaError as error:
        assert str(error)
    assert set(os.listdir(directory)) - outside == {"root"}


def fix_checksum(data: bytearray, start: int) -> None:
    block = data[start : start + 512]
    if len(block) == 512:
        block[148:156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(block)


SEED = (
    Archive().dir("etc").file("etc/passwd", b"p" * 600)
    .symlink("localetc", "/etc").file("localetc/x", b"1").link("hard", "etc/passwd")
    .file("n" * 120, b"long", pax_headers={"SCHILY.xattr.user.a": "b"})
    .file("etc/.wh.gone").file("etc/.wh..wh..opq").entry("fifo", tarfile.FIFOTYPE).data()
)  # fmt: skip


def test_a_thread_ahead_changes_nothing(tmp_path: Path) -> None:
    data = SEED + bytes(1 << 20)
    ahead = threading.Event()

    def toggling() -> Iterator[bytes]:
        for number, chunk in enumerate(in_chunks(data, 4096)):
            (ahead.set if number % 7 < 4 else ahead.clear)()
            yield chunk

    (tmp_path / "one").mkdir()
    target = LayerTarget(tmp_path / "one")
    applied = apply_layer(toggling(), target, limits=LayerLimits(), ahead=ahead)
    assert applied == apply(data, tmp_path / "two")
    assert {**describe(tmp_path / "one"), ".": None} == {**describe(tmp_path / "two"), ".": None}


def test_an_error_ahead_arrives_and_no_thread_stays(tmp_path: Path) -> None:
    ahead = threading.Event()
    ahead.set()
    threads = threading.active_count()
    with pytest.raises(ResourceExhausted):
        apply_layer(
            in_chunks(SEED * 40),
            LayerTarget(tmp_path),
            limits=LayerLimits(max_bytes=20_000),
            ahead=ahead,
        )
    with pytest.raises(FormatError):
        damaged = b"\1" * 4096 + bytes(10 << 20)
        apply_layer(in_chunks(damaged), LayerTarget(tmp_path), limits=LayerLimits(), ahead=ahead)
    assert threading.active_count() == threads


@pytest.mark.parametrize("format", ["v7", "oldgnu", "gnu", "ustar", "pax"])
def test_formats_of_gnu_tar(tmp_path: Path, format: str) -> None:
    source = tmp_path / "source"
    (source / "dir" / "sub").mkdir(parents=True)
    (source / "dir/file").write_bytes(os.urandom(3000))
    (source / "dir/empty").touch()
    (source / "dir/hard").hardlink_to(source / "dir/file")
    (source / "dir/sub/link").symlink_to("../file")
    (source / "dir/file").chmod(0o6754)
    if format != "v7":
        (source / "dir" / ("n" * 60) / ("m" * 60)).mkdir(parents=True)
    if format in {"gnu", "oldgnu", "pax"}:
        (source / ("long" * 40)).write_text("x")
        (source / "l").symlink_to("t" * 200)
    for path in [source, *source.rglob("*")]:
        os.utime(path, (MTIME, MTIME + 3), follow_symlinks=False)
    apply(gnu_tar(source, f"--format={format}"), tmp_path / "root")
    ours, theirs = describe(tmp_path / "root"), describe(source)
    del ours["."], theirs["."]  # the root itself is left as it is
    assert ours == theirs
