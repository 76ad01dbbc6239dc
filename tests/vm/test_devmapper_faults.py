"""The devmapper snapshotter on disks that fail."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from lamina.errors import FailedPrecondition, LaminaError, NotFound
from lamina.linux.dm import node
from lamina.mount import temp_mount
from tests.fixtures_thin_pool import DATA_BYTES, METADATA_BYTES, SECTOR, ThinPool, loop_device
from tests.fixtures_thin_pool import device_name as new_name
from tests.isolation import remove_devices
from tests.vm.devmapper import check_layers, commit, dmsetup, fill, open_engine, remove_all

pytestmark = [pytest.mark.dm(boot="faults"), pytest.mark.root]

MIB = 1 << 20


class Disk:
    """A device in front of a loop device, whose I/O can be made to fail."""

    def __init__(self, loop: str, size: int) -> None:
        self.name = new_name("disk")
        self.path = node(self.name)
        self._sectors = size // SECTOR
        self._loop = loop
        dmsetup("create", self.name, "--table", f"0 {self._sectors} linear {loop} 0")

    def fail(self, *how: str) -> None:
        """Let all fail or, with `error_writes` and `drop_writes`, only what is written."""
        features = " ".join(map(str, (len(how), *how)))
        self._load(f"0 {self._sectors} flakey {self._loop} 0 0 3600 {features}")

    def recover(self) -> None:
        """Work again."""
        self._load(f"0 {self._sectors} linear {self._loop} 0")

    def _load(self, table: str) -> None:
        dmsetup("reload", self.name, "--table", table)
        dmsetup("suspend", "--noflush", "--nolockfs", self.name)
        dmsetup("resume", self.name)


class Bench:
    """A pool on two such disks."""

    def __init__(self, data: Disk, metadata: Disk) -> None:
        self.data = data
        self.metadata = metadata
        self.pool = ThinPool(new_name("pool"), str(data.path), str(metadata.path), DATA_BYTES)

    def activate(self) -> None:
        dmsetup("create", self.pool.name, "--table", self.pool.table())

    def deactivate(self) -> None:
        name = self.pool.name
        remove_devices(lambda device: device == name or device.startswith(f"{name}-"))

    def repair(self) -> None:
        """Do what `lamina devmapper repair` does where nothing is damaged."""
        self.deactivate()
        argv = ("thin_check", "--clear-needs-check-flag", self.pool.metadata)
        subprocess.run(argv, check=True)
        self.activate()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with (
        loop_device(tmp_path / "data", DATA_BYTES) as data,
        loop_device(tmp_path / "metadata", METADATA_BYTES) as metadata,
        removed_disks(Disk(data, DATA_BYTES), Disk(metadata, METADATA_BYTES)) as disks,
    ):
        made = Bench(*disks)
        made.activate()
        yield made
        made.deactivate()


@contextmanager
def removed_disks(*disks: Disk) -> Iterator[tuple[Disk, ...]]:
    try:
        yield disks
    finally:
        names = {disk.name for disk in disks}
        remove_devices(names.__contains__)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    directory = tmp_path / "work"
    directory.mkdir()
    return directory


def test_metadata_that_cannot_be_written(bench: Bench, root_dir: Path, work: Path) -> None:
    with open_engine(bench.pool, root_dir) as engine:
        commit(engine, work, "base")
        engine.sync()
        bench.metadata.fail()
        with pytest.raises(LaminaError):
            engine.prepare("a", "base")
        with pytest.raises(LaminaError):
            commit(engine, work, "b", "base")
        bench.metadata.recover()
        clear = "(needs a check|read-only|has failed): .*`lamina devmapper repair`"
        for create in (engine.prepare, engine.view):
            with pytest.raises(FailedPrecondition, match=clear):
                create("again", "base")
    bench.repair()
    with open_engine(bench.pool, root_dir, boot="next") as engine:
        check_layers(engine, work)
        commit(engine, work, "b", "base")
        check_layers(engine, work)
        engine.cleanup()
        assert engine.fsck() == []
        remove_all(engine)


@pytest.mark.parametrize("how", [(), ("error_writes",)], ids=["reads and writes", "writes"])
def test_data_that_cannot_be_written(
    how: tuple[str, ...], bench: Bench, root_dir: Path, work: Path
) -> None:
    with open_engine(bench.pool, root_dir) as engine:
        commit(engine, work, "base")
        engine.sync()
        with suppress(LaminaError), temp_mount(engine.prepare("torn", "base"), dir=work) as root:
            (root / "file").write_bytes(os.urandom(MIB))
            bench.data.fail(*how)
            (root / "other").write_bytes(os.urandom(8 * MIB))
            with pytest.raises(OSError):
                sync(root)
        with suppress(LaminaError):  # what has noted it: the filesystem, or the pool, or neither
            engine.commit("torn layer", "torn")
    bench.data.recover()
    bench.repair()
    with open_engine(bench.pool, root_dir, boot="next") as engine:
        for key in ("torn", "torn layer"):
            with suppress(NotFound):
                engine.remove(key)
        check_layers(engine, work)
        fill(engine.prepare("next", "base"), work, "next layer")
        engine.commit("next layer", "next")
        check_layers(engine, work)
        engine.cleanup()
        assert engine.fsck() == []
        remove_all(engine)


def sync(directory: Path) -> None:
    for path in directory.iterdir():
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def test_sync_that_fails_is_told(bench: Bench, root_dir: Path, work: Path) -> None:
    with open_engine(bench.pool, root_dir, boot="one") as engine:
        commit(engine, work, "base")
        bench.metadata.fail()
        with suppress(LaminaError):
            engine.prepare("makes the pool notice")
        with pytest.raises(LaminaError, match="takes no changes"):
            engine.sync()
        bench.metadata.recover()
