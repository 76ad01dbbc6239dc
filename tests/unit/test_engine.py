"""The engine with a driver made for it: what is undone, what waits, what is told."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.core.driver import Driver, Snapshot
from lamina.core.labels import FORK_OF, SNAPSHOT_REF
from lamina.core.snapshot import Kind
from lamina.errors import (
    DataLoss,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    LaminaError,
    NotFound,
    NotImplementedHere,
    PermissionDenied,
    ResourceExhausted,
)
from lamina.meta.snapshots import SnapshotStore
from lamina.snapshotters.engine import Engine
from tests.file_driver import FileDriver


@pytest.fixture
def driver(tmp_path: Path) -> FileDriver:
    return FileDriver(tmp_path)


@pytest.fixture
def engine(driver: FileDriver, tmp_path: Path) -> Iterator[Engine]:
    with Engine("file", driver, tmp_path) as engine:
        yield engine


def test_driver_is_a_driver(driver: FileDriver) -> None:
    checked: Driver = driver
    assert checked.abilities == frozenset()


@pytest.mark.parametrize("method", ["create", "mounts"])
@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (OSError(errno.ENOSPC, "full"), ResourceExhausted),
        (OSError(errno.EDQUOT, "quota"), ResourceExhausted),
        (OSError(errno.EROFS, "read-only", "/x"), PermissionDenied),
        (OSError(errno.EIO, "broken"), Internal),
        (FailedPrecondition("own"), FailedPrecondition),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_failed_create_leaves_nothing(
    engine: Engine,
    driver: FileDriver,
    method: str,
    failure: BaseException,
    expected: type[BaseException],
) -> None:
    driver.fail[method] = failure
    with pytest.raises(expected):
        engine.prepare("a")
    driver.fail.clear()
    assert driver.ids() == []
    assert not engine.pending()
    assert engine.fsck() == []
    engine.prepare("a")


def test_what_cannot_be_undone_at_once_is_left_to_the_background(
    engine: Engine, driver: FileDriver
) -> None:
    driver.fail = {"create": OSError(errno.EIO, "broken"), "destroy": OSError(errno.EBUSY, "busy")}
    with pytest.raises(Internal, match="broken"):
        engine.prepare("a")
    assert engine.backlog() == {("free", 1)}
    assert engine.reap() == 0
    with pytest.raises(LaminaError, match="busy"):
        engine.cleanup()
    driver.fail.clear()
    assert engine.reap() == 1
    assert driver.ids() == []
    assert not engine.pending()


class ForkingDriver(FileDriver):
    forks_atomically = True

    def fork(self, source: Snapshot, target: Snapshot) -> None:
        self.create(target)
        self._step("fork")


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_failed_fork_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    driver = ForkingDriver(tmp_path)
    with Engine("files", driver, tmp_path) as engine:
        assert engine.forks == "atomic"
        engine.prepare("a")
        driver.fail["fork"] = failure
        with pytest.raises((ResourceExhausted, KeyboardInterrupt)):
            engine.fork("a", "b")
        assert driver.ids() == [1]
        assert engine.fsck() == []
        driver.fail.clear()
        assert engine.fork("a", "b") == engine.mounts("b")


def test_failed_fork_is_undone_though_it_has_filled_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store can be written to again once the storage is destroyed."""
    driver = ForkingDriver(tmp_path)
    with Engine("files", driver, tmp_path) as engine:
        engine.prepare("a")
        driver.fail["fork"] = OSError(errno.ENOSPC, "full")
        abandon = SnapshotStore.abandon

        def abandon_if_there_is_room(store: SnapshotStore, id: int) -> bool:
            if id in driver.ids():
                raise ResourceExhausted("use database")
            return abandon(store, id)

        monkeypatch.setattr(SnapshotStore, "abandon", abandon_if_there_is_room)
        with pytest.raises(ResourceExhausted, match='fork snapshot "a" as "b"'):
            engine.fork("a", "b")
        engine.remove("a")
        engine.cleanup()
        assert driver.ids() == []


def test_driver_that_cannot_fork(engine: Engine, driver: FileDriver) -> None:
    engine.prepare("a")
    assert engine.forks == ""
    with pytest.raises(NotImplementedHere, match="use another"):
        engine.fork("a", "b")
    with pytest.raises(NotImplementedHere):
        engine.prepare("b", labels={FORK_OF: "a"})
    assert driver.ids() == [1]


def test_image_cannot_have_a_layer_made_of_a_container(engine: Engine, driver: FileDriver) -> None:
    engine.prepare("a")
    with pytest.raises(InvalidArgument, match="sha256:1"):
        engine.prepare("b", labels={FORK_OF: "a", SNAPSHOT_REF: "sha256:1"})
    assert driver.ids() == [1]


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_failed_commit_leaves_the_snapshot_active(
    engine: Engine, driver: FileDriver, failure: BaseException
) -> None:
    engine.prepare("a", labels={"l": "1"})
    before = engine.stat("a")
    driver.fail["seal"] = failure
    with pytest.raises((Internal, KeyboardInterrupt)):
        engine.commit("b", "a")
    assert engine.stat("a") == before
    with pytest.raises(NotFound):
        engine.stat("b")
    driver.fail.clear()
    engine.commit("b", "a")


@pytest.mark.parametrize(("method", "undo"), [("create", "abandon"), ("seal", "abort_commit")])
def test_undo_that_failed_is_tried_again(
    engine: Engine, driver: FileDriver, monkeypatch: pytest.MonkeyPatch, method: str, undo: str
) -> None:
    """A full disk may stop the undoing as well; the key must not stay taken for that."""

    def full(store: SnapshotStore, id: int) -> None:
        raise ResourceExhausted("use database")

    engine.prepare("a")
    driver.fail[method] = OSError(errno.ENOSPC, "full")
    monkeypatch.setattr(SnapshotStore, undo, full)
    with pytest.raises(ResourceExhausted, match="full"):
        engine.prepare("b") if method == "create" else engine.commit("b", "a")
    with pytest.raises(ResourceExhausted, match="database"):
        engine.prepare("b")
    monkeypatch.undo()
    driver.fail.clear()
    engine.prepare("b")
    engine.commit("c", "a")
    engine.cleanup()
    assert engine.fsck() == []
    assert len(driver.ids()) == 2


def test_rebase_needs_the_ability(engine: Engine) -> None:
    engine.prepare("a")
    engine.commit("base", "a")
    engine.prepare("b")
    with pytest.raises(NotImplementedHere):
        engine.commit("c", "b", parent="base")
    engine.prepare("d", "base")
    engine.commit("e", "d", parent="base")


def test_slow_work_on_one_snapshot_delays_no_other(engine: Engine, driver: FileDriver) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        driver.pause.clear()
        entered.set()
        assert go_on.wait(30)

    engine.prepare("sealed")
    for method, call in (
        ("create", lambda: engine.prepare("slow")),
        ("seal", lambda: engine.commit("name", "sealed")),
    ):
        entered.clear()
        go_on.clear()
        driver.pause[method] = pause
        thread = threading.Thread(target=call)
        thread.start()
        assert entered.wait(30)
        engine.prepare("quick")
        engine.commit("quick-name", "quick")
        assert engine.stat("quick-name").kind == Kind.COMMITTED
        assert [info.name for info in engine.walk(["kind==committed"])] == ["quick-name"]
        engine.remove("quick-name")
        engine.cleanup()
        assert thread.is_alive()
        go_on.set()
        thread.join()
    assert engine.stat("name").kind == Kind.COMMITTED
    assert engine.stat("slow").kind == Kind.ACTIVE


def test_remove_is_cheap_and_reap_frees(engine: Engine, driver: FileDriver) -> None:
    for key in ("a", "b", "c"):
        engine.prepare(key)
        engine.remove(key)
    assert len(driver.ids()) == 3
    assert engine.reap(stop=lambda: True) == 0
    assert engine.reap(rest=0.1) == 3
    assert driver.ids() == []


def test_sync_remove_frees_before_it_returns(driver: FileDriver, tmp_path: Path) -> None:
    with Engine("file", driver, tmp_path, sync_remove=True) as engine:
        engine.prepare("a")
        engine.remove("a")
        assert driver.ids() == []
        engine.prepare("b")
        driver.fail["destroy"] = OSError(errno.EBUSY, "busy")
        engine.remove("b")
        assert engine.backlog() == {("free", 2)}


class ChainDriver(FileDriver):
    """Storage that the next snapshot stands on cannot be destroyed before that one's."""

    def destroy(self, id: int) -> None:
        if id + 1 in self.ids():
            self._step("refuse")
            raise FailedPrecondition("destroy", str(id))
        super().destroy(id)


def test_cleanup_tries_again_what_the_storage_of_others_stood_on(tmp_path: Path) -> None:
    driver = ChainDriver(tmp_path)
    with Engine("file", driver, tmp_path) as engine, Engine("file", driver, tmp_path) as other:
        for key in ("1", "2", "3"):
            engine.prepare(key)
        for key in ("3", "2", "1"):
            engine.remove(key)
        trash = other._store.trash
        assert trash.claim(1) == [3]
        refusals = []

        def refuse() -> None:
            refusals.append(driver.ids())
            if len(refusals) == 2:  # of all that is left to this engine
                threading.Thread(target=free).start()

        def free() -> None:
            other._reaper.destroy([3])

        driver.pause["refuse"] = refuse
        engine.cleanup()
        assert driver.ids() == []
        assert len(refusals) >= 2


def test_cleanup_takes_orphans(engine: Engine, driver: FileDriver) -> None:
    engine.prepare("a")
    (driver.directory / "99").touch()
    assert [problem.subject for problem in engine.fsck()] == ["99"]
    engine.cleanup()
    assert driver.ids() == [1]
    assert engine.fsck() == []


def test_fsck_tells_missing_storage(engine: Engine, driver: FileDriver) -> None:
    engine.prepare("a")
    (driver.directory / "1").unlink()
    (problem,) = engine.fsck()
    assert problem.subject == "a"
    assert "gone" in str(problem)


def test_sync_happens_once_for_many(engine: Engine, driver: FileDriver) -> None:
    for number in range(3):
        engine.prepare("a")
        engine.commit(f"c{number}", "a")
    assert {work for work, _ in engine.backlog()} == {"sync"}
    engine.sync()
    engine.sync()
    assert driver.synced == 1
    assert not engine.pending()


def test_commit_during_sync_is_not_taken_for_synced(engine: Engine, driver: FileDriver) -> None:
    engine.prepare("a")
    engine.prepare("b")
    engine.commit("first", "a")
    driver.pause["sync"] = lambda: engine.commit("second", "b")
    engine.sync()
    assert engine.backlog() == {("sync", 2)}


def test_commits_of_a_failed_sync_are_never_taken_for_durable(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    with Engine("file", driver, tmp_path, boot="one") as engine:
        engine.prepare("a")
        engine.commit("b", "a")
        driver.fail["sync"] = OSError(errno.EIO, "broken")
        with pytest.raises(Internal):
            engine.sync()
        driver.fail.clear()  # the kernel tells of a lost write once
        engine.prepare("a")
        engine.commit("good", "a")
        for _ in range(2):
            with pytest.raises(DataLoss, match='"b"'):
                engine.sync()
        assert not engine.pending()
        assert [problem.subject for problem in engine.fsck()] == ["b"]
    with Engine("file", FileDriver(tmp_path), tmp_path, boot="two") as engine:
        assert [info.name for info in engine.walk()] == ["good"]
        engine.sync()


def test_reboot_takes_in_storage_without_snapshot(tmp_path: Path) -> None:
    with Engine("file", FileDriver(tmp_path), tmp_path, boot="one") as engine:
        engine.prepare("a")
    (tmp_path / "files/7").touch()
    woken: list[int] = []
    driver = FileDriver(tmp_path)
    with Engine("file", driver, tmp_path, boot="two", wake=lambda: woken.append(1)) as engine:
        assert woken == [1]
        assert engine.fsck() == []
        assert engine.reap() == 1
        assert driver.ids() == [1]


def test_whoever_leaves_work_wakes(driver: FileDriver, tmp_path: Path) -> None:
    woken: list[int] = []
    with Engine("file", driver, tmp_path, wake=lambda: woken.append(1)) as engine:
        engine.prepare("a")
        assert len(woken) == 0
        engine.commit("b", "a")
        assert len(woken) == 1
        engine.remove("b")
        assert len(woken) == 2
    with Engine("file", FileDriver(tmp_path), tmp_path, wake=lambda: woken.append(1)):
        assert len(woken) == 3


def test_reboot_drops_unsynced_commits(tmp_path: Path) -> None:
    with Engine("file", FileDriver(tmp_path), tmp_path, boot="one") as engine:
        engine.prepare("a")
        engine.commit("synced", "a")
        engine.sync()
        engine.prepare("b", "synced")
        engine.commit("unsynced", "b")
    with Engine("file", FileDriver(tmp_path), tmp_path, boot="one") as engine:
        assert engine.stat("unsynced").kind == Kind.COMMITTED
    with Engine("file", FileDriver(tmp_path), tmp_path, boot="two") as engine:
        assert [info.name for info in engine.walk()] == ["synced"]
        engine.cleanup()
        assert engine.fsck() == []
        assert len(list((tmp_path / "files").iterdir())) == 1


def test_failed_open_lets_go_of_everything(tmp_path: Path) -> None:
    (tmp_path / "snapshots.sqlite").write_bytes(b"no database" * 100)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LaminaError):
        Engine("file", FileDriver(tmp_path), tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_use_after_close(engine: Engine) -> None:
    engine.close()
    with pytest.raises(LaminaError, match="closed"):
        engine.stat("a")
