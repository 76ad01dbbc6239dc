"""The zfs snapshotter on a real pool."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lamina.core.driver import Snapshot
from lamina.core.labels import MAX_SIZE, SNAPSHOT_REF
from lamina.core.mount import Mount
from lamina.core.snapshot import Kind
from lamina.errors import AlreadyExists, DataLoss, InvalidArgument, LaminaError, SnapshotterSkipped
from lamina.linux import zfs
from lamina.mount import mount_all, temp_mount, unmount
from lamina.snapshotters.engine import Engine
from lamina.snapshotters.zfs.driver import ZfsDriver
from lamina.snapshotters.zfs.plugin import PLUGIN, ZfsConfig
from tests.fixtures_zfs import dataset_at
from tests.killed import finished

pytestmark = [pytest.mark.zfs, pytest.mark.root]

MIB = 1 << 20
MOST_STEPS = 30
CHAIN = 8


@pytest.fixture
def root(tmp_path: Path, dataset: str) -> Path:
    return tmp_path / "snapshotter"


@pytest.fixture
def driver(root: Path) -> ZfsDriver:
    return load(root)


@pytest.fixture
def engine(root: Path) -> Iterator[Engine]:
    with open_engine(root) as opened:
        yield opened


@pytest.fixture
def work(tmp_path: Path) -> Path:
    directory = tmp_path / "work"
    directory.mkdir()
    return directory


def load(root: Path) -> ZfsDriver:
    driver = PLUGIN.load(ZfsConfig(), root)
    assert isinstance(driver, ZfsDriver)
    return driver


def open_engine(root: Path) -> Engine:
    return Engine("zfs", load(root), root, sync_remove=True)


def active(id: int, *parents: int, **labels: str) -> Snapshot:
    return Snapshot(id, Kind.ACTIVE, parents, labels)


def write(mounts: list[Mount], work: Path, name: str, size: int = 4) -> None:
    with temp_mount(mounts, dir=work) as point:
        (point / name).write_bytes(os.urandom(size))


def names(mounts: list[Mount], work: Path) -> set[str]:
    with temp_mount(mounts, dir=work) as point:
        return {path.name for path in point.iterdir()}


LIST = """
local given = ...
local lines = {}
for child in zfs.list.children(given["dataset"]) do
    lines[#lines + 1] = child
    for snapshot in zfs.list.snapshots(child) do lines[#lines + 1] = snapshot end
end
return table.concat(lines, "\\n")
"""


def listed(dataset: str) -> set[str]:
    """Name the datasets below one, and their snapshots, without its name."""
    names = str(zfs.run(LIST, dataset) or "").splitlines()
    return {name.removeprefix(dataset) for name in names}


def test_mounts_and_datasets(engine: Engine, dataset: str, work: Path) -> None:
    (mount,) = engine.prepare("first")
    assert mount == Mount("zfs", f"{dataset}/1")
    write([mount], work, "a", MIB)
    engine.commit("layer", "first")
    assert MIB <= engine.usage("layer").size < 2 * MIB
    view = engine.view("view", "layer")
    assert view == engine.mounts("view") == [Mount("zfs", f"{dataset}/2", options=("ro",))]
    assert listed(dataset) == {"/1", "/1@snapshot", "/2"}
    without_ro = Mount("zfs", f"{dataset}/2")
    with temp_mount([without_ro], dir=work) as point, pytest.raises(OSError) as raised:
        (point / "b").touch()
    assert raised.value.errno == errno.EROFS


def test_where_it_is_skipped(zpool: str, tmp_path: Path) -> None:
    def fix(root: Path) -> str:
        with pytest.raises(SnapshotterSkipped) as raised:
            load(root)
        return raised.value.fix

    assert "lamina zfs setup --loop SIZE" in fix(tmp_path / "elsewhere")
    with dataset_at(zpool, tmp_path / "mounted") as name:
        inside = tmp_path / "mounted/inside"
        assert fix(inside) == f"zfs create -o mountpoint={inside} {name}/lamina"
        assert list((tmp_path / "mounted").iterdir()) == []


def test_chain(engine: Engine, dataset: str, work: Path) -> None:
    parent = ""
    layers = [f"layer {number}" for number in range(CHAIN)]
    for layer in layers:
        engine.commit(layer, _filled(engine, work, f"key {layer}", parent))
        parent = layer
    assert names(engine.view("view", parent), work) == {f"key {layer}" for layer in layers}
    for key in ("view", *reversed(layers)):
        engine.remove(key)
    assert listed(dataset) == set()


def test_what_is_mounted_is_removed_when_it_is_free(
    engine: Engine, dataset: str, work: Path
) -> None:
    engine.commit("layer", _filled(engine, work, "key"))
    mount_all(engine.prepare("busy", "layer"), work)
    engine.remove("busy")
    engine.remove("layer")
    (work / "still").write_text("works")
    assert listed(dataset) >= {"/1", "/2"}
    with pytest.raises(LaminaError, match="free the storage of 2 removed snapshots"):
        engine.cleanup()
    assert (work / "still").read_text() == "works"
    unmount(work)
    engine.cleanup()
    assert listed(dataset) == set()


def _filled(engine: Engine, work: Path, key: str, parent: str = "") -> str:
    write(engine.prepare(key, parent), work, key)
    return key


def test_broken_dataset_stops_no_other(engine: Engine, dataset: str, work: Path) -> None:
    for name in ("good", "broken"):
        engine.commit(name, _filled(engine, work, f"key {name}"))
    zfs.destroy_snapshot(f"{dataset}/2@snapshot", later=False)
    with pytest.raises(DataLoss, match="fsck"):
        engine.prepare("on broken", "broken")
    zfs.create(f"{dataset}/foreign", {})
    broken, foreign = engine.fsck()
    assert (broken.subject, broken.repair) == ("2", None)
    assert f"{dataset}/2@snapshot is gone" in broken.what
    assert (foreign.subject, foreign.repair) == (f"dataset {dataset}/foreign", None)
    engine.prepare("on good", "good")
    zfs.create(f"{dataset}/2/below", {})
    for key in ("broken", "on good", "good"):
        engine.remove(key)
    assert listed(dataset) == {"/2", "/foreign"}
    with pytest.raises(LaminaError, match="others below it"):
        engine.cleanup()
    zfs.destroy(f"{dataset}/2/below")
    engine.cleanup()
    assert listed(dataset) == {"/foreign"}
    zfs.destroy(f"{dataset}/foreign")


def test_dataset_of_somebody_elses_is_left_alone(engine: Engine, dataset: str) -> None:
    zfs.create(f"{dataset}/1", {})
    with pytest.raises(AlreadyExists, match="somebody else"):
        engine.prepare("first")
    engine.prepare("second")
    engine.cleanup()
    (problem,) = engine.fsck()
    assert problem.subject == f"dataset {dataset}/1"
    engine.remove("second")
    assert listed(dataset) == {"/1"}
    zfs.destroy(f"{dataset}/1")


def test_limits(driver: ZfsDriver, work: Path) -> None:
    base = active(1, **{MAX_SIZE: str(4 * MIB)})
    driver.create(base)
    write(driver.mounts(base), work, "fits", 2 * MIB)
    with temp_mount(driver.mounts(base), dir=work) as point, pytest.raises(OSError) as raised:
        for number in range(8):
            (point / str(number)).write_bytes(os.urandom(MIB))
            os.sync()
    assert raised.value.errno == errno.EDQUOT
    driver.seal(base)
    with pytest.raises(InvalidArgument, match=r"has .* already"):
        driver.create(active(2, 1, **{MAX_SIZE: str(MIB)}))
    driver.create(active(3, 1, **{MAX_SIZE: "nonsense", SNAPSHOT_REF: "sha256:x"}))
    with pytest.raises(InvalidArgument, match="number of bytes"):
        driver.create(active(4, **{MAX_SIZE: "1G"}))
    assert driver.ids() == [3, 1]


@pytest.mark.parametrize("order", ["source first", "forks first", "sealed"])
def test_forks_and_their_source_go_in_any_order(
    order: str, driver: ZfsDriver, dataset: str, work: Path
) -> None:
    base, source = active(1), active(2, 1)
    driver.create(base)
    write(driver.mounts(base), work, "base")
    driver.seal(base)
    driver.create(source)
    forks = {3: {"base", "one"}, 4: {"base", "one", "two"}}
    with temp_mount(driver.mounts(source), dir=work) as point:
        (point / "one").touch()
        driver.fork(source, active(3, 1))
        (point / "two").touch()
        driver.fork(source, active(4, 1))
        (point / "three").touch()
    driver.fork(active(4, 1), active(5, 1))
    if order == "sealed":
        driver.seal(source)
        driver.seal(active(3, 1))
        driver.create(active(6, 3, 1))
    for id, content in forks.items():
        assert names(driver.mounts(active(id, 1)), work) == content
    assert list(driver.faults(lambda _: True)) == []
    for id in {"source first": (2, 4), "forks first": (3, 4), "sealed": (2, 6)}[order]:
        driver.destroy(id)
        for left in {3, 4} & set(driver.ids()):
            assert names(driver.mounts(active(left, 1)), work) == forks[left]
    for id in driver.ids():
        driver.destroy(id)
    assert listed(dataset) == set()


class Steps:
    """Counts what changes something, and kills the process before one of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
        self.left = last
        for name in ("create", "clone", "snapshot", "destroy", "destroy_snapshot", "promote"):
            monkeypatch.setattr(zfs, name, self._counted(getattr(zfs, name)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            return function(*arguments, **options)

        return counted


def run_until(last: int, action: Callable[[], None]) -> bool:
    """Run it in a process that is killed before a step; return whether it came to its end."""
    return finished(action, lambda monkeypatch: Steps(monkeypatch, last))


def test_killed_at_each_step(driver: ZfsDriver, dataset: str, work: Path) -> None:
    source = active(1)
    driver.create(source)
    write(driver.mounts(source), work, "a")
    for number in range(MOST_STEPS):
        id = 10 + number

        def action(id: int = id) -> None:
            driver.fork(source, active(id))
            driver.destroy(id)

        ended = run_until(number, action)
        driver.destroy(id)
        assert driver.ids() == [1]
        assert listed(dataset) == {"/1"}
        if ended:
            assert number > 2
            return
    raise AssertionError("never finished")


def test_killed_while_the_source_of_a_fork_is_destroyed(
    driver: ZfsDriver, dataset: str, work: Path
) -> None:
    for number in range(MOST_STEPS):
        source, fork = active(2 * number + 1), active(2 * number + 2)
        driver.create(source)
        driver.fork(source, fork)
        ended = run_until(number, lambda id=source.id: driver.destroy(id))  # type: ignore[misc]
        driver.destroy(source.id)
        write(driver.mounts(fork), work, "b")
        driver.destroy(fork.id)
        assert listed(dataset) == set()
        if ended:
            assert number > 1
            return
    raise AssertionError("never finished")


def test_engine_killed_while_it_commits(root: Path, dataset: str, work: Path) -> None:
    with open_engine(root) as engine:
        _filled(engine, work, "key")

    def action() -> None:
        with open_engine(root) as engine:
            seal = engine._driver.seal

            def killed(snapshot: Snapshot) -> None:
                seal(snapshot)
                os.kill(os.getpid(), signal.SIGKILL)

            engine._driver.seal = killed  # type: ignore[method-assign, assignment]
            engine.commit("layer", "key")

    assert not run_until(MOST_STEPS, action)
    with open_engine(root) as engine:
        engine.cleanup()
        write(engine.mounts("key"), work, "later")
        engine.commit("layer", "key")
        assert names(engine.view("view", "layer"), work) == {"key", "later"}
        assert engine.fsck() == []


def test_engine_killed_at_each_step(root: Path, dataset: str, work: Path) -> None:
    with open_engine(root) as engine:
        engine.commit("layer", _filled(engine, work, "key"))
    for number in range(MOST_STEPS):

        def action(number: int = number) -> None:
            with open_engine(root) as engine:
                engine.prepare(f"key {number}", "layer")
                engine.fork(f"key {number}", f"fork {number}")
                engine.commit(f"name {number}", f"fork {number}")
                engine.remove(f"key {number}")
                engine.remove(f"name {number}")

        ended = run_until(number, action)
        with open_engine(root) as engine:
            assert all(problem.repair for problem in engine.fsck())
            engine.cleanup()
            assert engine.fsck() == []
            for key in {info.name for info in engine.walk()} - {"layer"}:
                engine.remove(key)
        assert listed(dataset) == {"/1", "/1@snapshot"}
        if ended:
            assert number > 4
            return
    raise AssertionError("never finished")
