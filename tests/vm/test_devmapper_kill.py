"""The devmapper snapshotter, killed before every single step that it makes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lamina.core.snapshot import Kind
from lamina.linux.dm import DeviceMapper, thin
from lamina.meta.database import Database
from lamina.mount import mount_all, unmount
from lamina.snapshotters.devmapper.census import count_devices
from lamina.snapshotters.devmapper.pool import Pool
from lamina.snapshotters.engine import Engine
from tests.fixtures_thin_pool import ThinPool
from tests.isolation import device_names
from tests.killed import finished
from tests.vm import devmapper
from tests.vm.devmapper import active_devices, check_layers, commit, kinds, open_engine, remove_all

pytestmark = [pytest.mark.dm(boot="kill"), pytest.mark.root]

MOST_STEPS = 150
READS = ("info", "table", "status", "version", "list")


class Steps:
    """Counts what changes something, and kills the process before one of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
        self.left = last
        ioctl: Any = DeviceMapper._ioctl
        write: Any = Database.write

        def counted_ioctl(dm: DeviceMapper, what: str, *arguments: Any) -> None:
            if not what.startswith(READS):
                self.step()
            ioctl(dm, what, *arguments)

        @contextmanager
        def counted_write(database: Database, **options: bool) -> Iterator[Any]:
            with write(database, **options) as connection:
                yield connection
                self.step()  # before the commit

        monkeypatch.setattr(DeviceMapper, "_ioctl", counted_ioctl)
        monkeypatch.setattr(Database, "write", counted_write)

    def step(self) -> None:
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


def run_until(last: int, action: Callable[[], None]) -> bool:
    """Run it in a process that is killed before a step; return whether it came to its end."""
    return finished(action, lambda monkeypatch: Steps(monkeypatch, last))


def prepare_first(engine: Engine) -> None:
    engine.prepare("new")


def prepare_on(engine: Engine) -> None:
    engine.prepare("new", "base")


def view(engine: Engine) -> None:
    engine.view("new", "base")


def commit_active(engine: Engine) -> None:
    engine.commit("layer", "active")


def remove(engine: Engine) -> None:
    engine.remove("active")


def remove_view(engine: Engine) -> None:
    engine.remove("view")
    engine.cleanup()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    directory = tmp_path / "work"
    directory.mkdir()
    return directory


def check_after_kill(pool: ThinPool, root: Path, work: Path) -> None:
    """See to it that nothing is damaged, and nothing stays behind."""
    with open_engine(pool, root) as engine:
        check_layers(engine, work)
        engine.cleanup()
        assert engine.fsck() == []
        with DeviceMapper() as dm:
            names = [name for name in device_names() if name.startswith(f"{pool.name}-")]
            assert not any(dm.info(name).suspended for name in names)
        for key, kind in kinds(engine).items():
            if kind != Kind.COMMITTED:
                engine.mounts(key)
        remove_all(engine)
    with closing(devmapper.load(pool, root)) as driver:
        devices = driver._volumes.devices
        with devices._database.read() as connection:
            rows = connection.execute("SELECT device, template FROM devices").fetchall()
        ours = {*devices.ranges(), *devices.begun()}
        # What thin_dump says would be as much (see test_census_is_thin_dumps), but is three
        # processes, each of which takes longer here than the step before which this one is killed.
        present = count_devices(driver._pool).keys()
    assert present - ours == {row["device"] for row in rows}
    assert [row for row in rows if row["template"] is None] == []
    assert active_devices(pool) == set()


def test_killed_while_the_first_snapshot_is_made(
    thin_pool: ThinPool, tmp_path: Path, work: Path
) -> None:
    def action() -> None:
        with open_engine(thin_pool, root) as engine:
            engine.prepare("new")

    for number in range(MOST_STEPS):
        root = tmp_path / f"root-{number}"
        ended = run_until(number, action)
        check_after_kill(thin_pool, root, work)
        forget_template(thin_pool, root)
        if ended:
            assert number > 15
            return
    raise AssertionError("never finished")


def forget_template(pool: ThinPool, root: Path) -> None:
    """Leave the pool empty for the next root."""
    with DeviceMapper() as dm:
        for id in count_devices(Pool(dm, pool.name)):
            thin.delete(dm, pool.name, id)


@pytest.mark.parametrize("action", [prepare_on, view, commit_active, remove, remove_view])
def test_killed_while(
    action: Callable[[Engine], None], thin_pool: ThinPool, tmp_path: Path, work: Path
) -> None:
    root = tmp_path / "root"

    def run() -> None:
        with open_engine(thin_pool, root) as engine:
            action(engine)

    for number in range(MOST_STEPS):
        with open_engine(thin_pool, root) as engine:
            commit(engine, work, "base")
            devmapper.fill(engine.prepare("active", "base"), work, "layer")
            engine.view("view", "base")
        ended = run_until(number, run)
        check_after_kill(thin_pool, root, work)
        if ended:
            assert number > 2
            return
    raise AssertionError("never finished")


def test_killed_while_what_is_mounted_is_committed(
    thin_pool: ThinPool, tmp_path: Path, work: Path
) -> None:
    root = tmp_path / "root"
    point = tmp_path / "point"
    point.mkdir()

    def run() -> None:
        with open_engine(thin_pool, root) as engine:
            engine.commit("layer", "active")

    for number in range(MOST_STEPS):
        with open_engine(thin_pool, root) as engine:
            mounts = engine.prepare("active")
        mount_all(mounts, point)
        (point / devmapper.NAME).write_text("layer")
        ended = run_until(number, run)
        with open_engine(thin_pool, root) as engine:
            engine.cleanup()
        (point / "later").write_text("nobody's")  # hangs on a device that stays suspended
        os.sync()
        unmount(point)
        with open_engine(thin_pool, root) as engine:
            if kinds(engine).get("active") == Kind.ACTIVE:
                engine.remove("active")
        check_after_kill(thin_pool, root, work)
        if ended:
            return
    raise AssertionError("never finished")


def test_killed_while_what_is_mounted_is_forked(
    thin_pool: ThinPool, tmp_path: Path, work: Path
) -> None:
    root = tmp_path / "root"
    point = tmp_path / "point"
    point.mkdir()

    def run() -> None:
        with open_engine(thin_pool, root) as engine:
            engine.fork("active", "fork")

    for number in range(MOST_STEPS):
        with open_engine(thin_pool, root) as engine:
            mounts = engine.prepare("active")
        mount_all(mounts, point)
        (point / devmapper.NAME).write_text("layer")
        ended = run_until(number, run)
        with open_engine(thin_pool, root) as engine:
            engine.prepare("next command")
            (point / "later").write_text("the source's")  # hangs on a device that stays suspended
            os.sync()
            unmount(point)
            engine.remove("active")
            if "fork" in kinds(engine):
                engine.commit("layer", "fork")
            else:
                assert not ended
        check_after_kill(thin_pool, root, work)
        if ended:
            assert number > 5
            return
    raise AssertionError("never finished")
