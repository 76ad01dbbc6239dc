"""Whole commands, timed and measured from outside."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from lamina.snapshotters.wakeup import janitor_runs

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "lamina-bench")
"""Where images are kept from one run to the next."""


def timed(argv: Sequence[str]) -> float:
    """Run the command and return its wall time in seconds; its failure ends the benchmark."""
    start = time.perf_counter()
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def peak_memory(argv: Sequence[str]) -> int:
    """Run the command and return the largest resident set of any process in it, in bytes."""
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv)
    return usage.ru_maxrss * 1024


def drop_caches() -> None:
    """Write dirty pages out and forget all clean ones, so that each run starts equally cold."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def wait_for_janitor(root: Path) -> None:
    """Return when no background work is done below that root, which then can be deleted."""
    while janitor_runs(root):
        time.sleep(0.1)
