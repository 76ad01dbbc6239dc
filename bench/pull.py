"""`lamina images pull` beside `ctr images pull`: download and unpack of a large image.

The image has three gzip layers, at least 1 GB of files and 40,000 entries. Each run starts with an
empty store, a fresh daemon for containerd (its start is not counted), and a dropped page cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from bench.figures import Figure, paired
from bench.images import build
from bench.process import CACHE, drop_caches, timed
from bench.registry import push_layout
from bench.startup import LAMINA
from tests.fixtures_containerd import running_containerd
from tests.fixtures_registry import running_registry

REPOSITORY = "bench/large"


def measure() -> tuple[list[Figure], dict[str, str]]:
    """Time whole commands; data is written to the page cache by both, and synced between runs.

    The peer is Debian's containerd, or what LAMINA_BENCH_CONTAINERD and LAMINA_BENCH_CTR name.
    """
    binary = os.environ.get("LAMINA_BENCH_CONTAINERD", "containerd")
    ctr = os.environ.get("LAMINA_BENCH_CTR", "ctr")
    extra_config = os.environ.get("LAMINA_BENCH_CONTAINERD_CONFIG", "")
    with (
        tempfile.TemporaryDirectory(prefix="lamina-bench-", dir="/var/tmp") as name,
        running_registry(Path(name, "registry")) as registry,
    ):
        reference = push_layout(registry, build(CACHE / "large"), REPOSITORY)
        options = ["--plain-http", "--snapshotter", "overlayfs", reference]

        def ours() -> float:
            root = Path(name, "root")
            drop_caches()
            seconds = timed([LAMINA, "--root", str(root), "images", "pull", *options])
            # The janitor is still making it durable; it must not run into the peer's time.
            subprocess.run([LAMINA, "--root", str(root), "snapshots", "cleanup"], check=True)
            shutil.rmtree(root)
            return seconds

        def theirs() -> float:
            directory = Path(name, "containerd")
            with running_containerd(
                directory, binary=binary, ctr=ctr, extra_config=extra_config
            ) as daemon:
                drop_caches()
                seconds = timed(daemon.argv("images", "pull", *options))
            shutil.rmtree(directory)
            return seconds

        samples = paired(ours, theirs)
        said = subprocess.run([binary, "--version"], check=True, capture_output=True, text=True)
    return [Figure("pull-unpack", *samples, 0.4, "ctr images pull")], {
        "containerd": said.stdout.split()[2]
    }
