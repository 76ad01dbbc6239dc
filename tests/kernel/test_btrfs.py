"""The btrfs snapshotter on a btrfs of its own; btrfs-progs says what is really there."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.core.driver import Snapshot
from lamina.core.labels import MAX_SIZE, SNAPSHOT_REF
from lamina.core.mount import Mount
from lamina.core.snapshot import Kind, Usage
from lamina.errors import DataLoss, FailedPrecondition, InvalidArgument, SnapshotterSkipped
from lamina.linux import btrfs
from lamina.linux.btrfs_quota import QuotaMode, quota_group, quota_limit, quota_mode
from lamina.linux.btrfs_tree import nested_in, open_inode
from lamina.linux.inode_flags import FS_APPEND_FL, FS_IMMUTABLE_FL, set_flags
from lamina.linux.sync import syncfs
from lamina.mount import mount_all, temp_mount, unmount_all
from lamina.snapshotters.btrfs import driver as driver_module
from lamina.snapshotters.btrfs.device import device_of
from lamina.snapshotters.btrfs.driver import BtrfsDriver
from lamina.snapshotters.btrfs.plugin import NEEDS, PLUGIN, BtrfsConfig
from lamina.snapshotters.engine import Engine
from tests.fixtures_containers import wait_for

pytestmark = [pytest.mark.root, pytest.mark.loop, pytest.mark.btrfs]

MIB = 1 << 20
QUOTA_CTL = 0xC0109428
ENABLE_SIMPLE = 4
BOTH_QUOTAS = pytest.mark.parametrize("mode", ["full", "simple"])


def progs(*argv: str | Path) -> str:
    done = subprocess.run(("btrfs", *argv), check=True, capture_output=True, text=True)
    return done.stdout


def subvolumes(disk: Path) -> set[str]:
    return {line.split(" path ")[1] for line in progs("subvolume", "list", disk).splitlines()}


def open_directory(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def sync(path: Path) -> None:
    fd = open_directory(path)
    syncfs(fd)
    os.close(fd)


@pytest.fixture
def root(btrfs_dir: Path) -> Path:
    return btrfs_dir / "sn"


@pytest.fixture
def disk_fd(btrfs_dir: Path) -> Iterator[int]:
    fd = open_directory(btrfs_dir)
    yield fd
    os.close(fd)


@pytest.fixture
def driver(root: Path) -> Iterator[BtrfsDriver]:
    loaded = PLUGIN.load(BtrfsConfig(), root)
    assert isinstance(loaded, BtrfsDriver)
    yield loaded
    loaded.close()


@pytest.fixture
def engine(root: Path) -> Iterator[Engine]:
    with Engine("btrfs", PLUGIN.load(BtrfsConfig(), root), root, sync_remove=True) as engine:
        yield engine


def commit(engine: Engine, name: str, parent: str, work: Path, **files: str) -> None:
    with temp_mount(engine.prepare("key", parent), dir=work) as root:
        for file, content in files.items():
            (root / file).write_text(content)
    engine.commit(name, "key")


# The kernel's interface


def test_what_btrfs_progs_say(btrfs_dir: Path, disk_fd: int) -> None:
    progs("subvolume", "create", btrfs_dir / "one")
    progs("subvolume", "create", btrfs_dir / "one/two")
    progs("subvolume", "snapshot", "-r", btrfs_dir / "one", btrfs_dir / "three")
    for name, is_read_only in (("one", False), ("one/two", False), ("three", True)):
        opened = open_directory(btrfs_dir / name)
        info = btrfs.subvolume_info(opened)
        shown = dict(
            line.strip().split(":", 1)
            for line in progs("subvolume", "show", btrfs_dir / name).splitlines()[1:]
            if ":" in line
        )
        assert info.id == int(shown["Subvolume ID"]) == btrfs.subvolume_id(opened)
        assert info.parent_id == int(shown["Parent ID"])
        assert info.generation == int(shown["Generation"])
        assert info.created == int(shown["Gen at creation"])
        assert info.is_read_only == is_read_only == ("readonly" in shown["Flags"])
        assert btrfs.is_read_only(opened) == is_read_only
        assert btrfs.is_subvolume(opened)
        again = open_inode(disk_fd, info.id)
        assert os.fstat(again) == os.fstat(opened)
        os.close(again)
        os.close(opened)
    one = int(progs("inspect-internal", "rootid", btrfs_dir / "one"))
    two = int(progs("inspect-internal", "rootid", btrfs_dir / "one/two"))
    [nested] = nested_in(disk_fd, one)
    assert (nested.id, nested.parent, nested.dir_id, nested.name) == (two, one, 256, b"two")
    assert btrfs.is_btrfs(disk_fd)
    with pytest.raises(FileNotFoundError):
        open_inode(disk_fd, 99_999)
    with pytest.raises(OSError, match="Stale file handle"):
        open_inode(disk_fd, one, 99_999)


def test_more_nested_ones_than_an_answer_holds(btrfs_dir: Path, disk_fd: int) -> None:
    names = {f"{number}-{'x' * 240}" for number in range(1200)}
    for name in names:
        btrfs.create_subvolume(disk_fd, name)
    found = nested_in(disk_fd, btrfs.subvolume_id(disk_fd))
    assert {nested.name.decode() for nested in found} == names
    assert len({nested.id for nested in found}) == 1200


@BOTH_QUOTAS
def test_quotas_as_btrfs_progs_show_them(btrfs_dir: Path, disk_fd: int, mode: str) -> None:
    assert quota_mode(disk_fd) == QuotaMode.OFF
    assert quota_group(disk_fd, 5) is None
    enable_quotas(btrfs_dir, mode)
    assert quota_mode(disk_fd) == mode
    progs("subvolume", "create", btrfs_dir / "one")
    (btrfs_dir / "one/file").write_bytes(os.urandom(MIB))
    progs("qgroup", "limit", str(5 * MIB), btrfs_dir / "one")
    sync(btrfs_dir)
    id = int(progs("inspect-internal", "rootid", btrfs_dir / "one"))
    lines = progs("qgroup", "show", "--raw", "-re", btrfs_dir).splitlines()
    [fields] = [line.split() for line in lines if line.startswith(f"0/{id} ")]
    group = quota_group(disk_fd, id)
    assert group is not None
    assert [f"{group.referenced}", f"{group.exclusive}"] == fields[1:3]
    assert group.exclusive >= MIB
    assert quota_limit(disk_fd, id) == 5 * MIB


def enable_quotas(disk: Path, mode: str) -> None:
    """Simple ones are more than Debian's btrfs-progs know of."""
    fd = open_directory(disk)
    try:
        if mode == "full":
            progs("quota", "enable", disk)
        else:
            fcntl.ioctl(fd, QUOTA_CTL, struct.pack("=QQ", ENABLE_SIMPLE, 0))
    except OSError as error:
        pytest.skip(f"simple quotas need Linux 6.7: {error.strerror}")
    finally:
        os.close(fd)
    subprocess.run(("btrfs", "quota", "rescan", "-w", disk), capture_output=True)


# Where it works


def test_root_that_is_not_on_btrfs(tmp_path: Path) -> None:
    tmpfs = [Mount("tmpfs", "tmpfs")]
    with temp_mount(tmpfs, dir=tmp_path) as place, pytest.raises(SnapshotterSkipped) as caught:
        PLUGIN.load(BtrfsConfig(), place / "sn")
    assert "is on tmpfs, not btrfs" in caught.value.reason
    assert "lamina btrfs setup --loop SIZE" in caught.value.fix


def test_probe_leaves_nothing(btrfs_dir: Path) -> None:
    place = btrfs_dir / "probe"
    place.mkdir()
    PLUGIN.probe(BtrfsConfig(), place)
    assert [need.probe(place) for need in NEEDS] == [None, "they are off"]
    assert list(place.iterdir()) == []
    assert subvolumes(btrfs_dir) == set()
    enable_quotas(btrfs_dir, "full")
    assert [need.probe(place) for need in NEEDS] == [None, None]


def test_device_of_a_subvolume_that_is_mounted_by_itself(btrfs_dir: Path, tmp_path: Path) -> None:
    source = subprocess.run(
        ("findmnt", "-no", "SOURCE", btrfs_dir), check=True, capture_output=True, text=True
    ).stdout.strip()
    assert device_of(btrfs_dir) == source
    progs("subvolume", "create", btrfs_dir / "sub")
    (btrfs_dir / "sub/below").mkdir()
    point = tmp_path / "point"
    point.mkdir()
    subprocess.run(("mount", "-o", "subvol=sub", source, point), check=True)
    try:
        assert device_of(point / "below") == source
        with Engine("btrfs", PLUGIN.load(BtrfsConfig(), point / "sn"), point / "sn") as engine:
            commit(engine, "one", "", tmp_path, file="x")
            with temp_mount(engine.view("view", "one"), dir=tmp_path) as seen:
                assert (seen / "file").read_text() == "x"
            assert "sub/sn/snapshots/1" in subvolumes(btrfs_dir)
    finally:
        subprocess.run(("umount", point), check=True)


# Subvolumes that containers make


def make_nested(top: Path) -> None:
    """Make subvolumes as a container may that wants to be a nuisance."""
    for name in ("a", "a/b", "a/b/c", "a/b/c/d", "dir é"):
        if name == "dir é":
            (top / name).mkdir()
            name += "/sub"
        progs("subvolume", "create", top / name)
        (top / name / "file").write_text("x")
    (top / "link").symlink_to("/")
    progs("subvolume", "snapshot", "-r", top / "a/b", top / "a/read-only")
    progs("property", "set", "-f", top / "a/b", "ro", "true")
    for path, flag in ((top / "dir é/sub", FS_IMMUTABLE_FL), (top / "dir é", FS_APPEND_FL)):
        fd = open_directory(path)
        set_flags(fd, flag)
        os.close(fd)
    (top / "a").chmod(0)


def test_nested_subvolumes_go_with_their_snapshot(
    engine: Engine, tmp_path: Path, btrfs_dir: Path
) -> None:
    commit(engine, "base", "", tmp_path, file="x")
    with temp_mount(engine.prepare("active", "base"), dir=tmp_path) as top:
        make_nested(top)
    assert len(subvolumes(btrfs_dir)) == 2 + 6
    engine.remove("active")
    assert subvolumes(btrfs_dir) == {"sn/snapshots/1"}
    assert {work for work, _ in engine.backlog()} == {"sync"}


def test_nested_subvolumes_are_empty_directories_in_snapshots(
    engine: Engine, tmp_path: Path, btrfs_dir: Path
) -> None:
    with temp_mount(engine.prepare("active"), dir=tmp_path) as top:
        make_nested(top)
        engine.fork("active", "fork")
    engine.commit("base", "active")
    with temp_mount(engine.prepare("child", "base"), dir=tmp_path) as top:
        assert sorted(path.name for path in top.iterdir()) == ["a", "dir é", "link"]
        assert list((top / "a").iterdir()) == []
        assert list((top / "dir é/sub").iterdir()) == []
        (top / "a").rmdir()
    # What was committed from has gone, with all that was nested in it.
    assert subvolumes(btrfs_dir) == {"sn/snapshots/1", "sn/active/2", "sn/active/3"}
    for key in ("fork", "child", "base"):
        engine.remove(key)
    assert subvolumes(btrfs_dir) == set()


def test_nested_subvolumes_that_are_made_meanwhile(driver: BtrfsDriver, tmp_path: Path) -> None:
    snapshot = Snapshot(1, Kind.ACTIVE)
    driver.create(snapshot)
    stop = threading.Event()
    fd = open_directory(driver.root / "active/1")

    def nuisance() -> None:
        for number in range(2000):
            if stop.wait(0.002):
                return
            try:
                btrfs.create_subvolume(fd, f"{number}")
            except OSError:
                return  # destroyed

    thread = threading.Thread(target=nuisance)
    thread.start()
    try:
        try:
            driver.destroy(1)
        except FailedPrecondition as refused:
            assert "stop the container" in refused.hint
    finally:
        stop.set()
        thread.join()
        os.close(fd)
    driver.destroy(1)
    assert driver.ids() == []
    assert subvolumes(driver.root.parent) == set()


# Commits


def test_nothing_is_written_after_a_commit(engine: Engine, tmp_path: Path) -> None:
    point = tmp_path / "point"
    point.mkdir()
    mounts = engine.prepare("active")
    mount_all(mounts, point)
    try:
        with (point / "log").open("w") as opened:
            print("before", file=opened, flush=True)
            engine.commit("committed", "active")
            print("after", file=opened, flush=True)  # its descriptor is writable for ever
        with pytest.raises(OSError, match="Read-only file system"):
            (point / "new").touch()
        assert (point / "log").exists()
        with temp_mount(engine.view("view", "committed"), dir=tmp_path) as seen:
            assert (seen / "log").read_text() == "before\n"
            assert [path.name for path in seen.iterdir()] == ["log"]
    finally:
        unmount_all(mounts, point)
    assert engine.fsck() == []


def test_commit_that_came_to_nothing(driver: BtrfsDriver, tmp_path: Path, btrfs_dir: Path) -> None:
    """As after a crash between `seal` and the store: Active again, with all that it had."""
    snapshot = Snapshot(1, Kind.ACTIVE)
    driver.create(snapshot)
    with temp_mount(driver.mounts(snapshot), dir=tmp_path) as top:
        (top / "first").write_text("1")
    driver.seal(snapshot)
    driver.fork(snapshot, Snapshot(2, Kind.ACTIVE))
    for id in (1, 2):
        with temp_mount(driver.mounts(Snapshot(id, Kind.ACTIVE)), dir=tmp_path) as top:
            (top / "second").write_text("2")
    driver.seal(snapshot)
    driver.create(Snapshot(3, Kind.VIEW, (1,)))
    with temp_mount(driver.mounts(Snapshot(3, Kind.VIEW, (1,))), dir=tmp_path) as top:
        assert {path.name for path in top.iterdir()} == {"first", "second"}
    assert subvolumes(btrfs_dir) == {"sn/snapshots/1", "sn/active/2", "sn/view/3"}


def test_seal_that_fails_leaves_it_writable(
    driver: BtrfsDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = Snapshot(1, Kind.ACTIVE)
    driver.create(snapshot)
    with temp_mount(driver.mounts(snapshot), dir=tmp_path) as top:

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(driver_module, "written_since", full)
        with pytest.raises(OSError, match="No space left"):
            driver.seal(snapshot)
        (top / "written").touch()


# Sizes


def test_usage(driver: BtrfsDriver, tmp_path: Path) -> None:
    base = Snapshot(1, Kind.ACTIVE)
    driver.create(base)
    assert driver.usage(base) == Usage(1, 0)
    with temp_mount(driver.mounts(base), dir=tmp_path) as top:
        (top / "large").write_bytes(os.urandom(3 * MIB))
        (top / "small").write_bytes(b"x" * 100)
        os.link(top / "large", top / "link")
        with (top / "sparse").open("wb") as sparse:
            sparse.truncate(100 * MIB)
        sync(top)
    assert driver.usage(base) == Usage(4, 3 * MIB + 100)
    assert driver.seal(base) == Usage(4, 3 * MIB + 100)
    child = Snapshot(2, Kind.ACTIVE, (1,))
    driver.create(child)
    assert driver.usage(child) == Usage(0, 0)
    with temp_mount(driver.mounts(child), dir=tmp_path) as top:
        (top / "small").unlink()
        with (top / "large").open("r+b") as large:
            large.seek(MIB)
            large.write(os.urandom(MIB))
        (top / "new").write_bytes(os.urandom(MIB))
        subprocess.run(("cp", "--reflink=always", top / "new", top / "clone"), check=True)
        subprocess.run(("cp", "--reflink=always", top / "large", top / "shared"), check=True)
        sync(top)
    assert driver.usage(child) == Usage(3, 2 * MIB)
    fork = Snapshot(3, Kind.ACTIVE, (1,))
    driver.fork(child, fork)
    assert driver.usage(fork) == driver.usage(child)
    assert driver.seal(child) == Usage(3, 2 * MIB)
    driver.create(Snapshot(4, Kind.VIEW, (2, 1)))
    assert driver.usage(Snapshot(4, Kind.VIEW, (2, 1))) == Usage(0, 0)


def test_usage_of_what_has_not_changed_is_not_measured_again(
    driver: BtrfsDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = Snapshot(1, Kind.ACTIVE)
    driver.create(snapshot)
    sync(driver.root)
    (driver.root / "another change").touch()  # so that the filesystem has got further
    before = driver.usage(snapshot)
    with monkeypatch.context() as patch:
        patch.setattr(driver_module, "written_since", None)
        assert driver.usage(snapshot) == before
    with temp_mount(driver.mounts(snapshot), dir=tmp_path) as top:
        (top / "new").touch()
        sync(top)
    assert driver.usage(snapshot).inodes == before.inodes + 1


@BOTH_QUOTAS
def test_max_size(engine: Engine, tmp_path: Path, btrfs_dir: Path, mode: str) -> None:
    enable_quotas(btrfs_dir, mode)
    with temp_mount(engine.prepare("key"), dir=tmp_path) as top:
        (top / "image").write_bytes(os.urandom(20 * MIB))
    engine.commit("base", "key")
    mounts = engine.prepare("small", "base", labels={MAX_SIZE: str(10 * MIB)})
    engine.prepare("free", "base")
    with temp_mount(mounts, dir=tmp_path) as top:
        (top / "fits").write_bytes(os.urandom(5 * MIB))
        sync(top)
        with pytest.raises(OSError, match="Disk quota exceeded"), (top / "not").open("wb") as file:
            for _ in range(8):
                file.write(os.urandom(MIB))
                file.flush()
                os.fsync(file.fileno())
    with temp_mount(engine.fork("small", "fork"), dir=tmp_path) as top:
        assert (top / "fits").stat().st_size == 5 * MIB
        with pytest.raises(OSError, match="Disk quota exceeded"), (top / "more").open("wb") as file:
            for _ in range(12):
                file.write(os.urandom(MIB))
                file.flush()
                os.fsync(file.fileno())
    with temp_mount(engine.mounts("free"), dir=tmp_path) as top:
        (top / "large").write_bytes(os.urandom(12 * MIB))
        sync(top)


@BOTH_QUOTAS
def test_quota_groups_go_with_their_subvolumes(
    engine: Engine, tmp_path: Path, btrfs_dir: Path, mode: str
) -> None:
    # What is deleted is freed after the next interval.
    subprocess.run(("mount", "-o", "remount,commit=1", btrfs_dir), check=True)
    enable_quotas(btrfs_dir, mode)
    before = quota_groups(btrfs_dir)
    with temp_mount(engine.prepare("key"), dir=tmp_path) as top:
        (top / "file").write_bytes(os.urandom(MIB))
        progs("subvolume", "create", top / "nested")
    engine.commit("base", "key")
    engine.prepare("one", "base", labels={MAX_SIZE: str(MIB)})
    engine.view("two", "base")
    assert len(quota_groups(btrfs_dir) - before) >= 3
    for key in ("one", "two", "base"):
        engine.remove(key)

    def are_gone() -> bool:
        engine._driver.sync()
        return quota_groups(btrfs_dir) == before

    wait_for(are_gone, seconds=60)


def quota_groups(disk: Path) -> set[str]:
    return set(re.findall(r"^0/\d+", progs("qgroup", "show", disk), re.MULTILINE))


def test_max_size_where_it_cannot_be(engine: Engine, btrfs_dir: Path) -> None:
    with pytest.raises(FailedPrecondition, match="quotas are off") as caught:
        engine.prepare("key", labels={MAX_SIZE: str(MIB)})
    assert f"btrfs quota enable --simple {btrfs_dir}" in caught.value.hint
    with pytest.raises(InvalidArgument, match="max-size"):
        engine.prepare("key", labels={MAX_SIZE: "10G"})
    assert subvolumes(btrfs_dir) == set()
    engine.prepare("layer", labels={MAX_SIZE: str(MIB), SNAPSHOT_REF: "sha256:0"})
    engine.view("view", labels={MAX_SIZE: str(MIB)})
    engine.prepare("source")
    assert engine.fsck() == []


# Forks


def test_fork_is_of_one_moment(engine: Engine, tmp_path: Path) -> None:
    """Of two files that are written in turns, no fork has the second ahead of the first."""
    stop = threading.Event()
    with temp_mount(engine.prepare("source"), dir=tmp_path) as top:
        first, second = (top / "first").open("w"), (top / "second").open("w")

        def write() -> None:
            number = 0
            while not stop.is_set():
                for file in (first, second):
                    print(f"{number:8}", file=file, flush=True)
                number += 1

        thread = threading.Thread(target=write)
        thread.start()
        try:
            for number in range(10):
                engine.fork("source", f"fork-{number}")
        finally:
            stop.set()
            thread.join()
            first.close()
            second.close()
    sizes = []
    for number in range(10):
        with temp_mount(engine.mounts(f"fork-{number}"), dir=tmp_path) as top:
            sizes.append([(top / name).stat().st_size for name in ("first", "second")])
    assert all(0 <= one - two <= 9 for one, two in sizes), sizes
    assert sizes[-1][0] > sizes[0][0]


# fsck


def test_faults(engine: Engine, tmp_path: Path, root: Path) -> None:
    commit(engine, "base", "", tmp_path, file="x")
    engine.prepare("active", "base")
    assert engine.fsck() == []
    progs("property", "set", "-f", root / "snapshots/1", "ro", "false")
    [problem] = engine.fsck()
    assert "is writable" in problem.what
    assert problem.repair is not None
    problem.repair.run()
    assert engine.fsck() == []
    progs("subvolume", "delete", root / "active/2")
    (root / "active/2").mkdir()
    [problem] = engine.fsck()
    assert "no subvolume" in problem.what
    engine.remove("active")
    assert engine.fsck() == []


def test_parent_that_is_gone(engine: Engine, tmp_path: Path, root: Path) -> None:
    commit(engine, "base", "", tmp_path, file="x")
    progs("subvolume", "delete", root / "snapshots/1")
    with pytest.raises(DataLoss, match="snapshots/1"):
        engine.prepare("active", "base")
