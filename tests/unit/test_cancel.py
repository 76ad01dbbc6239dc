"""Work that nobody waits for any more: it ends soon, and leaves nothing half made."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.core.cancel import (
    CancelToken,
    cancellable,
    check_cancelled,
    current_deadline,
    is_cancelled,
    shielded,
    within,
)
from lamina.core.snapshot import Snapshotter
from lamina.errors import Cancelled, DeadlineExceeded, NotFound
from lamina.layer.usage import disk_usage
from lamina.snapshotters.engine import Engine
from lamina.snapshotters.native.driver import NativeDriver
from tests.file_driver import FileDriver

_FILES = 400


def test_without_a_token() -> None:
    check_cancelled()
    assert not is_cancelled()


def test_cancelled_token() -> None:
    token = CancelToken()
    with cancellable(token):
        check_cancelled()
        token.cancel()
        assert is_cancelled()
        with pytest.raises(Cancelled):
            check_cancelled()
        with shielded():
            check_cancelled()
        with pytest.raises(Cancelled):
            check_cancelled()
    check_cancelled()


def test_deadline_comes_before_cancellation() -> None:
    token = CancelToken(time.monotonic() - 1)
    token.cancel()
    with pytest.raises(DeadlineExceeded):
        token.check()
    CancelToken(time.monotonic() + 60).check()


def test_nobody_waits_longer_inside_than_around() -> None:
    with cancellable(CancelToken(time.monotonic() - 1)), within(60):
        assert is_cancelled()
        with pytest.raises(DeadlineExceeded):
            check_cancelled()
    token = CancelToken(time.monotonic() + 60)
    with cancellable(token):
        with within(0):
            assert is_cancelled()
        with within(3600):
            assert current_deadline() == token.deadline
            token.cancel()
            assert is_cancelled()
            with pytest.raises(Cancelled):
                check_cancelled()
    with within(60):
        check_cancelled()
    assert current_deadline() is None


def test_token_of_one_thread_is_not_that_of_another() -> None:
    seen: list[bool] = []
    token = CancelToken()
    token.cancel()
    with cancellable(token):
        thread = threading.Thread(target=lambda: seen.append(is_cancelled()))
        thread.start()
        thread.join()
    assert seen == [False]


class _CancelledHalfway(NativeDriver):
    """Cancels whoever waits for a copy once some of it is there."""

    def __init__(self, root: Path, token: CancelToken) -> None:
        super().__init__(root)
        self.token = token
        self.most = 0

    def watch(self, stop: threading.Event) -> None:
        while not stop.wait(0.0005):
            copies = [path for path in self.path.iterdir() if path.name != "1"]
            files = sum(len(list(path.iterdir())) for path in copies)
            self.most = max(self.most, files)
            if files > 5:
                self.token.cancel()
                return


@pytest.fixture
def token() -> CancelToken:
    return CancelToken()


@pytest.fixture
def driver(tmp_path: Path, token: CancelToken) -> _CancelledHalfway:
    return _CancelledHalfway(tmp_path, token)


@pytest.fixture
def native(tmp_path: Path, driver: _CancelledHalfway) -> Iterator[Snapshotter]:
    """A snapshotter with one committed snapshot of many files, number 1."""
    with Engine("native", driver, tmp_path) as engine:
        engine.prepare("base-active")
        for number in range(_FILES):
            (driver.of(1) / f"file-{number}").write_bytes(b"x" * 100_000)
        engine.commit("base", "base-active")
        yield engine


def test_prepare_cancelled_in_the_middle(
    native: Snapshotter, driver: _CancelledHalfway, token: CancelToken
) -> None:
    stop = threading.Event()
    watcher = threading.Thread(target=driver.watch, args=(stop,))
    watcher.start()
    try:
        with cancellable(token), pytest.raises(Cancelled):
            native.prepare("copy", "base")
    finally:
        stop.set()
        watcher.join()
    assert driver.most < _FILES
    assert [path.name for path in driver.path.iterdir()] == ["1"]
    with pytest.raises(NotFound):
        native.stat("copy")
    native.prepare("copy", "base")


def test_prepare_after_its_deadline(native: Snapshotter, driver: _CancelledHalfway) -> None:
    with cancellable(CancelToken(time.monotonic() - 1)), pytest.raises(DeadlineExceeded):
        native.prepare("copy", "base")
    assert [path.name for path in driver.path.iterdir()] == ["1"]


def test_commit_that_is_cancelled_leaves_the_snapshot_active(native: Snapshotter) -> None:
    native.prepare("more")
    token = CancelToken()
    token.cancel()
    with cancellable(token), pytest.raises(Cancelled):
        native.commit("other", "more")
    native.commit("other", "more")


def test_undo_is_not_cancelled(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    token = CancelToken()

    def cancelled() -> None:
        token.cancel()
        check_cancelled()

    driver.pause["create"] = cancelled
    driver.pause["destroy"] = check_cancelled
    with Engine("file", driver, tmp_path) as engine:
        with cancellable(token), pytest.raises(Cancelled):
            engine.prepare("key")
        assert not driver.ids()


def test_cleanup_can_be_cancelled_and_goes_on_later(tmp_path: Path) -> None:
    driver = FileDriver(tmp_path)
    token = CancelToken()
    with Engine("file", driver, tmp_path) as engine:
        for number in range(3):
            engine.prepare(f"key-{number}")
            engine.remove(f"key-{number}")
        driver.pause["destroy"] = token.cancel
        with cancellable(token), pytest.raises(Cancelled):
            engine.cleanup()
        assert len(driver.ids()) == 2
        engine.cleanup()
        assert not driver.ids()


def test_measuring_ends_too(tmp_path: Path) -> None:
    token = CancelToken()
    token.cancel()
    with cancellable(token), pytest.raises(Cancelled):
        disk_usage(tmp_path)
