"""Peak memory of pulling and unpacking one layer, small and large: flat, and below 150 MB."""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path

from bench.figures import RUNS, Figure
from bench.images import LARGE_LAYER, SMALL_LAYER, build
from bench.process import CACHE, peak_memory, wait_for_janitor
from bench.registry import push_layout
from bench.startup import LAMINA
from tests.fixtures_registry import running_registry

LIMIT = 150e6


def measure() -> tuple[list[Figure], dict[str, str]]:
    """Take the largest resident set of any process of the command, in bytes."""
    with (
        tempfile.TemporaryDirectory(prefix="lamina-bench-", dir="/var/tmp") as name,
        running_registry(Path(name, "registry")) as registry,
    ):
        small = push_layout(registry, build(CACHE / "small-layer", (SMALL_LAYER,)), "bench/small")
        large = push_layout(registry, build(CACHE / "large-layer", (LARGE_LAYER,)), "bench/large")
        roots = (Path(name, f"root-{number}") for number in itertools.count())
        pairs = [(_peak(next(roots), large), _peak(next(roots), small)) for _ in range(RUNS)]
    at_large, at_small = ([float(p) for p in side] for side in zip(*pairs, strict=True))
    return [
        Figure("memory-flat", at_large, at_small, 1.2, "lamina with a tenth of the layer", "B"),
        Figure("memory-peak", at_large, [LIMIT] * RUNS, 1.0, "the limit", "B"),
    ], {}


def _peak(root: Path, reference: str) -> int:
    command = [LAMINA, "--root", str(root), "images", "pull", "--quiet", "--plain-http"]
    peak = peak_memory([*command, reference])
    time.sleep(1)  # for the janitor to start
    wait_for_janitor(root)
    return peak
