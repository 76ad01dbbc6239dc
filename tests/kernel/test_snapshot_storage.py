"""What drivers do to files: copies, removals, and mounts that the unit tests only look at."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.core.driver import Snapshot
from lamina.core.labels import OVERLAY_VOLATILE
from lamina.core.mount import Mount
from lamina.core.snapshot import Kind
from lamina.errors import FailedPrecondition, LaminaError
from lamina.linux.inode_flags import FS_IMMUTABLE_FL, get_flags, set_flags
from lamina.mount import mount_all, temp_mount, unmount, unmount_all
from lamina.snapshotters.engine import Engine
from lamina.snapshotters.native.driver import NativeDriver
from lamina.snapshotters.overlayfs.driver import OverlayDriver
from lamina.snapshotters.overlayfs.plugin import PLUGIN as OVERLAYFS
from lamina.snapshotters.overlayfs.plugin import OverlayConfig
from lamina.snapshotters.tree import remove_tree
from lamina.snapshotters.tree_copy import copy_tree
from tests.filesystems import mounted

pytestmark = pytest.mark.root

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
"""security.capability, version 2: cap_net_bind_service=ep."""


def populate(root: Path) -> None:
    """Make one of everything that a root filesystem consists of."""
    (root / "dir/sub").mkdir(parents=True)
    (root / "dir/file").write_bytes(os.urandom(100_000))
    os.link(root / "dir/file", root / "dir/sub/hard link")
    (root / "empty").touch()
    with (root / "sparse").open("wb") as file:
        file.seek(32 << 20)
        file.write(b"x" * 5000)
        file.truncate(64 << 20)
    (root / "symlink").symlink_to("/etc/passwd")
    (root / "dangling").symlink_to("\udcff/not there")
    os.mkfifo(root / "fifo")
    os.mknod(root / "char", stat.S_IFCHR | 0o640, os.makedev(1, 3))
    os.mknod(root / "block", stat.S_IFBLK | 0o600, os.makedev(7, 99))
    os.mknod(root / "whiteout", stat.S_IFCHR, os.makedev(0, 0))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
    (root / "setuid").write_text("#!")
    os.chown(root / "setuid", 12, 34)
    (root / "setuid").chmod(0o6755)
    os.setxattr(root / "setuid", "security.capability", CAPABILITY)
    os.setxattr(root / "dir/file", "user.name", b"value")
    os.setxattr(root / "dir", "trusted.overlay.opaque", b"y")
    os.setxattr(root / "symlink", "trusted.link", b"1", follow_symlinks=False)
    os.setxattr(root / "fifo", "trusted.fifo", b"1")
    subprocess.run(["setfacl", "-m", "u:77:rwx", "dir/file"], cwd=root, check=True)
    subprocess.run(["setfacl", "-d", "-m", "g:78:rx", "dir"], cwd=root, check=True)
    os.chown(root / "symlink", 5, 6, follow_symlinks=False)
    (root / "dir/sub").chmod(0o1000)
    root.chmod(0o711)
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        os.utime(path, ns=(10**18 + number, 10**18 + 7 * number + 1), follow_symlinks=False)
    os.utime(root, ns=(1, 2))


def described(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    inodes: dict[int, str] = {}
    for path in (root, *sorted(root.rglob("*"))):
        status = path.lstat()
        name = str(path.relative_to(root))
        special = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
        xattrs = {
            key: os.getxattr(path, key, follow_symlinks=False)
            for key in os.listxattr(path, follow_symlinks=False)
        }
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        found[name] = (
            status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns,
            status.st_rdev if special else 0, status.st_nlink, content, xattrs,
            inodes.setdefault(status.st_ino, name),
        )  # fmt: skip
    return found


def test_copy_keeps_everything(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    populate(source)
    expected = described(source)
    copy_tree(source, target)
    assert described(target) == expected
    assert (target / "sparse").stat().st_blocks == (source / "sparse").stat().st_blocks < 1000


def test_copy_shares_nothing_with_its_source(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "file").write_text("old")
    copy_tree(source, target)
    (target / "file").write_text("new")
    assert (source / "file").read_text() == "old"


@pytest.mark.loop
def test_overlayfs_refuses_a_filesystem_that_lists_no_types(tmp_path: Path) -> None:
    with mounted(tmp_path, "mkfs.ext4", "-q", "-O", "^filetype") as disk:
        for _ in range(2):
            with pytest.raises(FailedPrecondition, match="does not support d_type"):
                OVERLAYFS.load(OverlayConfig(), disk / "sn")
    OVERLAYFS.load(OverlayConfig(), tmp_path / "sn").close()
    assert [path.name for path in (tmp_path / "sn").iterdir()] == ["snapshots"]


def test_removal_does_not_reach_into_a_root_made_anew(tmp_path: Path) -> None:
    root = tmp_path / "sn"
    root.mkdir()
    with Engine("native", NativeDriver(root), root) as old:
        old.prepare("a")
        old.remove("a")
        shutil.rmtree(root)
        root.mkdir()
        with Engine("native", NativeDriver(root), root) as new:
            new.prepare("b")
            assert old.reap() == 1
            assert new.fsck() == []


def test_names_that_are_no_ids_are_passed_over(tmp_path: Path) -> None:
    with Engine("native", NativeDriver(tmp_path), tmp_path, boot="one") as engine:
        engine.prepare("a")
    for name in ("0", "02", "rm-", "rm-rm-3", "x", "9" * 30, "\u0663"):
        (tmp_path / "snapshots" / name).mkdir()
    with Engine("native", NativeDriver(tmp_path), tmp_path, boot="two") as engine:
        assert engine.fsck() == []
        engine.cleanup()
    assert len(list((tmp_path / "snapshots").iterdir())) == 8


@pytest.mark.reflink
def test_snapshots_share_blocks_where_the_filesystem_can(reflink_dir: Path) -> None:
    content = os.urandom(64 << 20)
    root = reflink_dir / "sn"
    root.mkdir()
    with Engine("native", NativeDriver(root), root) as engine:
        engine.prepare("base")
        (root / "snapshots/1/file").write_bytes(content)
        engine.commit("name", "base")
        engine.sync()
        before = free(reflink_dir)
        engine.prepare("copy", "name")
        copy = root / "snapshots/2/file"
        os.sync()
        assert before - free(reflink_dir) < 4 << 20
        assert copy.read_bytes() == content
        with copy.open("r+b") as file:
            file.write(b"changed")
        assert (root / "snapshots/1/file").read_bytes() == content


def free(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bfree * status.f_frsize


def test_copy_of_a_deep_tree(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    target.mkdir()
    source.mkdir()
    try:
        depth = make_deep(source)
        copy_tree(source, target)
        assert deepest(target) == depth
    finally:  # deeper than others can remove
        remove_tree(source)
        remove_tree(target)


def make_deep(root: Path, depth: int = 1500) -> int:
    """Make directories below one another, deeper than a path can be long."""
    fd = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("directory", dir_fd=fd)
        inner = os.open("directory", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    return depth


def deepest(root: Path) -> int:
    fd = os.open(root, os.O_RDONLY)
    depth = 0
    while "directory" in os.listdir(fd):
        inner = os.open("directory", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
        depth += 1
    assert os.listdir(fd) == ["file"]
    os.close(fd)
    return depth


def test_removal_of_everything(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    populate(tree)
    (tree / ".deep-0").touch()
    (tree / ".deep-1").mkdir()
    (tree / ".deep-1/file").touch()
    make_deep(tree / "dir", 200)
    (tree / "dir/directory").chmod(0)
    remove_tree(tree)
    assert list(tmp_path.iterdir()) == []
    remove_tree(tree)
    remove_tree(tmp_path / "missing/tree")
    assert Path("/etc/passwd").exists()


def test_removal_of_a_tree_deeper_than_a_path(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    make_deep(tree, 3000)
    descriptors = len(os.listdir("/proc/self/fd"))
    remove_tree(tree)
    assert not tree.exists()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_removal_of_many_entries(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(5000):
        (tree / f"{number:0100}").touch()
    remove_tree(tree)
    assert not tree.exists()


def make_immutable(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        set_flags(fd, get_flags(fd) | FS_IMMUTABLE_FL)
    except OSError:
        pytest.skip("this filesystem has no immutable flag")
    finally:
        os.close(fd)


@pytest.mark.parametrize("names", [("dir/file", "dir"), ("dir/empty",), ("dir",), ("",)])
def test_removal_of_what_is_immutable(tmp_path: Path, names: tuple[str, ...]) -> None:
    tree = tmp_path / "tree"
    (tree / "dir/empty").mkdir(parents=True)
    (tree / "dir/file").touch()
    for name in names:
        make_immutable(tree / name)
    remove_tree(tree)
    assert not tree.exists()


def test_removal_of_an_immutable_root(tmp_path: Path) -> None:
    driver = NativeDriver(tmp_path)
    driver.create(Snapshot(1, Kind.ACTIVE))
    make_immutable(driver.of(1))
    driver.destroy(1)
    assert driver.ids() == []
    driver.close()


def test_removal_of_a_deep_tree_that_is_immutable(tmp_path: Path) -> None:
    deep = tmp_path.joinpath("tree", *(["d"] * 70))
    deep.mkdir(parents=True)
    for path in (deep, *list(deep.parents)[:70]):
        make_immutable(path)
    remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_removal_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "link").symlink_to(outside)
    remove_tree(tree)
    assert (outside / "precious").exists()


@pytest.mark.parametrize("below", ["", "a", "a/b"])
def test_removal_stops_at_a_mount(tmp_path: Path, below: str) -> None:
    """A bind mount has the same device number, so nothing but the kernel can tell."""
    precious = tmp_path / "precious"
    (precious / "inner").mkdir(parents=True)
    (precious / "inner/file").touch()
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    bind = [Mount("bind", str(precious), options=("rbind", "rw"))]
    mount_all(bind, tree / below)
    try:
        with pytest.raises(FailedPrecondition, match="mounted"):
            remove_tree(tree)
        assert (precious / "inner/file").exists()
    finally:
        unmount_all(bind, tree / below)
    remove_tree(tree)
    assert not tree.exists()


def test_removal_stops_at_a_mounted_file(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("x")
    (tmp_path / "tree").mkdir()
    point = tmp_path / "tree/file"
    point.touch()
    subprocess.run(["mount", "--bind", precious, point], check=True)
    try:
        with pytest.raises(FailedPrecondition, match="mounted"):
            remove_tree(tmp_path / "tree")
    finally:
        unmount(point)
    assert precious.read_text() == "x"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    root = tmp_path / "sn"
    with Engine("overlayfs", OverlayDriver(root), root) as engine:
        yield engine


def test_storage_with_a_mount_inside_waits_for_its_unmount(engine: Engine, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "precious").touch()
    engine.prepare("a")
    fs = tmp_path / "sn/snapshots/1/fs"
    bind = [Mount("bind", str(source), options=("rbind",))]
    mount_all(bind, fs)
    moved = tmp_path / "sn/snapshots/rm-1/fs"
    try:
        engine.remove("a")
        with pytest.raises(LaminaError, match="unmount"):
            engine.cleanup()
        assert engine.pending()
        assert engine.fsck() == []
    finally:
        unmount_all(bind, moved if moved.exists() else fs)
    engine.cleanup()
    assert not engine.pending()
    assert list((tmp_path / "sn/snapshots").iterdir()) == []
    assert (source / "precious").exists()


@pytest.mark.overlay
def test_volatile_snapshot_is_mounted_again_and_again(engine: Engine, tmp_path: Path) -> None:
    engine.prepare("key")
    engine.commit("base", "key")
    point = tmp_path / "point"
    point.mkdir()
    mounts = engine.prepare("a", "base", labels={OVERLAY_VOLATILE: "true"})
    for number in range(3):
        mount_all(mounts, point)
        try:
            (point / f"file-{number}").touch()
            assert "volatile" in Path("/proc/self/mountinfo").read_text()
        finally:
            unmount_all(mounts, point)
        mark = tmp_path / "sn/snapshots/2/work/work/incompat/volatile"
        assert mark.exists()
        with pytest.raises((OSError, LaminaError)):
            mount_all(mounts, point)
        mounts = engine.mounts("a")
    engine.commit("second", "a")
    with temp_mount(engine.view("v", "second"), dir=tmp_path) as root:
        assert sorted(os.listdir(root)) == ["file-0", "file-1", "file-2"]
