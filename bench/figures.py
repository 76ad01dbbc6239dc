"""What a benchmark yields: paired samples of ours and the peer's, and the line that judges them."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
RUNS = 5


@dataclass(frozen=True)
class Figure:
    """One figure: samples of both sides, taken in turn on the same machine.

    Attributes:
        name: as printed.
        ours: our samples, in `unit`.
        theirs: the peer's, or those of the smaller case where growth is what is judged.
        target: the ratio of medians that must not be exceeded; None for a figure that only tells.
        peer: what `theirs` measures.
    """

    name: str
    ours: list[float]
    theirs: list[float]
    target: float | None
    peer: str
    unit: str = "s"

    @property
    def ratio(self) -> float:
        """Median of ours over median of theirs."""
        return statistics.median(self.ours) / statistics.median(self.theirs)

    @property
    def met(self) -> bool:
        """Whether the target, if there is one, is met."""
        return self.target is None or self.ratio <= self.target

    def line(self) -> str:
        """Return the closing line, `figure NAME ratio=0.37 target<=0.40 ok`."""
        said = f"figure {self.name} ratio={self.ratio:.2f}"
        if self.target is None:
            return f"{said} no target"
        return f"{said} target<={self.target:.2f} {'ok' if self.met else 'MISS'}"

    def details(self) -> str:
        """Return both medians and ranges, for a reader."""
        ours, theirs = _summary(self.ours, self.unit), _summary(self.theirs, self.unit)
        return f"{self.name}: lamina {ours}; {self.peer} {theirs}"


def paired(
    ours: Callable[[], float], theirs: Callable[[], float], runs: int = RUNS
) -> tuple[list[float], list[float]]:
    """Take samples in turn, so that a drift of the machine's speed meets both sides alike."""
    samples: tuple[list[float], list[float]] = ([], [])
    for number in range(runs):
        for side, sample in (
            ((0, ours), (1, theirs)) if number % 2 == 0 else ((1, theirs), (0, ours))
        ):
            samples[side].append(sample())
    return samples


def record(name: str, figures: list[Figure], versions: dict[str, str]) -> Path:
    """Write the samples with the machine's description to `bench/results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    document = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine() | versions,
        "figures": [
            {
                "name": figure.name,
                "ratio": round(figure.ratio, 3),
                "target": figure.target,
                "unit": figure.unit,
                "lamina": [round(sample, 6) for sample in figure.ours],
                figure.peer: [round(sample, 6) for sample in figure.theirs],
            }
            for figure in figures
        ],
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path


def machine() -> dict[str, str]:
    """Describe this machine: processor, cores, memory, kernel, Python."""
    models = {
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": ", ".join(sorted(models)) or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory / 2**30:.0f} GiB",
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
    }


def _summary(samples: list[float], unit: str) -> str:
    median = statistics.median(samples)
    return f"{median:.4g} {unit} ({min(samples):.4g} to {max(samples):.4g})"
