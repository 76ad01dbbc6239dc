"""Cold reads of 4 KiB from an overlaybd device, by the gate that it is read through.

Runs in a virtual machine (tests/vm), whose kernel has network block devices; its processors are
emulated, which makes it slow, and alike for all. The layer's blob is a file there, of which nothing
is in the device's cache yet, so that what a gate costs is seen, and no network. Beside each read is
one of as many bytes of that file.

- `gate-NAME`: of a window of the device that is not local.
- `gate-NAME-local`: of another page of the same windows.

Each figure is the median of a run; with `-p99`, the slowest but one in a hundred.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Figure
from bench.guest import VERSIONS, measured_in_guest, tell
from bench.images import Content
from bench.lazy_reads import p99
from bench.process import drop_caches
from lamina.config import load
from lamina.errors import LaminaError
from lamina.formats.ext4.layers import Ext4Layers
from lamina.formats.lsmt.layout import About
from lamina.formats.lsmt.writer import write_layer
from lamina.formats.zfile.envelope import wrapped
from lamina.lazy.sources.file import FileSource
from lamina.mount import temp_mount
from lamina.snapshotters.overlaybd.device import WINDOW
from lamina.store import Store
from tests.fixtures_stargz import end_lazy
from tests.images import tar

GATES = ("fuse", "nbd")
RUNS = 3
READS = 150
READ_BYTES = 4096
FILE_BYTES = 64 << 20
_BLOB = "LAMINA_BENCH_BLOB"
_SEED = 1
_CONFIG = """version = 3
[plugins."io.containerd.snapshotter.v1.overlaybd"]
gate = "{gate}"
no_background_fetch = true
"""

Samples = dict[str, list[list[float]]]
"""Seconds of the reads of each run, by what was read."""


def measure() -> tuple[list[Figure], dict[str, str]]:
    """Make the layer here, and have it read in the machine."""
    with tempfile.TemporaryDirectory(prefix="lamina-bench-", dir="/var/tmp") as name:
        blob = Path(name, "blob")
        _make_layer(blob)
        samples: Samples = measured_in_guest("bench.gates", {_BLOB: str(blob)})
    figures = []
    for suffix, judge in (("", statistics.median), ("-p99", p99)):
        judged = {kind: [judge(run) for run in runs] for kind, runs in samples.items()}
        alone = judged.pop("file")
        for kind, seconds in judged.items():
            figures.append(Figure(f"gate-{kind}{suffix}", seconds, alone, None, "the layer's file"))
    return figures, VERSIONS


def _make_layer(path: Path) -> None:
    archive = tar({"file": Content(_SEED).bytes(FILE_BYTES)})
    size = 2 * FILE_BYTES
    with path.open("w+b") as blob, tempfile.TemporaryFile(dir=path.parent) as spool:
        applied = Ext4Layers(size, spool).apply(iter([archive]))
        spool.flush()
        spooled = FileSource(Path(f"/proc/self/fd/{spool.fileno()}"))
        with contextlib.closing(spooled) as source, wrapped(blob):
            write_layer(blob, applied.extents, [source], About(size))


def _measure_in_guest() -> None:
    samples: Samples = {}
    blob = Path(os.environ[_BLOB])
    for _ in range(RUNS):
        for gate in GATES:
            with _opened(blob, gate) as file:
                samples.setdefault(gate, []).append(_read(file, 0))
                samples.setdefault(f"{gate}-local", []).append(_read(file, WINDOW // 2))
        with blob.open("rb") as alone:
            samples.setdefault("file", []).append(_read(alone.fileno(), 0))
    tell(samples)


@contextlib.contextmanager
def _opened(blob: Path, gate: str) -> Iterator[int]:
    """Mount the layer's device, of which nothing but its metadata is local, and open the file."""
    with tempfile.TemporaryDirectory(prefix="lamina-bench-") as name:
        directory = Path(name)
        config = directory / "config.toml"
        config.write_text(_CONFIG.format(gate=gate))
        root = directory / "root"
        root.mkdir()
        with Store(root, config=load(config)) as store:
            engine = store.snapshotter("overlaybd")
            with temp_mount(engine.prepare("extract"), dir=directory) as at:
                (at / "overlaybd.commit").write_bytes(blob.read_bytes())
            engine.commit("layer", "extract")
            with _viewed(store, directory) as at:
                fd = os.open(at / "file", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.pread(fd, READ_BYTES, FILE_BYTES - READ_BYTES)  # finds its extents
                    yield fd
                finally:
                    os.close(fd)
            engine.remove("look")
            engine.remove("layer")
            engine.cleanup()
        end_lazy(root)


@contextlib.contextmanager
def _viewed(store: Store, directory: Path) -> Iterator[Path]:
    mounts = None
    while mounts is None:
        # Starting the worker takes longer here than anybody waits elsewhere.
        with contextlib.suppress(LaminaError):
            mounts = store.snapshotter("overlaybd").view("look", "layer")
    with temp_mount(mounts, dir=directory, read_only=True) as at:
        yield at


def _read(fd: int, inside: int) -> list[float]:
    """Read pages of windows here and there, one after the other, and return the seconds of each."""
    windows = random.Random(_SEED).sample(range(FILE_BYTES // WINDOW - 1), READS)
    drop_caches()
    samples = []
    for window in windows:
        began = time.perf_counter()
        data = os.pread(fd, READ_BYTES, window * WINDOW + inside)
        samples.append(time.perf_counter() - began)
        if len(data) != READ_BYTES:
            raise RuntimeError(f"{len(data)} bytes were read of window {window}")
    return samples


if __name__ == "__main__":
    _measure_in_guest()
