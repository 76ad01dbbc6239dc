"""Forks of one image's live snapshot beside `cp -a` of its storage: time, and room on the disk.

The image has 2,000 files, the snapshot that is forked has changed 200 of them and stays mounted. It
is done on two filesystems of their own: xfs, which shares blocks between files (reflink), and ext4,
which does not. LAMINA_BENCH_FORKS is how many forks are made (100), LAMINA_BENCH_SNAPSHOTTERS with
which snapshotters ("overlayfs native blockfile").
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.figures import RUNS, Figure
from lamina.config import Config
from lamina.core.snapshot import Snapshotter
from lamina.mount import temp_mount
from lamina.plugins import load

FORKS = 100
SNAPSHOTTERS = "overlayfs native blockfile"
FILES = 2000
CHANGED = 200
FILE_BYTES = 16 << 10
DISK_BYTES = 64 << 30
"""Sparse."""
FILESYSTEMS = {
    "xfs": ("mkfs.xfs", "-q", "-m", "reflink=1"),
    "ext4": ("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-i", "65536"),
}
TARGETS = {"overlayfs": 1.5}
"""Nearly all the time of both is the kernel's, which makes files. Others only tell: `cp` of a
mounted image file is torn, and not synced."""


def measure() -> tuple[list[Figure], dict[str, str]]:
    """Fork with each snapshotter on each filesystem, and copy with `cp` as often."""
    count = int(os.environ.get("LAMINA_BENCH_FORKS", FORKS))
    names = os.environ.get("LAMINA_BENCH_SNAPSHOTTERS", SNAPSHOTTERS).split()
    figures = []
    for filesystem, mkfs in FILESYSTEMS.items():
        for name in names:
            with _disk(mkfs) as disk:
                figures += _measure(disk, name, filesystem, max(count // RUNS, 1))
    return figures, {}


def _measure(disk: Path, name: str, filesystem: str, each: int) -> list[Figure]:
    root, copies = disk / "root", disk / "copies"
    root.mkdir()
    copies.mkdir()
    ours: dict[str, list[float]] = {"time": [], "room": []}
    theirs: dict[str, list[float]] = {"time": [], "room": []}
    with load(name, root, Config()) as engine:
        _make_source(engine, disk)
        storage = _storage(engine.root)
        with temp_mount(engine.mounts("source"), dir=disk) as mounted:
            _change(mounted)
            sides = (
                (ours, lambda key: engine.fork("source", key)),
                (theirs, lambda key: _copy(storage, copies / key)),
            )
            for run in range(RUNS):
                for samples, fork in sides if run % 2 == 0 else reversed(sides):
                    keys = [f"{run}-{number}" for number in range(each)]
                    _sample(disk, keys, fork, samples)
    label = f"fork-{name}-{filesystem}"
    return [
        Figure(label, ours["time"], theirs["time"], TARGETS.get(name), "cp -a"),
        Figure(f"{label}-room", ours["room"], theirs["room"], None, "cp -a", "B"),
    ]


def _sample(
    disk: Path, keys: list[str], fork: Callable[[str], object], samples: dict[str, list[float]]
) -> None:
    """Add the mean seconds and bytes of each fork."""
    os.sync()
    free = _free(disk)
    start = time.perf_counter()
    for key in keys:
        fork(key)
    samples["time"].append((time.perf_counter() - start) / len(keys))
    os.sync()
    samples["room"].append(max(free - _free(disk), 1) / len(keys))


def _make_source(engine: Snapshotter, work: Path) -> None:
    with temp_mount(engine.prepare("key"), dir=work) as root:
        for number in range(FILES):
            directory = root / f"{number % 50}"
            directory.mkdir(exist_ok=True)
            (directory / f"{number}").write_bytes(os.urandom(FILE_BYTES))
    engine.commit("image", "key")
    engine.prepare("source", "image")


def _change(root: Path) -> None:
    for number in range(CHANGED):
        (root / f"{number % 50}/{number}").write_bytes(os.urandom(FILE_BYTES))
    os.sync()


def _storage(root: Path) -> Path:
    """Return what is the source's: the newest in the snapshotter's directory."""
    return max((root / "snapshots").iterdir(), key=lambda path: int(path.name))


def _copy(storage: Path, target: Path) -> None:
    source = storage / "fs" if (storage / "fs").is_dir() else storage
    subprocess.run(("cp", "-a", "--reflink=auto", source, target), check=True)


def _free(disk: Path) -> int:
    status = os.statvfs(disk)
    return status.f_bfree * status.f_frsize


@contextmanager
def _disk(mkfs: tuple[str, ...]) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="lamina-bench-", dir="/var/tmp"))
    try:
        image, disk = directory / "image", directory / "disk"
        image.touch()
        os.truncate(image, DISK_BYTES)
        disk.mkdir()
        subprocess.run((*mkfs, image), check=True)
        subprocess.run(("mount", "-o", "loop,discard", image, disk), check=True)
        try:
            yield disk
        finally:
            subprocess.run(("umount", disk), check=True)
    finally:
        shutil.rmtree(directory)
