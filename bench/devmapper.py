"""Prepare on an image on devmapper: `lamina serve` beside containerd's own devmapper snapshotter.

Both run in one virtual machine (tests/vm), each on a thin pool of its own, with the same settings
and the same image: three layers in ext4. One client asks both over gRPC, in turn; a sample is the
mean of `ROUND` calls. Remove is not compared: containerd's only notes it down for later.

containerd starts dmsetup several times for each call, and such a machine is slow at starting
programs: it makes the difference larger than it is elsewhere. So how long one start takes is
written beside the samples.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.figures import Figure
from bench.process import timed, wait_for_janitor
from lamina.api.channel import Channel
from lamina.api.client import RemoteSnapshotter
from lamina.core.snapshot import Snapshotter
from lamina.mount import temp_mount
from lamina.snapshotters.devmapper.plugin import PLUGIN
from tests import probes
from tests.fixtures_containerd import running_containerd
from tests.fixtures_serve import Serve, serving
from tests.fixtures_thin_pool import ThinPool, active_pool
from tests.isolation import SESSION_VARIABLE
from tests.vm.machine import MEMORY_MIB, SHARED_IN_GUEST
from tests.vm.replay import REPOSITORY
from tests.vm.uml import Machine

RUNS = 7
ROUND = 10
# The name of the figure and of the call, and the target.
TARGETS = (("devmapper-prepare", "prepare", 0.5), ("devmapper-commit", "commit", None))
RESULT = "result"
IMAGE = "image"
LAYERS = 3
FILES = 200
FILE_BYTES = 16 << 10
SNAPSHOT_SIZE = "1GiB"
DATA_BYTES = 2 << 30
METADATA_BYTES = 16 << 20
KEPT = {"containerd.io/gc.root": "bench"}
"""What keeps containerd's garbage collection away."""
SETTLE_SECONDS = 1.0

Samples = dict[str, list[float]]


class Side(NamedTuple):
    """Whose snapshotter, and how to wait until it has done all that it does behind its calls."""

    snapshotter: Snapshotter
    settle: Callable[[], object]


def measure() -> tuple[list[Figure], dict[str, str]]:
    """Boot the machine, which runs this module, and read what it has measured."""
    if reason := probes.uml():
        raise SystemExit(f"bench: devmapper needs User-mode Linux: {reason}")
    with tempfile.TemporaryDirectory(prefix="lamina-bench-") as name:
        machine = Machine(
            Path(name),
            (sys.executable, "-m", "bench.devmapper"),
            files={RESULT: ""},
            environ={"PYTHONDONTWRITEBYTECODE": "1", SESSION_VARIABLE: "lamina-bench"},
            cwd=REPOSITORY,
        )
        with machine:
            if machine.wait() != 0:
                raise SystemExit(f"bench: in the virtual machine: {machine.console()}")
            result = json.loads((machine.shared / RESULT).read_text())
    ours, theirs = result["ours"], result["theirs"]
    peer = "containerd's devmapper"
    figures = [
        Figure(name, ours[call], theirs[call], target, peer) for name, call, target in TARGETS
    ]
    virtual = f"User-mode Linux {result['kernel']}, one processor, {MEMORY_MIB >> 10} GiB"
    said = subprocess.run(("containerd", "--version"), check=True, capture_output=True, text=True)
    return figures, {
        "virtual machine": virtual,
        "one start of dmsetup there": f"{result['start']:.3f} s",
        "containerd": said.stdout.split()[2],
    }


def measure_in_guest() -> dict[str, object]:
    """Take samples of both sides in turn; the first of each only warms up."""
    ours: Samples = {}
    theirs: Samples = {}
    directory = Path(tempfile.mkdtemp())
    with ExitStack() as stack:
        sides = (
            (stack.enter_context(_lamina(directory / "lamina")), ours),
            (stack.enter_context(_containerd(directory / "containerd")), theirs),
        )
        for side, _ in sides:
            _make_image(side.snapshotter, directory)
            _settle(side)
        for number in range(RUNS + 1):
            for side, samples in sides if number % 2 == 0 else reversed(sides):
                for call, seconds in _sample(side.snapshotter, number).items():
                    samples.setdefault(call, []).append(seconds)
                _settle(side)
    for samples in (ours, theirs):
        for taken in samples.values():
            del taken[0]
    start = statistics.median(timed(("dmsetup", "version")) for _ in range(ROUND))
    return {"ours": ours, "theirs": theirs, "start": start, "kernel": platform.release()}


@contextmanager
def _lamina(directory: Path) -> Iterator[Side]:
    """Serve a pool with Lamina."""
    directory.mkdir()
    with active_pool(directory, data_bytes=DATA_BYTES, metadata_bytes=METADATA_BYTES) as pool:
        serve = Serve(directory, f"version = 3\n{_section(pool)}")
        with serving(serve), Channel(serve.address) as channel:
            remote = RemoteSnapshotter(channel, PLUGIN.id)
            yield Side(remote, lambda: wait_for_janitor(serve.root))


@contextmanager
def _containerd(directory: Path) -> Iterator[Side]:
    """Serve a pool with containerd."""
    directory.mkdir()
    with (
        active_pool(directory, data_bytes=DATA_BYTES, metadata_bytes=METADATA_BYTES) as pool,
        running_containerd(directory, extra_config=_section(pool)) as daemon,
        Channel(daemon.address) as channel,
    ):
        remote = RemoteSnapshotter(channel, PLUGIN.id, namespace="bench")
        # It collects garbage, the removed snapshots included.
        yield Side(remote, lambda: daemon.ctr("content", "prune", "references"))


def _section(pool: ThinPool) -> str:
    return (
        f'[plugins."{PLUGIN.uri}"]\n'
        f'  pool_name = "{pool.name}"\n'
        f'  base_image_size = "{SNAPSHOT_SIZE}"\n'
    )


def _settle(side: Side) -> None:
    """Let a side end its work, so that it is not in the other's time."""
    time.sleep(SETTLE_SECONDS)
    side.settle()


def _make_image(snapshotter: Snapshotter, work: Path) -> None:
    """Commit layers, the last one as IMAGE."""
    parent = ""
    for number in range(LAYERS):
        key = f"extract-{number}"
        with temp_mount(snapshotter.prepare(key, parent, labels=KEPT), dir=work) as root:
            for file in range(FILES):
                (root / f"{number}-{file}").write_bytes(os.urandom(FILE_BYTES))
        parent = IMAGE if number == LAYERS - 1 else f"layer-{number}"
        snapshotter.commit(parent, key, labels=KEPT)


def _sample(snapshotter: Snapshotter, run: int) -> dict[str, float]:
    """Return the mean seconds of each call; what was made is removed."""
    keys = [f"run-{run}-{number}" for number in range(ROUND)]

    def each(call: Callable[[str], object]) -> float:
        start = time.perf_counter()
        for key in keys:
            call(key)
        return (time.perf_counter() - start) / ROUND

    times = {
        "prepare": each(lambda key: snapshotter.prepare(key, IMAGE, labels=KEPT)),
        "commit": each(lambda key: snapshotter.commit(f"{key}-done", key, labels=KEPT)),
    }
    for key in keys:
        snapshotter.remove(f"{key}-done")
    return times


if __name__ == "__main__":
    found = json.dumps(measure_in_guest())
    with (SHARED_IN_GUEST / RESULT).open("w") as file:
        file.write(found)
        file.flush()
        os.fsync(file.fileno())  # the host sees nothing before
