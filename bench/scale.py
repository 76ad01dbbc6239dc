"""Prepare and Remove among many snapshots of one layer beside the same among few: do they grow?

btrfs is on a loop device of this machine; zfs is in a virtual machine (tests/vm) whose processors
are emulated, which makes it slow, and alike for both sides. Removal is waited for: the subvolume or
dataset is gone when the call returns. LAMINA_BENCH_SNAPSHOTS is how many there are in the end
(2000).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from bench.figures import Figure
from bench.guest import VERSIONS, measured_in_guest, tell
from lamina.mount import temp_mount
from lamina.snapshotters.btrfs.plugin import PLUGIN as BTRFS
from lamina.snapshotters.btrfs.plugin import BtrfsConfig
from lamina.snapshotters.engine import Engine
from lamina.snapshotters.zfs.plugin import PLUGIN as ZFS
from lamina.snapshotters.zfs.plugin import ZfsConfig
from tests.fixtures_zfs import dataset_at

FEW = 100
MANY = 2000
RUNS = 30
WORKERS = 16
"""Fill together: they wait for the same transactions."""
IMAGE = "image"
FILES = 200
FILE_BYTES = 16 << 10
DISK_BYTES = 16 << 30
"""Sparse."""
POOL = "lamina-bench"
CALLS = ("prepare", "remove")
TARGET = 1.5

Samples = dict[str, list[float]]


def measure() -> tuple[list[Figure], dict[str, str]]:
    """Measure btrfs here, and zfs where there is a machine for it."""
    with _btrfs() as engine:
        figures = _figures("btrfs", *_grown(engine))
    return figures + _figures("zfs", *_measure_in_machine()), {
        "snapshots": str(_many()),
        **VERSIONS,
    }


def _figures(name: str, few: Samples, many: Samples) -> list[Figure]:
    peer = f"among {FEW}"
    return [Figure(f"scale-{name}-{call}", many[call], few[call], TARGET, peer) for call in CALLS]


def _measure_in_machine() -> tuple[Samples, Samples]:
    """Boot the machine, which runs this module, and read what it has measured."""
    few, many = measured_in_guest("bench.scale", {"LAMINA_BENCH_SNAPSHOTS": str(_many())})
    return few, many


def _grown(engine: Engine) -> tuple[Samples, Samples]:
    """Take samples among FEW snapshots of one layer, and among all."""
    work = Path(tempfile.mkdtemp(prefix="lamina-bench-"))
    with temp_mount(engine.prepare("key"), dir=work) as root:
        for number in range(FILES):
            (root / f"{number}").write_bytes(os.urandom(FILE_BYTES))
    work.rmdir()
    engine.commit(IMAGE, "key")
    _fill(engine, range(FEW))
    few = _sample(engine)
    _fill(engine, range(FEW, _many()))
    return few, _sample(engine)


def _fill(engine: Engine, numbers: range) -> None:
    with ThreadPoolExecutor(WORKERS) as workers:
        for _ in workers.map(lambda number: engine.prepare(f"filled-{number}", IMAGE), numbers):
            pass


def _sample(engine: Engine) -> Samples:
    print(f"   sampling {engine.root}", flush=True)
    samples: Samples = {call: [] for call in CALLS}
    for number in range(-1, RUNS):  # the first only warms up
        key = f"sample-{number}"
        start = time.perf_counter()
        engine.prepare(key, IMAGE)
        prepared = time.perf_counter()
        engine.remove(key)
        removed = time.perf_counter()
        if number >= 0:
            samples["prepare"].append(prepared - start)
            samples["remove"].append(removed - prepared)
    return samples


def _many() -> int:
    return int(os.environ.get("LAMINA_BENCH_SNAPSHOTS", MANY))


@contextmanager
def _btrfs() -> Iterator[Engine]:
    directory = Path(tempfile.mkdtemp(prefix="lamina-bench-", dir="/var/tmp"))
    try:
        image, disk = directory / "image", directory / "disk"
        image.touch()
        os.truncate(image, DISK_BYTES)
        disk.mkdir()
        subprocess.run(("mkfs.btrfs", "-q", image), check=True)
        subprocess.run(("mount", "-o", "loop", image, disk), check=True)
        try:
            root = disk / "root"
            with Engine("btrfs", BTRFS.load(BtrfsConfig(), root), root, sync_remove=True) as engine:
                yield engine
        finally:
            subprocess.run(("umount", disk), check=True)
    finally:
        shutil.rmtree(directory)


@contextmanager
def _zfs() -> Iterator[Engine]:
    """Open one on a pool in memory."""
    directory = Path(tempfile.mkdtemp())
    file = directory / "pool"
    file.touch()
    os.truncate(file, DISK_BYTES)
    options = ("-o", "cachefile=none", "-O", "mountpoint=none", "-O", "atime=off")
    subprocess.run(("zpool", "create", *options, POOL, file), check=True)
    with dataset_at(POOL, directory / "root"):
        root = directory / "root"
        with Engine("zfs", ZFS.load(ZfsConfig(), root), root, sync_remove=True) as engine:
            yield engine


def _measure_in_guest() -> None:
    with _zfs() as engine:
        tell(_grown(engine))
        os._exit(0)  # without destroying thousands of datasets first: the machine ends with this


if __name__ == "__main__":
    _measure_in_guest()
