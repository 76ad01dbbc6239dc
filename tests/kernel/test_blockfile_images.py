"""Images in blockfile: pulled, pulled on full disks, pulls that are killed, and containers."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import lamina
from lamina.core.labels import MAX_SIZE
from lamina.core.snapshot import Kind
from lamina.errors import ResourceExhausted
from lamina.linux.loop import backing_file
from lamina.snapshotters.blockfile.plugin import PLUGIN, BlockfileConfig
from lamina.snapshotters.engine import Engine
from tests.filesystems import mounted
from tests.fixtures_containers import IMAGE, Machine, wait_for
from tests.fixtures_registry import LocalRegistry
from tests.images import ImageFiles, Layer, image
from tests.isolation import mount_points
from tests.killed import kill_after
from tests.roots import SMALL, Root, small_files, three_layers
from tests.startup import LAMINA

pytest_plugins = ["tests.fixtures_registry"]
pytestmark = [pytest.mark.root, pytest.mark.overlay, pytest.mark.loop]

KILLS = 12
SMALL_SCRATCH = BlockfileConfig(scratch_size="64MiB")


def opened(root_dir: Path, config: BlockfileConfig = SMALL_SCRATCH) -> Root:
    """Return a root that has blockfile besides the others."""
    root = Root(root_dir)
    directory = PLUGIN.directory(config, root_dir)
    driver = PLUGIN.load(config, directory)
    root.engines["blockfile"] = Engine("blockfile", driver, directory, sync_remove=True)
    return root


@pytest.fixture
def root(root_dir: Path) -> Iterator[Root]:
    made = opened(root_dir)
    yield made
    made.close()


def push(registry: LocalRegistry, files: ImageFiles) -> str:
    registry.push(files.manifest, files.blobs, "test", "1")
    return f"{registry.host}/test:1"


def bound_below(directory: Path) -> list[str]:
    """Return the files below a directory that loop devices are bound to."""
    files = [backing_file(path.name) or "" for path in Path("/sys/block").glob("loop*")]
    return [file for file in files if file.startswith(f"{directory}/")]


def assert_only_committed(root: Root, layers: int) -> None:
    engine = root.engines["blockfile"]
    assert [info.kind for info in engine.walk()] == [Kind.COMMITTED] * layers
    assert engine.fsck() == []
    assert bound_below(root.root) == []


@pytest.mark.registry
@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
def test_pull(root_dir: Path, registry: LocalRegistry, fs_type: str) -> None:
    root = opened(root_dir, BlockfileConfig(fs_type=fs_type, scratch_size="300MiB"))
    try:
        pulled = root.pull(push(registry, three_layers()), "blockfile")
        assert small_files(root.files(pulled, "blockfile")) == SMALL
        root.assert_clean("blockfile", 3)
        assert bound_below(root_dir) == []
    finally:
        root.close()


@pytest.mark.registry
def test_pull_of_more_than_a_snapshot_can_hold(root: Root, registry: LocalRegistry) -> None:
    large = Layer.of({"large": os.urandom(80 << 20)}, compress=False)
    with pytest.raises(ResourceExhausted, match=r"own filesystem of .* is full.*scratch_size"):
        root.pull(push(registry, image(Layer.of({"a": b"x"}), large)), "blockfile")
    assert_only_committed(root, 1)


@pytest.mark.registry
def test_pull_of_more_files_than_a_snapshot_can_hold(root: Root, registry: LocalRegistry) -> None:
    many = Layer.of({f"file-{number}": b"" for number in range(20_000)})
    with pytest.raises(ResourceExhausted, match=r"has no inodes left.*scratch_size"):
        root.pull(push(registry, image(many)), "blockfile")
    assert_only_committed(root, 0)


@pytest.mark.registry
def test_pull_on_a_full_disk(tmp_path: Path, registry: LocalRegistry) -> None:
    """What the disk refuses after the filesystem inside has taken it is never committed."""
    reference = push(registry, image(Layer.of({"large": b"large" * (20 << 20)})))
    with mounted(tmp_path, "mkfs.ext4", "-q", "-m", "0") as disk:
        root = opened(disk / "root", BlockfileConfig(scratch_size="1GiB"))
        try:
            root.engines["blockfile"].prepare("scratch is made before the disk is full")
            ballast = disk / "ballast"
            free = os.statvfs(disk).f_bavail * 4096
            with ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, free - (50 << 20))
            with pytest.raises(ResourceExhausted, match=r"the disk that has .* is full"):
                root.pull(reference, "blockfile")
            kinds = {info.kind for info in root.engines["blockfile"].walk()}
            assert kinds == {Kind.ACTIVE}
            assert bound_below(disk) == []
            ballast.unlink()
            pulled = root.pull(reference, "blockfile")
            assert root.files(pulled, "blockfile") == {"large": b"large" * (20 << 20)}
        finally:
            root.close()


@pytest.mark.registry
def test_pulls_killed_at_random_moments(root_dir: Path, registry: LocalRegistry) -> None:
    chance = random.Random(20261124)
    arguments = ["images", "pull", "--plain-http", "--snapshotter", "blockfile"]
    for number in range(KILLS):
        files = three_layers(3_000_000, seed=number)
        reference = push(registry, files)
        argv = [LAMINA, "--root", str(root_dir), *arguments, reference]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            kill_after(process, chance.uniform(0.2, 0.7))
        if number % 4 != 3:  # several kills in a row pile up
            continue
        root = opened(root_dir)
        try:
            pulled = root.pull(reference, "blockfile")
            assert small_files(root.files(pulled, "blockfile")) == SMALL
            engine = root.engines["blockfile"]
            root.collect()
            engine.cleanup()
            assert engine.fsck() == []
            assert {info.kind for info in engine.walk()} == {Kind.COMMITTED}
        finally:
            root.close()
        assert [point for point in mount_points() if str(root_dir) in point] == []
        wait_for(lambda: not bound_below(root_dir))


@pytest.mark.runtime
def test_containers(machine: Machine) -> None:
    snapshotter = ("--snapshotter", "blockfile")
    script = "echo x > /file && cat /file && mount | grep ' / '"
    done = machine.lamina("run", "--rm", *snapshotter, "busybox", machine.id, "sh", "-c", script)
    assert done.stdout.startswith("x\n/dev/loop")
    label = ("--snapshotter-label", f"{MAX_SIZE}={200 << 20}")
    machine.lamina("run", "-d", *snapshotter, *label, "busybox", machine.id, "sleep", "1000")
    [file] = bound_below(machine.root)
    assert Path(file).stat().st_size == 200 << 20
    machine.lamina("tasks", "rm", "-f", machine.id, code=137)
    machine.lamina("containers", "rm", machine.id)
    assert machine.leftovers() == []
    listed = machine.lamina("snapshots", *snapshotter, "ls").stdout
    assert "Active" not in listed
    wait_for(lambda: not bound_below(machine.root))


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
def test_checkout_is_compared_while_it_is_mounted(machine: Machine, fs_type: str) -> None:
    section = {"fs_type": fs_type, "scratch_size": "400MiB"}
    with lamina.open(machine.root, config=config_of(section, machine.root)) as store:
        with store.checkout(IMAGE, snapshotter="blockfile") as tree:
            (tree.path / "new").write_text("x")
            (tree.path / "etc/group").unlink()
            layer = io.BytesIO()
            tree.diff(layer)
            assert names(layer) >= {"new", "etc/.wh.group"}
            (tree.path / "more").write_text("y")
            tree.commit("changed")
        with store.checkout("changed", snapshotter="blockfile") as tree:
            assert (tree.path / "new").read_text() == "x"
            assert (tree.path / "more").read_text() == "y"
            assert not (tree.path / "etc/group").exists()
        assert store.snapshotter("blockfile").fsck() == []
    assert bound_below(machine.root) == []


def config_of(section: dict[str, str], directory: Path) -> Path:
    file = directory / "config.toml"
    lines = [f'{key} = "{value}"' for key, value in section.items()]
    file.write_text("\n".join(["version = 3", f'[plugins."{PLUGIN.uri}"]', *lines]))
    return file


def names(layer: io.BytesIO) -> set[str]:
    layer.seek(0)
    with tarfile.open(fileobj=layer) as archive:
        return {name.removeprefix("./") for name in archive.getnames()}
