"""Layers that a driver serves itself: what is claimed, what is unpacked, what is undone."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.core.driver import Claimed, Refused, Remote, Snapshot
from lamina.core.labels import REMOTE, SNAPSHOT_REF
from lamina.core.snapshot import Kind
from lamina.errors import AlreadyExists, Internal, NotFound, Unavailable
from lamina.snapshotters.engine import Engine
from tests.file_driver import FileDriver

LAYER = "sha256:" + "1" * 64
_LONG_ENOUGH = 0.5
"""Seconds for a claim that waits for nothing."""
LABELS = {SNAPSHOT_REF: LAYER, "containerd.io/snapshot/digest": "sha256:2"}


class RemoteDriver(FileDriver):
    """Answers what it is told to, and remembers what it was asked."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.answer: Claimed | Refused = Claimed({"gate": "fuse"})
        self.asked: list[Snapshot] = []

    def claim(self, snapshot: Snapshot) -> Claimed | Refused:
        self.asked.append(snapshot)
        self._step("claim")
        return self.answer


@pytest.fixture
def driver(tmp_path: Path) -> RemoteDriver:
    return RemoteDriver(tmp_path)


@pytest.fixture
def engine(driver: RemoteDriver, tmp_path: Path) -> Iterator[Engine]:
    with Engine("file", driver, tmp_path) as engine:
        yield engine


def test_driver_is_remote(driver: RemoteDriver) -> None:
    checked: Remote = driver
    assert isinstance(checked, Remote)
    assert not isinstance(FileDriver(driver.directory.parent), Remote)


def test_claimed_layer_is_committed(engine: Engine, driver: RemoteDriver) -> None:
    with pytest.raises(AlreadyExists, match=LAYER):
        engine.prepare("extract-1", labels=LABELS)
    info = engine.stat(LAYER)
    assert info.kind == Kind.COMMITTED
    assert info.labels == {**LABELS, "gate": "fuse", REMOTE: "remote snapshot"}
    with pytest.raises(NotFound):
        engine.stat("extract-1")
    above = "sha256:" + "3" * 64
    with pytest.raises(AlreadyExists):
        engine.prepare("extract-2", LAYER, labels={SNAPSHOT_REF: above})
    assert engine.stat(above).parent == LAYER
    assert [len(snapshot.parents) for snapshot in driver.asked] == [0, 1]
    assert engine.prepare("container", above)
    assert engine.fsck() == []


def test_layer_that_is_there_is_not_claimed_again(engine: Engine, driver: RemoteDriver) -> None:
    for key in ("extract-1", "extract-2"):
        with pytest.raises(AlreadyExists):
            engine.prepare(key, labels=LABELS)
    assert len(driver.asked) == 1
    assert [info.name for info in engine.walk()] == [LAYER]


def test_refused_layer_is_unpacked(
    engine: Engine, driver: RemoteDriver, caplog: pytest.LogCaptureFixture
) -> None:
    driver.answer = Refused("it has no table of contents")
    caplog.set_level("INFO")
    assert engine.prepare("extract-1", labels=LABELS)
    assert f"layer {LAYER} is unpacked: it has no table of contents" in caplog.text
    engine.commit(LAYER, "extract-1", labels=LABELS)
    assert REMOTE not in engine.stat(LAYER).labels


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (Unavailable("ask the registry", "example", hint="wait"), "ask the registry"),
        (OSError(errno.EIO, "broken"), "broken"),
    ],
)
def test_layer_that_cannot_be_claimed_is_unpacked(
    engine: Engine,
    driver: RemoteDriver,
    failure: Exception,
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    driver.fail["claim"] = failure
    assert engine.prepare("extract-1", labels=LABELS)
    assert engine.stat("extract-1").kind == Kind.ACTIVE
    assert f"layer {LAYER} is unpacked" in caplog.text
    assert said in caplog.text


def test_interrupted_claim_leaves_nothing(engine: Engine, driver: RemoteDriver) -> None:
    driver.fail["claim"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        engine.prepare("extract-1", labels=LABELS)
    assert list(engine.walk()) == []
    engine.reap()
    assert driver.ids() == []


def test_claimed_layer_that_cannot_be_committed_leaves_nothing(
    engine: Engine, driver: RemoteDriver
) -> None:
    driver.fail["seal"] = OSError(errno.EIO, "broken")
    with pytest.raises(Internal, match="broken"):
        engine.prepare("extract-1", labels=LABELS)
    assert list(engine.walk()) == []


def test_layer_that_somebody_else_commits_meanwhile(engine: Engine, driver: RemoteDriver) -> None:
    def commit_it() -> None:
        del driver.pause["claim"]
        driver.answer = Refused("one is enough")
        engine.prepare("extract-2", labels=LABELS)
        engine.commit(LAYER, "extract-2", labels=LABELS)
        driver.answer = Claimed()

    driver.pause["claim"] = commit_it
    with pytest.raises(AlreadyExists, match=LAYER):
        engine.prepare("extract-1", labels=LABELS)
    assert [info.name for info in engine.walk()] == [LAYER]


def test_layer_on_what_another_namespace_has_unpacked(engine: Engine, driver: RemoteDriver) -> None:
    """Two namespaces of a containerd have unpacked the base: each commits it by a name of its own.

    What stands on one of them is no layer for the other, as containerd looks at parents.
    """
    for namespace in ("default", "k8s.io"):
        engine.prepare(f"{namespace}/1/extract")
        engine.commit(f"{namespace}/2/base", f"{namespace}/1/extract")
    with pytest.raises(AlreadyExists):
        engine.prepare("default/3/extract", "default/2/base", labels=LABELS)
    with pytest.raises(AlreadyExists):
        engine.prepare("default/4/extract", "default/2/base", labels=LABELS)
    assert engine.prepare("k8s.io/3/extract", "k8s.io/2/base", labels=LABELS)
    engine.commit("k8s.io/4/layer", "k8s.io/3/extract", labels=LABELS)
    parents = {info.name: info.parent for info in engine.walk() if info.parent}
    assert parents == {LAYER: "default/2/base", "k8s.io/4/layer": "k8s.io/2/base"}
    assert len(driver.asked) == 1


def test_layer_that_is_being_committed_is_there_when_that_is_said(
    engine: Engine, driver: RemoteDriver
) -> None:
    said: list[str] = []

    def claim_it_too() -> None:
        with contextlib.suppress(AlreadyExists):
            engine.prepare("extract-2", labels=LABELS)
        said.extend(info.name for info in engine.walk() if info.kind == Kind.COMMITTED)

    other = threading.Thread(target=claim_it_too)

    def meanwhile() -> None:
        other.start()
        other.join(_LONG_ENOUGH)  # if it does not wait for this commit

    driver.pause["seal"] = meanwhile
    with pytest.raises(AlreadyExists):
        engine.prepare("extract-1", labels=LABELS)
    other.join()
    assert said == [LAYER]


def test_snapshots_that_are_no_layers_are_not_claimed(engine: Engine, driver: RemoteDriver) -> None:
    assert engine.prepare("container")
    assert engine.view("view", labels=LABELS)
    assert driver.asked == []
