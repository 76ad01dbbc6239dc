"""Prepare, Commit and Remove in a store of 100,000 snapshots beside one of 100: flat, or not.

Each operation is timed on an overlayfs engine in this process; a sample is the mean of `ROUND` of
them. The snapshots stand in chains of ten layers, as unpacked images do.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.figures import Figure
from lamina.config import Config
from lamina.core.snapshot import Snapshotter
from lamina.plugins import load

FEW = 100
MANY = 100_000
CHAIN = 10
ROUND = 200
RUNS = 5
TARGET = 1.5


def measure() -> tuple[list[Figure], dict[str, str]]:
    """Fill two stores, then take samples of each in turn."""
    with tempfile.TemporaryDirectory(prefix="lamina-bench-", dir="/var/tmp") as name:
        few = _filled(Path(name, "few"), FEW)
        many = _filled(Path(name, "many"), MANY)
        with few, many:
            samples = [(_sample(many, run), _sample(few, run)) for run in range(RUNS + 1)][1:]
    figures = [
        Figure(
            f"{operation}-at-{MANY}",
            [at_many[operation] for at_many, _ in samples],
            [at_few[operation] for _, at_few in samples],
            TARGET,
            f"lamina at {FEW}",
        )
        for operation in ("prepare", "commit", "remove")
    ]
    return figures, {}


def _filled(root: Path, count: int) -> Snapshotter:
    root.mkdir()
    engine = load("overlayfs", root, Config())
    parent = ""
    for number in range(count):
        parent = "" if number % CHAIN == 0 else parent
        engine.prepare(f"fill-{number}", parent)
        parent = f"layer-{number}"
        engine.commit(parent, f"fill-{number}")
    return engine


def _sample(engine: Snapshotter, run: int) -> dict[str, float]:
    """Return the mean seconds of each operation; the store is afterwards as it was before."""
    keys = [f"run-{run}-{number}" for number in range(ROUND)]
    parent = f"layer-{CHAIN - 1}"

    def each(operation: Callable[[str], object]) -> float:
        start = time.perf_counter()
        for key in keys:
            operation(key)
        return (time.perf_counter() - start) / ROUND

    times = {
        "prepare": each(lambda key: engine.prepare(key, parent)),
        "commit": each(lambda key: engine.commit(f"{key} done", key)),
        "remove": each(lambda key: engine.remove(f"{key} done")),
    }
    engine.cleanup()
    return times
