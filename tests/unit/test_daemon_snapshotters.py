"""Which snapshotter a name leads to, and what is said of those that cannot be loaded."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from lamina.core.cancel import CancelToken, cancellable
from lamina.daemon.snapshotters import Snapshotters
from lamina.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    SnapshotterSkipped,
)
from lamina.snapshotters.engine import Engine
from lamina.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "root") as opened:
        yield opened


def offer(monkeypatch: pytest.MonkeyPatch, store: Store, **faults: Exception) -> None:
    """Let there be `native`, and snapshotters that fail to load with these errors."""
    monkeypatch.setattr("lamina.plugins.known", lambda: [*faults, "native"])
    real = store.snapshotter

    def snapshotter(name: str | None = None) -> Engine:
        if name in faults:
            raise faults[name]
        return real(name)

    monkeypatch.setattr(store, "snapshotter", snapshotter)


def load(store: Store, aliases: Mapping[str, str]) -> Snapshotters:
    snapshotters = Snapshotters(aliases)
    snapshotters.load(store)
    return snapshotters


def test_names(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, store, zfs=SnapshotterSkipped("zfs", reason="no pool", fix="make one"))
    loaded = load(store, {"mine": "native", "lamina-zfs": "native", "tank": "zfs"})
    native = store.snapshotter("native")
    for name in ("native", "lamina-native", "mine", "lamina-zfs"):
        assert loaded.lookup(name) is native
    for name in ("zfs", "tank"):
        with pytest.raises(InvalidArgument) as caught:
            loaded.lookup(name)
        assert str(caught.value) == (
            f"snapshotter not loaded: {name}: no pool: invalid argument; make one"
        )
    with pytest.raises(InvalidArgument, match=r"not loaded: other.*there are native"):
        loaded.lookup("other")
    with pytest.raises(InvalidArgument, match="snapshotter argument missing"):
        loaded.lookup("")


def test_faults_of_every_sort_are_logged_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    offer(
        monkeypatch,
        store,
        zfs=SnapshotterSkipped("zfs", reason="no pool", fix="make one"),
        aufs=NotFound("directory", "/x"),
        theirs=ZeroDivisionError("division by zero"),
    )
    caplog.set_level(logging.INFO, "lamina.daemon")
    loaded = load(store, {})
    lines = [(r.levelname, r.message, *map(vars(r).get, ("snapshotter", "error", "fix")))
             for r in caplog.records]  # fmt: skip
    crash = "load snapshotter theirs: ZeroDivisionError: division by zero: unknown"
    assert lines == [
        ("INFO", "skipping snapshotter", "zfs", "no pool", "make one"),
        ("WARNING", "cannot load snapshotter", "aufs", 'directory "/x": not found', None),
        ("WARNING", "cannot load snapshotter", "theirs", crash, None),
        ("INFO", "loaded snapshotter", "native", None, None),
    ]
    with pytest.raises(InvalidArgument, match=crash):
        loaded.lookup("theirs")


def test_a_lookup_waits_for_loading(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, store)
    snapshotters = Snapshotters({})
    token = CancelToken(time.monotonic() + 0.05)
    with cancellable(token), pytest.raises(DeadlineExceeded):
        snapshotters.lookup("native")
    loading = threading.Timer(0.05, snapshotters.load, [store])
    loading.start()
    assert snapshotters.lookup("lamina-native") is store.snapshotter("native")
    loading.join()


def test_nothing_to_serve(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, store, native=SnapshotterSkipped("native", reason="no"))
    with pytest.raises(FailedPrecondition, match="none can work"):
        load(store, {})
