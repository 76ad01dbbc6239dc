"""What a driver keeps of a snapshot until its commit is on disk."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from lamina.core.driver import Settling
from lamina.errors import Internal, Unavailable
from lamina.snapshotters.engine import Engine
from tests.file_driver import FileDriver


class SettlingDriver(FileDriver):
    """Remembers what was settled, and how many syncs there had been."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.settled: list[tuple[int, list[int]]] = []

    def settle(self, ids: Iterable[int]) -> None:
        self.settled.append((self.synced, list(ids)))
        self._step("settle")


@pytest.fixture
def driver(tmp_path: Path) -> SettlingDriver:
    return SettlingDriver(tmp_path)


@pytest.fixture
def engine(driver: SettlingDriver, tmp_path: Path) -> Iterator[Engine]:
    with Engine("file", driver, tmp_path, boot="first") as engine:
        engine.prepare("a")
        engine.commit("layer", "a")
        yield engine


def test_settled_after_the_sync_and_once(engine: Engine, driver: SettlingDriver) -> None:
    checked: Settling = driver
    assert isinstance(checked, Settling)
    assert driver.settled == []
    engine.sync()
    engine.sync()
    assert driver.settled == [(1, [1])]


def test_nothing_is_settled_that_is_not_on_disk(engine: Engine, driver: SettlingDriver) -> None:
    driver.fail["sync"] = OSError(errno.EIO, "broken")
    with pytest.raises(Internal, match="broken"):
        engine.sync()
    assert driver.settled == []


def test_killed_while_settling(engine: Engine, driver: SettlingDriver) -> None:
    driver.fail["settle"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        engine.sync()
    driver.fail.clear()
    engine.sync()
    assert driver.settled == [(1, [1]), (2, [1])]


@pytest.mark.parametrize("failure", [OSError(errno.EBUSY, "busy"), Unavailable("settle it")])
def test_what_cannot_be_settled_is_on_disk_all_the_same(
    engine: Engine,
    driver: SettlingDriver,
    failure: Exception,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    driver.fail["settle"] = failure
    engine.sync()
    assert "cannot settle snapshots" in caplog.text
    assert not engine.pending()
    engine.close()
    with Engine("file", SettlingDriver(tmp_path), tmp_path, boot="second") as restarted:
        assert restarted.stat("layer").name == "layer"
