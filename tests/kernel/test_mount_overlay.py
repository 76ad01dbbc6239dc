from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.core.mount import Mount, escape_option
from lamina.errors import InvalidArgument, LaminaError, NotFound
from lamina.linux.mountinfo import mounts_at_or_below
from lamina.mount import mount_all, temp_mount, unmount_all, unmount_recursive

pytestmark = [pytest.mark.root, pytest.mark.overlay]

IDMAP = ("uidmap=0:100000:65536", "gidmap=0:200000:65536")


class Stack:
    """Layers `s/N/fs`, each with the file `N` and its number in `top`; an upper directory.

    With names of this length, 60 are too much for one page as absolute paths, and 500 even when
    they are relative.
    """

    def __init__(self, root: Path, count: int) -> None:
        self.root = root
        self.layers = [root / f"s/{number:06}/fs" for number in range(count)]
        for number, layer in enumerate(self.layers):
            layer.mkdir(parents=True)
            (layer / str(number)).touch()
            (layer / "top").write_text(str(number))
        for name in ("upper", "work", "target"):
            (root / name).mkdir()
        self.target = root / "target"

    def mounts(self, *options: str, writable: bool = True) -> list[Mount]:
        lower = ":".join(escape_option(layer) for layer in reversed(self.layers))
        upper = [f"{name}dir={escape_option(self.root / name)}" for name in ("upper", "work")]
        words = (*(upper if writable else ()), f"lowerdir={lower}", *options)
        return [Mount("overlay", "overlay", "", words)]

    def check(self) -> None:
        names = set(os.listdir(self.target))
        assert {str(number) for number in range(len(self.layers))} <= names
        assert (self.target / "top").read_text() == str(len(self.layers) - 1)


@pytest.mark.parametrize("count", [1, 2, 120, 128, 300, 500])
def test_layers_of_any_number(tmp_path: Path, count: int) -> None:
    stack = Stack(tmp_path, count)
    mounts = stack.mounts()
    mount_all(mounts, stack.target)
    stack.check()
    (stack.target / "new").touch()
    assert os.listdir(tmp_path / "upper") == ["new"]
    unmount_all(mounts, stack.target)
    assert not mounts_at_or_below(tmp_path)


def test_layers_without_a_common_directory_beyond_a_page(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "a-rather-long-name-so-that-a-page-is-full" / ("x" * 40), 60)
    elsewhere = Path("/dev/shm", f"lamina-test-{os.getpid()}")
    elsewhere.mkdir()
    try:
        stack.layers.insert(0, elsewhere)
        with temp_mount(stack.mounts(), dir=tmp_path) as point:
            assert len(os.listdir(point)) == 61
    finally:
        elsewhere.rmdir()


@pytest.mark.parametrize("count", [3, 200, 500])
def test_separators_in_paths(tmp_path: Path, count: int) -> None:
    stack = Stack(tmp_path / r"a:b,c\d", count)
    mounts = stack.mounts()
    mount_all(mounts, stack.target)
    stack.check()
    (stack.target / "new").touch()
    assert (stack.root / "upper/new").exists()
    unmount_all(mounts, stack.target)


def test_the_current_directory_of_the_process_stays(tmp_path: Path) -> None:
    stack = Stack(tmp_path, 150)
    before = os.getcwd()
    with temp_mount(stack.mounts(), dir=tmp_path):
        assert os.getcwd() == before


@pytest.mark.parametrize("count", [2, 500])
def test_read_only_overlay(tmp_path: Path, count: int) -> None:
    stack = Stack(tmp_path, count)
    for mounts in (stack.mounts(writable=False), stack.mounts("ro")):
        mount_all(mounts, stack.target)
        with pytest.raises(OSError, match="Read-only"):
            (stack.target / "x").touch()
        unmount_all(mounts, stack.target)


@pytest.mark.parametrize("count", [2, 500])
def test_flags_and_options_of_an_overlay(tmp_path: Path, count: int) -> None:
    stack = Stack(tmp_path, count)
    mounts = stack.mounts("nosuid", "nodev", "redirect_dir=on", "metacopy=on", "shared")
    mount_all(mounts, stack.target)
    (info,) = mounts_at_or_below(stack.target)
    assert {"nosuid", "nodev"} <= set(info.options)
    assert {"redirect_dir=on", "metacopy=on"} <= set(info.super_options)
    assert info.propagation[0].startswith("shared:")
    unmount_all(mounts, stack.target)


def test_the_documented_example_of_overlay_and_bind(tmp_path: Path) -> None:
    stack = Stack(tmp_path, 2)
    (stack.layers[0] / "data").mkdir()
    volume = tmp_path / "volume"
    volume.mkdir()
    mounts = [*stack.mounts(), Mount("bind", str(volume), "/data", ("rbind", "rw"))]
    mount_all(mounts, stack.target)
    (stack.target / "data/written").touch()
    stack.check()
    unmount_all(mounts, stack.target)
    assert (volume / "written").exists()
    assert os.listdir(tmp_path / "upper") == []
    assert not mounts_at_or_below(tmp_path)


def test_temporary_mount_drops_volatile(tmp_path: Path) -> None:
    stack = Stack(tmp_path, 1)
    for _ in range(2):
        with temp_mount(stack.mounts("volatile"), dir=tmp_path) as point:
            (point / "x").touch()
            (info,) = mounts_at_or_below(point)
            assert not {"volatile", "fsync=volatile"} & set(info.super_options)
    assert not (tmp_path / "work/work/incompat").exists()


def test_temporary_read_only_mount_shows_the_upper_directory(tmp_path: Path) -> None:
    stack = Stack(tmp_path, 2)
    (tmp_path / "upper/above").touch()
    with temp_mount(stack.mounts(), dir=tmp_path, read_only=True) as point:
        assert (point / "above").exists()
        with pytest.raises(OSError, match="Read-only"):
            (point / "x").touch()


@pytest.mark.parametrize("count", [2, 500])
def test_the_missing_layer_is_named(tmp_path: Path, count: int) -> None:
    stack = Stack(tmp_path, count)
    missing = stack.layers[1]
    missing.rename(tmp_path / "moved")
    with pytest.raises(NotFound, match=f"{missing}: No such file or directory"):
        mount_all(stack.mounts(), stack.target)
    assert not mounts_at_or_below(tmp_path)


@pytest.mark.parametrize("count", [2, 300, 500])
def test_a_wrong_option_leaves_nothing(tmp_path: Path, count: int) -> None:
    stack = Stack(tmp_path, count)
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(InvalidArgument, match=f"{count} lower directories"):
        mount_all(stack.mounts("bogus=1"), stack.target)
    assert not mounts_at_or_below(tmp_path)
    assert os.listdir("/proc/self/fd") == descriptors


def owner(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid


@pytest.mark.idmap
@pytest.mark.parametrize("count", [1, 2, 300, 500])
def test_idmapped_layers_have_shifted_owners_and_the_upper_one_keeps_its_own(
    tmp_path: Path, count: int
) -> None:
    stack = Stack(tmp_path, count)
    os.chown(stack.layers[0] / "0", 1, 2)
    mounts = stack.mounts(*IDMAP)
    mount_all(mounts, stack.target)
    stack.check()
    (stack.target / "new").touch()
    assert owner(stack.target / "0") == (100001, 200002)
    assert owner(stack.target / "top") == (100000, 200000)
    assert owner(stack.target / "new") == (0, 0)
    assert owner(stack.layers[0] / "0") == (1, 2)
    assert len(mounts_at_or_below(tmp_path)) == 1
    unmount_all(mounts, stack.target)
    assert not mounts_at_or_below(tmp_path)


@pytest.mark.idmap
def test_idmapped_overlay_on_a_shared_mount_leaves_nothing_with_its_peers(tmp_path: Path) -> None:
    shared = [Mount("tmpfs", "x", "", ("shared",))]
    peer = tmp_path / "peer"
    home = tmp_path / "home"
    peer.mkdir()
    home.mkdir()
    mount_all(shared, home)
    mount_all([Mount("bind", str(home), "", ("bind",))], peer)
    stack = Stack(tmp_path, 3)
    target = home / "target"
    target.mkdir()
    mounts = stack.mounts(*IDMAP, "private")
    mount_all(mounts, target)
    assert owner(peer / "target/top") == (100000, 200000)
    assert len(mounts_at_or_below(home)) == len(mounts_at_or_below(peer)) == 2
    unmount_all(mounts, target)
    assert len(mounts_at_or_below(home)) == len(mounts_at_or_below(peer)) == 1
    unmount_recursive(tmp_path)


@pytest.mark.idmap
@pytest.mark.parametrize("bad", ["bogus=1", "upperdir=/nonexistent"])
def test_failed_idmapped_overlay_leaves_nothing(tmp_path: Path, bad: str) -> None:
    stack = Stack(tmp_path, 3)
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(LaminaError):
        mount_all(stack.mounts(*IDMAP, bad), stack.target)
    assert not mounts_at_or_below(tmp_path)
    assert os.listdir("/proc/self/fd") == descriptors


@pytest.mark.idmap
@pytest.mark.parametrize("mode", ["rw", "ro"])
def test_idmapped_bind(tmp_path: Path, mode: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "file").touch()
    os.chown(source / "file", 5, 6)
    mounts = [Mount("bind", str(source), "", (*IDMAP, mode, "rbind"))]
    mount_all(mounts, target)
    assert owner(target / "file") == (100005, 200006)
    (info,) = mounts_at_or_below(target)
    assert mode in info.options
    unmount_all(mounts, target)


@pytest.mark.idmap
def test_refused_maps_leave_no_process_and_no_mount(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    overlapping = ("uidmap=0:1000:10,5:3000:10", "gidmap=0:1:1")
    with pytest.raises(InvalidArgument):
        mount_all([Mount("bind", str(tmp_path), "", ("bind", *overlapping))], target)
    children = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True
    ).stdout
    assert "userns_holder" not in children
    assert not mounts_at_or_below(tmp_path)


@pytest.mark.fuse
def test_fuse_helper(tmp_path: Path) -> None:
    stack = Stack(tmp_path, 3)
    options = stack.mounts()[0].options
    mounts = [Mount("fuse3.fuse-overlayfs", "overlay", "", options)]
    mount_all(mounts, stack.target)
    stack.check()
    (stack.target / "new").touch()
    (info,) = mounts_at_or_below(stack.target)
    assert info.type.startswith("fuse")
    unmount_all(mounts, stack.target)
    assert not mounts_at_or_below(tmp_path)
    assert (tmp_path / "upper/new").exists()


@pytest.mark.fuse
def test_fuse_program_that_fails_says_why(tmp_path: Path) -> None:
    mounts = [Mount("fuse3.fuse-overlayfs", "overlay", "", ("lowerdir=/nonexistent",))]
    (tmp_path / "target").mkdir()
    with pytest.raises(LaminaError, match="nonexistent"):
        mount_all(mounts, tmp_path / "target")
    assert not mounts_at_or_below(tmp_path)


@pytest.fixture
def fuse_for_everybody(tmp_path: Path) -> Iterator[None]:
    """Open the device to all users, as distributions do, in this session's mounts alone."""
    device, real = tmp_path / "fuse", Path("/dev/fuse")
    os.mknod(device, 0o600 | stat.S_IFCHR, real.stat().st_rdev)
    device.chmod(0o666)
    mounts = [Mount("bind", str(device), "", ("bind",))]
    mount_all(mounts, real)
    yield
    unmount_all(mounts, real)


@pytest.mark.fuse
@pytest.mark.usefixtures("fuse_for_everybody")
def test_a_fuse_mount_of_ones_own_comes_off_without_root(tmp_path: Path) -> None:
    user = 65534
    stack = Stack(tmp_path, 1)
    for path in (*tmp_path.parents, tmp_path):
        if path.is_relative_to(os.environ["TMPDIR"]):
            path.chmod(0o711)
    for path in tmp_path.rglob("*"):
        os.chown(path, user, user)
    options = ",".join(stack.mounts()[0].options)
    argv = ["fuse-overlayfs", "-o", options, str(stack.target)]
    subprocess.run(argv, user=user, group=user, check=True)
    assert mounts_at_or_below(stack.target)
    # Gives up root only after the imports, because the user may lack access to the program.
    code = (
        "import os, sys, lamina.tools.fuse; from lamina.mount import unmount;"
        f"os.setgroups([]); os.setgid({user}); os.setuid({user}); unmount(sys.argv[1])"
    )
    argv = [sys.executable, "-c", code, str(stack.target)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not mounts_at_or_below(stack.target)
