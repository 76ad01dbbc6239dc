"""`lamina serve` beside containerd's own overlayfs: the calls of the snapshots service, one client.

The client (tests/containerd-suite/cmd/bench) makes each call serially, and then lets 32 clients at
once take snapshots through their lives. Both daemons stay up for all runs, have their roots on the
same disk, and hold 100 snapshots meanwhile.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.figures import RUNS, Figure
from bench.process import wait_for_janitor
from bench.startup import LAMINA
from tests.fixtures_containerd import running_containerd
from tests.probes import GO, SUITE

# The name of the figure and of the client's result, and the target. List only tells: it is asked
# for by people, and costs what it takes to decode and encode a hundred rows in Python.
TARGETS: tuple[tuple[str, str, float | None], ...] = (
    ("serve-prepare", "prepare", 0.8),
    ("serve-commit", "commit", 0.8),
    ("serve-view", "view", 0.8),
    ("serve-remove", "remove", 0.8),
    ("serve-stat", "stat", 1.5),
    ("serve-mounts", "mounts", 1.5),
    ("serve-list", "list", None),
    ("serve-p99-32", "p99", 1.0),
)
MEMORY_LIMIT = 60e6
START_SECONDS = 20.0
SETTLE_SECONDS = 1.0
"""Between runs, so that what one daemon does behind its calls is not in the other's time."""

Results = dict[str, float]


def measure() -> tuple[list[Figure], dict[str, str]]:
    """Run the client against both in turn; memory is that of Lamina idle after all runs."""
    binary = os.environ.get("LAMINA_BENCH_CONTAINERD", "containerd")
    ctr = os.environ.get("LAMINA_BENCH_CTR", "ctr")
    ours: list[Results] = []
    theirs: list[Results] = []
    with tempfile.TemporaryDirectory(prefix="lamina-bench-", dir="/var/tmp") as name:
        client = Path(name, "client")
        subprocess.run((GO, "-C", SUITE, "build", "-o", client, "./cmd/bench"), check=True)
        with (
            _served(Path(name, "lamina")) as (address, process),
            running_containerd(Path(name, "containerd"), binary=binary, ctr=ctr) as daemon,
        ):
            sides = ((address, ours), (daemon.address, theirs))
            for socket, _ in sides:
                _run(client, socket)  # warms up
            for number in range(RUNS):
                for socket, results in sides if number % 2 == 0 else reversed(sides):
                    results.append(_run(client, socket))
                    wait_for_janitor(Path(name, "lamina"))
            memory = [_resident(process) for _ in range(RUNS)]
    said = subprocess.run([binary, "--version"], check=True, capture_output=True, text=True)
    peer = "containerd's overlayfs"
    figures = [
        Figure(figure, [run[key] for run in ours], [run[key] for run in theirs], target, peer)
        for figure, key, target in TARGETS
    ]
    limit = [MEMORY_LIMIT] * RUNS
    figures.append(Figure("serve-idle-memory", memory, limit, 1.0, "the limit", "B"))
    return figures, {"containerd": said.stdout.split()[2]}


@contextmanager
def _served(root: Path) -> Iterator[tuple[Path, int]]:
    """Run `lamina serve` on a new root; give its socket and process id."""
    root.mkdir()
    address = root / "lamina.sock"
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            [LAMINA, "--root", str(root), "serve", "--address", str(address)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while b"msg=serving " not in (root / "log").read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"bench: lamina serve: {(root / 'log').read_text()}")
            time.sleep(0.05)
        yield address, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        wait_for_janitor(root)


def _run(client: Path, address: Path) -> Results:
    time.sleep(SETTLE_SECONDS)
    command = (client, "-address", address, "-snapshotter", "overlayfs")
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    results: Results = json.loads(done.stdout)
    return results


def _resident(process: int) -> float:
    """Return the memory of a process that is its own or that it shares, in bytes."""
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return float(int(pages) * os.sysconf("SC_PAGE_SIZE"))
