"""Whole commands, timed and measured from outside."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lamina.snapshotters.wakeup import janitor_runs

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "lamina-bench")
"""Where images are kept from one run to the next."""

# A process's record begins with what its parent had when it was started, and a benchmark's own
# process, which pushes images, is a large one: a small one stands in between.
_PEAK = """
import os, sys
null = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=null)
_, status, usage = os.wait4(pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def timed(argv: Sequence[str]) -> float:
    """Run the command and return its wall time in seconds; its failure ends the benchmark."""
    start = time.perf_counter()
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def peak_memory(argv: Sequence[str]) -> int:
    """Run the command and return the largest resident set of any process in it, in bytes."""
    small = [sys.executable, "-I", "-S", "-c", _PEAK, *argv]
    done = subprocess.run(small, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    return int(done.stdout) * 1024


def resident_bytes(pid: int) -> int:
    """Return the resident set of a process, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None, status
    return int(found[1]) * 1024


def drop_caches() -> None:
    """Write dirty pages out and forget all clean ones, so that each run starts equally cold."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def wait_for_janitor(root: Path) -> None:
    """Return when no background work is done below that root, which then can be deleted."""
    while janitor_runs(root):
        time.sleep(0.1)
