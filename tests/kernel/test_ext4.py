"""ext4 of layers: what the kernel shows of it, beside the same layers extracted to a directory."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.errors import FormatError
from lamina.formats.tar import END_OF_ARCHIVE, Entry, Type, header
from tests.archives import Archive, apply, gnu_tar
from tests.erofs import ACL, CAPABILITY
from tests.ext4 import Image, fsck, mounted
from tests.hard_image import hard_image
from tests.trees import Entry as Found
from tests.trees import describe
from tests.unit.test_layer_breakouts import CASES

pytestmark = [pytest.mark.root, pytest.mark.loop]


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Image]:
    with Image(tmp_path / "image") as made:
        yield made


def shown(root: Path) -> dict[str, Found]:
    """Return all below a root; a directory's time is that of extraction where an entry is in it."""
    return {
        name: entry._replace(mtime_ns=0) if entry.mode[0] == "d" else entry
        for name, entry in describe(root).items()
        if name != "."
    }


def compare(image: Image, directory: Path, archive: Archive | bytes) -> None:
    """Apply a layer to both, check the filesystem, and compare."""
    data = archive if isinstance(archive, bytes) else archive.data()
    apply(data, directory)
    assert image.apply(data).warnings == ()
    fsck(image.path)
    with mounted(image.path) as at:
        assert shown(at) == shown(directory)


def many(names: Iterable[str], type: bytes = Type.FIFO) -> bytes:
    """Return an archive without data."""
    return b"".join(header(Entry(name.encode(), type)) for name in names) + END_OF_ARCHIVE


def xattr(name: str, value: bytes) -> dict[str, str]:
    return {f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")}


def test_layers_of_a_hard_image(image: Image, tmp_path: Path) -> None:
    for layer in hard_image():
        compare(image, tmp_path / "extracted", layer.blob)


@pytest.mark.parametrize("size", [1 << 20, (128 << 20) + 4096 * 100, 64 << 30, 4 << 40])
def test_devices_of_any_size(tmp_path: Path, size: int) -> None:
    with Image(tmp_path / "image", size) as image:
        compare(image, tmp_path / "extracted", Archive().dir("d").file("d/f", b"x" * 10_000))
        compare(image, tmp_path / "extracted", Archive().file("d/.wh.f").file("g"))


@pytest.mark.parametrize("case", CASES)
def test_names_and_links_stay_inside(image: Image, tmp_path: Path, case: str) -> None:
    compare_errors(image, tmp_path / "extracted", CASES[case][0].data())


def test_owners_modes_times_and_devices(image: Image, tmp_path: Path) -> None:
    archive = (
        Archive(owner=(0, 0))
        .file("sudo", "x", 0o4755, uid=1000, gid=2000, mtime=1_500_000_000.123456)
        .dir("shared", 0o2775, gid=50, mtime=77)
        .symlink("link", "sudo", uid=5, gid=6, mtime=5.5)
        .entry("shared/fifo", b"6", mode=0o600)
        .entry("null", b"3", mode=0o666, devmajor=1, devminor=3)
        .entry("large", b"4", mode=0o660, devmajor=259, devminor=70_000)
        .dir("shared", 0o2755, gid=51)
        .link("sudo2", "sudo", mode=0o600, uid=7, mtime=9)
        .file("old", "x", mtime=-5)
        .file("far", "x", uid=2**32 - 2, gid=2_000_000, mtime=8_000_000_000)
        .file("second half", "x", mtime=2**31 + 1.5)
        .file("third half", "x", mtime=2**32 + 1.5)
    )
    for size in (59, 60, 61, 4095):
        archive.symlink(f"target{size}", "t" * size)
    compare(image, tmp_path / "extracted", archive)


def test_attributes(image: Image, tmp_path: Path) -> None:
    archive = (
        Archive(owner=(0, 0))
        .file("ping", "x", 0o755, pax_headers=xattr("security.capability", CAPABILITY))
        .file("acl", "x", 0o640, pax_headers=xattr("system.posix_acl_access", ACL))
        .dir("default", 0o750, pax_headers=xattr("system.posix_acl_default", ACL))
        .file("empty", "x", pax_headers=xattr("user.empty", b""))
        .file("block", "x", pax_headers=xattr("user.block", b"v" * 3000))
        .file(
            "many", "x", pax_headers={f"SCHILY.xattr.user.{n:03}": "v" * (n % 7) for n in range(90)}
        )
        .dir("more", pax_headers=xattr("user.c", b"d"))
    )
    compare(image, tmp_path / "extracted", archive)
    more = Archive(owner=(0, 0)).dir("more", pax_headers=xattr("user.block", b"v" * 500))
    more.file("ping").file("block", pax_headers=xattr("user.c", b"e"))
    more.link("many2", "many", pax_headers=xattr("user.large", b"l" * 200))
    compare(image, tmp_path / "extracted", more)


def test_attributes_that_are_left_out(image: Image) -> None:
    names = ("trusted.overlay.redirect", "system.other", "user.kept", "trusted.kept")
    archive = Archive().dir("d", pax_headers={f"SCHILY.xattr.{name}": "v" for name in names})
    archive.symlink("l", "t", pax_headers=xattr("user.a", b"v"))
    archive.file("large", pax_headers={**xattr("user.a", b"v"), **xattr("user.b", b"v" * 5000)})
    assert image.apply(archive).warnings == (
        "attributes of d/ are left out: trusted.overlay.redirect, system.other",
        "attributes of l are left out: user.a",
        "attributes of large are left out: user.b",
    )
    fsck(image.path)
    with mounted(image.path) as at:
        assert sorted(os.listxattr(at / "d")) == ["trusted.kept", "user.kept"]
        assert os.listxattr(at / "l", follow_symlinks=False) == []
        assert os.listxattr(at / "large") == ["user.a"]


def test_times_of_directories_are_those_of_their_entries(image: Image) -> None:
    image.apply(Archive().dir("d", mtime=5).file("d/f").file("implied/f", mtime=7))
    image.apply(Archive().file("d/g").file(".wh.implied"))
    with mounted(image.path) as at:
        assert (at / "d").stat().st_mtime_ns == 5_000_000_000
    image.apply(Archive().file("implied/f", mtime=8.5))
    with mounted(image.path) as at:
        assert (at / "implied").stat().st_mtime_ns == 8_500_000_000


@pytest.mark.parametrize("where", ["sparse.gnu", "pax-0.0", "pax-0.1", "pax-1.0"])
def test_sparse_files(image: Image, tmp_path: Path, where: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, start, step, size in (
        ("mib", 0, 1 << 20, 6000),
        ("odd", 5000, 9000, 100),
        ("close", 100_000, 4500, 4000),
        ("large", 3 << 20, 7 << 20, 70_000),
    ):
        with (source / name).open("wb") as file:
            for position in range(start, start + 40 * step, step):
                file.seek(position)
                file.write(b"data" * (size // 4))
            file.truncate(max(file.tell(), 50 << 20) + 5000)
    options = ["--format=gnu"] if where == "sparse.gnu" else [f"--sparse-version={where[4:]}"]
    format = [] if where == "sparse.gnu" else ["--format=pax"]
    compare(image, tmp_path / "extracted", gnu_tar(source, "--sparse", *format, *options))
    with mounted(image.path) as at:
        assert (at / "large").stat().st_blocks * 512 < 4 << 20


def test_a_file_of_many_extents(image: Image, tmp_path: Path) -> None:
    """Over 4 in the inode, and over 340 in a block: the tree has two levels."""
    pieces = [f"{position},512" for position in range(0, 3000 << 13, 1 << 13)]
    headers = {"GNU.sparse.map": ",".join(pieces), "GNU.sparse.size": str(3000 << 13)}
    data = os.urandom(512 * 3000)
    compare(image, tmp_path / "extracted", Archive().file("f", data, pax_headers=headers))
    compare(image, tmp_path / "extracted", Archive().file("f", "replaced"))


def test_a_file_larger_than_an_extent_and_a_group(tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 700
    with Image(tmp_path / "image", 1 << 30) as image:
        image.apply(Archive().file("f", data), chunk=1 << 20)
        fsck(image.path)
        with mounted(image.path) as at:
            assert (at / "f").read_bytes() == data


def test_a_full_device_gets_its_holes_filled(tmp_path: Path) -> None:
    """What replaces removed files lies where they were, in pieces."""
    directory = tmp_path / "extracted"
    with Image(tmp_path / "image", 16 << 20) as image:
        archive = Archive()
        for number in range(120):
            archive.file(f"f{number}", os.urandom(100_000))
        compare(image, directory, archive)
        deletions = Archive()
        for number in range(0, 120, 2):
            deletions.file(f".wh.f{number}")
        compare(image, directory, deletions)
        compare(image, directory, Archive().file("large", os.urandom(7_000_000)))


def test_a_large_directory_that_changes(image: Image, tmp_path: Path) -> None:
    directory = tmp_path / "extracted"
    compare(image, directory, many(f"d/{number:0120}" for number in range(3000)))
    change = Archive().file(f"d/.wh.{2000:0120}").dir("d/new").file(f"d/{1000:0120}", "file now")
    compare(image, directory, change)
    compare(image, directory, many(f"d/{number}" for number in range(3000, 4000)))
    emptied = Archive().file("d/.wh..wh..opq").file("d/only")
    compare(image, directory, emptied)


def test_indexes_of_two_levels(tmp_path: Path) -> None:
    """The first of the layers has one level."""
    with Image(tmp_path / "image", 256 << 20) as image:
        for first, last in ((0, 5000), (4999, 9000), (9000, 9001)):
            image.apply(many(f"d/{number:0250}" for number in range(first, last)), chunk=1 << 20)
            fsck(image.path)
            with mounted(image.path) as at:
                assert len(os.listdir(at / "d")) == last
                assert all((at / "d" / f"{number:0250}").is_fifo() for number in range(last))
        with mounted(image.path, read_only=False) as at:
            for number in range(20_000, 21_000):
                (at / "d" / f"{number:0250}").touch()
            for number in range(3000):
                (at / "d" / f"{number:0250}").unlink()
        fsck(image.path)


def test_more_directories_than_links(tmp_path: Path) -> None:
    archive = many((f"d/{number}" for number in range(65_010)), Type.DIRECTORY)
    with Image(tmp_path / "image", 1 << 30) as image:
        image.apply(archive, chunk=1 << 20)
        fsck(image.path)
        with mounted(image.path) as at:
            assert (at / "d").stat().st_nlink == 1
            assert len(os.listdir(at / "d")) == 65_010


def test_the_kernel_writes_to_it(image: Image, tmp_path: Path) -> None:
    """A container's upper layer may be the filesystem itself."""
    image.apply(hard_image()[0].blob)
    with mounted(image.path, read_only=False) as at:
        for number in range(500):
            (at / f"new{number}").write_bytes(b"x" * 5000)
        shutil.rmtree(at / "links")
        (at / "etc" / "noted").write_text("changed")
        os.setxattr(at / "bin", "user.large", b"v" * 2000)
        os.chmod(at / "home", 0o700)
        (at / "sparse").unlink()
    fsck(image.path)
    with mounted(image.path) as at:
        assert (at / "new499").read_bytes() == b"x" * 5000
        assert (at / "etc" / "noted").read_text() == "changed"
        assert stat.S_IMODE((at / "home").stat().st_mode) == 0o700
        assert not (at / "links").exists()


def test_only_extents_are_needed(tmp_path: Path) -> None:
    """A device that has just what the layers say they wrote is the same filesystem."""
    copy = tmp_path / "copy"
    with Image(tmp_path / "image") as image, copy.open("wb") as out:
        out.truncate(image.size)
        for layer in hard_image():
            applied = image.apply(layer.blob)
            with image.path.open("rb") as spool:
                for extent in applied.extents:
                    spool.seek(extent.place)
                    out.seek(extent.offset)
                    out.write(spool.read(extent.length))
            out.flush()
            fsck(copy)
            with mounted(image.path) as at:
                expected = describe(at)
            with mounted(copy) as at:
                assert describe(at) == expected


def test_a_tree_of_many_files(image: Image, tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "src"
    compare(image, tmp_path / "extracted", gnu_tar(source, "--exclude=__pycache__"))


def test_names_that_are_no_text(image: Image, tmp_path: Path) -> None:
    archive = Archive().file("\udcff\udcfe", "x").dir("d\n").file("d\n/\udc80", "y")
    compare(image, tmp_path / "extracted", archive)


def test_debugfs_agrees(image: Image) -> None:
    image.apply(Archive().dir("d").file("d/f", b"x" * 10_000))
    argv = ("/usr/sbin/debugfs", "-R", "stat /d/f", image.path)
    found = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert "Size: 10000" in found
    assert "EXTENTS:\n(0-2):" in found


_BASES = st.sampled_from(["a", "b", ".wh.a", ".wh.b", ".wh..wh..opq", "..", ".", "c" * 200])
_PATHS = st.lists(st.sampled_from(["a", "b", "c", ".."]), max_size=2).flatmap(
    lambda parents: _BASES.map(lambda base: "/".join([*parents, base]))
)
_MEMBERS = st.tuples(
    st.sampled_from(["file", "dir", "symlink", "link", "fifo", "device"]),
    _PATHS,
    _PATHS | st.sampled_from(["/", "/a", "../b", "c", "b/../a", "./b"]),
    st.integers(0, 0o777),
    st.integers(0, 3),
)


@settings(max_examples=100)
@given(st.lists(st.lists(_MEMBERS, min_size=1, max_size=8), min_size=1, max_size=4))
def test_any_layers(layers: list[list[tuple[str, str, str, int, int]]]) -> None:
    """What cannot be extracted cannot be applied, and the other way round."""
    with tempfile.TemporaryDirectory() as name, Image(Path(name, "image"), 4 << 20) as image:
        for members in layers:
            if not compare_errors(image, Path(name, "extracted"), archive_of(members)):
                return


def archive_of(members: list[tuple[str, str, str, int, int]]) -> bytes:
    archive = Archive()
    for kind, path, target, mode, number in members:
        values = {"mode": mode, "uid": number, "mtime": number * 7}
        if kind == "file":
            archive.file(path, b"content" * number * 700, **values)
        elif kind == "dir":
            archive.dir(path, **values)
        elif kind == "fifo":
            archive.entry(path, b"6", **values)
        elif kind == "device":
            archive.entry(path, b"3", devmajor=number, devminor=number, **values)
        else:
            flag = b"2" if kind == "symlink" else b"1"
            archive.entry(path, flag, linkname=target, **values)
    return archive.data()


def compare_errors(image: Image, directory: Path, data: bytes) -> bool:
    """Compare, and tell whether the archive could be extracted."""
    try:
        apply(data, directory)
    except FormatError:
        with pytest.raises(FormatError):
            image.apply(data)
        return False
    image.apply(data)
    fsck(image.path)
    with mounted(image.path) as at:
        assert shown(at) == shown(directory)
    return True
