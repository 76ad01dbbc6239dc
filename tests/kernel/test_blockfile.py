"""The blockfile snapshotter: what is in its files, on real loop devices."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamina.core.driver import Snapshot
from lamina.core.labels import GID_MAPPING, MAX_SIZE, SNAPSHOT_REF, UID_MAPPING
from lamina.core.mount import Mount
from lamina.core.snapshot import Kind
from lamina.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    LaminaError,
    NotFound,
    ResourceExhausted,
    SnapshotterSkipped,
)
from lamina.linux import loop
from lamina.mount import mount_all, temp_mount, unmount_all
from lamina.snapshotters.blockfile.image import settle
from lamina.snapshotters.blockfile.plugin import PLUGIN, BlockfileConfig
from lamina.snapshotters.engine import Engine
from tests.filesystems import mounted

pytestmark = [pytest.mark.root, pytest.mark.loop]

EXT4 = BlockfileConfig(scratch_size="64MiB")
XFS = BlockfileConfig(fs_type="xfs", scratch_size="300MiB")
BOTH = pytest.mark.parametrize("config", [EXT4, XFS], ids=["ext4", "xfs"])
EXTRACTION = {SNAPSHOT_REF: "sha256:0"}


def open_engine(root: Path, config: BlockfileConfig = EXT4) -> Engine:
    return Engine("blockfile", PLUGIN.load(config, root), root, sync_remove=True)


@contextmanager
def at(mounts: list[Mount], point: Path) -> Iterator[Path]:
    point.mkdir(exist_ok=True)
    mount_all(mounts, point)
    try:
        yield point
    finally:
        unmount_all(mounts, point)


def image(root: Path, id: int) -> Path:
    return root / "snapshots" / str(id)


def allocated(file: Path) -> int:
    return file.stat().st_blocks * 512


def is_bound(file: Path) -> bool:
    devices = Path("/sys/block").glob("loop*")
    return str(file) in {loop.backing_file(device.name) for device in devices}


def commit(engine: Engine, name: str, parent: str, work: Path, **files: str) -> None:
    with temp_mount(engine.prepare("key", parent), dir=work) as root:
        for file, content in files.items():
            (root / file).write_text(content)
    engine.commit(name, "key")


def seen(engine: Engine, name: str, work: Path) -> dict[str, str]:
    mounts = engine.view("look", name)
    try:
        with temp_mount(mounts, dir=work) as root:
            return {path.name: path.read_text() for path in root.iterdir() if path.is_file()}
    finally:
        engine.remove("look")


# The scratch


@pytest.mark.parametrize("fs_type", ["ext2", "ext3", "ext4", "xfs"])
def test_scratch_is_large_and_empty_and_costs_little(tmp_path: Path, fs_type: str) -> None:
    root = tmp_path / "sn"
    with open_engine(root, BlockfileConfig(fs_type=fs_type)) as engine:
        assert not (root / "scratch").exists(), "loading makes nothing"
        with temp_mount(engine.prepare("a"), dir=tmp_path) as inside:
            assert list(inside.iterdir()) == []
            assert inside.stat().st_mode & 0o7777 == 0o755
        engine.prepare("b")
    assert (root / "scratch").stat().st_size == 10 << 30
    assert allocated(root / "scratch") < 8 << 20
    assert allocated(image(root, 2)) < 8 << 20
    left = {path.name for path in root.iterdir()}
    assert left >= {"scratch", "scratch.lock", "snapshots"}
    assert not {"scratch.new", "scratch.mkfs"} & left


def test_scratch_of_a_killed_process_is_made_anew(tmp_path: Path) -> None:
    root = tmp_path / "sn"
    root.mkdir()
    (root / "scratch.new").write_text("half")
    (root / "scratch.mkfs").write_text("half")
    with open_engine(root) as engine:
        commit(engine, "one", "", tmp_path, file="x")
        assert seen(engine, "one", tmp_path) == {"file": "x"}
    assert not (root / "scratch.new").exists()


@pytest.mark.reflink
def test_scratch_file_on_another_disk_is_copied_without_its_zeros(
    tmp_path: Path, reflink_dir: Path
) -> None:
    source = reflink_dir / "scratch"
    source.write_bytes(bytes(32 << 20))
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "nodiscard", source], check=True)
    assert allocated(source) >= 32 << 20
    root = tmp_path / "sn"
    with open_engine(root, BlockfileConfig(scratch_file=str(source))) as engine:
        source.rename(reflink_dir / "not there yet")
        with pytest.raises(NotFound, match="scratch_file"):
            engine.prepare("a")
        (reflink_dir / "not there yet").rename(source)
        commit(engine, "one", "", tmp_path, file="x")
        source.unlink()  # it has served its purpose
        assert seen(engine, "one", tmp_path) == {"file": "x"}
    assert (root / "scratch").stat().st_size == 32 << 20
    assert allocated(root / "scratch") < 8 << 20
    with open_engine(root, BlockfileConfig(scratch_file=str(source))) as engine:
        engine.prepare("again")


def make_ext4(file: Path, size: int) -> None:
    file.touch()
    os.truncate(file, size)
    subprocess.run(["mkfs.ext4", "-q", "-F", file], check=True)


def test_recreate_scratch_follows_its_file(tmp_path: Path) -> None:
    source, root = tmp_path / "source", tmp_path / "sn"
    make_ext4(source, 16 << 20)
    plain = BlockfileConfig(scratch_file=str(source))
    follow = BlockfileConfig(scratch_file=str(source), recreate_scratch=True)
    with open_engine(root, plain) as engine:
        engine.prepare("a")
    make_ext4(source, 24 << 20)
    with open_engine(root, plain) as engine:
        engine.prepare("b")
    with open_engine(root, follow) as engine:
        engine.prepare("c")
        copied = (root / "scratch").stat().st_ino
        engine.prepare("d")
        assert (root / "scratch").stat().st_ino == copied
    sizes = [image(root, id).stat().st_size >> 20 for id in (1, 2, 3, 4)]
    assert sizes == [16, 16, 24, 24]


def test_scratch_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="scratch_file"):
        open_engine(tmp_path / "a", BlockfileConfig(scratch_file=str(tmp_path / "missing")))
    make_ext4(tmp_path / "ext4", 16 << 20)
    config = BlockfileConfig(scratch_file=str(tmp_path / "ext4"), fs_type="xfs")
    with (
        open_engine(tmp_path / "b", config) as engine,
        pytest.raises(FailedPrecondition, match="is ext, and fs_type is xfs"),
    ):
        engine.prepare("a")
    assert [path.name for path in (tmp_path / "b").glob("scratch*")] == ["scratch.lock"]
    with pytest.raises(SnapshotterSkipped, match="scratch_file"):
        open_engine(tmp_path / "c", BlockfileConfig(fs_type="vfat"))


def test_filesystem_of_ones_own(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.touch()
    os.truncate(source, 16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", source], check=True)
    config = BlockfileConfig(scratch_file=str(source), mount_options=("noatime",))
    with open_engine(tmp_path / "sn", config) as engine:
        [mount] = engine.prepare("a", labels=EXTRACTION)
        assert mount.options[:2] == ("noatime", "loop")
        with temp_mount([mount], dir=tmp_path) as root:
            (root / "file").write_text("x")
        engine.commit("one", "a")
        commit(engine, "two", "one", tmp_path, more="y")
        assert seen(engine, "two", tmp_path) == {"file": "x", "more": "y"}


def test_changed_fs_type_leaves_old_snapshots_usable(tmp_path: Path) -> None:
    root = tmp_path / "sn"
    with open_engine(root, EXT4) as engine:
        commit(engine, "old", "", tmp_path, file="x")
    with pytest.raises(FailedPrecondition, match=r"remove .*/scratch"):
        open_engine(root, XFS)
    (root / "scratch").unlink()
    with open_engine(root, XFS) as engine:
        commit(engine, "on old", "old", tmp_path, more="y")
        assert seen(engine, "on old", tmp_path) == {"file": "x", "more": "y"}
        assert [mount.type for mount in engine.prepare("new")] == ["xfs"]


# Mounts


def test_mount_options(tmp_path: Path) -> None:
    root = tmp_path / "sn"
    with open_engine(root) as engine:
        [base] = engine.prepare("a", labels=EXTRACTION)
        assert base == Mount("ext4", str(image(root, 1)), options=("loop", "nobarrier", "rw"))
        engine.commit("one", "a")
        [active] = engine.prepare("b", "one")
        assert active == Mount("ext4", str(image(root, 2)), options=("loop", "rw"))
        [view] = engine.view("v", "one")
        assert view == Mount("ext4", str(image(root, 1)), options=("loop", "ro"))
        [empty] = engine.view("e")
        assert empty == Mount("ext4", str(image(root, 4)), options=("loop", "ro"))
    options = ("direct-io", "barrier=1", "sync")
    config = BlockfileConfig(scratch_size="16MiB", mount_options=options)
    with open_engine(tmp_path / "2", config) as engine:
        [mount] = engine.prepare("a", labels=EXTRACTION)
        assert mount.options == (*options, "loop", "rw")
        with temp_mount([mount], dir=tmp_path) as inside:
            (inside / "file").write_text("x")
    with open_engine(tmp_path / "3", XFS) as engine:
        [mount] = engine.prepare("a", labels=EXTRACTION)
        assert mount.options == ("loop", "nouuid", "rw")


def test_mount_options_of_a_user_namespace(tmp_path: Path) -> None:
    maps = {UID_MAPPING: "0:100000:65536", GID_MAPPING: "0:200000:65536"}
    with open_engine(tmp_path / "sn") as engine:
        [mount] = engine.prepare("a", labels=maps)
        assert mount.options == ("uidmap=0:100000:65536", "gidmap=0:200000:65536", "loop", "rw")
        with pytest.raises(InvalidArgument, match="maps no container id 0"):
            engine.prepare("b", labels={UID_MAPPING: "1:100000:1"})
    with open_engine(tmp_path / "2", BlockfileConfig(fs_type="ext3")) as engine:
        assert engine.abilities == set()
        [mount] = engine.prepare("a", labels=maps)
        assert mount.options == ("loop", "rw")


@BOTH
def test_parent_and_children_are_mounted_side_by_side(
    tmp_path: Path, config: BlockfileConfig
) -> None:
    with open_engine(tmp_path / "sn", config) as engine:
        commit(engine, "one", "", tmp_path, file="x")
        with (
            at(engine.view("v1", "one"), tmp_path / "v1") as first,
            at(engine.view("v2", "one"), tmp_path / "v2") as second,
            at(engine.prepare("a1", "one"), tmp_path / "a1") as third,
            at(engine.prepare("a2", "one"), tmp_path / "a2") as fourth,
        ):
            (third / "file").write_text("3")
            (fourth / "file").write_text("4")
            found = [(root / "file").read_text() for root in (first, second, third, fourth)]
            assert found == ["x", "x", "3", "4"]
            assert first.stat().st_dev == second.stat().st_dev, "pages of a parent are shared"
        assert not is_bound(image(tmp_path / "sn", 1))


@BOTH
def test_snapshot_mounted_twice_is_one_filesystem(tmp_path: Path, config: BlockfileConfig) -> None:
    with open_engine(tmp_path / "sn", config) as engine:
        mounts = engine.prepare("a")
        with at(mounts, tmp_path / "1") as first, at(engine.mounts("a"), tmp_path / "2") as second:
            (first / "file").write_text("x")
            (second / "more").write_text("y")
            with temp_mount(mounts, dir=tmp_path, read_only=True) as third:
                assert sorted(os.listdir(third)) == ["file", "more"]
                with pytest.raises(OSError, match="Read-only"):
                    (third / "new").touch()
            (first / "still writable").touch()
        with temp_mount(mounts, dir=tmp_path) as root:
            assert sorted(os.listdir(root)) == ["file", "more", "still writable"]


def test_removed_snapshot_stays_usable_where_it_is_mounted(tmp_path: Path) -> None:
    root = tmp_path / "sn"
    with open_engine(root) as engine:
        with at(engine.prepare("a"), tmp_path / "1") as point:
            (point / "file").write_text("x")
            engine.remove("a")
            assert not engine.pending()
            assert list((root / "snapshots").iterdir()) == []
            (point / "file").write_text("y")
            assert (point / "file").read_text() == "y"
        assert engine.fsck() == []


# Commit


@BOTH
def test_commit_of_a_mounted_snapshot_makes_it_read_only(
    tmp_path: Path, config: BlockfileConfig
) -> None:
    with open_engine(tmp_path / "sn", config) as engine:
        with at(engine.prepare("a"), tmp_path / "1") as point:
            (point / "file").write_text("x")
            engine.commit("one", "a")
            assert seen(engine, "one", tmp_path) == {"file": "x"}
            with pytest.raises(OSError, match="Read-only"):
                (point / "late").touch()
            commit(engine, "two", "one", tmp_path, more="y")
        assert seen(engine, "two", tmp_path) == {"file": "x", "more": "y"}


@BOTH
def test_commit_is_refused_while_files_are_written(tmp_path: Path, config: BlockfileConfig) -> None:
    with open_engine(tmp_path / "sn", config) as engine:
        mounts = engine.prepare("a")
        with at(mounts, tmp_path / "1") as point:
            with (
                (point / "file").open("w") as file,
                pytest.raises(FailedPrecondition, match="unmount it first"),
            ):
                file.write("x")
                engine.commit("one", "a")
            (point / "more").write_text("y")
        engine.commit("one", "a")
        assert seen(engine, "one", tmp_path) == {"file": "x", "more": "y"}


def crash(mounts: list[Mount], file: Path, work: Path) -> None:
    """Leave the file as a power loss does: mounted, and its journal in use."""
    with at(mounts, work / "crash") as point:
        (point / "file").write_text("x")
        os.sync()
        (point / "more").write_text("y")
        fd = os.open(point, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        subprocess.run(["cp", "--sparse=always", file, work / "crashed"], check=True)
    (work / "crashed").rename(file)


@BOTH
def test_commit_after_a_crash_replays_the_journal(tmp_path: Path, config: BlockfileConfig) -> None:
    file = image(tmp_path / "sn", 1)
    with open_engine(tmp_path / "sn", config) as engine:
        mounts = engine.prepare("a")
        crash(mounts, file, tmp_path)
        with (
            pytest.raises(LaminaError),
            temp_mount(mounts, dir=tmp_path, read_only=True),
        ):
            pass
        engine.commit("one", "a")
        assert seen(engine, "one", tmp_path)["file"] == "x"
        assert not is_bound(file)


def test_commit_of_a_damaged_filesystem_is_refused(tmp_path: Path) -> None:
    file = image(tmp_path / "sn", 1)
    with open_engine(tmp_path / "sn") as engine:
        engine.prepare("a")
        subprocess.run(["debugfs", "-w", "-R", "set_super_value state 2", file], check=True)
        with pytest.raises(DataLoss, match="errors"):
            engine.commit("one", "a")
        assert engine.fsck() == []


def test_commit_of_a_file_that_something_else_writes(tmp_path: Path) -> None:
    file = image(tmp_path / "sn", 1)
    with open_engine(tmp_path / "sn") as engine:
        crash(engine.prepare("a"), file, tmp_path)
        with file.open("r+b"), pytest.raises(FailedPrecondition, match="open for writing"):
            engine.commit("one", "a")
        engine.commit("one", "a")


def test_missing_file_is_data_loss(tmp_path: Path) -> None:
    root = tmp_path / "sn"
    with open_engine(root) as engine:
        commit(engine, "one", "", tmp_path, file="x")
        engine.view("v", "one")
        image(root, 1).unlink()
        for call in (engine.prepare, engine.view):
            with pytest.raises(DataLoss, match="gone"):
                call("b", "one")
        with pytest.raises(DataLoss, match="gone"):
            engine.mounts("v")
        assert [problem.subject for problem in engine.fsck()] == ["one"]
        engine.remove("v")
        engine.remove("one")
        assert engine.fsck() == []


def test_commit_survives_that_the_file_is_opened_meanwhile(tmp_path: Path) -> None:
    """A lease that is broken sends a signal; the wrong one would end the process."""
    file = image(tmp_path / "sn", 1)
    program = "import os, sys\nwhile True: os.close(os.open(sys.argv[1], os.O_WRONLY))"
    with open_engine(tmp_path / "sn") as engine:
        engine.prepare("a")
        with subprocess.Popen([sys.executable, "-c", program, file]) as writer:
            try:
                for _ in range(2000):
                    settle(file, "ext4")
            finally:
                writer.kill()


def test_file_that_a_power_loss_has_emptied_is_data_loss(tmp_path: Path) -> None:
    with open_engine(tmp_path / "sn") as engine:
        engine.prepare("a")
        os.truncate(image(tmp_path / "sn", 1), 0)
        with pytest.raises(DataLoss, match="power loss"):
            engine.mounts("a")
        engine.remove("a")


def test_scratch_is_made_once_by_many(tmp_path: Path) -> None:
    root = tmp_path / "sn"
    drivers = [PLUGIN.load(EXT4, root) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = [
            pool.submit(driver.create, Snapshot(number, Kind.ACTIVE))
            for number, driver in enumerate(drivers, 1)
        ]
        for future in found:
            future.result()
    for driver in drivers:
        driver.close()
    assert sorted(path.name for path in root.glob("scratch*")) == ["scratch", "scratch.lock"]
    heads = {path.read_bytes()[:4096] for path in (root / "snapshots").iterdir()}
    assert len(heads) == 1, "all of them have the same filesystem, by its UUID"


# Copies


@pytest.mark.reflink
def test_files_share_blocks_where_the_disk_can(
    tmp_path: Path, reflink_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_engine(reflink_dir / "sn") as engine:
        content = os.urandom(24 << 20).hex()
        commit(engine, "one", "", tmp_path, file=content)
        engine.sync()
        before = os.statvfs(reflink_dir)
        for number in range(4):
            engine.prepare(f"a{number}", "one")
        engine.sync()
        os.sync()
        after = os.statvfs(reflink_dir)
        assert (before.f_bfree - after.f_bfree) * before.f_frsize < 4 << 20
        with temp_mount(engine.mounts("a1"), dir=tmp_path) as root:
            (root / "file").write_text("changed")
        assert seen(engine, "one", tmp_path) == {"file": content}
    assert caplog.records == []


def test_full_copies_are_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with mounted(tmp_path, "mkfs.ext4", "-q") as disk:
        for number in range(2):
            with open_engine(disk / "sn") as engine:
                engine.prepare(f"a{number}")
                engine.prepare(f"b{number}")
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "reflink" in warnings[0].getMessage()


def test_a_copy_that_cannot_fit_is_refused_at_once(tmp_path: Path) -> None:
    with mounted(tmp_path, "mkfs.ext4", "-q", "-m", "0") as disk:
        config = BlockfileConfig(scratch_size="1GiB")
        with open_engine(disk / "sn", config) as engine:
            with temp_mount(engine.prepare("a"), dir=tmp_path) as root:
                (root / "file").write_bytes(os.urandom(300 << 20))
            engine.commit("one", "a")
            with pytest.raises(ResourceExhausted, match=r"30\d.\d MiB .* has .* left"):
                engine.prepare("b", "one")
            assert list(engine.fsck()) == []
            assert [p.name for p in (disk / "sn/snapshots").iterdir()] == ["1"]


# Usage and size


def test_usage_is_what_the_file_has_grown(tmp_path: Path) -> None:
    with open_engine(tmp_path / "sn") as engine:
        commit(engine, "one", "", tmp_path, file="x" * (8 << 20))
        assert engine.usage("one").inodes == 1
        assert 8 << 20 <= engine.usage("one").size < 16 << 20
        mounts = engine.prepare("a", "one")
        assert engine.usage("a").size < 1 << 20
        with temp_mount(mounts, dir=tmp_path) as root:
            (root / "more").write_text("x" * (4 << 20))
        assert 4 << 20 <= engine.usage("a").size < 8 << 20
        engine.view("v", "one")
        assert (engine.usage("v").size, engine.usage("v").inodes) == (0, 0)


def capacity(mounts: list[Mount], work: Path) -> int:
    with temp_mount(mounts, dir=work) as root:
        inside = os.statvfs(root)
        return inside.f_blocks * inside.f_frsize


@pytest.mark.parametrize("size", [24 << 20, 200 << 20])
def test_max_size_of_ext4(tmp_path: Path, size: int) -> None:
    label = {MAX_SIZE: str(size)}
    with open_engine(tmp_path / "sn") as engine:
        commit(engine, "one", "", tmp_path, file="x" * 100_000)
        for key, parent in (("a", ""), ("b", "one")):
            mounts = engine.prepare(key, parent, labels=label)
            assert 0.6 * size < capacity(mounts, tmp_path) <= size
            with temp_mount(mounts, dir=tmp_path) as root:
                with pytest.raises(OSError, match="No space"):
                    (root / "large").write_bytes(bytes(size))
                (root / "large").unlink()
                assert [path.name for path in root.iterdir()] == (["file"] if parent else [])
        assert image(tmp_path / "sn", 3).stat().st_size == size
        engine.commit("two", "b")
        commit(engine, "three", "two", tmp_path, more="y")
        [view] = engine.view("v", "one", labels=label)
        assert Path(view.source) == image(tmp_path / "sn", 1)
        [mount] = engine.prepare("e", "one", labels={**EXTRACTION, MAX_SIZE: "nonsense"})
        assert Path(mount.source).stat().st_size == 64 << 20


def test_max_size_of_xfs(tmp_path: Path) -> None:
    with open_engine(tmp_path / "sn", XFS) as engine:
        commit(engine, "one", "", tmp_path, file="x")
        larger, smaller = {MAX_SIZE: str(500 << 20)}, {MAX_SIZE: str(200 << 20)}
        for key, parent in (("a", ""), ("b", "one")):
            mounts = engine.prepare(key, parent, labels=larger)
            assert 350 << 20 < capacity(mounts, tmp_path) <= 500 << 20
        with pytest.raises(InvalidArgument, match="only grow"):
            engine.prepare("c", "one", labels=smaller)
        with pytest.raises(InvalidArgument, match=r"mkfs\.xfs"):
            engine.prepare("c", labels=smaller)
        assert len(list((tmp_path / "sn/snapshots").iterdir())) == 3


@pytest.mark.parametrize("text", ["-1", "0", "4095", "1GiB", "9" * 30, "1e9", "\u0663"])
def test_max_size_that_is_none(tmp_path: Path, text: str) -> None:
    with open_engine(tmp_path / "sn") as engine:
        with pytest.raises(InvalidArgument, match="max-size"):
            engine.prepare("a", labels={MAX_SIZE: text})
        assert list(engine.walk()) == []


@pytest.mark.parametrize("size", [4096, 1 << 62])
@BOTH
def test_max_size_beyond_what_can_be(tmp_path: Path, config: BlockfileConfig, size: int) -> None:
    with open_engine(tmp_path / "sn", config) as engine:
        commit(engine, "one", "", tmp_path, file="x")
        for parent in ("", "one"):
            with pytest.raises(InvalidArgument):
                engine.prepare("a", parent, labels={MAX_SIZE: str(size)})
        assert len(list((tmp_path / "sn/snapshots").iterdir())) == 1


def test_max_size_below_the_content(tmp_path: Path) -> None:
    with open_engine(tmp_path / "sn") as engine:
        commit(engine, "one", "", tmp_path, file="x" * (20 << 20))
        with pytest.raises(InvalidArgument, match="needs more"):
            engine.prepare("a", "one", labels={MAX_SIZE: str(16 << 20)})
        assert engine.fsck() == []


# Configuration


def test_problems_of_the_configuration() -> None:
    def problems(**keys: object) -> str:
        return "; ".join(BlockfileConfig(**keys).problems())  # type: ignore[arg-type]  # each wrong

    assert problems() == ""
    assert "at the same time" in problems(fs_type="btrfs")
    assert "needs scratch_file" in problems(recreate_scratch=True)
    assert "scratch_size" in problems(scratch_size="large")
    assert "scratch_size" in problems(scratch_size="1k")
    assert "'ro'" in problems(mount_options=("loop", "ro"))


def test_probe(tmp_path: Path) -> None:
    for number, config in enumerate((EXT4, XFS)):
        directory = tmp_path / str(number)
        directory.mkdir()
        PLUGIN.probe(config, directory)
        assert not is_bound(directory / "image")
    with pytest.raises(SnapshotterSkipped, match="mounting nofs through a loop device fails"):
        PLUGIN.probe(BlockfileConfig(fs_type="nofs", scratch_file="x"), tmp_path)
