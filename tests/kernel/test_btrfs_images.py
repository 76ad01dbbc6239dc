"""Images on btrfs: pulled and run by the command line, and processes that are killed."""

from __future__ import annotations

import io
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

import lamina
from lamina.core.snapshot import Kind
from lamina.errors import LaminaError
from lamina.mount import temp_mount
from lamina.snapshotters.btrfs.driver import BtrfsDriver
from lamina.snapshotters.btrfs.plugin import PLUGIN, BtrfsConfig
from lamina.snapshotters.engine import Engine
from tests.fixtures_containers import IMAGE, Machine
from tests.fixtures_registry import LocalRegistry
from tests.images import ImageFiles
from tests.isolation import mount_points
from tests.killed import kill_after
from tests.roots import SMALL, Root, small_files, three_layers
from tests.startup import LAMINA

pytest_plugins = ["tests.fixtures_registry"]
pytestmark = [pytest.mark.root, pytest.mark.overlay, pytest.mark.loop, pytest.mark.btrfs]

REPOSITORY = Path(__file__).parents[2]
SNAPSHOTTER = ("--snapshotter", "btrfs")
SEED = 20261126
KILLS = 8


@pytest.fixture
def root_dir(btrfs_dir: Path) -> Path:
    return btrfs_dir / "root"


def opened(root_dir: Path) -> Root:
    """Return a root that has btrfs besides the others."""
    root = Root(root_dir)
    directory = PLUGIN.directory(BtrfsConfig(), root_dir)
    driver = PLUGIN.load(BtrfsConfig(), directory)
    root.engines["btrfs"] = Engine("btrfs", driver, directory, sync_remove=True)
    return root


def push(registry: LocalRegistry, files: ImageFiles) -> str:
    registry.push(files.manifest, files.blobs, "test", "1")
    return f"{registry.host}/test:1"


def subvolumes(disk: Path) -> list[str]:
    argv = ("btrfs", "subvolume", "list", disk)
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.registry
def test_pull(root_dir: Path, registry: LocalRegistry) -> None:
    root = opened(root_dir)
    try:
        pulled = root.pull(push(registry, three_layers()), "btrfs")
        assert small_files(root.files(pulled, "btrfs")) == SMALL
        root.assert_clean("btrfs", 3)
    finally:
        root.close()
    assert len(subvolumes(root_dir)) == 3


@pytest.mark.registry
def test_pulls_killed_at_random_moments(root_dir: Path, registry: LocalRegistry) -> None:
    chance = random.Random(SEED)
    arguments = ["images", "pull", "--plain-http", *SNAPSHOTTER]
    for number in range(KILLS):
        reference = push(registry, three_layers(3_000_000, seed=number))
        argv = [LAMINA, "--root", str(root_dir), *arguments, reference]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            kill_after(process, chance.uniform(0.2, 0.7))
        if number % 4 != 3:  # several kills in a row pile up
            continue
        root = opened(root_dir)
        try:
            pulled = root.pull(reference, "btrfs")
            assert small_files(root.files(pulled, "btrfs")) == SMALL
            engine = root.engines["btrfs"]
            root.collect()
            engine.cleanup()
            assert engine.fsck() == []
            assert {info.kind for info in engine.walk()} == {Kind.COMMITTED}
            assert len(subvolumes(root_dir)) == len(list(engine.walk())) == 3
        finally:
            root.close()
        assert [point for point in mount_points() if str(root_dir) in point] == []


@pytest.mark.runtime
def test_containers(machine: Machine) -> None:
    script = "echo x > /file && cat /file && mount | grep ' / '"
    done = machine.lamina("run", "--rm", *SNAPSHOTTER, "busybox", machine.id, "sh", "-c", script)
    assert done.stdout.startswith("x\n/dev/loop")
    assert " type btrfs (rw," in done.stdout
    machine.lamina("run", "-d", *SNAPSHOTTER, "busybox", machine.id, "sleep", "1000")
    machine.lamina("tasks", "rm", "-f", machine.id, code=137)
    machine.lamina("containers", "rm", machine.id)
    assert machine.leftovers() == []
    assert "Active" not in machine.lamina("snapshots", *SNAPSHOTTER, "ls").stdout
    assert machine.lamina("fsck").stdout == ""


@pytest.mark.runtime
def test_checkout_is_compared_while_it_is_mounted(machine: Machine) -> None:
    with lamina.open(machine.root) as store:
        with store.checkout(IMAGE, snapshotter="btrfs") as tree:
            (tree.path / "new").write_text("x")
            (tree.path / "etc/group").unlink()
            layer = io.BytesIO()
            tree.diff(layer)
            with tarfile.open(fileobj=io.BytesIO(layer.getvalue())) as archive:
                names = {name.removeprefix("./") for name in archive.getnames()}
            assert names >= {"new", "etc/.wh.group"}
            tree.commit("changed")
        with store.checkout("changed", snapshotter="btrfs") as tree:
            assert (tree.path / "new").read_text() == "x"
            assert not (tree.path / "etc/group").exists()
        assert store.snapshotter("btrfs").fsck() == []


# Kills


def work(directory: str, seed: str) -> None:
    """Make, commit, fork and remove snapshots until killed; no mount, which would stay."""
    root = Path(directory)
    chance = random.Random(seed)
    driver = PLUGIN.load(BtrfsConfig(), root)
    assert isinstance(driver, BtrfsDriver)
    with Engine("btrfs", driver, root, sync_remove=True) as engine:
        print("ready", flush=True)
        for number in range(100_000):
            try:
                turn(engine, root, f"{seed}-{number}", chance)
            except LaminaError:
                continue


def turn(engine: Engine, root: Path, name: str, chance: random.Random) -> None:
    infos = list(engine.walk())
    committed = ["", *(info.name for info in infos if info.kind == Kind.COMMITTED)]
    match chance.randrange(4):
        case 0 | 1:
            engine.prepare(f"key-{name}", chance.choice(committed))
            top = root / f"active/{engine._store.record(f'key-{name}').id}"
            for file in range(20):
                (top / f"file-{file}").write_text(name)
            subprocess.run(("btrfs", "-q", "subvolume", "create", top / "nested"), check=False)
            if chance.random() < 0.5:
                engine.fork(f"key-{name}", f"fork-{name}")
            engine.commit(name, f"key-{name}")
        case 2:
            engine.view(f"view-{name}", chance.choice(committed))
        case 3:
            for info in chance.sample(infos, len(infos) // 2):
                engine.remove(info.name)


def test_killed_at_random_moments(btrfs_dir: Path, tmp_path: Path) -> None:
    root, chance = btrfs_dir / "sn", random.Random(SEED)
    code = f"import sys; from {__name__} import work; work(sys.argv[1], sys.argv[2])"
    for number in range(KILLS):
        argv = [sys.executable, "-c", code, str(root), f"{number}"]
        with subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0, 0.4))
            process.send_signal(signal.SIGKILL)
        with Engine("btrfs", PLUGIN.load(BtrfsConfig(), root), root, sync_remove=True) as engine:
            assert engine.fsck() == []
            for info in engine.walk(["kind==committed"]):
                with temp_mount(engine.view("look", info.name), dir=tmp_path) as top:
                    assert (top / "file-19").read_text() == info.name
                    assert list((top / "nested").iterdir()) == []
                engine.remove("look")
            for info in list(engine.walk(["kind!=committed"])):
                engine.remove(info.name)
            engine.cleanup()
            assert engine.fsck() == []
            assert len(list(engine._driver.ids())) == len(list(engine.walk()))
            names = sorted(line.split("/")[-2] for line in subvolumes(btrfs_dir))
            assert names.count("snapshots") == len(list(engine.walk()))
