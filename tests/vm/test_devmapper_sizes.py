"""Sizes by label: devices that are larger or smaller than what they are copies of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from lamina.core.labels import MAX_SIZE, SNAPSHOT_REF
from lamina.core.mount import Mount
from lamina.errors import InvalidArgument
from lamina.mount import temp_mount
from lamina.snapshotters.engine import Engine
from tests.fixtures_thin_pool import ThinPool
from tests.vm.devmapper import check_layers, commit, dmsetup, load, open_engine, thin_ids

pytestmark = [pytest.mark.dm(boot="devmapper"), pytest.mark.root]

MIB = 1 << 20
SIZES = {"ext4": (64, 200), "ext2": (64, 200), "xfs": (300, 500)}
"""MiB: the base's, and one that is larger."""


@contextmanager
def engine_of(pool: ThinPool, root: Path, filesystem: str) -> Iterator[Engine]:
    driver = load(pool, root, size=f"{SIZES[filesystem][0]}MiB", filesystem=filesystem)
    with closing(Engine("devmapper", driver, root, sync_remove=True)) as engine:
        yield engine


def label(mib: float) -> dict[str, str]:
    return {MAX_SIZE: str(int(mib * MIB))}


def device_mib(mounts: list[Mount]) -> float:
    sectors = int(dmsetup("table", mounts[0].source).split()[1])
    return sectors * 512 / MIB


def capacity_mib(mounts: list[Mount], work: Path) -> float:
    with temp_mount(mounts, dir=work) as root:
        inside = os.statvfs(root)
        return inside.f_blocks * inside.f_frsize / MIB


@pytest.mark.parametrize("filesystem", SIZES)
def test_larger_than_the_parent(
    filesystem: str, thin_pool: ThinPool, root_dir: Path, tmp_path: Path
) -> None:
    base, large = SIZES[filesystem]
    with engine_of(thin_pool, root_dir, filesystem) as engine:
        commit(engine, tmp_path, "one")
        for key, parent in (("grown", "one"), ("made", "")):
            mounts = engine.prepare(key, parent, labels=label(large))
            assert device_mib(mounts) == large
            assert 0.7 * large < capacity_mib(mounts, tmp_path) <= large
        with temp_mount(engine.mounts("grown"), dir=tmp_path) as root:
            (root / "name").write_text("two")
        engine.commit("two", "grown")
        commit(engine, tmp_path, "three", "two")
        assert device_mib(engine.prepare("child", "three")) == large
        assert device_mib(engine.view("view", "one", labels=label(large))) == base
        extraction = {SNAPSHOT_REF: "four", MAX_SIZE: "nonsense"}
        assert device_mib(engine.prepare("four", "one", labels=extraction)) == base
        check_layers(engine, tmp_path)
        assert engine.fsck() == []


@pytest.mark.parametrize("filesystem", ["ext4", "ext2"])
def test_smaller_than_the_parent(
    filesystem: str, thin_pool: ThinPool, root_dir: Path, tmp_path: Path
) -> None:
    with engine_of(thin_pool, root_dir, filesystem) as engine:
        commit(engine, tmp_path, "one")
        for key, parent in (("shrunk", "one"), ("made", "")):
            mounts = engine.prepare(key, parent, labels=label(24))
            assert device_mib(mounts) == 24
            assert 0.6 * 24 < capacity_mib(mounts, tmp_path) <= 24
        with temp_mount(engine.mounts("shrunk"), dir=tmp_path) as root:
            (root / "name").write_text("two")
            (root / "file").write_bytes(os.urandom(4 * MIB))
            os.sync()
            assert 4 * MIB <= engine.usage("shrunk").size < 6 * MIB
            (root / "file").unlink()
        engine.commit("two", "shrunk")
        assert device_mib(engine.prepare("child", "two", labels=label(48))) == 48
        check_layers(engine, tmp_path)


def test_copy_of_what_is_mounted_can_be_larger(
    thin_pool: ThinPool, root_dir: Path, tmp_path: Path
) -> None:
    with open_engine(thin_pool, root_dir) as engine:
        with temp_mount(engine.prepare("a"), dir=tmp_path) as root:
            (root / "name").write_text("layer")
            engine.commit("layer", "a")
            mounts = engine.prepare("b", "layer", labels=label(128))
            with temp_mount(mounts, dir=tmp_path) as grown:
                assert (grown / "name").read_text() == "layer"
        assert capacity_mib(mounts, tmp_path) > 100


def test_sizes_that_cannot_be(thin_pool: ThinPool, root_dir: Path, tmp_path: Path) -> None:
    with open_engine(thin_pool, root_dir) as engine:
        commit(engine, tmp_path, "one")
        with temp_mount(engine.prepare("f", "one"), dir=tmp_path) as root:
            (root / "file").write_bytes(os.urandom(20 * MIB))
        engine.commit("full", "f")
        there = thin_ids(thin_pool)
        with pytest.raises(InvalidArgument, match="its content needs more"):
            engine.prepare("a", "full", labels=label(16))
        for size in (1 << 62, 4096):
            for parent in ("", "one"):
                with pytest.raises(InvalidArgument):
                    engine.prepare("a", parent, labels={MAX_SIZE: str(size)})
        with pytest.raises(InvalidArgument, match="write a number of bytes"):
            engine.prepare("a", "one", labels={MAX_SIZE: "1GiB"})
        assert thin_ids(thin_pool) == there
        assert engine.fsck() == []


def test_xfs_cannot_become_smaller(thin_pool: ThinPool, root_dir: Path, tmp_path: Path) -> None:
    with engine_of(thin_pool, root_dir, "xfs") as engine:
        commit(engine, tmp_path, "one")
        with pytest.raises(InvalidArgument, match="xfs can only grow"):
            engine.prepare("a", "one", labels=label(200))
        with pytest.raises(InvalidArgument, match=r"mkfs\.xfs"):
            engine.prepare("a", labels=label(200))


def test_promise_beyond_the_pool_is_told(
    thin_pool: ThinPool, root_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_engine(thin_pool, root_dir) as engine:
        engine.prepare("a", labels=label(512))
    assert "a snapshot of 512.0 MiB is larger than all of its pool: 256.0 MiB" in caplog.messages
