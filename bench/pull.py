"""`lamina images pull` beside `ctr images pull`: download and unpack of a large image.

The image has three gzip layers, at least 1 GB of files and 40,000 entries. Each run has an empty
store, a fresh daemon for containerd (its start is not counted), and a dropped page cache. Nothing
is deleted between the runs: ext4 makes new inodes slowly for minutes after many were freed.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import tempfile
import time
from pathlib import Path

from bench.figures import Figure, paired
from bench.images import build
from bench.process import CACHE, drop_caches, timed, wait_for_janitor
from bench.registry import push_layout
from bench.startup import LAMINA
from tests.fixtures_containerd import running_containerd
from tests.fixtures_registry import running_registry

REPOSITORY = "bench/large"
TARGET = 0.4


def measure() -> tuple[list[Figure], dict[str, str]]:
    """Time whole commands; both sides write to the page cache, and all is synced between runs.

    The peer is Debian's containerd, or what LAMINA_BENCH_CONTAINERD, LAMINA_BENCH_CTR and
    LAMINA_BENCH_CONTAINERD_CONFIG (TOML) say.
    """
    binary = os.environ.get("LAMINA_BENCH_CONTAINERD", "containerd")
    ctr = os.environ.get("LAMINA_BENCH_CTR", "ctr")
    config = os.environ.get("LAMINA_BENCH_CONTAINERD_CONFIG", "")
    numbers = itertools.count()
    with (
        tempfile.TemporaryDirectory(prefix="lamina-bench-", dir="/var/tmp") as name,
        running_registry(Path(name, "registry")) as registry,
    ):
        reference = push_layout(registry, build(CACHE / "large"), REPOSITORY)
        options = ["--plain-http", "--snapshotter", "overlayfs", reference]

        def ours() -> float:
            root = Path(name, f"lamina-{next(numbers)}")
            drop_caches()
            seconds = timed([LAMINA, "--root", str(root), "images", "pull", *options])
            time.sleep(1)  # for the janitor to start, whose sync must not run into the peer's time
            wait_for_janitor(root)
            return seconds

        def theirs() -> float:
            directory = Path(name, f"containerd-{next(numbers)}")
            with running_containerd(
                directory, binary=binary, ctr=ctr, extra_config=config
            ) as daemon:
                drop_caches()
                return timed(daemon.argv("images", "pull", *options))

        # The first runs warm up the machine itself: memory that its host has yet to hand out.
        ours(), theirs()
        samples = paired(ours, theirs)
        said = subprocess.run([binary, "--version"], check=True, capture_output=True, text=True)
    version = said.stdout.split()[2]
    return [Figure("pull-unpack", *samples, TARGET, "ctr images pull")], {"containerd": version}
