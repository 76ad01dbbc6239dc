"""Layers as root: owners, devices, capabilities, overlay whiteouts, full disks."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from lamina.core.mount import Mount
from lamina.errors import FormatError, ResourceExhausted
from lamina.layer.target import LayerTarget, layer_target
from lamina.mount import temp_mount
from tests.archives import MTIME, Archive, apply
from tests.filesystems import mounted
from tests.trees import describe

pytestmark = pytest.mark.root

CAPABILITY = b"\1\0\0\2\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
"""cap_net_bind_service+ep, VFS_CAP_REVISION_2."""


def root_archive() -> Archive:
    return Archive(owner=(0, 0))


def overlay_mounts(directory: Path, lowers: Sequence[Path], *options: str) -> list[Mount]:
    for name in ("upper", "work"):
        (directory / name).mkdir(exist_ok=True)
    lower = ":".join(map(str, lowers))
    words = (f"workdir={directory}/work", f"upperdir={directory}/upper", f"lowerdir={lower}")
    return [Mount("overlay", "overlay", "", (*options, *words))]


def merged(directory: Path, layers: Sequence[Path], *options: str) -> dict[str, object]:
    """Return what an overlay of these layers, nearest first, shows."""
    (directory / "empty").mkdir(exist_ok=True)
    lower = ":".join(map(str, [*layers, directory / "empty"]))
    mounts = [Mount("overlay", "overlay", "", ("ro", f"lowerdir={lower}", *options))]
    with temp_mount(mounts, dir=directory, read_only=True) as root:
        return dict(describe(root))


def test_owners_set_id_bits_and_capabilities(tmp_path: Path) -> None:
    header = {"SCHILY.xattr.security.capability": CAPABILITY.decode("latin-1")}
    archive = (
        root_archive()
        .file("sudo", "x", 0o4755, uid=1000, gid=2000)
        .file("ping", "x", 0o755, uid=1000, pax_headers=header)
        .dir("shared", 0o2775, uid=0, gid=50)
        .file("shared/inherits", "x", 0o644)
        .dir("shared/sub", 0o755)
        .symlink("link", "sudo", uid=5, gid=6)
        .link("sudo2", "sudo", uid=1000, gid=2000, mode=0o4755)
    )
    apply(archive, tmp_path / "root")
    found = describe(tmp_path / "root")
    assert (found["sudo"].mode, found["sudo"].owner) == ("-rwsr-xr-x", (1000, 2000))
    assert found["ping"].xattrs == {"security.capability": CAPABILITY}
    assert (found["shared"].mode, found["shared"].owner) == ("drwxrwsr-x", (0, 50))
    assert (found["shared/inherits"].mode, found["shared/inherits"].owner) == ("-rw-r--r--", (0, 0))
    assert (found["shared/sub"].mode, found["shared/sub"].owner) == ("drwxr-xr-x", (0, 0))
    assert found["link"].owner == (5, 6)
    assert found["sudo2"].same_file == "sudo"
    assert found["shared"].mtime_ns == MTIME * 10**9


def test_a_default_acl_above_hands_nothing_down(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    subprocess.run(["setfacl", "-d", "-m", "u:1234:rwx,g::---,o::---", root], check=True)
    apply(root_archive().file("f", "x", 0o644).dir("d", 0o755).file("d/g", "x", 0o666), root)
    found = describe(root)
    modes = [found[name].mode for name in ("f", "d", "d/g")]
    assert modes == ["-rw-r--r--", "drwxr-xr-x", "-rw-rw-rw-"]


def test_device_nodes_and_fifos(tmp_path: Path) -> None:
    archive = (
        root_archive()
        .entry("null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
        .entry("disk", tarfile.BLKTYPE, devmajor=259, devminor=1, mode=0o660, gid=6)
        .entry("pipe", tarfile.FIFOTYPE, mode=0o640)
        .link("null2", "null", mode=0o666)
    )
    apply(archive, tmp_path / "root")
    found = describe(tmp_path / "root")
    assert (found["null"].mode, found["null"].content) == ("crw-rw-rw-", "1:3")
    assert (found["disk"].mode, found["disk"].content) == ("brw-rw----", "259:1")
    assert found["disk"].owner == (0, 6)
    assert found["pipe"].mode == "prw-r-----"
    assert found["null2"].same_file == "null"


@pytest.mark.parametrize("number", [-1, 1 << 32, 1 << 40, (1 << 32) - 1, 1 << 20])
@pytest.mark.parametrize("field", [337 - 8, 337])
def test_device_numbers_out_of_range(tmp_path: Path, number: int, field: int) -> None:
    block = bytearray(root_archive().entry("dev", tarfile.CHRTYPE, mode=0o600).data()[:512])
    sign = 0xFF if number < 0 else 0x80
    block[field : field + 8] = bytes([sign]) + number.to_bytes(7, "big", signed=number < 0)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    with pytest.raises(FormatError):
        apply(bytes(block), tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []


@pytest.mark.overlay
def test_whiteouts_for_an_overlay(tmp_path: Path) -> None:
    lower = tmp_path / "lower"
    apply(
        root_archive().file("gone", "x").dir("dir", uid=7).file("dir/old", "x")
        .file("dir/kept", "x").dir("opaque").file("opaque/old", "x").file("dir2/inner/deep", "x"),
        lower,
    )  # fmt: skip
    mounts = overlay_mounts(tmp_path, [lower])
    target = layer_target(mounts, rebase=False)
    assert target is not None
    archive = (
        root_archive().file(".wh.gone").file("dir/.wh.old").file("opaque/.wh..wh..opq")
        .file("opaque/new", "y").file(".wh.dir2").dir("dir2").file("dir2/fresh", "z")
    )  # fmt: skip
    apply(archive, target)
    upper = tmp_path / "upper"
    assert stat.S_ISCHR((upper / "gone").stat().st_mode)
    assert (upper / "gone").stat().st_rdev == 0
    assert os.getxattr(upper / "opaque", "trusted.overlay.opaque") == b"y"
    with temp_mount(mounts, dir=tmp_path) as root:
        found = describe(root)
    assert set(found) == {".", "dir", "dir/kept", "opaque", "opaque/new", "dir2", "dir2/fresh"}
    assert found["dir"].owner == (7, 0)


@pytest.mark.overlay
def test_plain_and_overlay_extraction_show_the_same(tmp_path: Path) -> None:
    first = (
        root_archive().dir("a", 0o750, uid=3).file("a/f", "1").file("a/g", "2").file("b/c/d", "3")
        .symlink("l", "a").file("h1", "hard").link("h2", "h1")
    ).data()  # fmt: skip
    second = (
        root_archive().file("a/.wh.f").file("b/c/new", "4").file("b/.wh..wh..opq").file(".wh.l")
        .file(".wh.h1").file("a/sub/x", "5")
    ).data()  # fmt: skip
    lower, plain = tmp_path / "lower", tmp_path / "plain"
    for archive in (first, second):
        apply(archive, plain)
    apply(first, lower)
    (tmp_path / "upper").mkdir()
    apply(second, LayerTarget(tmp_path / "upper", True, (lower,)))
    shown = merged(tmp_path, [tmp_path / "upper", lower])
    ours = describe(plain)
    assert set(ours) == set(shown)
    for name, entry in ours.items():
        if stat.filemode(stat.S_IFREG)[0] == entry.mode[0]:
            assert entry == shown[name], name


def test_implied_directories_look_as_below(tmp_path: Path) -> None:
    far, near = tmp_path / "far", tmp_path / "near"
    attribute = {"SCHILY.xattr.user.note": "kept"}
    apply(root_archive().dir("d", 0o700, uid=9, pax_headers=attribute).dir("d/e", 0o711), far)
    apply(root_archive().dir("d", 0o2750, uid=8).file("blocked"), near)
    apply(root_archive().dir("blocked", 0o700, uid=9), far)
    (tmp_path / "upper").mkdir()
    target = LayerTarget(tmp_path / "upper", True, (near, far))
    apply(root_archive().file("d/e/f").file("blocked/x"), target)
    found = describe(tmp_path / "upper")
    assert (found["d"].mode, found["d"].owner) == ("drwxr-s---", (8, 0))
    assert found["d"].mtime_ns == MTIME * 10**9
    assert (found["d/e"].mode, found["d/e"].owner) == ("drwx--x--x", (0, 0))
    assert (found["blocked"].mode, found["blocked"].owner) == ("drwxr-xr-x", (0, 0))
    assert found["d/e/f"].mode == "-rw-r--r--"


def test_a_whiteout_of_what_no_layer_has(tmp_path: Path) -> None:
    """As with containerd the whiteout stays, and in a directory of the layer's own it is listed."""
    lower = tmp_path / "lower"
    lower.mkdir()
    mounts = overlay_mounts(tmp_path, [lower])
    target = layer_target(mounts, rebase=False)
    assert target is not None
    archive = root_archive().file(".wh.gone").dir("own").file("own/.wh.gone").file("own/file")
    apply(archive, target)
    with temp_mount(mounts, dir=tmp_path) as root:
        assert os.listdir(root) == ["own"]
        assert sorted(os.listdir(root / "own")) == ["file", "gone"]
        assert not os.path.lexists(root / "own/gone")
        (root / "own/gone").write_text("a new one")
        shutil.rmtree(root / "own")
        assert os.listdir(root) == []


def test_a_whiteout_of_what_the_layer_itself_has(tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    with pytest.raises(FormatError, match="lower layer"):
        apply(root_archive().file("x").file(".wh.x"), LayerTarget(tmp_path / "upper", True))


@pytest.mark.loop
def test_a_full_disk(tmp_path: Path) -> None:
    with mounted(tmp_path, "mkfs.ext4", "-q", "-N", "64") as full:
        status = os.statvfs(full)
        with (full / "filler").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, (status.f_bavail - 1000) * status.f_bsize)
        with pytest.raises(ResourceExhausted, match="disk is full"):
            apply(root_archive().file("big", bytes(80 << 20)), full)
        archive = root_archive()
        for number in range(100):
            archive.file(str(number))
        with pytest.raises(ResourceExhausted, match="out of inodes"):
            apply(archive, full)


USERNS = """
import sys
from pathlib import Path
from lamina.layer.apply import apply_layer
from lamina.layer.limits import LayerLimits
from lamina.layer.target import LayerTarget, layer_target
from lamina.core.mount import Mount
directory = Path(sys.argv[1])
target = layer_target([Mount("bind", str(directory / "upper"), "", ("rw", "rbind"))], rebase=True)
assert target is not None and target.user_xattrs
applied = apply_layer([(directory / "layer.tar").read_bytes()], target, limits=LayerLimits())
print(applied.warnings)
"""


@pytest.mark.userns
def test_in_a_user_namespace(tmp_path: Path) -> None:
    archive = (
        root_archive().entry("null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
        .entry("pipe", tarfile.FIFOTYPE, mode=0o600).dir("d").file("d/.wh..wh..opq")
        .file(".wh.gone").file("f", "x")
    )  # fmt: skip
    (tmp_path / "layer.tar").write_bytes(archive.data())
    (tmp_path / "upper").mkdir()
    argv = ["unshare", "--user", "--map-root-user", sys.executable, "-c", USERNS, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "device null is left out" in done.stdout
    upper = tmp_path / "upper"
    assert sorted(os.listdir(upper)) == ["d", "f", "gone", "pipe"]
    assert os.getxattr(upper / "d", "user.overlay.opaque") == b"y"
    assert (upper / "gone").stat().st_rdev == 0
    assert stat.S_ISCHR((upper / "gone").stat().st_mode)
