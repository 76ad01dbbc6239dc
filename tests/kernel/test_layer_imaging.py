"""Layers that become images straight from their archives: the same trees, and nothing half made."""

from __future__ import annotations

import os
import random
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina.core.digest import Digest, sha256
from lamina.core.driver import Imaging, Snapshot
from lamina.core.mount import Mount
from lamina.core.snapshot import Kind
from lamina.errors import (
    Aborted,
    DigestMismatch,
    FailedPrecondition,
    FormatError,
    LaminaError,
    ResourceExhausted,
)
from lamina.formats.erofs.reader import Image
from lamina.layer.limits import LayerLimits
from lamina.layer.process import LayerJob, LayerWorkers
from lamina.layer.target import LayerTarget, layer_target
from lamina.mount import temp_mount
from lamina.snapshotters.engine import Engine
from lamina.snapshotters.erofs.driver import ErofsDriver
from lamina.store import Store
from tests.archives import Archive
from tests.erofs import Bytes, fsck
from tests.fixtures_containers import IMAGE, Machine
from tests.trees import Entry, describe

pytestmark = [pytest.mark.root, pytest.mark.overlay, pytest.mark.erofs]

TAR = "application/vnd.oci.image.layer.v1.tar"
MIB = 1 << 20
BASE = (
    Archive()
    .dir("etc", 0o750, uid=3, gid=4, pax_headers={"SCHILY.xattr.user.kept": "yes"})
    .file("etc/a", "a")
    .file("gone", "x")
    .file(".wh.gone")
    .file("opaque/kept", "y")
    .file("opaque/.wh..wh..opq")
    .link("linked", "etc/a")
    .data()
)
ABOVE = (
    Archive()
    .file("etc/b", "b")
    .file(".wh.linked")
    .dir("opaque")
    .file("opaque/.wh..wh..opq")
    .file("opaque/new", "z")
    .file("deep/in/a/file", "w")
    .data()
)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine("erofs", ErofsDriver(tmp_path / "root"), tmp_path / "root") as engine:
        yield engine


@pytest.fixture
def workers() -> Iterator[LayerWorkers]:
    with LayerWorkers(1) as workers:
        yield workers


class Layer:
    """A layer's archive, and the snapshot that it is unpacked to."""

    def __init__(self, engine: Engine, where: Path, data: bytes, parent: str = "") -> None:
        self.key = f"extract {len(list(where.glob('blob*')))}"
        self.mounts = engine.prepare(self.key, parent)
        self.blob = where / f"blob{self.key}"
        self.blob.write_bytes(data)
        target = layer_target(self.mounts, rebase=False)
        assert target is not None
        image = engine.layer_image(self.key)
        assert image is not None
        self.image = image
        self.target = LayerTarget(
            target.root, target.overlay_whiteouts, target.parents, image=self.image
        )

    def start(
        self, workers: LayerWorkers, diff_id: Digest | None = None, available: int | None = None
    ) -> LayerJob:
        data = self.blob.read_bytes()
        return workers.start(
            self.blob,
            TAR,
            self.target,
            size=len(data),
            available=len(data) if available is None else available,
            diff_id=diff_id or sha256(data),
            limits=LayerLimits(),
        )


def seen(root: Path) -> dict[str, Entry]:
    """Describe a tree but for the times of what no archive describes."""
    implied = {".", "opaque", "deep", "deep/in", "deep/in/a", "etc"}
    return {
        name: entry._replace(mtime_ns=0) if name in implied else entry
        for name, entry in describe(root).items()
    }


def test_the_same_as_where_it_is_extracted(
    engine: Engine, tmp_path: Path, workers: LayerWorkers
) -> None:
    parent = ""
    for number, data in enumerate((BASE, ABOVE)):
        layer = Layer(engine, tmp_path, data, parent)
        applied = layer.start(workers).result()
        assert (applied.diff_id, applied.size) == (sha256(data), len(data))
        assert list(layer.target.root.iterdir()) == []
        engine.commit(f"image {number}", layer.key)
        fsck(layer.image)

        above = f"directory {number - 1}" if number else ""
        target = layer_target(engine.prepare(f"key {number}", above), rebase=False)
        assert target is not None
        blob = tmp_path / "blob"
        blob.write_bytes(data)
        job = workers.start(
            blob,
            TAR,
            target,
            size=len(data),
            available=len(data),
            diff_id=None,
            limits=LayerLimits(),
        )
        assert job.result().entries == applied.entries
        engine.commit(f"directory {number}", f"key {number}")
        parent = f"image {number}"
        with (
            temp_mount(engine.view(f"one {number}", parent), dir=tmp_path) as one,
            temp_mount(engine.view(f"two {number}", f"directory {number}"), dir=tmp_path) as two,
        ):
            assert seen(one) == seen(two)
    with temp_mount(engine.view("all", "image 1"), dir=tmp_path) as root:
        names = {str(path.relative_to(root)) for path in root.rglob("*")}
        assert {"etc/a", "etc/b", "opaque/new"} <= names
        assert names.isdisjoint({"gone", "linked", "opaque/kept"})
        status = (root / "etc").stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (3, 4, 0o750)
        assert os.getxattr(root / "etc", "user.kept") == b"yes"


@pytest.mark.parametrize(
    ("data", "diff_id", "expected"),
    [
        (BASE, sha256(b"another"), DigestMismatch),
        (BASE[:700], None, FormatError),
        (Archive().symlink("l", "/").link("l/x", "nowhere").data(), None, FormatError),
        (Archive().file("x" * 300).data(), None, FormatError),
    ],
)
def test_layers_that_are_refused_leave_no_image(
    engine: Engine,
    tmp_path: Path,
    workers: LayerWorkers,
    data: bytes,
    diff_id: Digest | None,
    expected: type[LaminaError],
) -> None:
    layer = Layer(engine, tmp_path, data)
    with pytest.raises(expected):
        layer.start(workers, diff_id).result()
    assert not layer.image.exists()


def test_a_full_disk_leaves_no_image(tmp_path: Path, workers: LayerWorkers) -> None:
    data = Archive().file("big", random.Random(1).randbytes(9 * MIB)).data()
    small = Mount("tmpfs", "tmpfs", options=("size=8m",))
    with (
        temp_mount([small], dir=tmp_path) as disk,
        Engine("erofs", ErofsDriver(disk / "root"), disk / "root") as engine,
    ):
        layer = Layer(engine, tmp_path, data)
        with pytest.raises(ResourceExhausted, match=r"layer\.erofs.*disk is full"):
            layer.start(workers).result()
        assert not layer.image.exists()


def test_what_a_kill_leaves_is_never_committed(
    engine: Engine, tmp_path: Path, workers: LayerWorkers
) -> None:
    data = Archive().file("big", random.Random(1).randbytes(9 * MIB)).file("more").data()
    layer = Layer(engine, tmp_path, data)
    job = layer.start(workers, available=8 * MIB)
    deadline = time.monotonic() + 20
    while not (layer.image.exists() and layer.image.stat().st_size > MIB):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert job._worker is not None
    job._worker._process.send_signal(signal.SIGKILL)
    with pytest.raises(Aborted):
        job.result()
    with pytest.raises(FormatError, match="erofs"):
        engine.commit("layer", layer.key)
    engine.remove(layer.key)
    engine.cleanup()
    assert engine.fsck() == []
    assert not layer.image.exists()


def test_a_commit_that_comes_to_nothing_keeps_the_image(
    engine: Engine, tmp_path: Path, workers: LayerWorkers
) -> None:
    driver = engine._driver
    assert isinstance(driver, Imaging)
    layer = Layer(engine, tmp_path, BASE)
    layer.start(workers).result()
    before = layer.image.read_bytes()
    snapshot = Snapshot(engine._store.record(layer.key).id, Kind.ACTIVE)
    driver.seal(snapshot)
    assert driver.layer_image(snapshot) is None
    engine.commit("layer", layer.key)
    assert layer.image.read_bytes() == before
    assert any(Image(Bytes(before)).superblock.uuid)


def test_what_is_written_beside_the_image_is_not_lost_unsaid(
    engine: Engine, tmp_path: Path, workers: LayerWorkers
) -> None:
    layer = Layer(engine, tmp_path, BASE)
    layer.start(workers).result()
    with temp_mount(layer.mounts, dir=tmp_path) as root:
        (root / "new").touch()
    with pytest.raises(FailedPrecondition, match="prepare another on top of it"):
        engine.commit("layer", layer.key)


def test_a_pull_extracts_nothing(machine: Machine) -> None:
    with Store(machine.root) as store:
        chain = store.unpack(IMAGE, snapshotter="erofs")
        engine = store.snapshotter("erofs")
        assert isinstance(engine, Engine)
        [layer] = list(engine.walk())
        image = engine.root / f"snapshots/{engine._store.record(layer.name).id}/layer.erofs"
        assert any(Image(Bytes(image.read_bytes())).superblock.uuid), chain
        assert list(image.with_name("fs").iterdir()) == []
    shown = machine.lamina(
        "run", "--rm", "--snapshotter", "erofs", "busybox", machine.id, "ls", "/"
    )
    assert "bin" in shown.stdout
