"""Images of tar archives beside what the same archives are where they are extracted."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.core.mount import Mount
from lamina.errors import FormatError
from lamina.formats.erofs.tar import TarImage, image_from_tar
from lamina.formats.erofs.tree import Inode
from lamina.formats.stream import ChunkStream
from lamina.layer.target import LayerTarget
from lamina.mount import temp_mount
from tests.archives import Archive, apply, gnu_tar, in_chunks
from tests.erofs import CAPABILITY, directory, fsck, mounted_image
from tests.hard_image import hard_image
from tests.trees import Entry, describe
from tests.unit.test_layer_breakouts import CASES

pytestmark = [pytest.mark.root, pytest.mark.erofs]


def make(where: Path, archive: Archive | bytes, **options: object) -> TarImage:
    data = archive if isinstance(archive, bytes) else archive.data()
    with open(where / "image", "wb") as out:
        return image_from_tar(
            ChunkStream(in_chunks(data)),
            out,
            max_entries=100_000,
            max_bytes=1 << 40,
            **options,  # type: ignore[arg-type]
        )


def extract(archive: Archive | bytes, where: Path, *parents: Path) -> Path:
    """Extract an archive as the upper directory of an overlay."""
    target = LayerTarget(where / "extracted", overlay_whiteouts=True, parents=parents)
    target.root.mkdir()
    apply(archive, target)
    return target.root


def shown(root: Path, *, times: bool = True) -> dict[str, tuple[Entry, bool]]:
    """Return all below a root, and what is opaque.

    The time of what an archive only implies is that of extraction, and the root is no part of it.
    """
    found = {}
    for name, entry in describe(root).items():
        if name == ".":
            continue
        path = root / name
        opaque = "trusted.overlay.opaque" in os.listxattr(path, follow_symlinks=False)
        without_time = entry.mode[0] == "d" and not times
        if without_time or entry.mode == "c---------":
            entry = entry._replace(mtime_ns=0)
        found[name] = (entry, opaque)
    return found


def compare(where: Path, archive: Archive | bytes, *, times: bool = True) -> TarImage:
    made = make(where, archive)
    extracted = shown(extract(archive, where), times=times)
    with mounted_image(where / "image", where / "at") as at:
        assert shown(at, times=times) == extracted
    return made


@pytest.mark.parametrize("layer", range(4))
def test_layers_of_a_hard_image(tmp_path: Path, layer: int) -> None:
    data = hard_image()[layer].blob
    compare(tmp_path, data, times=layer == 0)


def test_what_overlays_of_either_show(tmp_path: Path) -> None:
    """The mounts of the images, stacked, are what the directories are."""
    images, directories = [], []
    for number, layer in enumerate(hard_image()):
        where = tmp_path / str(number)
        where.mkdir()
        make(where, layer.blob)
        images.append(where)
        directories.append(extract(layer.blob, where))
    expected = merged(tmp_path, directories[::-1])
    mounts = [mounted_image(where / "image", where / "at") for where in images]
    with mounts[0] as a, mounts[1] as b, mounts[2] as c, mounts[3] as d:
        assert merged(tmp_path, [d, c, b, a]) == expected


def merged(where: Path, lowers: Sequence[Path]) -> dict[str, Entry]:
    lower = ":".join(map(str, lowers))
    mount = Mount("overlay", "overlay", "", ("ro", f"lowerdir={lower}"))
    with temp_mount([mount], dir=where, read_only=True) as root:
        found = dict(describe(root))
    return {
        name: entry._replace(mtime_ns=0) if entry.mode[0] == "d" else entry
        for name, entry in found.items()
        if name != "."
    }


@pytest.mark.parametrize("case", CASES)
def test_names_and_links_stay_inside(tmp_path: Path, case: str) -> None:
    compare_errors(tmp_path, CASES[case][0].data())


def test_owners_modes_devices_and_attributes(tmp_path: Path) -> None:
    def xattr(name: str, value: str) -> dict[str, str]:
        return {f"SCHILY.xattr.{name}": value}

    capability = xattr("security.capability", CAPABILITY.decode("latin-1"))
    archive = (
        Archive(owner=(0, 0))
        .file("sudo", "x", 0o4755, uid=1000, gid=2000, mtime=1_500_000_000.123456)
        .file("ping", "x", 0o755, uid=1000, pax_headers=capability)
        .dir("shared", 0o2775, gid=50, mtime=77)
        .symlink("link", "sudo", uid=5, gid=6, mtime=5.5)
        .entry("shared/fifo", b"6", mode=0o600)
        .entry("null", b"3", mode=0o666, devmajor=1, devminor=3)
        .entry("large", b"4", mode=0o660, devmajor=259, devminor=70_000)
        .file("user", "x", pax_headers=xattr("user.a", "b"))
        .dir("shared", 0o2755, gid=51, pax_headers=xattr("user.c", "d"))
        .link("user2", "user", mode=0o600, uid=7, mtime=9)
        .file("old", "x", mtime=-5)
        .file("far", "x", uid=2**32 - 2, gid=2_000_000, mtime=8_000_000_000)
    )
    made = compare(tmp_path, archive)
    assert made.warnings == ()


def test_attributes_that_no_layer_may_set(tmp_path: Path) -> None:
    names = ("trusted.overlay.redirect", "user.fuseoverlayfs.opaque", "system.other", "user.kept")
    headers = {f"SCHILY.xattr.{name}": "v" for name in names}
    archive = Archive(owner=(0, 0)).dir("d", pax_headers=headers)
    archive.symlink("l", "t", pax_headers={"SCHILY.xattr.user.a": "v"})
    made = make(tmp_path, archive)
    assert made.warnings == (
        "attributes of d/ are left out:"
        " trusted.overlay.redirect, user.fuseoverlayfs.opaque, system.other",
        "attributes of l are left out: user.a",
    )
    with mounted_image(tmp_path / "image", tmp_path / "at") as at:
        assert os.listxattr(at / "d") == ["user.kept"]
        assert os.listxattr(at / "l", follow_symlinks=False) == []


@pytest.mark.parametrize("where", ["sparse.gnu", "pax-0.0", "pax-0.1", "pax-1.0"])
def test_sparse_files(tmp_path: Path, where: str) -> None:
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
    made = compare(tmp_path, gnu_tar(source, "--sparse", *format, *options))
    assert made.blocks < 4000


def test_a_tree_of_many_files(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "src"
    made = compare(tmp_path, gnu_tar(source, "--exclude=__pycache__"))
    assert made.inodes > 200
    assert made.entries == made.inodes


def test_names_that_are_no_text(tmp_path: Path) -> None:
    archive = Archive().file("\udcff\udcfe", "x").dir("d\n").file("d\n/\udc80", "y")
    compare(tmp_path, archive)


def test_implied_directories_look_as_below(tmp_path: Path) -> None:
    below = directory(mode=stat.S_IFDIR | 0o1751, uid=3, gid=4, mtime=55, xattrs={b"user.a": b"1"})
    below.xattrs = {**below.xattrs, b"trusted.overlay.opaque": b"y", b"user.overlay.x": b"y"}
    asked = []

    def implied(path: bytes) -> Inode | None:
        asked.append(path)
        return below if path == b"a/b" else None

    archive = Archive(owner=(0, 0)).file("a/b/c", "x", mtime=9).symlink("l", "a/b/n").file("l/f")
    make(tmp_path, archive, implied=implied)
    assert asked == [b"a", b"a/b", b"a/b/n"]
    with mounted_image(tmp_path / "image", tmp_path / "at") as at:
        found = shown(at)
    empty = "0:0"
    assert found["a/b"] == (Entry("drwxr-x--t", (3, 4), 55, empty, "a/b", {"user.a": b"1"}), False)
    assert found["a"] == (Entry("drwxr-xr-x", (0, 0), 9_000_000_000, empty, "a", {}), False)
    assert found["a/b/n/f"][0].mode == "-rw-r--r--"


@pytest.mark.erofs_utils
def test_fsck_finds_no_fault(tmp_path: Path) -> None:
    for layer in hard_image():
        make(tmp_path, layer.blob)
        fsck(tmp_path / "image")


_BASES = st.sampled_from(["a", "b", ".wh.a", ".wh.b", ".wh..wh..opq", "..", ".", "c" * 200])
_PATHS = st.lists(st.sampled_from(["a", "b", "c", ".."]), max_size=2).flatmap(
    lambda parents: _BASES.map(lambda base: "/".join([*parents, base]))
)
_MEMBERS = st.tuples(
    st.sampled_from(["file", "dir", "symlink", "link", "fifo", "device"]),
    _PATHS,
    _PATHS | st.sampled_from(["/", "/a", "../b", "c", "b/../a", "./b"]),
    st.integers(0, 0o7777),
    st.integers(0, 3),
)


@settings(max_examples=150)
@given(st.lists(_MEMBERS, min_size=1, max_size=14))
def test_any_archive(members: list[tuple[str, str, str, int, int]]) -> None:
    """What cannot be extracted cannot be made an image of, and the other way round."""
    archive = Archive()
    for kind, path, target, mode, number in members:
        values = {"mode": mode, "uid": number, "mtime": number * 7}
        if kind == "file":
            archive.file(path, b"content" * number, **values)
        elif kind == "dir":
            archive.dir(path, **values)
        elif kind == "fifo":
            archive.entry(path, b"6", **values)
        elif kind == "device":
            archive.entry(path, b"3", devmajor=number, devminor=number, **values)
        else:
            flag = b"2" if kind == "symlink" else b"1"
            archive.entry(path, flag, linkname=target, **values)
    with tempfile.TemporaryDirectory() as name:
        compare_errors(Path(name), archive.data())


def compare_errors(where: Path, data: bytes) -> None:
    try:
        extract(data, where)
    except FormatError:
        with pytest.raises(FormatError):
            make(where, data)
        return
    make(where, data)
    with mounted_image(where / "image", where / "at") as at:
        assert shown(at, times=False) == shown(where / "extracted", times=False)
