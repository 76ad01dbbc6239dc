"""What runs in a machine whose power is cut: snapshots made and removed until then, and checked.

The disks are a pool's metadata and data, and an ext4 for the records of devmapper and for all of
blockfile. What must be there after a power cut, and what was ever given out, is in the file JOURNAL
of the host, which survives it. Run as `python -m tests.vm.cut_guest TURN LAST`; it imports nothing
of pytest, which takes a second in such a machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from lamina.core.snapshot import Kind
from lamina.linux.dm import SECTOR, DeviceMapper, thin
from lamina.mount import temp_mount
from lamina.snapshotters.blockfile.plugin import PLUGIN as BLOCKFILE
from lamina.snapshotters.blockfile.plugin import BlockfileConfig
from lamina.snapshotters.devmapper.census import count_devices
from lamina.snapshotters.devmapper.config import DevmapperConfig
from lamina.snapshotters.devmapper.devices import RANGE
from lamina.snapshotters.devmapper.driver import DevmapperDriver
from lamina.snapshotters.devmapper.plugin import PLUGIN as DEVMAPPER
from lamina.snapshotters.engine import Engine

JOURNAL = "journal"
MIB = 1 << 20
POOL = "pool"
DISK = Path("/run/disk")
WORK = Path("/run/work")
SHARED = Path("/run/shared")
KEPT = 6
"""Layers that stay before the oldest is removed."""


class Journal:
    """Lines that are on the host's disk once `write` returns: words, the snapshotter's name first.

    `number ID`: device ID was given out. `synced NAME`: it must be there from now on. `going NAME`:
    no longer so.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+")
        self._file.seek(0)
        self._lines = [line.split() for line in self._file if line.endswith("\n")]

    def write(self, *words: object) -> None:
        """Write a line."""
        self._lines.append([str(word) for word in words])
        print(*words, file=self._file, flush=True)
        os.fsync(self._file.fileno())

    def words(self, name: str, verb: str) -> list[str]:
        """Return what all lines of that beginning are about."""
        return [line[2] for line in self._lines if line[:2] == [name, verb]]


def activate_pool() -> None:
    """Make the pool that is on the disks visible, or a new one."""
    target = thin.pool_target(
        sectors=256 * MIB // SECTOR,
        metadata="/dev/ubda",
        data="/dev/ubdb",
        block_sectors=128,
        low_water=0,
    )
    with DeviceMapper() as dm:
        dm.activate(POOL, [target])


@contextmanager
def opened(name: str) -> Iterator[Engine]:
    """Open a snapshotter of that name."""
    root = DISK / name
    if name == "devmapper":
        pool = DevmapperConfig(pool_name=POOL, base_image_size="16MiB")
        driver = DEVMAPPER.load(pool, root)
    else:
        driver = BLOCKFILE.load(BlockfileConfig(scratch_size="8MiB"), root)
    with Engine(name, driver, root, sync_remove=True) as engine:
        yield engine


def check(engine: Engine, journal: Journal) -> None:
    """See whether what was synced is there, and what is not right can be repaired."""
    problems = engine.fsck()
    for problem in problems:
        assert problem.repair is not None, problem
        problem.repair.run()
    engine.cleanup()
    assert engine.fsck() == [], engine.fsck()
    print(f"{engine.name}: repaired {', '.join(map(str, problems)) or 'nothing'}")
    there = {info.name: info.kind for info in engine.walk()}
    due = set(journal.words(engine.name, "synced")) - set(journal.words(engine.name, "going"))
    assert due <= there.keys(), due - there.keys()
    for name, kind in there.items():
        if kind == Kind.COMMITTED:
            with temp_mount(engine.view("check", name), dir=WORK) as root:
                assert (root / "name").read_text() == name
                assert (root / name).read_bytes() == content(name)
            engine.remove("check")
        else:
            engine.remove(name)
    if isinstance(engine._driver, DevmapperDriver):
        check_pool(engine._driver)
    assert len(set(numbers := journal.words(engine.name, "number"))) == len(numbers)


def check_pool(driver: DevmapperDriver) -> None:
    """See whether the pool has what has a row, and the lease."""
    devices = driver._volumes.devices
    present = count_devices(driver._pool)
    assert present.keys() == devices.numbers() | set(devices.ranges())
    assert devices.suspended() == {}
    assert all(id % RANGE == 0 for id in devices.ranges())


def content(name: str) -> bytes:
    """Return what is in a layer's file."""
    return name.encode() * 3000


def work(engine: Engine, journal: Journal, turn: str) -> Iterator[None]:
    """Make, commit, sync and remove snapshots; one step at a time."""
    layers = [info.name for info in engine.walk() if info.kind == Kind.COMMITTED]
    for number in count():
        name = f"layer-{turn}-{number}"
        parent = layers[-1] if layers and number % 3 else ""
        mounts = engine.prepare(f"key-{name}", parent)
        note_numbers(engine, journal)
        yield
        with temp_mount(mounts, dir=WORK) as root:
            (root / "name").write_text(name)
            (root / name).write_bytes(content(name))
        yield
        engine.commit(name, f"key-{name}")
        layers.append(name)
        yield
        if number % 4 == 2:
            engine.sync()
            for layer in set(layers) - set(journal.words(engine.name, "synced")):
                journal.write(engine.name, "synced", layer)
        if number % 4 == 3:
            engine.prepare(f"left-{name}", name)
            note_numbers(engine, journal)
        yield
        if len(layers) > KEPT:
            remove_one(engine, journal, layers)
        yield


def remove_one(engine: Engine, journal: Journal, layers: list[str]) -> None:
    """Remove the oldest layer that nothing stands on."""
    parents = {info.parent for info in engine.walk()}
    leaves = [layer for layer in layers[:-1] if layer not in parents]
    if leaves:
        journal.write(engine.name, "going", leaves[0])
        engine.remove(leaves[0])
        layers.remove(leaves[0])


def note_numbers(engine: Engine, journal: Journal) -> None:
    """Note the numbers of devices that are not in the journal."""
    if isinstance(engine._driver, DevmapperDriver):
        known = set(journal.words(engine.name, "number"))
        for id in engine._driver._volumes.devices.numbers():
            if str(id) not in known:
                journal.write(engine.name, "number", id)


def main(turn: str, last: str) -> None:
    """Check what an earlier turn has left, and work: for ever, or a little in the last turn."""
    DISK.mkdir()
    WORK.mkdir()
    subprocess.run(("mount", "-t", "ext4", "/dev/ubdc", DISK), check=True)
    activate_pool()
    journal = Journal(SHARED / JOURNAL)
    with opened("devmapper") as devmapper, opened("blockfile") as blockfile:
        engines = (devmapper, blockfile)
        for engine in engines:
            check(engine, journal)
        steps = zip(*(work(engine, journal, turn) for engine in engines), strict=True)
        for number, _ in enumerate(steps):
            if turn == last and number > 50:
                break
        for engine in engines:
            engine.sync()
            check(engine, journal)


if __name__ == "__main__":
    main(*sys.argv[1:])
