"""The driver by itself: what the engine relies on after a crash, at removal and at a restart."""

from __future__ import annotations

from pathlib import Path

from lamina.core.driver import Driver, Snapshot
from lamina.core.snapshot import Kind
from lamina.mount import temp_mount
from lamina.snapshotters.engine import Engine
from lamina.testing.checks.layers import commit_layer, write
from lamina.testing.subject import Subject


class StorageChecks(Subject):
    """Storage is listed from `create` to `destroy`, and outlives the process."""

    def test_storage_is_listed(self, driver: Driver) -> None:
        """Every snapshot has storage of its own, by its id, until it is destroyed."""
        driver.create(Snapshot(1, Kind.ACTIVE))
        driver.seal(Snapshot(1, Kind.ACTIVE))
        driver.create(Snapshot(2, Kind.VIEW, (1,)))
        driver.create(Snapshot(13, Kind.ACTIVE, (1,)))
        driver.create(Snapshot(14, Kind.VIEW))
        assert sorted(driver.ids()) == [1, 2, 13, 14]
        for id in (14, 13, 2, 1):
            driver.destroy(id)
            assert id not in driver.ids()
        assert list(driver.ids()) == []

    def test_destroy_again(self, driver: Driver) -> None:
        """What is destroyed already, or never was there, is no error."""
        driver.destroy(5)
        driver.create(Snapshot(5, Kind.ACTIVE))
        driver.destroy(5)
        driver.destroy(5)
        assert list(driver.ids()) == []

    def test_mounts_again(self, driver: Driver) -> None:
        """Asking for mounts changes nothing: the answer is the same every time."""
        base = Snapshot(1, Kind.ACTIVE)
        driver.create(base)
        first = driver.mounts(base)
        assert driver.mounts(base) == first
        driver.seal(base)
        view = Snapshot(2, Kind.VIEW, (1,))
        driver.create(view)
        first = driver.mounts(view)
        assert driver.mounts(view) == first

    def test_seal_again(self, driver: Driver, work: Path) -> None:
        """A crash after `seal` leaves the snapshot Active: it is written to and sealed again."""
        base = Snapshot(1, Kind.ACTIVE)
        driver.create(base)
        with temp_mount(driver.mounts(base), dir=work) as root:
            (root / "before").write_text("x")
        sealed = driver.seal(base)
        assert driver.seal(base) == sealed
        with temp_mount(driver.mounts(base), dir=work) as root:
            (root / "after").write_text("x")
        assert driver.seal(base).size >= sealed.size
        child = Snapshot(2, Kind.VIEW, (1,))
        driver.create(child)
        with temp_mount(driver.mounts(child), dir=work) as root:
            assert {path.name for path in root.iterdir()} == {"before", "after"}

    def test_crash_while_creating(self, driver: Driver, root: Path) -> None:
        """Storage that no snapshot owns, left by a process that died, is found and freed."""
        driver.create(Snapshot(1, Kind.ACTIVE))
        with self.open(root) as engine:
            engine.cleanup()
            assert engine.fsck() == []
        assert list(driver.ids()) == []

    def test_restart(self, engine: Engine, root: Path, work: Path) -> None:
        """Everything is as it was for the next process."""
        commit_layer(engine, work, [write("below", "b")], "base")
        mounts = engine.prepare("active", "base")
        with temp_mount(mounts, dir=work) as target:
            (target / "above").write_text("a")
        engine.sync()
        before = list(engine.walk())
        engine.close()
        with self.open(root) as reopened:
            assert list(reopened.walk()) == before
            assert reopened.mounts("active") == mounts
            with temp_mount(mounts, dir=work) as target:
                assert {path.name for path in target.iterdir()} == {"below", "above"}
